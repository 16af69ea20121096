"""A server's own figures on its /metrics, sample by sample, and their meaning."""

from __future__ import annotations

import time
from collections.abc import Mapping

import attrs

from trio_odin.lab.load.pages import get, get_object, parse_metrics
from trio_odin.lab.load.result import ServerFigures

_MIB = 1024 * 1024
CPU = "process_cpu_seconds_total"
RSS = "process_resident_memory_bytes"
# Not on any page, but known to the program that started the server.
USER_CPU = "user"
OTHERS_CPU = "others"
_PERCENT = "ws_cpu_usage_percent"
_SENT = "ws_messages_sent_total"
_REJECTED = "ws_connections_rejected_total"
_IMBALANCE = "ws_ledger_imbalance"
UNMATCHED = "ws_publications_unmatched_total"
_FROM_NATS = "ws_nats_messages_received_total"


@attrs.frozen
class Statement:
    """The figures at one moment; empty if there was no page. `at`: monotonic seconds."""

    at: float
    figures: Mapping[str, float]

    @property
    def mib(self) -> float | None:
        """Resident memory."""
        rss = self.figures.get(RSS)
        return None if rss is None else rss / _MIB

    @property
    def percent(self) -> float | None:
        """CPU by the server's own report, in percent of its limit."""
        return self.figures.get(_PERCENT)

    def since(self, earlier: Statement, name: str) -> float | None:
        """The growth of the metric; None if one of the two pages does not have it."""
        if name in self.figures and name in earlier.figures:
            return self.figures[name] - earlier.figures[name]
        return None

    def cores_since(self, earlier: Statement, name: str = CPU) -> float | None:
        """CPU by time."""
        cpu, seconds = self.since(earlier, name), self.at - earlier.at
        return cpu / seconds if cpu is not None and seconds > 0 else None


class Server:
    """A server as its pages show it."""

    def __init__(self, health_url: str | None, metrics_url: str | None) -> None:
        self._health_url = health_url
        self._metrics_url = metrics_url

    async def health(self) -> str:
        """The health that it reports: "healthy", "degraded", "unhealthy", or "unknown"."""
        found = None if self._health_url is None else await get_object(self._health_url)
        return str((found or {}).get("status", "unknown"))

    async def statement(self) -> Statement:
        """Its current figures."""
        page = None if self._metrics_url is None else await get(self._metrics_url)
        has_figures = page is not None and page.status == 200
        text = page.body.decode(errors="replace") if page is not None and has_figures else ""
        return Statement(time.monotonic(), parse_metrics(text))


_NOTHING = Statement(0.0, {})


@attrs.define(kw_only=True)
class Moments:
    """The figures at the turning points of a load.

    Args:
        before: before the first connect.
        connected: after the connects.
        idle_from, idle_until: start and end of the time in which nothing was published.
        published_from: before the first event.
        hold: all of the hold, its ends included.
        end: the newest.
    """

    before: Statement = _NOTHING
    connected: Statement = _NOTHING
    idle_from: Statement = _NOTHING
    idle_until: Statement = _NOTHING
    published_from: Statement = _NOTHING
    hold: list[Statement] = attrs.field(factory=list)
    end: Statement = _NOTHING

    @property
    def hold_seconds(self) -> float:
        """The length of the hold; 0 if there was none."""
        return self.hold[-1].at - self.hold[0].at if self.hold else 0.0


def server_figures(moments: Moments, connected: int, received: int) -> ServerFigures:
    """Compute the figures of the server from its pages.

    Args:
        moments: the pages.
        connected: connections that succeeded.
        received: envelopes of the hold, used if the server does not count them.
    """
    before, hold = moments.before, moments.hold or [_NOTHING]
    first, last = hold[0], hold[-1]
    base, held = before.mib, last.mib
    hold_cpu = last.since(first, CPU)
    deliveries = last.since(first, _SENT) or received
    percents = [page.percent for page in hold[1:] if page.percent is not None]
    return ServerFigures(
        connect_us=_micros(moments.connected.since(before, CPU), connected),
        idle_cores=moments.idle_until.cores_since(moments.idle_from),
        cores=last.cores_since(first),
        percent=sum(percents) / len(percents) if percents else None,
        percent_max=max(percents, default=None),
        delivery_us=_micros(hold_cpu, deliveries),
        delivery_user_us=_micros(last.since(first, USER_CPU), deliveries),
        others_cores=last.cores_since(first, OTHERS_CPU),
        base_mib=base,
        connected_mib=moments.connected.mib,
        held_mib=held,
        connection_kib=(
            (held - base) * 1024 / connected
            if held is not None and base is not None and connected
            else None
        ),
        rejected=moments.end.since(before, _REJECTED),
        imbalance=moments.end.figures.get(_IMBALANCE),
        received_from_nats=last.since(first, _FROM_NATS),
    )


def _micros(seconds: float | None, count: float) -> float | None:
    return None if seconds is None or not count else seconds * 1e6 / count
