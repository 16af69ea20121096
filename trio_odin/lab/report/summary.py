"""A run in short: key figures, the comparison with the plan, and the figures of each load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeAlias

import attrs

from trio_odin.lab.figures import NOTHING, count, duration, figure, share
from trio_odin.lab.fleet.latency import Durations
from trio_odin.lab.load.result import LoadResult, ServerFigures
from trio_odin.lab.model.model import PLAN_COSTS
from trio_odin.lab.verdict import LabResult, Prediction, StageResult

Row: TypeAlias = tuple[str, str]
_Loaded: TypeAlias = tuple[StageResult, LoadResult]

# The plan's measurements of its Go server: 0.7 MB a connection, 36.5 µs of a core for each write.
PLAN_CONNECTION_MIB = PLAN_COSTS.connection_kib / 1024
PLAN_WRITE_US = PLAN_COSTS.delivery_us
_KIB = 1024
# The stages that match the plan's own figures.
_FULL_STAGE = 4
_NORMAL_STAGE = 5
_PEAK_STAGE = 6
_UNFILTERED_STAGE = 8
_REASONS_MOST = 20


@attrs.frozen(kw_only=True)
class Tile:
    """A key figure in large type."""

    name: str
    value: str
    more: str = ""


@attrs.frozen(kw_only=True)
class Comparison:
    """The plan's figure and the measured one."""

    what: str
    plan: str
    measured: str
    factor: str
    where: str


@attrs.frozen(kw_only=True)
class Trouble:
    """A problem of some connections."""

    kind: str
    reason: str
    times: int


def success(load: LoadResult) -> float | None:
    """The share of the connections that succeeded; None if none was planned."""
    return load.success if load.connections else None


def error(prediction: Prediction) -> float | None:
    """The relative error of the prediction; None if the measured figure is 0."""
    return prediction.error if prediction.measured else None


def sentence(result: LabResult) -> str:
    """How many stages passed."""
    passed = sum(stage.passed for stage in result.stages)
    told = f"{passed} of {len(result.stages)} stages passed"
    if not result.stages:
        told = "No stage was run"
    return f"{told}; the run was interrupted" if result.interrupted else told


def reservations(result: LabResult) -> str:
    """The differences from the plan: "Holds shortened; not run: stages 1, 2"."""
    told = ["holds shortened"] if any(stage.is_shortened for stage in result.stages) else []
    if result.not_run:
        noun = "stage" if len(result.not_run) == 1 else "stages"
        told.append(f"not run: {noun} {', '.join(map(str, result.not_run))}")
    text = "; ".join(told)
    return text[:1].upper() + text[1:]


def held(stage: StageResult) -> str:
    """The length of the hold: "2 min of 30 min"; only the time if it was as long as planned."""
    if stage.load is None:
        return NOTHING
    # The hold is shown without fractions of a second.
    told = duration(round(stage.load.hold_seconds))
    return f"{told} of {duration(stage.wanted_seconds)}" if stage.is_shortened else told


# ---- key figures


def tiles(result: LabResult) -> Iterator[Tile]:
    """The five key figures of the stages with filtering, as far as they are known."""
    filtered = [(s, s.load) for s in result.stages if s.load and s.load.workload.is_filtered]
    if not filtered:
        return
    yield _most_tile(filtered)
    normal = [(s, load) for s, load in filtered if s.number == _NORMAL_STAGE]
    yield from _main_tiles(*(normal or filtered)[-1])
    yield _lost_tile([load for _, load in filtered])


def _most_tile(loads: Sequence[_Loaded]) -> Tile:
    """The most connections of the passed stages; of all stages if none passed."""
    passed = [(stage, load) for stage, load in loads if stage.passed]
    stage, load = max(passed or loads, key=lambda pair: pair[1].connected)
    return Tile(
        name="most connections held" if passed else "most connections",
        value=count(load.connected),
        more=f"of {count(load.connections)} asked for, stage {stage.number}",
    )


def _main_tiles(stage: StageResult, load: LoadResult) -> Iterator[Tile]:
    where = f"stage {stage.number}"
    kib = load.server.connection_kib
    less = _less(PLAN_CONNECTION_MIB * _KIB, kib)
    latency = load.latency
    yield Tile(
        name=f"server CPU at {count(load.connected)}",
        value=figure(load.server.cores, "cores"),
        more=f"of the one core that a process can use, {where}",
    )
    yield Tile(
        name="memory of a connection",
        value=figure(kib, "KiB"),
        more=f"{less} than planned" if less else where,
    )
    yield Tile(
        name="latency, 99 of 100 within",
        value=figure(latency.p99_ms, "ms") if latency else NOTHING,
        more=f"half within {figure(latency.p50_ms, 'ms')}, {where}" if latency else where,
    )


def _lost_tile(loads: Sequence[LoadResult]) -> Tile:
    lost, expected = sum(x.lost for x in loads), sum(x.expected for x in loads)
    gaps = sum(x.gaps for x in loads)
    return Tile(
        name="deliveries lost",
        value=count(lost),
        more=f"of {count(expected)}; {count(gaps)} gaps; with filtering",
    )


# ---- comparison with the plan


def comparisons(result: LabResult) -> Iterator[Comparison]:
    """The plan's Go server and this one, as far as the necessary stages ran."""
    full = _first(result, (_FULL_STAGE, _NORMAL_STAGE, _PEAK_STAGE, 3, 2))
    if full is not None:
        kib = _server(full).connection_kib
        yield _comparison("memory of a connection", "0.7 MB", PLAN_CONNECTION_MIB * _KIB, kib, full)
    busy = _first(result, (_PEAK_STAGE, _NORMAL_STAGE))
    if busy is not None:
        micros = _server(busy).delivery_us
        yield _comparison("CPU of a delivery", "36.5 µs", PLAN_WRITE_US, micros, busy, "µs")
    if (full := result.stage(_FULL_STAGE)) and full.load:
        mib = full.load.server.held_mib
        yield _comparison(
            "memory at 10,000", "7,000 MB", 10_000 * PLAN_CONNECTION_MIB, mib, full, "MiB"
        )
    unfiltered = result.stage(_UNFILTERED_STAGE)
    if unfiltered is not None and unfiltered.load is not None:
        yield from _root_cause(unfiltered, unfiltered.load)


def _root_cause(stage: StageResult, load: LoadResult) -> Iterator[Comparison]:
    """The plan's test without filtering: 2,625 of 5,000 connected, at 99.5 % of 1.9 cores."""
    where = f"stage {stage.number}"
    cores = figure(load.server.cores, "cores")
    cores_where = f"{where}; the plan: 99.5 % of 1.9 cores"
    for what, plan, measured, told in (
        ("without filtering: connected", "52.5 %", share(success(load)), where),
        ("without filtering: CPU", "1.89 cores", cores, cores_where),
    ):
        yield Comparison(what=what, plan=plan, measured=measured, factor="", where=told)


def _first(result: LabResult, numbers: Sequence[int]) -> StageResult | None:
    stages = (result.stage(number) for number in numbers)
    return next((s for s in stages if s is not None and s.load is not None), None)


def _server(stage: StageResult) -> ServerFigures:
    return stage.load.server if stage.load else ServerFigures()


def _comparison(
    what: str, told: str, plan: float, measured: float | None, stage: StageResult, unit: str = "KiB"
) -> Comparison:
    return Comparison(
        what=what,
        plan=told,
        measured=figure(measured, unit),
        factor=_less(plan, measured) or NOTHING,
        where=f"stage {stage.number}",
    )


def _less(plan: float, measured: float | None) -> str:
    """The ratio in words, such as "21 times less"; "" without a figure."""
    if not measured:
        return ""
    ratio = plan / measured
    return f"{ratio:.3g} times less" if ratio >= 1 else f"{1 / ratio:.3g} times more"


# ---- a load


def groups(load: LoadResult) -> list[tuple[str, list[Row]]]:
    """All figures of a load, in three groups."""
    return [
        ("Connections", list(_connection_rows(load))),
        ("Deliveries", list(_delivery_rows(load))),
        ("Cost", list(_cost_rows(load))),
    ]


def _of(part: int, whole: int) -> str:
    return f"{count(part)} of {count(whole)}"


def _connection_rows(load: LoadResult) -> Iterator[Row]:
    told = _of(load.connected, load.connections)
    yield "subscribed", f"{told} in {duration(load.connect_seconds)}"
    yield "subscriptions of one", f"{load.workload.mean_subscriptions:,.1f} on average"
    yield "one connect", _percentiles(load.connect_ms)
    if load.reconnects is not None:
        back = load.reconnects
        yield "came back", f"{_of(back.back, back.lost)} in {duration(back.seconds)}"
        yield "one return", _percentiles(back.ms)
    if load.churned:
        yield "closed and replaced", count(load.churned)
    yield "refused", count(sum(load.rejections.values()))
    yield "failed", count(sum(load.failures.values()))
    yield "ended early", count(sum(load.disconnects.values()))
    yield "closed cleanly", count(load.closed_cleanly)


def _delivery_rows(load: LoadResult) -> Iterator[Row]:
    yield "events a second", "not ours to tell" if load.rate is None else f"{load.rate:g}"
    yield "received", f"{count(load.received)}, {count(load.received_per_second)} a second"
    yield "held for", duration(load.hold_seconds)
    if load.published is not None:
        yield "events seen", _of(load.publications, load.published)
    yield "delivered", _of(load.delivered, load.expected)
    yield "lost / gaps", f"{count(load.lost)} / {count(load.gaps)}"
    yield "repeated / foreign", f"{count(load.repeated)} / {count(load.foreign)}"
    errors = f"{count(load.unreadable)} / {count(load.error_replies)}"
    yield "unreadable / error replies", errors
    yield "received nothing", count(load.silent)
    if load.latency is not None:
        yield "latency p50 / p90 / p99", _latencies(load.latency, ("p50_ms", "p90_ms", "p99_ms"))
        yield "latency p99.9 / max", _latencies(load.latency, ("p999_ms", "max_ms"))


def _cost_rows(load: LoadResult) -> Iterator[Row]:
    server = load.server
    of_limit = f", {figure(server.percent)} % of its limit" if server.percent is not None else ""
    yield "server CPU", figure(server.cores, "cores") + of_limit
    if server.percent_max is not None:
        yield "at most", f"{figure(server.percent_max)} % of its limit"
    yield "while idle", figure(server.idle_cores, "cores")
    yield "one delivery", figure(server.delivery_us, "µs")
    yield "one connect", figure(server.connect_us, "µs")
    memory = (server.base_mib, server.connected_mib, server.held_mib)
    yield "memory before / full / end", " / ".join(map(figure, memory)) + " MiB"
    yield "memory of a connection", figure(server.connection_kib, "KiB")
    yield "not in its ledger", count(server.imbalance)
    clients = f"{figure(load.client_cores, 'cores')}, busiest {figure(load.busiest_client_cores)}"
    yield "clients' CPU", clients


def _percentiles(durations: Durations | None) -> str:
    if durations is None:
        return NOTHING
    return f"p50 {figure(durations.p50_ms, 'ms')}, p99 {figure(durations.p99_ms, 'ms')}"


def _latencies(latency: Durations, names: Sequence[str]) -> str:
    return " / ".join(figure(getattr(latency, name)) for name in names) + " ms"


def troubles(load: LoadResult) -> list[Trouble]:
    """The problems by reason, the most frequent first; rare reasons are summed up."""
    kinds: list[tuple[str, Mapping[str, int]]] = [
        ("refused", {f"HTTP {status}": times for status, times in load.rejections.items()}),
        ("failed", load.failures),
        ("ended early", load.disconnects),
    ]
    found = [
        Trouble(kind=kind, reason=reason, times=times)
        for kind, reasons in kinds
        for reason, times in reasons.items()
    ]
    found.sort(key=lambda trouble: -trouble.times)
    rest = list(islice(found, _REASONS_MOST, None))
    if not rest:
        return found
    times = sum(trouble.times for trouble in rest)
    summed = Trouble(kind="others", reason=f"{len(rest):,} rarer reasons", times=times)
    return [*found[:_REASONS_MOST], summed]
