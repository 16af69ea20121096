"""Gap notices: losses are counted, logged, and reported to the clients that asked for them.

A gap is reported before the first event after it, and before a position after it is stated: the hub
asks before each message and each command whether one is due. Gaps that follow within a second are
summed up. They are reported when that second is over, with the next message or by a timer.

No notice waits for a socket: it is queued in the outbox, between the events before the gap and
those after it. If there is no room for it, it is summed up with later gaps, and tried again before
the next event for that client, or a second later.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import attrs
import msgspec
import structlog
import trio

from trio_odin.fanout.answers import upstream_notice
from trio_odin.fanout.outbound import Outbound
from trio_odin.fanout.registry import Registry
from trio_odin.fanout.resume_buffer import ResumeBuffer
from trio_odin.ledger.counters import Publications
from trio_odin.ledger.reasons import GapReason
from trio_odin.upstream.gaps import Gap, Gaps, Losses, joined
from trio_odin.upstream.status import NatsStatus
from trio_odin.wire.frames import text_frame
from trio_odin.wire.messages import GapNotice

# Shedding can go on for hours: the log sums it up over this time.
_LOG_SECONDS = 10.0
_NOTICES_BETWEEN_CHECKPOINTS = 500

_log = structlog.get_logger("notices")


class Notices:
    """Reports the gaps that are declared to it, and when NATS comes or goes."""

    def __init__(
        self,
        publications: Publications,
        registry: Registry[Outbound],
        resume_buffer: ResumeBuffer,
        nats_status: NatsStatus,
    ) -> None:
        self._nats_status = nats_status
        self._counters = publications
        self._registry = registry
        self._resume_buffer = resume_buffer
        self._losses = Losses()
        self._owing: dict[Outbound, None] = {}  # those without room for a notice
        self._told: trio.Event | None = None  # while a report is under way; set at its end
        self._unlogged: Gaps = {}
        self._logged_at: dict[GapReason, float] = {}

    def declare(self, *gaps: Gap) -> None:
        """Add `gaps` to those that are to be reported."""
        self._losses.declare(gaps)

    async def tell_due(self) -> None:
        """Report what has to come before the next event or position; mostly returns at once.

        If a report is under way, waits for its end: it may not have reached every client.
        """
        while self._told is not None or self._losses.are_due(trio.current_time()):
            if self._told is None:
                await self.tell()
            else:
                await self._told.wait()

    async def run(self) -> None:
        """Report each second what no event made due, until cancelled."""
        while True:
            await trio.sleep(Losses.TELL_SECONDS)
            await self._tell_state()
            if self._losses:
                await self.tell()
            else:
                owing = list(self._owing)
                for start in range(0, len(owing), _NOTICES_BETWEEN_CHECKPOINTS):
                    self.tell_owed(owing[start : start + _NOTICES_BETWEEN_CHECKPOINTS])
                    await trio.lowlevel.checkpoint()
            self._log((), trio.current_time())

    async def _tell_state(self) -> None:
        """Say whether NATS is connected to those who think otherwise, if there is room for it."""
        registry, is_connected = self._registry, self._nats_status.is_connected
        told_gone = registry.told_gone
        wrong = told_gone if is_connected else registry.audience.keys() - told_gone
        frame = upstream_notice(is_connected=is_connected)
        for number, outbound in enumerate(list(wrong), start=1):
            if number % _NOTICES_BETWEEN_CHECKPOINTS == 0:
                await trio.lowlevel.checkpoint()
            if outbound in registry.audience and outbound.send_soon(frame):
                registry.tell_gone(outbound, is_gone=not is_connected)

    async def tell(self) -> None:
        """Report all declared gaps to every client that asked for notices.

        Cancellation: a report that has begun is completed first, as one client's task may send it
        to all the others.
        """
        while self._told is not None:
            await self._told.wait()
        self._told = told = trio.Event()
        try:
            with trio.CancelScope(shield=True):
                now = trio.current_time()
                gaps = self._losses.take(now)
                for gap in gaps.values():
                    self._counters.gaps[gap.reason] += 1
                    self._counters.missed += gap.missed or 0
                self._log(gaps.values(), now)
                await self._tell(gaps)
        finally:
            self._told = None
            told.set()

    def owed_to(self, outbound: Outbound) -> bytes:
        """The notices for which `outbound` had no room, to be sent before an answer to it."""
        owed = self._registry.audience.get(outbound)
        if not owed:
            return b""
        self._registry.audience[outbound] = {}
        return self._frames(owed, time.time_ns() // 1_000_000)

    def _log(self, gaps: Iterable[Gap], now: float) -> None:
        self._unlogged = joined(self._unlogged, gaps)
        for reason, gap in list(self._unlogged.items()):
            if now - self._logged_at.get(reason, -_LOG_SECONDS) >= _LOG_SECONDS:
                del self._unlogged[reason]
                self._logged_at[reason] = now
                content = attrs.asdict(gap) | {"reason": reason.value}
                _log.warning("nats.gap", **content)

    async def _tell(self, news: Gaps) -> None:
        """Send every client the `news`, summed up with what it had no room for."""
        audience = self._registry.audience
        unix_ms = time.time_ns() // 1_000_000
        news_frames = self._frames(news, unix_ms)
        self._owing.clear()
        for number, outbound in enumerate(list(audience), start=1):
            if number % _NOTICES_BETWEEN_CHECKPOINTS == 0:
                await trio.lowlevel.checkpoint()
            if outbound in audience:  # else it has left meanwhile
                owed = audience[outbound]
                gaps = joined(owed, news.values())
                frames = self._frames(gaps, unix_ms) if owed else news_frames
                is_told = not frames or outbound.send_soon(frames)
                audience[outbound] = {} if is_told else gaps
                if not is_told:
                    self._owing[outbound] = None

    def tell_owed(self, outbounds: Iterable[Outbound]) -> None:
        """Try again with those of `outbounds` that had no room for a notice. Does not wait."""
        if not self._owing:
            return
        for outbound in [one for one in outbounds if one in self._owing]:
            owed = self._registry.audience.get(outbound)  # none: it left, or got it with an answer
            if not owed or outbound.send_soon(self._frames(owed, time.time_ns() // 1_000_000)):
                del self._owing[outbound]
                if owed:
                    self._registry.audience[outbound] = {}

    def has_told(self, outbound: Outbound) -> bool:
        """Whether `outbound` was told of everything that was lost; tries once. Does not wait."""
        if outbound in self._owing:
            self.tell_owed((outbound,))
        return outbound not in self._owing

    def _frames(self, gaps: Gaps, unix_ms: int) -> bytes:
        epoch = self._resume_buffer.epoch
        notices = (
            GapNotice(gap.reason, gap.missed, gap.first, gap.last, epoch, unix_ms)
            for gap in gaps.values()
        )
        return b"".join(text_frame(msgspec.json.encode(notice)) for notice in notices)
