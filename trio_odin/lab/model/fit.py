"""Fits the costs of the parts to a lab's figures: least squares, nothing below 0. Pure.

CPU. Each stage gives two equations, one for the idle time and one for the hold:

    idle = base + connections × k
    hold = base + connections × k + publications × (q + p / (1 + rate / j))
                + deliveries × (d + doublings × g)

`j` is not a factor, so a few values are tried and the best one is taken. Only stages with far more
events than the plan's 30 a second determine `j` and `q`. The lab has some stages with one
connection for that purpose; they say nothing about the memory of connections.

Memory. The base is the lowest one, as a used server keeps some memory. For each stage:

    held = base + connections × c

Errors are relative, so 1,000 connections have as much weight as 10,000.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import attrs

from trio_odin.lab.load.result import LoadResult
from trio_odin.lab.model.model import JOINED_MAX_RATE, KIB, Costs, doublings
from trio_odin.lab.verdict import LabResult, Prediction, StageResult
from trio_odin.overload.pacing import AcceptPace

# The resolution of readings: CPU comes in ticks of 10 ms, over windows of some seconds. Without it
# a reading of 3 ticks would weigh as much as one of 3,000.
_CORES_GRAIN = 0.005
_MIB_GRAIN = 1.0
# A stage with fewer connections measures events.
_CROWD = 100
# If no stage has so many events a second, `q` is 0, and `j` is the first of these.
_JOINED_FROM_RATE = 100.0
_JOINED_RATES = (300.0, 50.0, 75.0, 100.0, 150.0, 200.0, 400.0, 600.0, 900.0, 1400.0, 2000.0)
# More than any figure of a lab, and small enough for the arithmetic.
_FIGURE_MAX = 1e12
_SERVER_FIGURES_WITH_A_SIGN = frozenset({"imbalance"})


class TooLittle(ValueError):
    """Not enough was measured for a fit; the message says what is needed."""


class BadFigure(ValueError):
    """A figure that no lab can have measured; the message names it."""


# The factors of the unknowns, and the measured figure.
_Row: TypeAlias = tuple[Sequence[float], float]


def fit(stages: Iterable[StageResult], *, source: str = "") -> Costs:
    """Find the costs with which the model is closest to these stages.

    `connect_us` is that of the stage with the most connections, `reconnect_us` that of the storm,
    if there was one. Only plain stages count: with all
    figures, with filtering, everybody connected from start to end, and nothing lost.

    Args:
        stages: of one lab, or of several on the same machine.
        source: description of the source; by default it names the stages.

    Raises:
        TooLittle: the stages have no two different numbers of connections.
        BadFigure: one is below 0, or beyond all measure.
    """
    every = list(stages)
    usable = [stage for stage in every if _is_usable(stage)]
    loads = _loads(usable)
    crowds = [load for load in loads if load.connected >= _CROWD]
    if len({load.connected for load in crowds}) < 2:
        raise TooLittle(
            "a fit takes CPU and memory of two stages or more with different numbers of "
            f"connections; of this run {_only(usable)} will do, "
            "`trio-odin lab --stages 2-4` makes enough"
        )
    joined_rate, cpu = _fit_cpu(loads)
    memory, _ = _least_squares(_memory_rows(crowds), grain=_MIB_GRAIN)
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
        connect_us=largest.server.connect_us,
        reconnect_us=reconnect_us(every),
        max_rate=max(_rate(load) for load in loads),
        max_connections=largest.connected,
        max_deliveries=max(load.received_per_second for load in loads),
        source=source or f"lab, stages {_numbers(usable)}",
        date=max(load.date for load in loads)[:10],
    )


def reconnect_us(stages: Iterable[StageResult]) -> float | None:
    """The time of the loop for one reconnect in a storm; None if no stage had one.

    Accepting had the share of the loop that `AcceptPace` leaves it beside the events. It includes
    what a connect alone does not have: the end of the connection before, and cold caches.
    """
    found = [
        (1 - AcceptPace.RESERVE - stage.load.server.cores) * back.seconds / back.back * 1e6
        for stage in stages
        if stage.load is not None
        and (back := stage.load.reconnects) is not None
        and back.lost == back.back == stage.load.connections >= _CROWD
        and stage.load.server.cores is not None
        and stage.load.server.cores < 1 - AcceptPace.RESERVE
    ]
    return max(found, default=None)


def predictions(result: LabResult) -> dict[int, list[Prediction]]:
    """Predict each stage from the smaller ones before it; each comes with the measured figure.

    Smaller means fewer connections × rate for CPU, and fewer connections for memory. A prediction
    uses the plan of the stage, its connections, subscriptions and rate, and none of its
    measurements. Figures with too few smaller stages are left out.

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
    """Connections × rate; NaN, which is smaller than nothing, if the rate is unknown."""
    return math.nan if load.rate is None else load.connections * load.rate


def _fit_where(
    stages: Sequence[StageResult], is_smaller: Callable[[LoadResult], bool]
) -> Costs | None:
    try:
        return fit(stage for stage in stages if stage.load is not None and is_smaller(stage.load))
    except TooLittle:
        return None


def _is_usable(stage: StageResult) -> bool:
    """Whether it was a plain hold with events, with known CPU and memory above 0.

    Without filtering, writes are joined and a delivery has another cost; so it has with a rate or
    compressed.

    Raises:
        BadFigure: one is below 0, or beyond all measure.
    """
    load = stage.load
    if load is None:
        return False
    _check_figures(stage.number, load)
    return (
        load.workload.is_filtered
        and load.is_plain
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
    """Refuse figures that would make any fit meaningless."""
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
    """Events a second: the rate requested from the publisher, or the received one."""
    return load.publications / load.hold_seconds if load.rate is None else load.rate


def _taken_per_second(load: LoadResult) -> float:
    """Events a second that the server took, with or without subscribers."""
    taken = load.server.received_from_nats
    return _rate(load) if taken is None else taken / load.hold_seconds


def _fit_cpu(loads: Sequence[LoadResult]) -> tuple[float, list[float]]:
    """Find the rate at which events are joined, and the unknowns at that rate."""
    are_many = max(map(_taken_per_second, loads)) >= _JOINED_FROM_RATE
    rates = _JOINED_RATES if are_many else _JOINED_RATES[:1]
    found = {
        rate: _least_squares(_cpu_rows(loads, rate, are_many=are_many), grain=_CORES_GRAIN)
        for rate in rates
    }
    best = min(rates, key=lambda rate: found[rate][1])
    return best, found[best][0]


def _cpu_rows(loads: Sequence[LoadResult], joined_rate: float, *, are_many: bool) -> Iterator[_Row]:
    for load in loads:
        server, connections = load.server, load.connected
        if server.idle_cores is not None:
            yield (0, 0, 0, 0, connections, 1), server.idle_cores
        if server.cores is not None:
            deliveries = load.received_per_second
            colder = deliveries * doublings(connections)
            taken = _taken_per_second(load)
            alone = taken / (1 + min(taken, JOINED_MAX_RATE) / joined_rate)
            yield (deliveries, colder, alone, taken * are_many, connections, 1), server.cores


def _memory_rows(loads: Sequence[LoadResult]) -> Iterator[_Row]:
    bases = [load.server.base_mib for load in loads if load.server.base_mib is not None]
    if bases:
        yield (0, 1), min(bases)
    for load in loads:
        if load.server.held_mib is not None:
            yield (load.connected, 1), load.server.held_mib


def _least_squares(rows: Iterable[_Row], *, grain: float) -> tuple[list[float], float]:
    """Find the unknowns, none below 0, with the least squares of errors, and the sum of these.

    Errors are relative to the measured figure, or to `grain` if that is larger.
    """
    import numpy as np  # noqa: PLC0415 - of an extra
    from scipy.optimize import nnls  # noqa: PLC0415

    factors, measured = zip(*rows, strict=True)
    target = np.array(measured, dtype=float)
    weights = 1 / (target + grain)
    columns = np.array(factors, dtype=float) * weights[:, np.newaxis]
    # The unknowns differ in size by the number of connections; without scaling, the smallest would
    # be lost in rounding.
    sizes = np.linalg.norm(columns, axis=0)
    sizes[sizes == 0] = 1
    unknowns, residual = nnls(columns / sizes, target * weights)
    return (unknowns / sizes).tolist(), float(residual) ** 2
