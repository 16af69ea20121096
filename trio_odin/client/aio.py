"""The client on asyncio, by `websockets`, of the extra `client`. It does not load trio.

connect                       a TaskGroup around the user's block
├── Driver.run                the time of the core
└── a connection × 1 or 2     dial, then receive; cancelled when the core drops it
"""

from __future__ import annotations

import asyncio
import ssl as ssl_module
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Final, TypeVar

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from trio_odin.client.connection import Position
from trio_odin.client.driver import CLOSE_SECONDS, MESSAGE_MAX_BYTES, Conn, Driver, Target
from trio_odin.client.errors import Ended, closed, failed, refused
from trio_odin.client.feed import Feed, Wish
from trio_odin.client.items import Options, Rate
from trio_odin.client.queues import Policy
from trio_odin.client.tokens import TokenSource
from trio_odin.client.urls import Address
from trio_odin.client.z1 import Download

_T = TypeVar("_T")

_RECEIVE_BYTES: Final = 4096
_NORMAL: Final = 1000
# Frames that wait for the driver before the library stops reading.
_FRAMES_MAX: Final = 16
_FAILURES = (Ended, WebSocketException, OSError, UnicodeError, EOFError)


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

    It is the same as `trio_odin.client.connect`, for asyncio.
    """
    target = Target.of(url, token=token, options=options, is_compressed=compression)
    wish = Wish.of(channels, every_ms, snapshot, queue, after)
    error: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            driver = _AsyncioDriver(target, group, ssl)
            feed = Feed(driver, wish)
            driver.start(driver.run)
            try:
                yield feed
            except (asyncio.CancelledError, GeneratorExit):
                driver.abandon()
                raise
            except BaseException as caught:  # noqa: BLE001 - raised below, without a group around
                error = caught
            await feed.aclose()
            driver.end()
    finally:
        try:
            if error is not None:
                raise error
        finally:
            del error  # it has this frame in its traceback


class _AsyncioDriver(Driver):
    def __init__(
        self, target: Target, group: asyncio.TaskGroup, ssl: ssl_module.SSLContext | None
    ) -> None:
        super().__init__(target)
        self._group = group
        self._ssl = ssl
        self._tasks: set[asyncio.Task[None]] = set()

    def new_signal(self) -> asyncio.Event:
        return asyncio.Event()

    def start(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        async def run() -> None:
            await function(*args)

        task = self._group.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def within(self, seconds: float, function: Callable[[], Awaitable[_T]]) -> _T | None:
        delay = None if seconds == float("inf") else max(0, seconds)
        timeout = asyncio.timeout(delay)
        try:
            async with timeout:
                return await function()
        except TimeoutError:
            if not timeout.expired():
                raise  # of the function itself
            return None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # What the function waited for was cancelled, and not this task, which nobody awaits.
            raise RuntimeError("what it waited for was cancelled") from None

    async def serve(self, conn: Conn) -> Ended:
        conn.handle = asyncio.current_task()
        websocket: ClientConnection | None = None
        try:
            if conn.close_code is None:
                websocket = await self._open(conn)
                await self.follow(conn, _AsyncioSocket(websocket))
        except _FAILURES as failure:
            return _ended(conn.address, failure)
        except asyncio.CancelledError:
            if conn.close_code is None:
                raise
            conn.handle.uncancel()
        finally:
            if websocket is not None:
                await _close(websocket, conn)
        return Ended(_NORMAL, "")

    def cut(self, conn: Conn) -> None:
        if conn.handle is not None:
            conn.handle.cancel()

    async def _open(self, conn: Conn) -> ClientConnection:
        address = conn.address
        scheme = "wss" if address.is_tls else "ws"
        headers = [] if conn.token is None else [("Authorization", f"Bearer {conn.token}")]
        return await _Opening(
            f"{scheme}://{address.authority}{address.resource}",
            subprotocols=[Subprotocol(one) for one in conn.offers],
            additional_headers=headers,
            ssl=self._tls(address),
            compression=None,
            proxy=None,
            # The core has these times; the last one is how long `close` waits.
            open_timeout=None,
            ping_interval=None,
            close_timeout=CLOSE_SECONDS,
            max_size=MESSAGE_MAX_BYTES,
            max_queue=_FRAMES_MAX,
        )

    def _tls(self, address: Address) -> ssl_module.SSLContext | None:
        return (self._ssl or _default_tls()) if address.is_tls else None

    async def fetch(self, address: Address, path: str) -> bytes:
        download = Download(address.authority, path)
        reader, writer = await asyncio.open_connection(
            address.host, address.port, ssl=self._tls(address), limit=_RECEIVE_BYTES
        )
        try:
            writer.write(download.request)
            while (body := download.take(await reader.read(_RECEIVE_BYTES))) is None:
                pass
            return body
        finally:
            writer.transport.abort()


class _Opening(open_websocket):
    """A handshake that follows no redirect, as on trio."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Keep the answer, which is an error."""
        return exc


class _AsyncioSocket:
    """A socket of `websockets` for the driver."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.protocol: str | None = websocket.subprotocol
        self._websocket = websocket

    async def receive(self) -> str | bytes:
        try:
            return await self._websocket.recv()
        except ConnectionClosed as error:
            raise _closed(error) from error

    async def send(self, text: str) -> None:
        try:
            await self._websocket.send(text)
        except ConnectionClosed as error:
            raise _closed(error) from error


async def _close(websocket: ClientConnection, conn: Conn) -> None:
    try:
        if conn.close_code == _NORMAL:
            await websocket.close()
    finally:
        websocket.transport.abort()


def _closed(error: ConnectionClosed) -> Ended:
    # Without a close frame of the server: lost, or it sent what cannot be, which may pass.
    return closed(error.rcvd.code, error.rcvd.reason) if error.rcvd else closed(None, None)


def _ended(address: Address, failure: BaseException) -> Ended:
    if isinstance(failure, InvalidStatus):
        response = failure.response
        text = (response.body or b"").decode(errors="replace")
        headers = response.headers
        return refused(
            address.shown,
            response.status_code,
            text,
            headers.get("Retry-After"),
            headers.get("Location"),
        )
    return failed(failure)


@lru_cache(maxsize=1)
def _default_tls() -> ssl_module.SSLContext:
    """One for all feeds: loading the authorities takes 20 ms and half a megabyte."""
    return ssl_module.create_default_context()
