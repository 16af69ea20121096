"""Plain HTTP/1.1 over a trio stream, one request per connection (h11 does the protocol).

One request per connection keeps this small and safe: there are no idle keep-alive connections to
count, and no WebSocket upgrade can hide after an earlier request. The clients are health checks,
Prometheus and people with a browser; none of them gains from keep-alive.
"""

from __future__ import annotations

import string
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

import attrs
import h11
import msgspec
import trio

BODY_MAX_BYTES = 64 * 1024
_RECEIVE_BYTES = 4 * 1024
_LINES_BESIDE = 2  # the request line, and the empty line at the end
_VERSIONS = {b"1.0", b"1.1"}
# Errors that answer a good request, which has been read to its end.
_OURS_ALONE = {HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE}
END_OF_HEAD = b"\r\n\r\n"
# Other protocols that reach the port: TLS, and the two versions of what HAProxy calls send-proxy.
_TLS_HANDSHAKE = b"\x16\x03"
_PROXY_PROTOCOL = (b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n")
# RFC 9112, 2.2 and 3.1: empty lines, then a method, which is a token.
_FIRST_BYTES = frozenset(b"\r\n!#$%&'*+-.^_`|~" + string.ascii_letters.encode() + b"0123456789")
# How long, and how much, to keep reading after an error, so that no reset loses the answer.
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 1024 * 1024

Headers: TypeAlias = Sequence[tuple[str, str]]


class HeadLimits(NamedTuple):
    """The limits for the head of a request. One with more bytes or more headers gets a 431."""

    max_bytes: int = 16 * 1024
    max_headers: int = 64

    def excess(self, head: bytes) -> str | None:
        """Return why `head` is too large; None if it is not. Does not parse it."""
        if len(head) > self.max_bytes or head.count(b"\r\n") > self.max_headers + _LINES_BESIDE:
            return f"At most {self.max_headers} headers in {self.max_bytes} bytes"
        return None


HEAD_LIMITS: Final = HeadLimits()


@attrs.frozen
class Request:
    """A complete request. `path` is decoded, `query` is not; header names are lower case."""

    method: str
    path: str
    headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""
    query: bytes = b""


@attrs.frozen
class Response:
    """An answer. Length, connection and CORS headers are added when it is sent.

    Attributes:
        is_public: whether pages of other sites may read it.
        stream: sends a body whose length is not known, which ends with the connection. It is
            cancelled when the peer goes away.
        on_end: called once, after all that is sent, and also if nothing is: the peer has gone or
            takes nothing, or the task is cancelled. It has to shield what it waits for.
    """

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Headers = ()
    is_public: bool = True
    stream: Callable[[trio.abc.SendStream], Awaitable[None]] | None = None
    on_end: Callable[[], Awaitable[None]] | None = None

    @classmethod
    def text(cls, status: int, text: str, *, headers: Headers = ()) -> Response:
        """Return an answer of plain text. A line end is added."""
        return cls(status, f"{text}\n".encode(), headers=headers)

    @classmethod
    def json(cls, status: int, content: object) -> Response:
        """Return an answer of JSON. `content` is any object that msgspec can encode."""
        return cls(status, msgspec.json.encode(content), "application/json")


_INTERNAL_ERROR = Response.text(500, "Internal error: the log says which")
Respond: TypeAlias = Callable[[Request], Awaitable[Response]]


class _BadRequest(Exception):
    """Ends the request with `status`. The message is the text of the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.response = Response.text(status, text)


def foreign_protocol(received: bytes | bytearray) -> str | None:
    """Return what `received` is instead of HTTP, in a sentence; None if it may become a request."""
    if received.startswith(_TLS_HANDSHAKE):
        return "This port speaks plain HTTP; TLS belongs to the proxy in front"
    if received.startswith(_PROXY_PROTOCOL):
        return (
            "The PROXY protocol is not spoken here: switch it off in the load balancer "
            "(client addresses come from X-Forwarded-For, see WS_TRUSTED_PROXIES)"
        )
    if received and received[0] not in _FIRST_BYTES:
        return "Not HTTP"
    return None


async def receive_head(
    stream: trio.abc.ReceiveStream, received_already: bytes = b"", *, max_bytes: int
) -> bytes:
    """Receive until the head of a request is complete or too long, is not HTTP, or the peer ends.

    Returns:
        What was received, at most a little over `max_bytes`: the head, perhaps with bytes
        after it, or a part of a head if the peer ended or sent too much. Empty if it sent
        nothing.

    Cancellation loses what was received: close the stream.
    """
    received = bytearray(received_already)
    searched = 0
    while received.find(END_OF_HEAD, searched) < 0 and len(received) <= max_bytes:
        if foreign_protocol(received) is not None:
            break  # the peer would wait for an answer, and we for the end of a head
        # A head that arrives byte by byte must not be searched from its start for each byte.
        searched = max(0, len(received) + 1 - len(END_OF_HEAD))
        chunk = await stream.receive_some(_RECEIVE_BYTES)
        if not chunk:
            break
        received += chunk
    return bytes(received)


async def serve_request(
    stream: trio.abc.Stream,
    respond: Respond,
    *,
    received: bytes = b"",
    limits: HeadLimits = HEAD_LIMITS,
    deadline_seconds: float = 10,
    is_public: bool = True,
) -> int | None:
    """Answer the one request on `stream`, then close it.

    `received` are bytes already taken from the stream. A mistake of the peer gets a clean status
    (400, 408, 413, 431, 501, 505); a peer that goes away is not an error. Without `is_public`
    pages of other sites can read no answer, whatever the answer itself says.

    Returns:
        The status of the answer; None if there was no request.

    Error handling: if `respond` raises, the peer gets a 500, and the exception propagates.

    Cancellation closes the stream at once.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.max_bytes)
    if received:  # h11 treats empty data as the end of the stream
        connection.receive_data(received)
    method = "GET"
    async with stream:
        try:
            with trio.fail_after(deadline_seconds):
                request = await _receive_request(connection, stream, limits)
                if request is None:
                    return None
                method = request.method
                response = await respond(request)
        except trio.TooSlowError:
            response = Response.text(408, "Request not complete in time")
        except _BadRequest as error:
            response = error.response
        except h11.RemoteProtocolError as error:
            # A frame of h11 refers to the error, and the error to its frames: all would stay.
            error.__traceback__ = None
            # After a colon h11 quotes from the request, where a secret of the client may be.
            reason = str(error).partition(":")[0]
            response = Response.text(error.error_status_hint, f"Bad request: {reason}")
        except trio.BrokenResourceError:
            return None
        except Exception:
            response = attrs.evolve(_INTERNAL_ERROR, is_public=is_public)
            await send_last(stream, response, deadline_seconds, method=method)
            raise
        response = attrs.evolve(response, is_public=is_public and response.is_public)
        await send_last(stream, response, deadline_seconds, method=method)
        return response.status


async def send_last_bytes(stream: trio.abc.Stream, data: bytes, deadline_seconds: float) -> None:
    """Send `data`, with time for the peer to read it, and close."""
    async with stream:
        with trio.move_on_after(deadline_seconds):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await stream.send_all(data)
            await linger(stream)


async def send_last(
    stream: trio.abc.Stream, response: Response, deadline_seconds: float, *, method: str = "GET"
) -> None:
    """Send `response` and close. A client that was refused may still be sending: see `linger`."""
    async with stream:
        try:
            if response.stream is not None and method != "HEAD":
                await _send_stream(stream, response, response.stream, deadline_seconds)
                return
            with trio.move_on_after(deadline_seconds):
                await send_response(stream, response, method=method)
                if response.status >= HTTPStatus.BAD_REQUEST and response.status not in _OURS_ALONE:
                    await linger(stream)
        finally:
            if response.on_end is not None:
                await response.on_end()


async def _send_stream(
    stream: trio.abc.Stream,
    response: Response,
    send_body: Callable[[trio.abc.SendStream], Awaitable[None]],
    deadline_seconds: float,
) -> None:
    """Send the head, then let `send_body` send the rest, until the peer goes away."""
    with trio.move_on_after(deadline_seconds) as deadline:
        await send_response(stream, response)
    if deadline.cancelled_caught:
        return
    async with trio.open_nursery() as nursery:

        async def end_with_peer() -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while await stream.receive_some(_RECEIVE_BYTES):
                    pass
            nursery.cancel_scope.cancel(reason="the peer has gone")

        nursery.start_soon(end_with_peer)
        try:
            await send_body(stream)
        # Python 3.11's `suppress` does not look into the group of a nursery in `send_body`.
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel(reason="the body is complete")


async def _receive_request(
    connection: h11.Connection, stream: trio.abc.Stream, limits: HeadLimits
) -> Request | None:
    if len(connection.trailing_data[0]) > limits.max_bytes:
        raise _BadRequest(431, f"Head longer than {limits.max_bytes} bytes")
    head: h11.Request | None = None
    body = bytearray()
    while True:
        if head is None and (text := foreign_protocol(connection.trailing_data[0])):
            raise _BadRequest(400, text)
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_RECEIVE_BYTES)))
        elif isinstance(event, h11.Request):
            head = _checked(event, limits)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY_MAX_BYTES:
                raise _BadRequest(413, f"Body longer than {BODY_MAX_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return Request(
                method=head.method.decode("ascii"),
                path=_path_of(head.target),
                headers=list(head.headers),
                body=bytes(body),
                query=head.target.partition(b"?")[2],
            )
        else:  # the peer closed without a request
            return None


def _checked(head: h11.Request, limits: HeadLimits) -> h11.Request:
    if len(list(head.headers)) > limits.max_headers:
        raise _BadRequest(431, f"More than {limits.max_headers} headers")
    if head.http_version not in _VERSIONS:
        raise _BadRequest(505, "This version of HTTP is not spoken here")
    return head


def _path_of(target: bytes) -> str:
    try:
        return unquote(urlsplit(target.decode("ascii")).path)
    except ValueError as error:
        raise _BadRequest(400, "Bad request: illegal target") from error


async def send_response(
    stream: trio.abc.SendStream, response: Response, *, method: str = "GET"
) -> None:
    """Send `response`, with headers that end the connection. A peer that has gone is ignored."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(response_bytes(response, method=method))


def response_bytes(response: Response, *, method: str = "GET") -> bytes:
    """Return the bytes of `response`, with headers that end the connection."""
    status = HTTPStatus(response.status)
    content = [f"Content-Type: {response.content_type}"]
    if response.stream is None:
        content.append(f"Content-Length: {len(response.body)}")
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        # RFC 9110, 8.6: a 204 has no content and no Content-Length.
        *(content if status is not HTTPStatus.NO_CONTENT else []),
        *(["Access-Control-Allow-Origin: *"] if response.is_public else []),
        "Connection: close",
        *(f"{name}: {value}" for name, value in response.headers),
    ]
    head = "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"
    return head + (b"" if method == "HEAD" else response.body)


async def linger(stream: trio.abc.Stream) -> None:
    """End our side of the stream, and keep reading for 1 s at most.

    Closing while bytes are unread would reset the connection, and a peer that is still sending
    would lose the answer.
    """
    taken = 0
    with trio.move_on_after(_LINGER_SECONDS):
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if isinstance(stream, trio.abc.HalfCloseableStream):
                await stream.send_eof()
            while taken < _LINGER_BYTES and (chunk := await stream.receive_some(_RECEIVE_BYTES)):
                taken += len(chunk)
