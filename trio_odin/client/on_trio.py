"""The client on trio, by trio-websocket.

connect                       a nursery around the user's block
├── Driver.run                the time of the core
└── a connection × 1 or 2     dial, then receive; cancelled when the core drops it
    └── trio-websocket's reader
"""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

import h11
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)
from wsproto.utilities import ProtocolError

from trio_odin.client.connection import Position
from trio_odin.client.driver import CLOSE_SECONDS, MESSAGE_MAX_BYTES, Conn, Driver, Target
from trio_odin.client.errors import Ended, closed, failed, refused
from trio_odin.client.feed import Feed, Wish
from trio_odin.client.items import Options, Rate
from trio_odin.client.queues import Policy
from trio_odin.client.tokens import TokenSource
from trio_odin.client.urls import Address
from trio_odin.client.z1 import Download
from trio_odin.wire.errors import first_error

_T = TypeVar("_T")
_Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

_RECEIVE_BYTES: Final = 4096
_NORMAL: Final = 1000
_FAILURES = (
    Ended,
    HandshakeError,  # a rejection is one
    OSError,
    UnicodeError,  # of a name that cannot be a host's
    h11.ProtocolError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    # trio-websocket answers a ping that comes while it closes, which wsproto does not allow.
    ProtocolError,
)


@asynccontextmanager
async def connect(
    url: str | Sequence[str],
    channels: str | Sequence[str] = (),
    *,
    every_ms: Rate = 0,
    snapshot: bool = True,
    after: Position | None = None,
    token: TokenSource | None = None,
    options: Options | None = None,
    queue: Policy = "newest",
    ssl: ssl_module.SSLContext | None = None,
    compression: bool = True,
) -> AsyncIterator[Feed]:
    """Connect to a server, and connect again whenever that is needed, until the block ends.

    The block begins at once; `Feed.wait_live` waits until the server has answered.

    Args:
        url: `wss://prices.example.com/ws`, or several URLs, which are tried in turn.
        channels: a name such as `BTC.trade` or `*.liquidity`, or several of them.
        every_ms: at most one event of each channel in so many milliseconds; 0: all; None: paused.
        snapshot: whether the newest event of each channel comes first.
        after: begin with what follows this position: a `Feed.position` of an earlier run, not that
            of its last event, before which others may be missing. What the server no longer keeps
            is reported as a gap.
        token: a JSON Web Token, or a function that gives one, which may be asynchronous. It is
            called before the first connection, before a token expires, and when one is refused.
        options: times and limits.
        queue: what happens to events that you do not take in time. `newest` keeps the newest event
            of each channel, which counts the others as `skipped`. `wait` keeps a thousand, then
            does not read on: the server's policy for slow clients applies.
        ssl: for `wss`, instead of the default.
        compression: whether to ask for `trio-odin.z1`, less than half of the bytes.

    Raises:
        ClientError: a URL or a name is malformed; in a loop over the feed: the server has said no
            for good, or what answers at the only URL is no such server.

    Redirects are not followed, and proxies of the environment are not used.

    An exception of the block comes out as it is. The block ends in order, within a second; if it is
    cancelled, the sockets are cut.
    """
    target = Target.of(url, token=token, options=options, is_compressed=compression)
    wish = Wish.of(channels, every_ms, snapshot, queue, after)
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            driver = _TrioDriver(target, nursery, ssl)
            feed = Feed(driver, wish)
            nursery.start_soon(driver.run)
            try:
                yield feed
            except BaseException as caught:
                if _is_end(caught):
                    driver.abandon()
                    raise
                error = caught  # raised below, without a group around it
            await feed.aclose()
            nursery.cancel_scope.cancel(reason="the feed is closed")
    finally:
        try:
            if error is not None:
                raise error
        finally:
            del error  # it has this frame in its traceback


class _TrioDriver(Driver):
    def __init__(
        self, target: Target, nursery: trio.Nursery, ssl: ssl_module.SSLContext | None
    ) -> None:
        super().__init__(target)
        self._nursery = nursery
        self._ssl = ssl

    def new_signal(self) -> trio.Event:
        return trio.Event()

    def start(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        self._nursery.start_soon(function, *args)

    async def within(self, seconds: float, function: Callable[[], Awaitable[_T]]) -> _T | None:
        with trio.move_on_after(max(0, seconds)):
            return await function()
        return None

    async def serve(self, conn: Conn) -> Ended:
        conn.handle = trio.CancelScope()
        if conn.close_code is not None:  # before it began
            conn.handle.cancel()
        ended = Ended(_NORMAL, "")
        try:
            await self._converse(conn)
        except* _FAILURES as group:
            ended = _ended(conn.address, first_error(group))
        return ended

    def cut(self, conn: Conn) -> None:
        if conn.handle is not None:
            conn.handle.cancel(reason="the connection is not needed any longer")

    async def _converse(self, conn: Conn) -> None:
        stream: _Stream | None = None
        try:
            async with trio.open_nursery() as nursery:
                websocket: WebSocketConnection | None = None
                scope: trio.CancelScope = conn.handle
                with scope:
                    stream = await self._open(conn.address)
                    websocket = await _shake_hands(nursery, stream, conn)
                    await self.follow(conn, _TrioSocket(websocket))
                if websocket is not None and conn.close_code == _NORMAL:
                    with trio.move_on_after(CLOSE_SECONDS):
                        await websocket.aclose()
                nursery.cancel_scope.cancel(reason="the connection has ended")
        finally:
            if stream is not None:
                await trio.aclose_forcefully(stream)

    async def _open(self, address: Address) -> _Stream:
        stream = await trio.open_tcp_stream(address.host, address.port)
        if not address.is_tls:
            return stream
        context = self._ssl or _default_tls()
        tls = trio.SSLStream(stream, context, server_hostname=address.host, https_compatible=True)
        try:
            await tls.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(tls)
            raise
        return tls

    async def fetch(self, address: Address, path: str) -> bytes:
        download = Download(address.authority, path)
        stream = await self._open(address)
        try:
            await stream.send_all(download.request)
            while (body := download.take(await stream.receive_some(_RECEIVE_BYTES))) is None:
                pass
            return body
        finally:
            await trio.aclose_forcefully(stream)


class _TrioSocket:
    """A socket of trio-websocket for the driver."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self.protocol = websocket.subprotocol
        self._websocket = websocket

    async def receive(self) -> str | bytes:
        try:
            return await self._websocket.get_message()
        except ConnectionClosed as error:
            raise self._closed(error) from error

    async def send(self, text: str) -> None:
        try:
            await self._websocket.send_message(text)
        except ConnectionClosed as error:
            raise self._closed(error) from error

    def _closed(self, error: ConnectionClosed) -> Ended:
        # trio-websocket also has a reason if it was the one that found a fault. What came is
        # nothing that the server has said, and may be better the next time.
        by_server = self._websocket._for_testing_peer_closed_connection.is_set()  # noqa: SLF001
        if error.reason is None or not by_server:
            return closed(None, None)
        return closed(error.reason.code, error.reason.reason)


class _HandshakeStream(trio.abc.Stream):
    """A stream whose end is an error while the handshake goes on.

    trio-websocket would wait for an answer to the handshake even when the connection has ended.
    """

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self.is_open = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.is_open:
            return await self._stream.receive_some(max_bytes)
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError as error:
            raise failed(error) from error
        if not data and not self.is_open:
            raise Ended(1006, "it closed the connection without an answer")
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _shake_hands(nursery: trio.Nursery, stream: _Stream, conn: Conn) -> WebSocketConnection:
    headers = [] if conn.token is None else [(b"Authorization", f"Bearer {conn.token}".encode())]
    watched = _HandshakeStream(stream)
    websocket = await wrap_client_stream(
        nursery,
        cast("Any", watched),  # annotated for sockets only, but any trio stream works
        conn.address.authority,
        conn.address.resource,
        subprotocols=conn.offers,
        extra_headers=headers,
        max_message_size=MESSAGE_MAX_BYTES,
        receive_buffer_size=_RECEIVE_BYTES,
    )
    watched.is_open = True
    return websocket


def _is_end(error: BaseException) -> bool:
    """Whether the block was cut off, and has not failed; a nursery gives that in a group."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled | GeneratorExit)


def _ended(address: Address, failure: BaseException) -> Ended:
    if isinstance(failure, ConnectionRejected):
        headers = dict(failure.headers)
        text = (failure.body or b"").decode(errors="replace")
        wait, location = (
            headers.get(name, b"").decode("ascii", "replace")
            for name in (b"retry-after", b"location")
        )
        return refused(address.shown, failure.status_code, text, wait, location)
    return failed(failure)


@lru_cache(maxsize=1)
def _default_tls() -> ssl_module.SSLContext:
    """One for all feeds: loading the authorities takes 20 ms and half a megabyte."""
    return ssl_module.create_default_context()
