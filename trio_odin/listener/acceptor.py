"""Accepting: as many connections as there is time for, and an answer even without free files."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
import trio

from trio_odin.ledger.counters import Traffic
from trio_odin.ledger.reasons import Rejection
from trio_odin.net.http import HEAD_LIMITS, Response, response_bytes
from trio_odin.overload.meters import LoopMeter
from trio_odin.overload.pacing import AcceptPace
from trio_odin.overload.turnover import ARRIVAL, COMING, LISTENER
from trio_odin.wire.handshake import Rejected, reject

_log = structlog.get_logger("listener")

_OUT_OF_FILES = {errno.EMFILE, errno.ENFILE}
# Only waiting helps, until a client leaves.
_EXHAUSTED = {*_OUT_OF_FILES, errno.ENOMEM, errno.ENOBUFS}
_EXHAUSTED_PAUSE_SECONDS = 0.2
_ACCEPT_PAUSE_SECONDS = 0.01
_LOG_EVERY_SECONDS = 10.0
# About 2 ms of accepting; then all other tasks have a turn.
_ACCEPTS_PER_TURN = 256
_REJECTIONS_PER_TURN = 64
# With the kernel's usual 4,096, room for 10,000 at once.
_WAITING_MAX = 8192

# Files kept from WebSockets: the server has to reconnect to NATS, and to answer requests for pages.
_FILES_KEPT = 16
_FILES_KEPT_SHARE = 1 / 8  # of a low limit


class Acceptor:
    """Accepts on one or several listening sockets, at `per_second` together (0: no limit).

    With `loop`, which measures where the time goes, it uses only the time that the rest leaves.
    Without it only the rate counts.

    Resource handling: while it runs it holds one spare file. When files have run out, it gives that
    file up for a moment, to accept waiting clients, reject them with an answer, and close.

    Attributes:
        let_in: number of connections that are or were served.
    """

    def __init__(
        self,
        traffic: Traffic,
        *,
        per_second: float = 0.0,
        loop: LoopMeter | None = None,
        refusal: bytes | None = None,
    ) -> None:
        """`refusal`: what a client is sent for which there is no file; default: a 503."""
        self._refusal = refusal or response_bytes(response_of(reject(Rejection.FILES)))
        self._traffic = traffic
        self._loop = loop
        self._kept_from = files_for_clients()
        self._waiting = _Waiting()
        self._lets_in_rest = False
        self.let_in = 0
        self._pace = AcceptPace(per_second)
        self._logged_at = -_LOG_EVERY_SECONDS

    @property
    def waiting(self) -> int:
        """Number of connections that have been accepted and wait for their turn."""
        return len(self._waiting)

    def set_rate(self, per_second: float) -> None:
        """Accept at most `per_second` from now on."""
        self._pace.set_limit(per_second)

    async def run(
        self,
        listener: trio.SocketListener,
        nursery: trio.Nursery,
        serve: Callable[[trio.SocketStream], Awaitable[None]],
    ) -> None:
        """Accept on `listener` until cancelled; for each connection, run `serve` in `nursery`.

        It may run several times at once, with the same `nursery` and `serve`.

        At each wake-up it serves as many connections as there is time for: after a network outage
        thousands come back at once. The others wait, accepted but not read. The kernel's own queue
        may be short; if it overflows, clients connect seconds later and a few are reset.

        Error handling: running out of files or memory is counted, logged now and then, and waited
        out. Open connections are served meanwhile.

        Cancellation: connections that wait are still served, by a task in `nursery`. They are
        closed only if that is cancelled.
        """
        with await self._open_own(listener.socket) as listening, _Spare(self._refusal) as spare:
            listening.setblocking(False)
            try:
                await self._accept_and_let_in(listening, spare, nursery, serve)
            finally:
                if not self._lets_in_rest:
                    self._lets_in_rest = True
                    nursery.start_soon(self._let_in_rest, nursery, serve, name=LISTENER)

    async def _accept_and_let_in(
        self,
        listening: socket.socket,
        spare: _Spare,
        nursery: trio.Nursery,
        serve: Callable[[trio.SocketStream], Awaitable[None]],
    ) -> None:
        while True:
            if not self._waiting:
                await trio.lowlevel.wait_readable(listening)
            try:
                self._waiting.accept_from(listening, self._kept_from)
            except OSError as error:
                self._note(error)
                if error.errno in _OUT_OF_FILES:
                    self._traffic.rejected[Rejection.FILES.label] += spare.refuse(listening)
                if not self._waiting:
                    await trio.sleep(_pause(error))
            await self._let_in(nursery, serve)

    async def _let_in_rest(
        self, nursery: trio.Nursery, serve: Callable[[trio.SocketStream], Awaitable[None]]
    ) -> None:
        try:
            await trio.lowlevel.checkpoint()
            while self._waiting:
                await self._let_in(nursery, serve)
        finally:
            self._lets_in_rest = False
            self._waiting.close()

    async def _open_own(self, listening: trio.socket.SocketType) -> socket.socket:
        """Duplicate the file, as two tasks may not wait for the same one. Waits for a free file."""
        while True:
            try:
                return socket.socket(fileno=os.dup(listening.fileno()))
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._note(error)
                await trio.sleep(_pause(error))

    async def _let_in(
        self, nursery: trio.Nursery, serve: Callable[[trio.SocketStream], Awaitable[None]]
    ) -> None:
        waiting, room = self._waiting, self._room()
        for _ in range(min(room, len(waiting))):
            self._pace.accepted(1)
            self.let_in += 1
            nursery.start_soon(serve, _stream(waiting.popleft()), name=COMING)
        if waiting and not room:
            self._traffic.accepts_paced += 1
            await trio.sleep(self._pace.delay())
        else:
            await trio.lowlevel.checkpoint()

    def _room(self) -> int:
        now = trio.current_time()
        if self._loop is not None:
            self._pace.observe(now, self._loop.idle_seconds, self._loop.seconds_in(ARRIVAL))
        return self._pace.room(now, _ACCEPTS_PER_TURN)

    def _note(self, error: OSError) -> None:
        """Count an error, and log one now and then."""
        self._traffic.accept_errors += 1
        if error.errno == errno.ECONNABORTED:  # the client left before we accepted it
            return
        now = trio.current_time()
        if now - self._logged_at >= _LOG_EVERY_SECONDS:
            self._logged_at = now
            connections = self._traffic.accepted - self._traffic.closed.total()
            _log.error("accept.failed", error=str(error), connections=connections)


def response_of(rejected: Rejected) -> Response:
    """Return the HTTP response to a request that is rejected."""
    return Response.text(rejected.status, rejected.text, headers=rejected.headers)


def files_for_clients() -> int:
    """Return the first file number that WebSockets may not have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit - min(_FILES_KEPT, int(limit * _FILES_KEPT_SHARE))


def _stream(accepted: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))


def _pause(error: OSError) -> float:
    """Seconds to wait before accepting again."""
    if error.errno == errno.ECONNABORTED:  # the next client may be there
        return 0.0
    return _EXHAUSTED_PAUSE_SECONDS if error.errno in _EXHAUSTED else _ACCEPT_PAUSE_SECONDS


class _Waiting(deque[socket.socket]):
    """Connections that are accepted and not read yet: first come, first served.

    They have at most half of the files of this process, and at most one of those that are kept:
    other parts need files while a crowd waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self._most = min(_WAITING_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    def accept_from(self, listening: socket.socket, kept_from: int) -> None:
        """Accept from the kernel's queue, as far as there is room. Does not wait.

        The files from number `kept_from` on are kept.
        """
        with suppress(BlockingIOError):
            for _ in range(min(_ACCEPTS_PER_TURN, self._most - len(self))):
                if self and self[-1].fileno() >= kept_from:
                    break
                accepted, _ = listening.accept()
                self.append(accepted)

    def close(self) -> None:
        """Close all of them."""
        while self:
            self.popleft().close()


class _Spare:
    """A file that can be given up for one more socket, for as long as a rejection takes."""

    def __init__(self, answer: bytes) -> None:
        self._file: int | None = None
        self._answer = answer

    def __enter__(self) -> _Spare:
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_up()

    def _take(self) -> None:
        with suppress(OSError):  # another thread was faster: try again next time
            self._file = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _give_up(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def refuse(self, listening: socket.socket) -> int:
        """Reject waiting clients as there is no file for them; returns how many. Does not wait."""
        refused = 0
        with suppress(OSError):  # no client waits, or not even this file can be opened
            for _ in range(_REJECTIONS_PER_TURN):
                self._give_up()
                try:
                    self._refuse_one(listening)
                finally:
                    self._take()
                refused += 1
        return refused

    def _refuse_one(self, listening: socket.socket) -> None:
        accepted, _ = listening.accept()
        with accepted, suppress(OSError):
            accepted.setblocking(False)
            with suppress(BlockingIOError):  # unread bytes would undo the answer
                accepted.recv(HEAD_LIMITS.max_bytes)
            accepted.send(self._answer)
            accepted.shutdown(socket.SHUT_WR)
