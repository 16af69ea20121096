"""Accepting: as many as there is time for, and with an answer even where files have run out."""

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

_log = structlog.get_logger("listener")

_OUT_OF_FILES = {errno.EMFILE, errno.ENFILE}
# Nothing helps but to wait until someone leaves.
_EXHAUSTED = {*_OUT_OF_FILES, errno.ENOMEM, errno.ENOBUFS}
_EXHAUSTED_PAUSE_SECONDS = 0.2
_ACCEPT_PAUSE_SECONDS = 0.01
_LOG_EVERY_SECONDS = 10.0
# Some 2 ms of accepting; then everyone else has a turn.
_ACCEPTS_PER_TURN = 256
_REFUSALS_PER_TURN = 64
# With a kernel's usual 4,096, room for 10,000 at once.
_WAITING_MAX = 8192

# Files that no client of a WebSocket gets: NATS has to come back, and a page has to be answered.
_FILES_KEPT = 16
_FILES_KEPT_SHARE = 1 / 8  # of a low limit


class Acceptor:
    """Accepts on one or several listening sockets, at `per_second` together (0: no limit).

    With `loop`, which knows where the time goes, it takes what the rest leaves and no more; without
    it the rate alone counts.

    Resource handling: while it runs it holds one file that nobody needs. Where files have run out,
    that is given up for a moment to accept those who wait, tell them so, and close.

    Attributes:
        let_in: how many are being served, or were.
    """

    def __init__(
        self, traffic: Traffic, *, per_second: float = 0.0, loop: LoopMeter | None = None
    ) -> None:
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
        """How many have been accepted and wait for their turn."""
        return len(self._waiting)

    def set_rate(self, per_second: float) -> None:
        """Accept at another rate from now on."""
        self._pace.set_limit(per_second)

    async def run(
        self,
        listener: trio.SocketListener,
        nursery: trio.Nursery,
        serve: Callable[[trio.SocketStream], Awaitable[None]],
    ) -> None:
        """Accept on `listener` until cancelled; `serve` is a task in `nursery` for each.

        Several may run at a time, of one `nursery` and `serve`.

        As many are served at each wake-up as there is time for: after a lost network thousands come
        back at once. The others wait, accepted but not read: the kernel's own queue may be short,
        and where it overflows clients come in seconds later, and a few are reset.

        Error handling: running out of files or memory is counted, logged now and then, and waited
        out, with the connections that are open served on.

        Cancellation: those that wait are served still, by a task in `nursery`; only if that is
        cancelled they are closed.
        """
        with await self._open_own(listener.socket) as listening, _Spare() as spare:
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
        """A file of our own for it, as two tasks may not wait for one. Waits for one to be free."""
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
        """Count it, and log one now and then."""
        self._traffic.accept_errors += 1
        if error.errno == errno.ECONNABORTED:  # that is: gone before we got to it
            return
        now = trio.current_time()
        if now - self._logged_at >= _LOG_EVERY_SECONDS:
            self._logged_at = now
            connections = self._traffic.accepted - self._traffic.closed.total()
            _log.error("accept.failed", error=str(error), connections=connections)


def refusal(rejection: Rejection) -> Response:
    """What a client gets that may not come in."""
    retry_after = ("Retry-After", str(rejection.retry_after_seconds))
    return Response.text(rejection.status, rejection.text, headers=[retry_after])


def files_for_clients() -> int:
    """The file number at which those of WebSockets end."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit - min(_FILES_KEPT, int(limit * _FILES_KEPT_SHARE))


def _stream(accepted: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))


def _pause(error: OSError) -> float:
    """Seconds to wait before accepting again."""
    if error.errno == errno.ECONNABORTED:  # the next one may be there
        return 0.0
    return _EXHAUSTED_PAUSE_SECONDS if error.errno in _EXHAUSTED else _ACCEPT_PAUSE_SECONDS


class _Waiting(deque[socket.socket]):
    """Accepted, and not read yet: the first to come is the first to be served.

    At most half of the files that this process may have, and of those that are kept one: others
    need them while a crowd waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self._most = min(_WAITING_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    def accept_from(self, listening: socket.socket, kept_from: int) -> None:
        """Take in those who wait in the kernel's queue, as far as there is room. Does not wait.

        The files from number `kept_from` on are kept.
        """
        with suppress(BlockingIOError):
            for _ in range(min(_ACCEPTS_PER_TURN, self._most - len(self))):
                if self and self[-1].fileno() >= kept_from:
                    break
                accepted, _ = listening.accept()
                self.append(accepted)

    def close(self) -> None:
        """Close all."""
        while self:
            self.popleft().close()


class _Spare:
    """A file that can be given up for one more socket, for as long as a refusal takes."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._answer = response_bytes(refusal(Rejection.FILES))

    def __enter__(self) -> _Spare:
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_up()

    def _take(self) -> None:
        with suppress(OSError):  # another thread was faster: the next time, then
            self._file = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _give_up(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def refuse(self, listening: socket.socket) -> int:
        """Say to those who wait that there is no room; returns to how many. Does not wait."""
        refused = 0
        with suppress(OSError):  # nobody waits any more, or not even this file can be had
            for _ in range(_REFUSALS_PER_TURN):
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
            with suppress(BlockingIOError):  # what is left unread would undo the answer
                accepted.recv(HEAD_LIMITS.max_bytes)
            accepted.send(self._answer)
            accepted.shutdown(socket.SHUT_WR)
