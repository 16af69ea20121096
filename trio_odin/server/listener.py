"""The listener: accepts, looks at the head, and leads to a WebSocket connection or a page."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import structlog
import trio

from trio_odin.config import Settings
from trio_odin.core import handshake
from trio_odin.core.admission import Admission, Rejection
from trio_odin.core.handshake import Refusal
from trio_odin.net.http import (
    HEAD_MAX_BYTES,
    HEADERS_MAX,
    Respond,
    Response,
    receive_head,
    send_response,
    serve_request,
)
from trio_odin.server.connection import Connection
from trio_odin.server.hub import Hub
from trio_odin.server.keepalive import PingWheel

_log = structlog.get_logger("listener")

# Out of files or memory: nothing helps but to wait until someone leaves.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_EXHAUSTED_PAUSE_SECONDS = 0.2
_ACCEPT_PAUSE_SECONDS = 0.01
_LOG_EVERY_SECONDS = 10.0
# Some 2 ms of accepting; then everyone else has a turn.
_ACCEPTS_PER_TURN = 64

_END_OF_HEAD = b"\r\n\r\n"


class Listener:
    """Turns accepted sockets into connections. Their tasks live in `nursery`.

    Attributes:
        admitted: connections let in. Those that still send their head are not counted yet.
    """

    def __init__(
        self,
        *,
        hub: Hub[Connection],
        wheel: PingWheel[Connection],
        admission: Admission,
        respond: Respond,
        settings: Settings,
    ) -> None:
        self._hub = hub
        self._wheel = wheel
        self._admission = admission
        self._respond = respond
        self._settings = settings
        self._traffic = hub.ledger.traffic
        self._logged_at = -_LOG_EVERY_SECONDS
        self._departed = trio.lowlevel.ParkingLot()
        self.admitted = 0

    async def run(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Accept on `listener` until cancelled.

        All that wait are accepted at each wake-up, up to a limit: after a lost network thousands
        come back at once, and `listener.accept` is a turn of the scheduler for each.

        Error handling: running out of files or memory is counted, logged now and then, and waited
        out, with the connections that are open served on.
        """
        with socket.socket(fileno=os.dup(listener.socket.fileno())) as waiting:
            waiting.setblocking(False)
            while True:
                await trio.lowlevel.wait_readable(waiting)
                try:
                    for stream in _accepted(waiting):
                        nursery.start_soon(self.serve, stream, name="connection")
                except OSError as error:
                    self._traffic.accept_errors += 1
                    await self._wait_out(error)

    async def _wait_out(self, error: OSError) -> None:
        if error.errno != errno.ECONNABORTED:  # that is: gone before we got to it
            self._log_now_and_then(error)
        await trio.sleep(
            _EXHAUSTED_PAUSE_SECONDS if error.errno in _EXHAUSTED else _ACCEPT_PAUSE_SECONDS
        )

    def _log_now_and_then(self, error: OSError) -> None:
        now = trio.current_time()
        if now - self._logged_at >= _LOG_EVERY_SECONDS:
            self._logged_at = now
            _log.error("accept.failed", error=str(error), connections=len(self._hub.members))

    async def serve(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Serve one accepted socket to its end. Nothing the peer does raises out of here."""
        try:
            head = await self._receive_head(stream)
            if head is None:
                await trio.aclose_forcefully(stream)
            elif not handshake.is_websocket_request(head):
                await serve_request(stream, self._respond, received=head)
            else:
                answer = self._answer(head)
                del head  # the rest of this frame lives as long as the connection
                if isinstance(answer, bytes):
                    await self._connect(stream, answer)
                else:
                    await self._refuse(stream, answer)
        except Exception:  # noqa: BLE001 - a fault of ours in one request must not end the others
            _log.exception("request.failed")
            await trio.aclose_forcefully(stream)

    async def _receive_head(self, stream: trio.abc.HalfCloseableStream) -> bytes | None:
        """The head; None if the peer sent nothing in time or has gone."""
        received = _already_there(stream)
        if received.endswith(_END_OF_HEAD):
            return received
        with trio.move_on_after(self._settings.handshake_seconds):
            try:
                return await receive_head(stream, received) or None
            except trio.BrokenResourceError:
                return None
        self._traffic.rejected["timeout"] += 1
        with trio.move_on_after(self._settings.write_deadline_seconds):
            await send_response(stream, Response.text(408, "Request not complete in time"))
        return None

    def _answer(self, head: bytes) -> bytes | Response:
        """What a request for a WebSocket gets: the upgrade, or a refusal, which is counted."""
        rejection = self._admission.rejection(self.admitted)
        malformed = _malformed(head)
        if rejection is not None and malformed is None:
            self._traffic.rejected[rejection.label] += 1
            return Response.text(503, rejection.text, headers=_retry_after(rejection))
        answer = malformed or handshake.answer(head)
        if isinstance(answer, bytes):
            return answer
        self._traffic.rejected["bad_request"] += 1
        return Response.text(answer.status, answer.text, headers=answer.headers)

    async def _refuse(self, stream: trio.abc.HalfCloseableStream, refusal: Response) -> None:
        async with stream:
            with trio.move_on_after(self._settings.write_deadline_seconds):
                await send_response(stream, refusal)

    async def _connect(self, stream: trio.abc.Stream, upgrade: bytes) -> None:
        self.admitted += 1
        try:
            connection = Connection(stream, hub=self._hub, settings=self._settings)
            await connection.run(upgrade, self._wheel)
        finally:
            self.admitted -= 1
            self._departed.unpark_all()

    async def wait_empty(self) -> None:
        """Wait until no connection is left."""
        while self.admitted:
            await self._departed.park()


def _accepted(waiting: socket.socket) -> Iterator[trio.SocketStream]:
    """Those who wait to be accepted, up to a limit."""
    with suppress(BlockingIOError):
        for _ in range(_ACCEPTS_PER_TURN):
            accepted, _ = waiting.accept()
            yield trio.SocketStream(trio.socket.from_stdlib_socket(accepted))


def _already_there(stream: trio.abc.Stream) -> bytes:
    """What can be read without waiting: mostly the whole head."""
    if isinstance(stream, trio.SocketStream):
        with suppress(OSError):  # nothing there, or gone: `receive_head` will see
            return os.read(stream.socket.fileno(), HEAD_MAX_BYTES)
    return b""


def _malformed(head: bytes) -> Refusal | None:
    """What is wrong with the size of a head, before anything is made of it."""
    if len(head) > HEAD_MAX_BYTES or head.count(b"\r\n") > HEADERS_MAX:
        return Refusal(431, f"At most {HEADERS_MAX} headers in {HEAD_MAX_BYTES} bytes")
    if not head.endswith(_END_OF_HEAD) or head.count(_END_OF_HEAD) > 1:
        return Refusal(400, "Bytes behind the request: wait for the upgrade first")
    return None


def _retry_after(rejection: Rejection) -> list[tuple[str, str]]:
    seconds = 1 if rejection is Rejection.OVERLOADED else 5
    return [("Retry-After", str(seconds))]
