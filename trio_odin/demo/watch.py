"""`trio-odin watch`: a client for people. It subscribes and shows the messages it receives."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

import h11
import msgspec
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)

from trio_odin.wire.channels import CHANNEL_RULE, is_name
from trio_odin.wire.errors import first_error

_CONNECT_SECONDS = 10.0
_CLOSE_SECONDS = 10.0
_PORTS = {"ws": 80, "wss": 443}
_NORMAL_CODES = {1000, 1001}
_REFUSALS = {400, 401, 403, 429, 503}
_FAILURES = (
    ConnectionClosed,
    HandshakeError,  # a rejection is one
    OSError,
    UnicodeError,  # of a name that cannot be a host's
    h11.ProtocolError,
    trio.BrokenResourceError,
    trio.TooSlowError,
)


class WatchError(Exception):
    """The server cannot be watched; the message is one sentence."""


async def watch(
    url: str, channels: Sequence[str], show: Callable[[str], bool], *, with_snapshot: bool = False
) -> str:
    """Subscribe to `channels` at `url` and `show` each message unchanged, the reply first.

    Channels may be patterns. `with_snapshot` asks for the newest event of each channel.

    Returns the reason for the end: the server closed in order (1000, 1001), or `show` returned
    False.

    Raises:
        WatchError: a name is not a channel; or the server was not reached, refused the
            connection, or closed it with another code.

    Cancellation cuts the connection.
    """
    for name in channels:
        if not is_name(name):
            raise WatchError(f"{name!r}: {CHANNEL_RULE}; or * for a part, or > for all")
    parts = _parts(url)
    url = _shown(url)
    failure: BaseException | None = None
    try:
        async with _open(parts) as websocket:
            command: dict[str, object] = {"type": "subscribe", "channels": list(channels)}
            if with_snapshot:
                command["snapshot"] = True
            await _show_all(websocket, command, show)
    except* _FAILURES as group:
        failure = first_error(group)
    if isinstance(failure, ConnectionClosed) and _code_of(failure) in _NORMAL_CODES:
        return _closed(url, failure)
    if failure is not None:
        _fail(url, failure)
    return "nobody reads any more"


def _parts(url: str) -> SplitResult:
    """Split a WebSocket URL; raises WatchError for anything else."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or parts.port == 0:
            raise ValueError("allowed is a URL like ws://127.0.0.1:3002/ws")
    except ValueError as error:
        raise WatchError(f"cannot connect to {_shown(url)}: {error}") from error
    return parts


def _shown(url: str) -> str:
    """The URL without the parts that may be secret: a token in its query, a password."""
    scheme, separator, rest = url.partition("?")[0].rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


@asynccontextmanager
async def _open(parts: SplitResult) -> AsyncIterator[WebSocketConnection]:
    # trio-websocket's own way to connect leaves out the brackets of an IPv6 address.
    authority = parts.netloc.rpartition("@")[2]
    resource = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] | None = None
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(_CONNECT_SECONDS):
                stream = await _connect(parts)
                if isinstance(stream, trio.SSLStream):
                    await stream.do_handshake()
                websocket = await wrap_client_stream(nursery, stream, authority, resource)
            yield websocket
            with trio.move_on_after(_CLOSE_SECONDS):
                await websocket.aclose()
            nursery.cancel_scope.cancel(reason="watching has ended")
    finally:
        if stream is not None:
            await trio.aclose_forcefully(stream)


async def _connect(parts: SplitResult) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    if parts.scheme == "ws":
        return await trio.open_tcp_stream(host, port)
    return await trio.open_ssl_over_tcp_stream(host, port, https_compatible=True)


async def _show_all(
    websocket: WebSocketConnection, command: dict[str, object], show: Callable[[str], bool]
) -> None:
    await websocket.send_message(msgspec.json.encode(command).decode())
    while show(str(await websocket.get_message())):
        pass


def _fail(url: str, failure: BaseException) -> NoReturn:
    if isinstance(failure, ConnectionRejected):
        why = (failure.body or b"").decode(errors="replace").strip().partition("\n")[0]
        if failure.status_code not in _REFUSALS:
            why = f"there is no WebSocket, is it {urlsplit(url)._replace(path='/ws').geturl()} ?"
        sentence = f"{url} answers {failure.status_code}: {why}"
    elif isinstance(failure, ConnectionClosed):
        sentence = _closed(url, failure)
    else:
        sentence = f"cannot connect to {url}: {_reason(failure)}"
    raise WatchError(sentence) from failure


def _code_of(closed: ConnectionClosed) -> int:
    return closed.reason.code if closed.reason else 1006


def _closed(url: str, closed: ConnectionClosed) -> str:
    text = closed.reason.reason if closed.reason else None
    return f"{url} closed with {_code_of(closed)} {text or ''}".rstrip()


def _reason(failure: BaseException) -> str:
    """Why there is no connection: the error nearest to the network that has a message."""
    if isinstance(failure, trio.TooSlowError):
        return f"no answer within {_CONNECT_SECONDS:g} s"
    if isinstance(failure, h11.ProtocolError):
        return "what answers does not speak HTTP, is it wss:// ?"
    causes = list(_causes(failure))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"it does not speak TLS, is it ws:// ? ({cause.reason or cause})"
    said = [str(cause) for cause in reversed(causes) if str(cause)]
    return said[0] if said else "it closed the connection without an answer"


def _causes(failure: BaseException | None) -> Iterator[BaseException]:
    while failure is not None:
        failure = first_error(failure)
        yield failure
        failure = failure.__cause__
