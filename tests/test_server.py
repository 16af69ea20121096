"""The whole tree in this process, over real sockets of the loopback, and without NATS."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import trio

from tests.server_rig import UPGRADE
from tests.waiting import wait_until
from trio_odin.server import Server, serve
from trio_odin.settings.reading import read_settings


async def test_a_server_that_hands_over_answers_all_accepted_clients(
    nursery: trio.Nursery,
) -> None:
    variables = {"WS_ADDR": "127.0.0.1:0", "NATS_URL": "nats://127.0.0.1:1", "WS_ACCEPT_RATE": "20"}
    server: Server = await nursery.start(serve, read_settings(variables))
    (address,) = server.addresses
    answers: list[bytes] = []

    async def come() -> None:
        async with await trio.open_tcp_stream(address.host, address.port) as client:
            await client.send_all(UPGRADE)
            answers.append((await client.receive_some())[:12])

    with trio.fail_after(30):
        async with trio.open_nursery() as clients:
            for _ in range(30):
                clients.start_soon(come)
            while server.listener.unanswered + len(answers) < 30:
                await trio.sleep(0.001)
            assert len(answers) < 20, "most wait for their turn"
            server.hand_over()
        await server.finished.wait()
    assert answers == [b"HTTP/1.1 101"] * 30


class Node:
    """Part of a cycle: only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def no_collections_by_count() -> Iterator[None]:
    """Garbage stays until somebody collects."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.usefixtures("no_collections_by_count")
async def test_a_server_collects_what_is_young_before_it_becomes_much(
    nursery: trio.Nursery,
) -> None:
    variables = {"WS_ADDR": "127.0.0.1:0", "NATS_URL": "nats://127.0.0.1:1"}
    await nursery.start(serve, read_settings(variables))
    gone = weakref.ref(Node())
    assert gone() is not None
    await wait_until(lambda: gone() is None)
    nursery.cancel_scope.cancel(reason="the test is over")
