"""The ticks: one task that sends each connection with a rate what has changed since its last tick.

What it costs follows the number of clients and their rates, and not the number of events. A client
whose socket takes nothing at a tick gets the merged batch at the next one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import trio

from trio_odin.fanout.batch import Batch
from trio_odin.fanout.cohorts import Cohort, Member, Slot
from trio_odin.fanout.notices import Notices
from trio_odin.fanout.outbound import Outbound
from trio_odin.fanout.rates import Rates, batch_of
from trio_odin.wire.rates import TICK_MS

_TICK_SECONDS = TICK_MS / 1000


class Ticks:
    """Serves the slots of `rates` at their ticks.

    Args:
        slice_seconds: after so much work all other tasks have a turn.

    Attributes:
        rates: the subscriptions at a rate.
    """

    def __init__(self, *, slice_seconds: float = 0.002) -> None:
        self._slice_seconds = slice_seconds
        self.rates: Rates[Outbound] = Rates(self._wake)
        self._lot = trio.lowlevel.ParkingLot()
        self._lock = trio.Lock()
        self._due: dict[tuple[int, int], int] = {}  # by slot: the tick, counted from time 0
        self._slice_ends_at = 0.0

    def _wake(self) -> None:
        self._lot.unpark_all()

    async def run(self, notices: Notices) -> None:
        """Serve slots until cancelled. Without any, the task sleeps.

        Args:
            notices: a client that is owed a gap notice gets it before further events.
        """
        while True:
            self._plan()
            if not self._due:
                await self._lot.park()
                continue
            with trio.move_on_at(min(self._due.values()) * _TICK_SECONDS):
                await self._lot.park()
            now = _tick_of(trio.current_time())
            for key in [key for key, tick in self._due.items() if tick <= now]:
                del self._due[key]
                if (slot := self.rates.slots.get(key)) is not None:
                    await self._serve([slot], notices)

    def _plan(self) -> None:
        """Find the next tick of each slot that is new or was served."""
        slots = self.rates.slots
        for key in self._due.keys() - slots.keys():
            del self._due[key]
        upcoming = _tick_of(trio.current_time()) + 1
        for every_ms, tick in slots.keys() - self._due.keys():
            self._due[every_ms, tick] = upcoming + (tick - upcoming) % (every_ms // TICK_MS)

    async def serve_all(self, notices: Notices) -> None:
        """Serve all slots now, whatever their ticks are: what is due belongs before what follows.

        A client that takes nothing now will not get it.
        """
        if self.rates.slots:
            await self._serve(list(self.rates.slots.values()), notices)
        self.rates.updates.keep(())

    async def _serve(self, slots: Iterable[Slot[Outbound]], notices: Notices) -> None:
        async with self._lock:
            self._slice_ends_at = trio.current_time() + self._slice_seconds
            for slot in slots:
                for cohort in list(slot.cohorts.values()):
                    await self._serve_cohort(cohort, notices)

    async def _serve_cohort(self, cohort: Cohort[Outbound], notices: Notices) -> None:
        updates = self.rates.updates
        odd, before = list(cohort.odd), cohort.since
        found = cohort.changed(updates.after(before))
        batch = Batch.of((update, before) for update in found) if found else None
        cohort.begin_tick(updates.number, is_quiet=batch is None)
        if batch is not None:
            await self._serve_alike(cohort, batch, before, notices)
        for member in odd:
            if member.cohort is cohort and member in cohort.members:
                self._serve_odd(member, notices)
                await self._give_way()

    async def _serve_alike(
        self, cohort: Cohort[Outbound], batch: Batch, before: int, notices: Notices
    ) -> None:
        """Send all members that are not odd the same batch: what came after the number `before`."""
        frames: dict[Hashable, bytes] = {}
        while cohort.unserved:
            member, _ = cohort.unserved.popitem()
            if not self._send(member, batch, frames, notices):
                member.since = before
                cohort.slot.settle(member)
            await self._give_way()

    def _serve_odd(self, member: Member[Outbound], notices: Notices) -> None:
        """Serve a member that gets something else than its cohort."""
        updates = self.rates.updates
        batch = batch_of(member.changed(updates))
        if batch is None or self._send(member, batch, {}, notices):
            member.sent_all(updates.number)
            member.cohort.slot.settle(member)

    def _send(
        self,
        member: Member[Outbound],
        batch: Batch,
        frames: dict[Hashable, bytes],
        notices: Notices,
    ) -> bool:
        outbound = member.subscriber
        return notices.has_told(outbound) and outbound.take_batch(batch, frames)

    async def _give_way(self) -> None:
        """Let all other tasks have a turn after each slice of the work."""
        if trio.current_time() >= self._slice_ends_at:
            await trio.lowlevel.checkpoint()
            self._slice_ends_at = trio.current_time() + self._slice_seconds


def _tick_of(now: float) -> int:
    """The number of the last tick up to this time."""
    return int(now / _TICK_SECONDS + 1e-3)  # its own time may be a little less than a tick
