"""The whole tree in this process, over real sockets of the loopback, and without NATS."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import trio
from structlog.testing import capture_logs

from tests.server_rig import UPGRADE
from tests.waiting import wait_until
from trio_odin.server import Server, serve
from trio_odin.settings.reading import read_settings
from trio_odin.wire.dictionary import built_in


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


async def test_the_log_has_the_dictionary_and_what_rates_skipped(nursery: trio.Nursery) -> None:
    variables = {
        "WS_ADDR": "127.0.0.1:0",
        "NATS_URL": "nats://127.0.0.1:1",
        "METRICS_INTERVAL": "1s",
    }
    with capture_logs() as lines:
        server: Server = await nursery.start(serve, read_settings(variables))
        server.ledger.deliveries.matched = server.ledger.deliveries.skipped = 3
        with trio.fail_after(30):
            await wait_until(lambda: any(line["event"] == "summary" for line in lines))
            server.drain()
            await server.finished.wait()
    by_event = {line["event"]: line for line in lines}
    assert by_event["server.listening"]["dictionary"] == built_in().id
    assert by_event["summary"]["skipped"] == 3
    assert by_event["drain.finished"]["skipped"] == 3
    assert by_event["drain.finished"]["imbalance"] == 0


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
