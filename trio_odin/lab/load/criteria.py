"""The criteria that a load must meet to pass. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

import attrs

from trio_odin.lab.load.result import LoadResult


@attrs.frozen(kw_only=True)
class Check:
    """One criterion and the measured figure.

    Args:
        is_met: the criterion is met, or the figure is unknown and that is excused.
        is_known: the figure could be measured.
        source: origin of the criterion, "plan" or "ours".
        why_unknown: why it could not be measured, in words; "" if it could, or if nobody knows.
    """

    what: str
    wanted: str
    measured: str
    is_met: bool
    is_known: bool = True
    source: str = "plan"
    why_unknown: str = ""


def tally(checks: Sequence[Check], noun: str = "") -> str:
    """How many were met, without the excused ones: "16 of 16 criteria, 1 not known"."""
    excused = sum(check.is_met and not check.is_known for check in checks)
    met = sum(check.is_met for check in checks) - excused
    told = f"{met} of {len(checks) - excused} {noun}".rstrip()
    return f"{told}, {excused} not known" if excused else told


@attrs.frozen
class Figure:
    """A figure that a criterion can bound.

    Args:
        title: name for people.
        of: finds it in a result; None: it could not be measured.
        show: writes it for people.
        why_unknown: why it cannot be measured in some loads.
    """

    title: str
    of: Callable[[LoadResult], float | None]
    show: Callable[[float], str]
    why_unknown: str = ""


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _share(value: float) -> str:
    return f"{value * 100:.4g} %"


def _ms(value: float) -> str:
    return f"{value:,.0f} ms"


def _mib(value: float) -> str:
    return f"{value:,.0f} MiB"


def _returned(result: LoadResult) -> float | None:
    lost = result.reconnects
    return None if lost is None or not lost.lost else lost.back / lost.lost


def _hundredth(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _growth(result: LoadResult) -> float | None:
    """Growth in percent over the second half of the hold, from its first to its last fifth.

    The figures are means. The first half does not count, as buffers fill up in it by design.
    """
    held = [s.server_mib for s in result.series if s.phase == "hold" and s.server_mib is not None]
    tenth = len(held) // 10
    if not tenth:
        return None
    middle = len(held) // 2
    first, last = sum(held[middle : middle + tenth]) / tenth, sum(held[-tenth:]) / tenth
    return (last / first - 1) * 100


def _drift(result: LoadResult) -> float | None:
    """The p99 latency of the hold's last third divided by that of its first third.

    Each is the median of its seconds. It shows a queue that grows without end, however small it is.
    """
    held = [s.p99_ms for s in result.series if s.phase == "hold"]
    third = len(held) // 3
    first, last = ([ms for ms in part if ms] for part in (held[:third], held[len(held) - third :]))
    return statistics.median(last) / statistics.median(first) if first and last else None


def _held(result: LoadResult) -> float | None:
    """The share of the connections that were present in the last second with events."""
    held = [s.connections for s in result.series if s.phase in {"hold", "after"}]
    return held[-1] / result.connections if held else None


def _pace(result: LoadResult) -> float | None:
    """Published events by planned events: a publisher that is too slow makes every load light."""
    planned = (result.rate or 0.0) * result.hold_seconds
    return result.published / planned if result.published is not None and planned else None


def _churned(result: LoadResult) -> float | None:
    planned = result.churn_per_second * result.hold_seconds
    return result.churned / planned if planned else None


_NO_PAGE = "the server's /metrics, beside --health-url, does not have it"
_NO_COUNT = "it takes a --publisher that counts what it publishes, and no --cut"
_NO_PACE = "it takes --rate, and a --publisher that counts what it publishes"

FIGURES = {
    "success": Figure("connected and subscribed", lambda r: r.success, _share),
    "rejected": Figure("connections refused", lambda r: sum(r.rejections.values()), _count),
    "cpu": Figure(
        "CPU of the limit, mean", lambda r: _hundredth(r.server.percent), _share, _NO_PAGE
    ),
    "cores": Figure(
        "CPU of the server", lambda r: r.server.cores, lambda v: f"{v:.2f} cores", _NO_PAGE
    ),
    "memory": Figure("resident memory", lambda r: r.server.held_mib, _mib, _NO_PAGE),
    "p99": Figure(
        "p99 latency", lambda r: r.latency.p99_ms if r.latency else None, _ms, "no event came"
    ),
    "drift": Figure(
        "p99 at the end by p99 at first",
        _drift,
        lambda value: f"{value:.2f} times",
        "the hold was too short",
    ),
    "held": Figure("connected at the end of the hold", _held, _share),
    "pace": Figure("events published, of those planned", _pace, _share, _NO_PACE),
    "published": Figure("events received by anybody", lambda r: r.publications, _count),
    "per_event": Figure(
        "deliveries an event", lambda r: r.delivered / max(1, r.publications), _count
    ),
    "writes": Figure("messages with events, a second", lambda r: r.frames_per_second, _count),
    "bytes": Figure(
        "bytes a delivery, with TCP/IP headers", lambda r: r.delivery_wire_bytes, _count
    ),
    "lost": Figure("deliveries lost", lambda r: r.lost, _count),
    "unseen": Figure("events that reached nobody", lambda r: r.unseen, _count, _NO_COUNT),
    "gaps": Figure("missing numbers of seq", lambda r: r.gaps, _count),
    "unexplained": Figure("breaks of a channel's chain", lambda r: r.unexplained, _count),
    "repeated": Figure("events repeated or late", lambda r: r.repeated, _count),
    "foreign": Figure("events of other channels", lambda r: r.foreign, _count),
    "unreadable": Figure("frames of no known form", lambda r: r.unreadable, _count),
    "errors": Figure("error replies", lambda r: r.error_replies, _count),
    "disconnects": Figure(
        "connections cut off by the server", lambda r: sum(r.disconnects.values()), _count
    ),
    "imbalance": Figure("imbalance of the ledger", lambda r: r.server.imbalance, _count, _NO_PAGE),
    "returned": Figure("came back after the cut", _returned, _share),
    "return_seconds": Figure(
        "seconds until all were back",
        lambda r: r.reconnects.seconds if r.reconnects else None,
        lambda value: f"{value:.1f} s",
    ),
    "churned": Figure("connections replaced, of those planned", _churned, _share),
    "growth": Figure(
        "growth of the memory in the second half",
        _growth,
        lambda value: f"{value:+.2f} %",
        "the hold was too short, or the server's /metrics does not have it",
    ),
}


@attrs.frozen
class Criterion:
    """A bound on a figure.

    Args:
        figure: a key of `FIGURES`.
        bound: in the figure's unit.
        is_least: a lower bound, not an upper one.
        is_excused: met if the figure is unknown, as of a server that does not report it.
        source: "plan" or "ours".
    """

    figure: str
    bound: float
    is_least: bool = False
    is_excused: bool = False
    source: str = "ours"

    def check(self, result: LoadResult) -> Check:
        """Compare the bound with the measured figure."""
        figure = FIGURES[self.figure]
        value = figure.of(result)
        relation = "at least" if self.is_least else "at most"
        if value is None:
            is_met = self.is_excused
        else:
            is_met = value >= self.bound if self.is_least else value <= self.bound
        return Check(
            what=figure.title,
            wanted=f"{relation} {figure.show(self.bound)}",
            measured="unknown" if value is None else figure.show(value),
            is_met=is_met,
            is_known=value is not None,
            source=self.source,
            why_unknown=figure.why_unknown if value is None else "",
        )


def at_most(figure: str, bound: float, source: str = "ours") -> Criterion:
    """An upper bound."""
    return Criterion(figure, bound, source=source)


def at_least(figure: str, bound: float, source: str = "ours") -> Criterion:
    """A lower bound."""
    return Criterion(figure, bound, is_least=True, source=source)


INTEGRITY = (
    at_least("published", 1),
    *(
        Criterion(name, 0, is_excused=True)
        for name in (
            *("lost", "unseen", "gaps", "unexplained", "repeated", "foreign", "unreadable"),
            *("errors", "disconnects", "imbalance"),
        )
    ),
)
"""What every load must hold: everything that was due came, once, in order, to whom it concerned.

With a rate what did not come was reported as skipped.
"""


def checks(result: LoadResult, criteria: Iterable[Criterion]) -> list[Check]:
    """Check all criteria."""
    return [criterion.check(result) for criterion in criteria]
