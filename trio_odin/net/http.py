"""Plain HTTP/1.1 over a trio stream, one request a connection (h11 does the protocol).

One request a connection keeps this small and safe: no idle keep-alive connections to count, and no
WebSocket upgrade hidden behind an earlier request. Who asks are health checks, a Prometheus and
people with a browser; none of them gains from keep-alive.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import attrs
import h11
import msgspec
import trio

HEAD_MAX_BYTES = 8 * 1024
HEADERS_MAX = 64
BODY_MAX_BYTES = 64 * 1024
_RECEIVE_BYTES = 4 * 1024
_VERSIONS = {b"1.0", b"1.1"}
_UNAVAILABLE = HTTPStatus.SERVICE_UNAVAILABLE
END_OF_HEAD = b"\r\n\r\n"
# How long, and how much, to go on reading after an error so that the answer is not lost to a reset.
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 1024 * 1024

Headers: TypeAlias = Sequence[tuple[str, str]]


@attrs.frozen
class Request:
    """A whole request. `path` is decoded and without the query; header names are lower case."""

    method: str
    path: str
    headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""


@attrs.frozen
class Response:
    """What goes back. Length, connection and CORS headers are added when it is sent."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Headers = ()

    @classmethod
    def text(cls, status: int, text: str, *, headers: Headers = ()) -> Response:
        """Plain text; a line end is added."""
        return cls(status, f"{text}\n".encode(), headers=headers)

    @classmethod
    def json(cls, status: int, content: object) -> Response:
        """Any object that msgspec can encode, as JSON."""
        return cls(status, msgspec.json.encode(content), "application/json")


Respond: TypeAlias = Callable[[Request], Awaitable[Response]]


class _BadRequest(Exception):
    """The request ends here with `status`; the message is the text of the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.response = Response.text(status, text)


async def receive_head(stream: trio.abc.ReceiveStream, received_already: bytes = b"") -> bytes:
    """Receive until a request head is complete, too long, or the peer has ended.

    Returns:
        What was received, at most a little over `HEAD_MAX_BYTES`: the head, perhaps with bytes
        behind it, or a part of a head where the peer ended or sent too much. Empty if it sent
        nothing.

    Cancellation loses what was received: close the stream.
    """
    received = bytearray(received_already)
    searched = 0
    while received.find(END_OF_HEAD, searched) < 0 and len(received) <= HEAD_MAX_BYTES:
        # So that a head which comes byte by byte is not searched anew for each of them.
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
    deadline_seconds: float = 10,
) -> int | None:
    """Answer the one request on `stream`, then close it.

    `received` are bytes already taken from the stream. What a peer does wrong becomes a clean
    status (400, 408, 413, 431, 501, 505); a peer that goes away is not an error.

    Returns:
        The status of the answer; None if there was no request.

    Cancellation closes the stream at once.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX_BYTES)
    if received:  # to h11, nothing means the end of the stream
        connection.receive_data(received)
    method = "GET"
    async with stream:
        try:
            with trio.fail_after(deadline_seconds):
                request = await _receive_request(connection, stream)
                if request is None:
                    return None
                method = request.method
                response = await respond(request)
        except trio.TooSlowError:
            response = Response.text(408, "Request not complete in time")
        except _BadRequest as error:
            response = error.response
        except h11.RemoteProtocolError as error:
            response = Response.text(error.error_status_hint, f"Bad request: {error}")
        except trio.BrokenResourceError:
            return None
        await send_last(stream, response, deadline_seconds, method=method)
        return response.status


async def send_last(
    stream: trio.abc.Stream, response: Response, deadline_seconds: float, *, method: str = "GET"
) -> None:
    """Send `response` and close. Whose request was refused may be sending still: see `linger`."""
    async with stream:
        with trio.move_on_after(deadline_seconds):
            await send_response(stream, response, method=method)
            # A 503 is for a request that was good, and read to its end.
            if response.status >= HTTPStatus.BAD_REQUEST and response.status != _UNAVAILABLE:
                await linger(stream)


async def _receive_request(connection: h11.Connection, stream: trio.abc.Stream) -> Request | None:
    if len(connection.trailing_data[0]) > HEAD_MAX_BYTES:
        raise _BadRequest(431, f"Head longer than {HEAD_MAX_BYTES} bytes")
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_RECEIVE_BYTES)))
        elif isinstance(event, h11.Request):
            head = event
            if len(list(head.headers)) > HEADERS_MAX:
                raise _BadRequest(431, f"More than {HEADERS_MAX} headers")
            if head.http_version not in _VERSIONS:
                raise _BadRequest(505, "This version of HTTP is not spoken here")
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
            )
        else:  # the peer closed without a request
            return None


def _path_of(target: bytes) -> str:
    try:
        return unquote(urlsplit(target.decode("ascii")).path)
    except ValueError as error:
        raise _BadRequest(400, f"Bad request: {error}") from error


async def send_response(
    stream: trio.abc.SendStream, response: Response, *, method: str = "GET"
) -> None:
    """Send `response` with the head of a connection that ends after it. A gone peer is ignored."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(response_bytes(response, method=method))


def response_bytes(response: Response, *, method: str = "GET") -> bytes:
    """`response` on the wire, with the head of a connection that ends after it."""
    status = HTTPStatus(response.status)
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "Access-Control-Allow-Origin: *",
        "Connection: close",
        *(f"{name}: {value}" for name, value in response.headers),
    ]
    head = "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"
    return head + (b"" if method == "HEAD" else response.body)


async def linger(stream: trio.abc.Stream) -> None:
    """End our side, and read on for 1 s at most: closing over unread bytes would reset it all.

    A peer that is still sending would then lose the answer that it was sent before.
    """
    taken = 0
    with trio.move_on_after(_LINGER_SECONDS):
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if isinstance(stream, trio.abc.HalfCloseableStream):
                await stream.send_eof()
            while taken < _LINGER_BYTES and (chunk := await stream.receive_some(_RECEIVE_BYTES)):
                taken += len(chunk)
