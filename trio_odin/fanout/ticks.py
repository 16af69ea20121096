"""The ticks: one task that sends each connection with a rate what has changed since its last tick.

What it costs follows the number of clients and their rates, and not the number of events. A client
whose socket takes nothing at a tick gets the merged batch at the next one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import trio

from trio_odin.fanout.batch import Batch
from trio_odin.fanout.cohorts import Cohort, Member
from trio_odin.fanout.notices import Notices
from trio_odin.fanout.outbound import Outbound
from trio_odin.fanout.rates import Rates, Unsent
from trio_odin.wire.rates import TICK_MS

_TICK_SECONDS = TICK_MS / 1000
_FORGET_TICKS = round(10 / _TICK_SECONDS)


class Ticks:
    """Serves the slots of `rates` at their ticks.

    Args:
        max_batch_bytes: see `Rates`.
        slice_seconds: after so much work all other tasks have a turn.

    Attributes:
        rates: the subscriptions at a rate.
    """

    def __init__(self, *, max_batch_bytes: int = 1024 * 1024, slice_seconds: float = 0.002) -> None:
        self.rates: Rates[Outbound] = Rates(self._wake, max_batch_bytes=max_batch_bytes)
        self._slice_seconds = slice_seconds
        self._lot = trio.lowlevel.ParkingLot()
        self._due: dict[tuple[int, int], int] = {}  # by slot: the tick, counted from time 0
        self._slice_ends_at = 0.0

    def _wake(self) -> None:
        self._lot.unpark_all()

    async def run(self, notices: Notices) -> None:
        """Serve slots until cancelled. Without any, the task sleeps.

        Args:
            notices: a client that is owed a gap notice gets it before further events.
        """
        forget_at = 0
        while True:
            self._plan()
            if not self._due:
                await self._lot.park()
                continue
            with trio.move_on_at(min(self._due.values()) * _TICK_SECONDS):
                await self._lot.park()
            now = _tick_of(trio.current_time())
            self._slice_ends_at = trio.current_time() + self._slice_seconds
            for key in [key for key, tick in self._due.items() if tick <= now]:
                del self._due[key]
                if (slot := self.rates.slots.get(key)) is not None:
                    for cohort in list(slot.cohorts.values()):
                        if not cohort.pass_over(self.rates.updates):
                            await self._serve(cohort, notices)
                        if self._is_slice_over():
                            await self._give_way()
            if now >= forget_at:
                forget_at = now + _FORGET_TICKS
                self.rates.forget_needless()

    def _plan(self) -> None:
        """Find the next tick of each slot that is new or was served."""
        slots = self.rates.slots
        for key in self._due.keys() - slots.keys():
            del self._due[key]
        upcoming = _tick_of(trio.current_time()) + 1
        for every_ms, tick in slots.keys() - self._due.keys():
            self._due[every_ms, tick] = upcoming + (tick - upcoming) % (every_ms // TICK_MS)

    async def _serve(self, cohort: Cohort[Outbound], notices: Notices) -> None:
        updates = self.rates.updates
        odd, before = list(cohort.odd), cohort.since
        unsent = [(update, before) for update in cohort.changed(updates.after(before))]
        cohort.begin_tick(updates.number, is_quiet=not unsent)
        if unsent:
            await self._serve_alike(cohort, unsent, notices)
        for member in odd:
            if member.cohort is cohort and member in cohort.members:
                self._serve_odd(member, notices)
                if self._is_slice_over():
                    await self._give_way()

    async def _serve_alike(
        self, cohort: Cohort[Outbound], unsent: list[Unsent], notices: Notices
    ) -> None:
        """Send all members that are not odd the same batch."""
        before = cohort.before
        batch, rest = self.rates.batch_of(unsent)
        frames: dict[Hashable, bytes] = {}
        while cohort.unserved:
            member, _ = cohort.unserved.popitem()
            if self._send(member, batch, frames, notices):
                _owe(member, rest)
            else:
                member.since = before
                cohort.slot.settle(member)
            if self._is_slice_over():
                await self._give_way()

    def _serve_odd(self, member: Member[Outbound], notices: Notices) -> None:
        """Serve a member that gets something else than its cohort."""
        if not member.subscriber.may_take():
            return  # to find out what it lacks takes the longer, the longer it takes nothing
        updates = self.rates.updates
        unsent = member.changed(updates)
        rest: Sequence[Unsent] = ()
        if unsent:
            batch, rest = self.rates.batch_of(unsent)
            if not self._send(member, batch, {}, notices):
                return
        member.sent_all(updates.number)
        member.cohort.slot.settle(member)
        _owe(member, rest)

    def _send(
        self,
        member: Member[Outbound],
        batch: Batch,
        frames: dict[Hashable, bytes],
        notices: Notices,
    ) -> bool:
        outbound = member.subscriber
        return notices.has_told(outbound) and outbound.take_batch(batch, frames)

    def _is_slice_over(self) -> bool:
        return trio.current_time() >= self._slice_ends_at

    async def _give_way(self) -> None:
        """Let all other tasks have a turn."""
        await trio.lowlevel.checkpoint()
        self._slice_ends_at = trio.current_time() + self._slice_seconds


def _owe(member: Member[Outbound], rest: Sequence[Unsent]) -> None:
    """Leave to the next tick what was too much for one batch."""
    for update, since in rest:
        member.note_other(update.channel, since)


def _tick_of(now: float) -> int:
    """The number of the last tick up to this time."""
    return int(now / _TICK_SECONDS + 1e-3)  # its own time may be a little less than a tick
