"""The costs of the parts from what a lab measured: least squares, nothing below 0. Pure.

CPU. Each stage gives two equations, one while nothing is published and one of the hold:

    idle = base + connections × k
    hold = base + connections × k + publications × (q + p / (1 + rate / j))
                + deliveries × (d + doublings × g)

`j` is no factor, so a few of its values are tried and the best is taken. Only stages with far more
events than the plan's 30 a second can tell `j` and `q`. The lab has some of one connection for that
alone; they say nothing about the memory of connections.

Memory. The lowest base, as a server that has served before keeps some of it, and for each stage:

    held = base + connections × c

What the server's host holds beyond that, at the same moments, is the kernel's: its connections ×
another unknown. The two are read in different ways, so it is taken only if it is plausible.

What counts are relative errors, so 1,000 connections have as much to say as 10,000. There are six
unknowns at most, so the condition that none is below 0 is met in the simplest way: of all choices
of unknowns that are not 0, the best whose solution meets it. That is exact, and takes neither numpy
nor scipy. An unknown that hardly makes it better is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from statistics import fmean

import attrs

from trio_odin.lab.load.result import LoadResult
from trio_odin.lab.model.model import JOINED_MAX_RATE, KIB, Costs, doublings
from trio_odin.lab.verdict import LabResult, Prediction, StageResult

# Readings are no finer: CPU comes in ticks of 10 ms, over windows of some seconds. Without it a
# reading of 3 ticks would weigh as much as one of 3,000.
_CORES_GRAIN = 0.005
_MIB_GRAIN = 1.0
# The host's memory has files in it that were read, and the two are read at different moments.
_KERNEL_MIB_GRAIN = 10.0
# A socket's own structures take some KiB, its buffers are empty most of the time.
_KERNEL_KIB_MIN, _KERNEL_KIB_MAX = 1.0, 64.0
# A column that is so much the sum of others that the rest is rounding.
_DEPENDENT = 1e-9
# A stage with fewer connections is about events.
_CROWD = 100
# The unknown `q`. Where no stage has so many events a second, it is 0, and `j` the first of these.
_JOINED = 3
_JOINED_FROM_RATE = 100.0
_JOINED_RATES = (300.0, 50.0, 75.0, 100.0, 150.0, 200.0, 400.0, 600.0, 900.0, 1400.0, 2000.0)
# Of the squares of relative errors: what an unknown more has to save of them to be taken, so that
# it is not there for the noise alone; and what is rounding.
_WORTH = 0.01
_ROUNDING = 1e-15
# More than any figure of a lab; less than what arithmetic cannot hold.
_FIGURE_MAX = 1e12
_SERVER_FIGURES_WITH_A_SIGN = frozenset({"imbalance"})


class TooLittle(ValueError):
    """Not enough was measured for a fit; the message says what is needed."""


class BadFigure(ValueError):
    """A figure that no lab can have measured; the message says which."""


@attrs.frozen
class _Row:
    """An equation: the factors of the unknowns, the first of which is never 0."""

    factors: tuple[float, ...]
    measured: float

    def without(self, number: int) -> _Row:
        """The same without an unknown."""
        factors = (*self.factors[:number], 0.0, *self.factors[number + 1 :])
        return _Row(factors, self.measured)


def fit(stages: Iterable[StageResult], *, source: str = "") -> Costs:
    """The costs with which the model comes closest to these stages.

    `connect_us` is that of the most connections. Only plain stages count: with all figures, with
    filtering, everybody connected from begin to end, and nothing lost.

    Args:
        stages: of one lab, or of several on the same machine.
        source: by default it names the stages.

    Raises:
        TooLittle: the stages have no two different numbers of connections.
        BadFigure: one is below 0, or beyond all measure.
    """
    usable = [stage for stage in stages if _is_usable(stage)]
    loads = _loads(usable)
    crowds = [load for load in loads if load.connected >= _CROWD]
    if len({load.connected for load in crowds}) < 2:
        raise TooLittle(
            "a fit takes CPU and memory of two stages or more with different numbers of "
            f"connections; of this run {_only(usable)} will do, "
            "`trio-odin lab --stages 2-4` makes enough"
        )
    joined_rate, cpu = _fit_cpu(loads)
    memory, _ = _least_squares(list(_memory_rows(crowds)), grain=_MIB_GRAIN)
    largest = max(loads, key=lambda load: (load.connected, load.server.connect_us or 0))
    return Costs(
        delivery_us=cpu[0] * 1e6,
        doubling_us=cpu[1] * 1e6,
        publication_us=cpu[2] * 1e6,
        joined_us=cpu[3] * 1e6,
        joined_rate=joined_rate,
        connection_us_per_second=cpu[4] * 1e6,
        base_cores=cpu[5],
        connection_kib=memory[0] * KIB,
        base_mib=memory[1],
        kernel_kib=_kernel_kib(usable),
        connect_us=largest.server.connect_us,
        max_rate=max(_rate(load) for load in loads),
        max_connections=largest.connected,
        max_deliveries=max(load.received_per_second for load in loads),
        source=source or f"lab, stages {_numbers(usable)}",
        date=max(load.date for load in loads)[:10],
    )


def predictions(result: LabResult) -> dict[int, list[Prediction]]:
    """For each stage what the smaller ones before it say about it, beside what was measured.

    Smaller: for CPU fewer connections × rate, for memory fewer connections. The prediction knows of
    the stage what it asks for, its connections, subscriptions and rate, and nothing that it
    measured. What has too few smaller stages is left out.

    Raises:
        BadFigure: one is below 0, or beyond all measure.
    """
    found: dict[int, list[Prediction]] = {}
    for stage in result.stages:
        if stage.load is None or not _is_usable(stage):
            continue
        before = [
            other for other in result.stages if other.number < stage.number and _is_usable(other)
        ]
        if told := list(_predictions_of(stage.load, before)):
            found[stage.number] = told
    return found


def _predictions_of(load: LoadResult, before: Sequence[StageResult]) -> Iterator[Prediction]:
    server, asked = load.server, _asked_events(load)
    costs = _fit_where(before, lambda other: _asked_events(other) < asked)
    if costs is not None and load.rate is not None and server.cores is not None:
        share = load.workload.mean_subscriptions / len(load.workload.channels)
        cores = costs.cores(load.connections, load.rate, load.rate * load.connections * share)
        yield Prediction(what="CPU", unit="cores", predicted=cores, measured=server.cores)
    costs = _fit_where(before, lambda other: other.connections < load.connections)
    if costs is not None and server.held_mib is not None:
        mib = costs.memory_mib(load.connections)
        yield Prediction(what="memory", unit="MiB", predicted=mib, measured=server.held_mib)


def _asked_events(load: LoadResult) -> float:
    """Connections × rate; NaN, which is smaller than nothing, where the rate was not told."""
    return math.nan if load.rate is None else load.connections * load.rate


def _fit_where(
    stages: Sequence[StageResult], is_smaller: Callable[[LoadResult], bool]
) -> Costs | None:
    try:
        return fit(stage for stage in stages if stage.load is not None and is_smaller(stage.load))
    except TooLittle:
        return None


def _is_usable(stage: StageResult) -> bool:
    """Whether it was a plain hold with events whose CPU and memory are known, and above 0.

    Without filtering writes are joined, and a delivery has another price.

    Raises:
        BadFigure: one is below 0, or beyond all measure.
    """
    load = stage.load
    if load is None:
        return False
    _check_figures(stage.number, load)
    return (
        load.workload.is_filtered
        and bool(load.workload.channels)
        and load.reconnects is None
        and not load.interrupted
        and not load.churned
        and not load.disconnects
        and not load.lost
        and 0 < load.connected == load.connections
        and load.hold_seconds > 0
        and load.received_per_second > 0
        and bool(load.server.cores and load.server.held_mib)
    )


def _check_figures(number: int, load: LoadResult) -> None:
    """Refuse what would make any fit of it nonsense."""
    own = ("connections", "connected", "rate", "hold_seconds", "received_per_second")
    figures: dict[str, float | None] = {name: getattr(load, name) for name in own}
    figures |= {"publications": load.publications, "home_share": load.workload.home_share}
    figures |= {
        name: value
        for name, value in attrs.asdict(load.server).items()
        if name not in _SERVER_FIGURES_WITH_A_SIGN
    }
    for name, value in figures.items():
        if value is not None and not 0 <= value <= _FIGURE_MAX:
            raise BadFigure(f"stage {number} has a {name} of {value:g}: allowed is 0 to 10¹²")


def _loads(stages: Iterable[StageResult]) -> list[LoadResult]:
    return [stage.load for stage in stages if stage.load is not None]


def _only(stages: Sequence[StageResult]) -> str:
    return f"only stage {_numbers(stages)}" if stages else "none"


def _numbers(stages: Iterable[StageResult]) -> str:
    return ", ".join(str(stage.number) for stage in stages)


def _rate(load: LoadResult) -> float:
    """Events a second: what the publisher was told, or what came."""
    return load.publications / load.hold_seconds if load.rate is None else load.rate


def _taken_per_second(load: LoadResult) -> float:
    """Events a second that the server took, wanted by anybody or not."""
    taken = load.server.received_from_nats
    return _rate(load) if taken is None else taken / load.hold_seconds


def _fit_cpu(loads: Sequence[LoadResult]) -> tuple[float, list[float]]:
    """The rate at which events are joined, and the unknowns at that rate."""
    if max(map(_taken_per_second, loads)) < _JOINED_FROM_RATE:
        rate = _JOINED_RATES[0]
        rows = [row.without(_JOINED) for row in _cpu_rows(loads, rate)]
        return rate, _least_squares(rows, grain=_CORES_GRAIN)[0]
    found = {
        rate: _least_squares(list(_cpu_rows(loads, rate)), grain=_CORES_GRAIN)
        for rate in _JOINED_RATES
    }
    best = min(found, key=lambda rate: found[rate][1])
    return best, found[best][0]


def _cpu_rows(loads: Sequence[LoadResult], joined_rate: float) -> Iterator[_Row]:
    for load in loads:
        server, connections = load.server, load.connected
        if server.idle_cores is not None:
            yield _Row((0, 0, 0, 0, connections, 1), server.idle_cores)
        if server.cores is not None:
            deliveries = load.received_per_second
            colder = deliveries * doublings(connections)
            taken = _taken_per_second(load)
            alone = taken / (1 + min(taken, JOINED_MAX_RATE) / joined_rate)
            yield _Row((deliveries, colder, alone, taken, connections, 1), server.cores)


def _memory_rows(loads: Sequence[LoadResult]) -> Iterator[_Row]:
    bases = [load.server.base_mib for load in loads if load.server.base_mib is not None]
    if bases:
        yield _Row((0, 1), min(bases))
    for load in loads:
        if load.server.held_mib is not None:
            yield _Row((load.connected, 1), load.server.held_mib)


def _kernel_kib(stages: Iterable[StageResult]) -> float:
    """What a connection takes in the kernel; 0 if that cannot be told from these stages."""
    rows = list(_kernel_rows(stages))
    if len({row.factors for row in rows}) < 2:
        return 0.0
    unknowns, _ = _least_squares(rows, grain=_KERNEL_MIB_GRAIN)
    kib = unknowns[0] * KIB
    return kib if _KERNEL_KIB_MIN <= kib <= _KERNEL_KIB_MAX else 0.0


def _kernel_rows(stages: Iterable[StageResult]) -> Iterator[_Row]:
    """What the host held during the hold, without the process; its base is files it has read."""
    for stage in stages:
        held = [s for s in stage.load.series if s.phase == "hold"] if stage.load else []
        resident = [s.server_mib for s in held if s.server_mib is not None]
        host = [s.memory_mib for s in stage.host if held and held[0].at <= s.at <= held[-1].at]
        if stage.load is not None and resident and host:
            beside = fmean(host) - fmean(resident)
            if beside > 0 and stage.load.connected >= _CROWD:
                yield _Row((stage.load.connected, 1), beside)


def _least_squares(rows: Sequence[_Row], *, grain: float) -> tuple[list[float], float]:
    """The unknowns, none below 0 and the first above it, with the least squares of errors.

    Returns them, and the sum of those squares.

    Errors are relative to what was measured, and to no less than the `grain`. Of solutions that
    are about as good it is one with the fewest unknowns.
    """
    weights = [1 / (row.measured + grain) for row in rows]
    target = [row.measured * weight for row, weight in zip(rows, weights, strict=True)]
    count = len(rows[0].factors)
    columns = [
        [row.factors[n] * weight for row, weight in zip(rows, weights, strict=True)]
        for n in range(count)
    ]
    best, least = [0.0] * count, math.inf
    for chosen in _choices(count):
        solution = _solve([columns[n] for n in chosen], target)
        if solution is None or min(solution) < 0:
            continue
        residual = _residual([columns[n] for n in chosen], solution, target)
        known = dict(zip(chosen, solution, strict=True))
        unknowns = [known.get(n, 0.0) for n in range(count)]
        is_larger = sum(map(bool, unknowns)) > sum(map(bool, best))
        if residual < least * (1 - _WORTH * is_larger) - _ROUNDING:
            best, least = unknowns, residual
    return best, least


def _choices(count: int) -> Iterator[tuple[int, ...]]:
    """Each way to choose of `count` unknowns with the first among them, the fewest first."""
    for others in range(count):
        for chosen in combinations(range(1, count), others):
            yield (0, *chosen)


def _solve(columns: Sequence[Sequence[float]], target: Sequence[float]) -> list[float] | None:
    """Least squares of `columns` × unknowns = `target`; None if the columns are dependent.

    QR by the modified Gram-Schmidt process, with the target as the last column, then substitution
    from the end. The normal equations would be shorter, and lose half of the digits.
    """
    rest = [list(column) for column in (*columns, target)]
    count = len(columns)
    upper = [[0.0] * (count + 1) for _ in range(count)]
    for n in range(count):
        norm = math.hypot(*rest[n])
        if norm <= _DEPENDENT * math.hypot(*columns[n]):
            return None
        unit = [value / norm for value in rest[n]]
        upper[n][n] = norm
        for later in range(n + 1, count + 1):
            upper[n][later] = _dot(unit, rest[later])
            rest[later] = [
                value - upper[n][later] * part
                for value, part in zip(rest[later], unit, strict=True)
            ]
    unknowns = [0.0] * count
    for n in reversed(range(count)):
        known = sum(upper[n][later] * unknowns[later] for later in range(n + 1, count))
        unknowns[n] = (upper[n][count] - known) / upper[n][n]
    return unknowns


def _residual(
    columns: Sequence[Sequence[float]], unknowns: Sequence[float], target: Sequence[float]
) -> float:
    rows = zip(*columns, strict=True)
    return sum(
        (_dot(row, unknowns) - wanted) ** 2 for row, wanted in zip(rows, target, strict=True)
    )


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
