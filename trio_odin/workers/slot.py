"""A worker slot: which process fills it, and what is known of that process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio

from trio_odin.ledger.snapshot import Snapshot
from trio_odin.workers.inspections import Inspections
from trio_odin.workers.link import Accept, FromParent, FromWorker, Link

FIRST_PAUSE_SECONDS: Final = 0.1
# A worker that has been silent for this long is killed: its clients are better off with another.
HUNG_SECONDS: Final = 30.0
_LONGEST_PAUSE_SECONDS = 10.0
# A worker that has lived this long was healthy: if it ends, it is restarted at once.
_PROVEN_SECONDS = 5.0
# A worker without NATS takes no clients for this long, if no other one has NATS either.
_NATS_SECONDS = 5.0
# A worker that has clients but no NATS goes on for this long, if other workers have NATS.
_DEAF_SECONDS = 10.0


class WorkerSlot:
    """A slot that one worker process after another fills.

    In a rolling restart there are two slots of one number for a while.

    Attributes:
        number: number of the worker, from 1.
        queues: queues that the process was told to take clients from.
        process: process that runs, if any.
        link: link to that process.
        last: its last known snapshot; None until it serves.
        has_served: whether any process has served in this slot.
        restarts: number of processes after the first one.
        silent_since: time since which no process answers; None while one does.
        missing_since: time since which none takes clients and answers; None while one does.
        is_leaving: set once no further process is to be started.
        gone: set once the last process has ended.
        inspections: asks the process what an operator wants to know.
    """

    def __init__(self, number: int, *, has_served: bool = False) -> None:
        self.number = number
        self.queues: set[int] = set()
        self.is_leaving = trio.Event()
        self.gone = trio.Event()
        self.process: trio.Process | None = None
        self.link: Link[FromWorker] | None = None
        self.last: Snapshot | None = None
        self.has_served = has_served
        self.restarts = 0
        self.silent_since: float | None = trio.current_time()
        self.missing_since: float | None = self.silent_since
        self.inspections = Inspections(self)
        self._began_at = -math.inf
        self._deaf_since: float | None = None
        self._pause_seconds = 0.0

    @property
    def connections(self) -> int:
        """Number of connections that it held at its last report."""
        return 0 if self.last is None else self.last.fan_out.connections

    @property
    def has_nats(self) -> bool:
        """Whether it has reached NATS and is not to leave."""
        return self._knows(lambda last: last.nats.was_connected) and not self.is_leaving.is_set()

    @property
    def takes_clients(self) -> bool:
        """Whether its process takes clients, and answers."""
        return self.silent_since is None and self._knows(lambda last: last.is_open)

    @property
    def leaves(self) -> bool:
        """Whether it is to leave, or is draining by itself."""
        return self.is_leaving.is_set() or self._knows(lambda last: last.is_draining)

    def _knows(self, claim: Callable[[Snapshot], bool]) -> bool:
        return self.last is not None and claim(self.last)

    def begin(self, process: trio.Process, link: Link[FromWorker]) -> None:
        """Record that a process was started."""
        self.process, self.link = process, link
        self.queues = set()
        self._began_at = trio.current_time()

    def leave(self) -> None:
        """Have the process drain, and start no other one."""
        self.is_leaving.set()
        if self.process is not None:
            self.process.terminate()

    def hangs(self) -> bool:
        """Whether its process has been silent for too long."""
        if self.process is None or self.silent_since is None:
            return False
        silent_since = max(self.silent_since, self._began_at)
        return trio.current_time() - silent_since >= HUNG_SECONDS

    def can_take_clients(self, *, has_another_nats: bool) -> bool:
        """Whether it has NATS, or has waited long enough for it while no other worker has it."""
        if self.last is None or self.last.is_draining or self.silent_since is not None:
            return False
        has_waited = trio.current_time() - self._began_at >= _NATS_SECONDS
        return self.last.nats.was_connected or (has_waited and not has_another_nats)

    def is_deaf(self, *, has_another_nats: bool) -> bool:
        """Whether it has had clients but no NATS for too long; true once for each process."""
        is_in_order = self.is_leaving.is_set() or self._knows(lambda last: last.nats.was_connected)
        if is_in_order or not self.connections or not has_another_nats:
            self._deaf_since = None
            return False
        now = trio.current_time()
        self._deaf_since = now if self._deaf_since is None else self._deaf_since
        if now - self._deaf_since < _DEAF_SECONDS:
            return False
        self._deaf_since = math.inf
        return True

    def accept_from(self, queues: set[int]) -> None:
        """Have the process take clients from these queues, and from no others."""
        if queues != self.queues and self.tell(Accept(sorted(queues))):
            self.queues = queues

    def tell(self, message: FromParent) -> bool:
        """Send `message` to the process, if there is one that serves."""
        return self.link is not None and self.last is not None and self.link.send(message)

    def note(self, snapshot: Snapshot) -> None:
        """Take in a report of the process: it serves."""
        self.last = snapshot
        self.has_served = True
        self.silent_since = None
        if snapshot.is_open:
            self.missing_since = None
        elif self.missing_since is None:
            self.missing_since = trio.current_time()

    def note_silent(self) -> None:
        """Record that no process serves, or that it does not answer."""
        now = trio.current_time()
        self.silent_since = now if self.silent_since is None else self.silent_since
        self.missing_since = now if self.missing_since is None else self.missing_since

    def end(self) -> Snapshot | None:
        """Record that the process has ended. Returns its last known snapshot, if it served."""
        self.note_silent()
        self._deaf_since = None
        self.inspections.end()
        last, self.last = self.last, None
        self.process = self.link = None
        return last

    def next_pause_seconds(self, lived_seconds: float) -> float:
        """Return the seconds to wait before the next process, after one that lived this long."""
        if lived_seconds >= _PROVEN_SECONDS or not self._pause_seconds:
            self._pause_seconds = FIRST_PAUSE_SECONDS
        else:
            self._pause_seconds = min(self._pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
        return self._pause_seconds
