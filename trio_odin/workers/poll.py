"""Polls the worker processes: what each holds, and which of them are silent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import structlog
import trio

from trio_odin.overload.load import OtherWorkers
from trio_odin.overload.process import resident_bytes
from trio_odin.workers.link import Ask
from trio_odin.workers.slot import WorkerSlot

_ASK_SECONDS = 0.5

_log = structlog.get_logger("workers")


@attrs.define
class _Round:
    """One poll of all workers. `awaited` are those that have not answered yet."""

    number: int = 0
    awaited: set[WorkerSlot] = attrs.field(factory=set)
    is_complete: trio.Event = attrs.field(factory=trio.Event)

    def note_answer(self, worker: WorkerSlot) -> None:
        self.awaited.discard(worker)
        if not self.awaited:
            self.is_complete.set()


class Poll:
    """Asks all workers for their stats, one round at a time; each answers with a `StatsReport`.

    `slots` is the supervisor's list, which changes.
    """

    def __init__(self, slots: Sequence[WorkerSlot]) -> None:
        self._slots = slots
        self._round = _Round()
        self._asked_at = -math.inf
        self._one_round_at_a_time = trio.Lock()

    def note_answer(self, worker: WorkerSlot, number: int) -> None:
        """Take note of an answer to the round of that number."""
        if number == self._round.number:
            self._round.note_answer(worker)

    def note_end(self, worker: WorkerSlot) -> None:
        """Do not wait for `worker`, whose process has ended."""
        self._round.note_answer(worker)

    async def since(self, moment: float) -> None:
        """Poll all workers, unless they were polled since `moment`."""
        async with self._one_round_at_a_time:
            if self._asked_at < moment:
                now = trio.current_time()
                await self._ask_all()
                self._asked_at = now

    async def _ask_all(self) -> None:
        """Poll the workers that serve. Do not wait for one that was silent before."""
        serving = [worker for worker in self._slots if worker.last is not None]
        awaited = {worker for worker in serving if worker.silent_since is None}
        self._round = _Round(self._round.number + 1, awaited)
        for worker in serving:
            worker.tell(Ask(self._round.number))
        if awaited:
            with trio.move_on_after(_ASK_SECONDS):
                await self._round.is_complete.wait()
        for worker in self._round.awaited:
            _log.warning("worker.silent", worker=worker.number)
            worker.note_silent()
        self.tell_of_others()

    def tell_of_others(self) -> None:
        """Tell each worker what the others hold and use."""
        for worker in self._slots:
            rest = [other for other in self._slots if other is not worker and other.last]
            others = [other.last for other in rest if other.last is not None]
            worker.tell(
                OtherWorkers(
                    # Clients of a worker that leaves come to the others: do not count them twice.
                    connections=sum(other.connections for other in rest if not other.leaves),
                    cpu_cores=sum(other.load.loop_busy_percent for other in others) / 100,
                    turnover_cores=sum(other.load.turnover_percent for other in others) / 100,
                    # The supervisor is a part of the server too, and a small one.
                    memory_bytes=sum(other.process.memory_bytes for other in others)
                    + resident_bytes(),
                )
            )
