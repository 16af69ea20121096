"""The client against a server that sends what it should not, on both libraries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    serve_websocket,
)

from tests.client.rig import Library, recording
from tests.waiting import wait_until
from trio_odin.client import Options

HASTY = Options(retry_min_ms=20, retry_max_ms=50)


@asynccontextmanager
async def serving(answer: Callable[[WebSocketRequest], Awaitable[None]]) -> AsyncIterator[str]:
    """A WebSocket server; gives its URL."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, answer, "127.0.0.1", 0, None)
        yield f"ws://127.0.0.1:{server.port}/odin/ws"
        nursery.cancel_scope.cancel(reason="end of the test")


async def send(websocket: WebSocketConnection, *messages: str | bytes) -> None:
    """Send, and wait until the client has closed."""
    with suppress(ConnectionClosed):
        for message in messages:
            await websocket.send_message(message)
        while True:
            await websocket.get_message()


@pytest.mark.parametrize(
    "message",
    [
        "{}}",
        "{}{",
        '{"id":1}',
        '{"type":"price:update","seq":1}',
        '{"type":"price:update","seq":"x","channel":[],"data":1,"ts":1}',
        '{"type":"pong","nats":7}x',
        '{"a":' + "[" * 5000 + "]" * 5000 + "}",
    ],
)
async def test_a_malformed_message_ends_the_connection_and_not_the_program(
    library: Library, message: str
) -> None:
    connections = 0

    async def answer(request: WebSocketRequest) -> None:
        nonlocal connections
        connections += 1
        websocket = await request.accept(subprotocol="trio-odin")
        await send(websocket, b"not for us", message)

    async with (
        serving(answer) as url,
        recording(library, url, "BTC.trade", options=HASTY) as client,
    ):
        await wait_until(lambda: connections > 2 or client.is_over)
        assert client.failure is None
        causes = {state.cause for state in client.states if state.name == "offline"}
        assert all("cannot be read" in one or "unreadable message" in one for one in causes), causes
        assert causes


async def test_without_its_dictionary_an_address_gets_text_from_then_on(library: Library) -> None:
    offered = []

    async def answer(request: WebSocketRequest) -> None:
        offered.append(request.proposed_subprotocols)
        # Other tests may have loaded a dictionary, which is offered first then.
        plain = [
            one for one in request.proposed_subprotocols if not one.startswith("trio-odin.z1.")
        ]
        websocket = await request.accept(subprotocol=plain[0])
        if len(offered) == 1:
            identity = "0123456789abcdef"
            url = f"/dictionary/{identity}"
            await send(websocket, f'{{"type":"dictionary","id":"{identity}","url":"{url}"}}')

    async with (
        serving(answer) as url,
        recording(library, url, "BTC.trade", options=HASTY) as client,
    ):
        await wait_until(lambda: len(offered) > 2 or client.is_over)
        causes = [state.cause for state in client.states if state.name == "offline"]
        assert "'/odin/dictionary/0123456789abcdef' answers 400" in causes[0]
    assert "trio-odin.z1" in offered[0]
    assert all(tuple(one) == ("trio-odin",) for one in offered[1:])
