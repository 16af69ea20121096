"""Notices of gaps: each second, what was lost goes into the books, the log, and to who asked.

No notice waits for a socket. What one does not take now is summed up with what comes later, and is
tried again a second later.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable
from typing import Any, Protocol, TypeVar

import attrs
import msgspec
import structlog
import trio

from trio_odin.core.frame import text_frame
from trio_odin.core.gaps import Gap, GapReason, Gaps, joined
from trio_odin.core.ledger import Publications
from trio_odin.core.registry import Registry
from trio_odin.core.upstream import Upstream

_TELL_SECONDS = 1.0
# Shedding can go on for hours: the log sums it up.
_LOG_SECONDS = 10.0
_NOTICES_BETWEEN_CHECKPOINTS = 500

_log = structlog.get_logger("notices")


class Listener(Hashable, Protocol):
    """What a notice is sent to; see `Outlet`."""

    def send_nowait(self, data: bytes) -> bool:
        """Send whole frames at once; False if the socket takes nothing now."""
        ...


L = TypeVar("L", bound=Listener)


class Notices:
    """Tells of the gaps that the bridge declares, and of what the server sheds."""

    def __init__(
        self, publications: Publications, registry: Registry[Any], upstream: Upstream
    ) -> None:
        self._books = publications
        self._registry = registry
        self._upstream = upstream
        self._shed = publications.shed.total()
        self._is_owing = False
        self._unlogged: Gaps = {}
        self._logged_at: dict[GapReason, float] = {}

    async def run(self) -> None:
        """Tell each second, until cancelled."""
        while True:
            await trio.sleep(_TELL_SECONDS)
            gaps = self._collect()
            self._log(gaps.values(), trio.current_time())
            if gaps or self._is_owing:
                await self._tell(gaps)

    def _collect(self) -> Gaps:
        """What was lost since the last time, booked."""
        gaps = self._upstream.take_gaps()
        shed = self._books.shed.total() - self._shed
        if shed:
            self._shed += shed
            gaps[GapReason.SHED] = Gap(GapReason.SHED, shed)
        for gap in gaps.values():
            self._books.gaps[gap.reason] += 1
            self._books.missed += gap.missed or 0
        return gaps

    def _log(self, gaps: Iterable[Gap], now: float) -> None:
        self._unlogged = joined(self._unlogged, gaps)
        for reason, gap in list(self._unlogged.items()):
            if now - self._logged_at.get(reason, -_LOG_SECONDS) >= _LOG_SECONDS:
                del self._unlogged[reason]
                self._logged_at[reason] = now
                content = attrs.asdict(gap) | {"reason": reason.value}
                _log.warning("nats.gap", **content)

    async def _tell(self, news: Gaps) -> None:
        """Send everyone who asked what they do not know yet."""
        audience = self._registry.audience
        unix_ms = time.time_ns() // 1_000_000
        news_frames = self._frames(news, unix_ms)
        self._is_owing = False
        for number, listener in enumerate(list(audience), start=1):
            if number % _NOTICES_BETWEEN_CHECKPOINTS == 0:
                await trio.lowlevel.checkpoint()
            if listener in audience:  # else it has left meanwhile
                owed = audience[listener]
                gaps = joined(owed, news.values())
                frames = self._frames(gaps, unix_ms) if owed else news_frames
                is_told = _send(listener, frames)
                audience[listener] = {} if is_told else gaps
                self._is_owing = self._is_owing or not is_told

    def _frames(self, gaps: Gaps, unix_ms: int) -> bytes:
        return b"".join(
            text_frame(
                msgspec.json.encode(
                    {
                        "type": "gap",
                        "reason": gap.reason.value,
                        "missed": gap.missed,
                        "from": gap.first,
                        "to": gap.last,
                        "epoch": self._upstream.epoch,
                        "ts": unix_ms,
                    }
                )
            )
            for gap in gaps.values()
        )


def _send(listener: Listener, frames: bytes) -> bool:
    try:
        return not frames or listener.send_nowait(frames)
    except trio.BrokenResourceError:  # its reader will notice as well
        return True
