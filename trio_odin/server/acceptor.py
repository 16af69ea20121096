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

from trio_odin.core.ledger import Traffic
from trio_odin.core.pacing import AcceptPace
from trio_odin.core.reasons import Rejection
from trio_odin.net.http import HEAD_LIMITS, Response, response_bytes
from trio_odin.server.turnover import ARRIVAL, COMING
from trio_odin.telemetry.meters import LoopMeter

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


class Acceptor:
    """Accepts on one or several listening sockets, at `per_second` together (0: no limit).

    With `loop`, which knows where the time goes, it takes what the rest leaves and no more; without
    it the rate alone counts.

    Resource handling: while it runs it holds one file that nobody needs. Where files have run out,
    that is given up for a moment to accept those who wait, tell them so, and close.
    """

    def __init__(
        self, traffic: Traffic, *, per_second: float = 0.0, loop: LoopMeter | None = None
    ) -> None:
        self._traffic = traffic
        self._loop = loop
        self._pace = AcceptPace(per_second)
        self._logged_at = -_LOG_EVERY_SECONDS

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

        As many are served at each wake-up as there is time for: after a lost network thousands come
        back at once. The others wait, accepted but not read: the kernel's own queue may be short,
        and where it overflows clients come in seconds later, and a few are reset.

        Error handling: running out of files or memory is counted, logged now and then, and waited
        out, with the connections that are open served on.
        """
        with (
            socket.socket(fileno=os.dup(listener.socket.fileno())) as listening,
            _Spare() as spare,
            _Waiting() as waiting,
        ):
            listening.setblocking(False)
            while True:
                if not waiting:
                    await trio.lowlevel.wait_readable(listening)
                try:
                    waiting.accept_from(listening)
                except OSError as error:
                    self._traffic.accept_errors += 1
                    if error.errno in _OUT_OF_FILES:
                        self._traffic.rejected[Rejection.FILES.label] += spare.refuse(listening)
                    self._log_now_and_then(error)
                    if not waiting:
                        await trio.sleep(_pause(error))
                await self._let_in(waiting, nursery, serve)

    async def _let_in(
        self,
        waiting: _Waiting,
        nursery: trio.Nursery,
        serve: Callable[[trio.SocketStream], Awaitable[None]],
    ) -> None:
        room = self._room()
        for _ in range(min(room, len(waiting))):
            self._pace.accepted(1)
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

    def _log_now_and_then(self, error: OSError) -> None:
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


def _stream(accepted: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))


def _pause(error: OSError) -> float:
    """Seconds to wait before accepting again."""
    return _EXHAUSTED_PAUSE_SECONDS if error.errno in _EXHAUSTED else _ACCEPT_PAUSE_SECONDS


class _Waiting(deque[socket.socket]):
    """Accepted, and not read yet: the first to come is the first to be served.

    At most half of the files that this process may have, and closed at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._most = min(_WAITING_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    def accept_from(self, listening: socket.socket) -> None:
        """Take in those who wait in the kernel's queue, as far as there is room. Does not wait."""
        with suppress(BlockingIOError):
            for _ in range(min(_ACCEPTS_PER_TURN, self._most - len(self))):
                accepted, _ = listening.accept()
                self.append(accepted)

    def __enter__(self) -> _Waiting:
        return self

    def __exit__(self, *_: object) -> None:
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
