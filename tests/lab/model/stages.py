"""Stages of a lab with the figures of known costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from tests.lab.origin import MACHINE, ORIGIN
from trio_odin.lab.fleet.workload import Workload
from trio_odin.lab.load.result import LoadResult, ServerFigures
from trio_odin.lab.model.model import Costs
from trio_odin.lab.verdict import LabResult, StageResult

WORKLOAD = Workload(channels=[f"T{n}.trade" for n in range(200)], home_share=0.8)
HOLD_SECONDS = 60.0
# Number, connections and events a second of the plan's stages.
SHAPES = (
    (2, 1000, 12.0),
    (3, 5000, 12.0),
    (4, 10_000, 12.0),
    (5, 10_000, 12.0),
    (6, 10_000, 30.0),
    (7, 18_000, 12.0),
)
# The lab's stages of one connection: almost nothing but events.
EVENT_SHAPES = ((11, 1, 300.0), (12, 1, 1000.0), (13, 1, 3000.0))
TRUTH = Costs(
    base_mib=46.0,
    connection_kib=19.5,
    delivery_us=8.0,
    doubling_us=1.2,
    publication_us=60.0,
    joined_rate=300.0,
    connection_us_per_second=2.0,
    base_cores=0.004,
    connect_us=240.0,
)

some_costs = st.builds(
    Costs,
    base_mib=st.floats(10, 200),
    connection_kib=st.floats(5, 1000),
    delivery_us=st.floats(1, 100),
    doubling_us=st.just(0.0) | st.floats(0.1, 5),
    publication_us=st.just(0.0) | st.floats(10, 2000),
    joined_rate=st.just(300.0),
    connection_us_per_second=st.just(0.0) | st.floats(0.1, 20),
    base_cores=st.just(0.0) | st.floats(0.001, 0.05),
    connect_us=st.floats(100, 1000),
)

# Distorts a figure: its stage, its name, its value.
Distortion = Callable[[int, str, float], float]


def as_it_is(_: int, __: str, value: float) -> float:
    return value


def stage_of(
    costs: Costs, number: int, connections: int, rate: float, distort: Distortion = as_it_is
) -> StageResult:
    deliveries = rate * connections * WORKLOAD.mean_subscriptions / len(WORKLOAD.channels)
    held = costs.memory_mib(connections)
    server = ServerFigures(
        connect_us=costs.connect_us,
        idle_cores=distort(number, "idle", costs.cores(connections, 0, 0)),
        cores=distort(number, "cores", costs.cores(connections, rate, deliveries)),
        base_mib=costs.base_mib,
        held_mib=distort(number, "held", held),
    )
    load = LoadResult(
        url="ws://ws-go:3002/ws",
        workload=WORKLOAD,
        machine=MACHINE,
        date="2026-11-30T12:00:00",
        connections=connections,
        connected=connections,
        rate=rate,
        hold_seconds=HOLD_SECONDS,
        received_per_second=deliveries,
        server=server,
    )
    return StageResult(number=number, title=f"stage {number}", load=load)


def stages_of(
    costs: Costs,
    shapes: Sequence[tuple[int, int, float]] = SHAPES,
    distort: Distortion = as_it_is,
) -> list[StageResult]:
    return [stage_of(costs, *shape, distort) for shape in shapes]


def lab_of(stages: list[StageResult]) -> LabResult:
    return LabResult(
        provenance=ORIGIN,
        isolation=[],
        limits={},
        components={},
        settings={},
        command="trio-odin lab",
        stages=stages,
    )
