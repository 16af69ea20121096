"""The client against a server that sends what it should not, on both libraries."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

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
from trio_odin.client import ClientError, Options, aio, on_trio

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


def _frame(opcode: int, payload: bytes, *, bits: int = 0x80) -> bytes:
    return bytes([bits | opcode, len(payload)]) + payload


@asynccontextmanager
async def raw(*frames: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers the first command with these bytes; its URL, and its requests."""
    requests: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some()
            requests.append(head)
            key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)
            assert key is not None
            digest = hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            await stream.send_all(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
            )
            with suppress(trio.BrokenResourceError):
                await stream.receive_some()  # the first command
                for frame in frames:
                    await stream.send_all(frame)
                await stream.receive_some()  # a close frame, or the end

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/ws", requests
        nursery.cancel_scope.cancel(reason="end of the test")


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(_frame(1, b"{}", bits=0xF0), id="reserved-bits"),
        pytest.param(_frame(1, b"\xff\xfe"), id="no-utf-8"),
        pytest.param(b"\x81\xff\xff" + b"\xff" * 7, id="huge"),
        pytest.param(_frame(3, b""), id="unknown-opcode"),
    ],
)
async def test_what_the_client_finds_wrong_is_not_the_servers_last_word(
    library: Library, frame: bytes
) -> None:
    """It closes with 1002 or 1007 itself, and connects again."""
    async with (
        raw(frame) as (url, requests),
        recording(library, url, "BTC.trade", options=HASTY) as client,
    ):
        await wait_until(lambda: len(requests) > 2 or client.is_over)
        assert client.failure is None
        causes = {state.cause for state in client.states if state.name == "offline"}
        assert causes == {"the connection was lost"}


async def test_a_message_that_is_too_large_is_not_the_servers_last_word(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shell in (aio, on_trio):
        monkeypatch.setattr(shell, "MESSAGE_MAX_BYTES", 1000)
    async with (
        raw(*[b"\x81\x7e" + (1200).to_bytes(2) + b" " * 1200] * 2) as (url, requests),
        recording(library, url, "BTC.trade", options=HASTY) as client,
    ):
        await wait_until(lambda: len(requests) > 2 or client.is_over)
        assert client.failure is None


@pytest.mark.parametrize("code", [1002, 1007, 1009])
async def test_a_server_that_says_so_has_the_last_word(library: Library, code: int) -> None:
    frame = _frame(8, code.to_bytes(2) + b"you do it wrong")
    async with (
        raw(frame) as (url, requests),
        recording(library, url, "BTC.trade", options=HASTY) as client,
    ):
        await client.until_over()
    assert isinstance(client.failure, ClientError)
    assert "you do it wrong" in str(client.failure)
    assert len(requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(library: Library, status: int) -> None:
    """It would show the token to another server than the one that was named."""

    async def redirect(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(
                f"HTTP/1.1 {status} Elsewhere\r\nLocation: {there}?access_token=SECRET\r\n"
                "Content-Length: 0\r\n\r\n".encode()
            )

    async with raw() as (there, requests), trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, redirect, [listener])
        url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/ws"
        async with recording(library, url, "BTC.trade", token="a.b.c") as client:
            await client.until_over()
        assert str(client.failure) == (
            f"{url}: the server answers {status}: it redirects to {there}, which is not followed"
        )
        assert requests == []
        nursery.cancel_scope.cancel(reason="end of the test")


@pytest.mark.parametrize(
    "token",
    [None, b"a.b.c", 7, "", "a.b.c\r\nX-Evil: 1", "a b", "a.b.c\n", "\ud800", "é", ["a.b.c"]],
)
async def test_what_is_no_token_is_an_error_and_is_not_sent(library: Library, token: Any) -> None:
    async def later() -> Any:
        return token

    async with raw() as (url, requests):
        for source in (lambda: token, later):
            async with recording(library, url, "BTC.trade", token=source) as client:
                await client.until_over()
            assert isinstance(client.failure, ClientError)
            assert str(client.failure).startswith(f"{url}: the token ")
            assert client.states[-1].name == "closed"
            assert "Evil" not in str(client.failure)
        if token is not None:
            async with recording(library, url, "BTC.trade", token=token) as client:
                await client.until_over()
            assert isinstance(client.failure, ClientError)
        assert requests == []


async def test_a_token_function_that_is_cancelled_is_called_again(library: Library) -> None:
    """On asyncio anything that it waits for may have been cancelled."""
    calls = 0

    async def token() -> str:
        nonlocal calls
        calls += 1
        if library == "asyncio":
            gone = asyncio.get_running_loop().create_future()
            gone.cancel()
            await gone
        raise RuntimeError("as on asyncio")

    async with raw() as (url, _), recording(library, url, token=token, options=HASTY) as client:
        await wait_until(lambda: calls > 2 or client.is_over)
        assert client.failure is None
