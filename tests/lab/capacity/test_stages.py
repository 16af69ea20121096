from __future__ import annotations

from typing import Any

import attrs
import pytest

from tests.lab.load.made_up import load_result
from trio_odin.lab.capacity.host import host_checks
from trio_odin.lab.capacity.rig import server_settings
from trio_odin.lab.capacity.stages import SERVER_CORES, SERVER_MIB, STAGES, Stage, stage_of
from trio_odin.lab.load.criteria import FIGURES, INTEGRITY, checks
from trio_odin.lab.load.result import Sample
from trio_odin.lab.verdict import HostSample
from trio_odin.settings.reading import read_settings, variables

LOADED = [stage for stage in STAGES if stage.connections]
by_number = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: str(stage.number))


def bounds(number: int, source: str) -> dict[str, float]:
    criteria = [c for c in stage_of(number).criteria if c.source == source]
    return {criterion.figure: criterion.bound for criterion in criteria}


def test_the_stages_are_numbered_from_one_without_a_gap() -> None:
    assert [stage.number for stage in STAGES] == list(range(1, 16))
    assert len({stage.title for stage in STAGES}) == len(STAGES)


@pytest.mark.parametrize(
    ("number", "connections", "rate", "bound"),
    [
        (2, 1_000, 12, {"success": 1.0, "rejected": 0, "cpu": 0.10}),
        (3, 5_000, 12, {"success": 1.0, "rejected": 0, "cpu": 0.25, "memory": 3_500}),
        (4, 10_000, 12, {"success": 1.0, "rejected": 0, "cpu": 0.30, "memory": 7_000}),
        (5, 10_000, 12, {"success": 1.0, "rejected": 0, "cpu": 0.30, "memory": 7_168}),
        (6, 10_000, 30, {"success": 1.0, "rejected": 0, "cpu": 0.70, "memory": 7_168}),
        (7, 18_000, 12, {"success": 1.0, "rejected": 0, "memory": 7_168}),
    ],
)
def test_the_plans_tests_have_the_plans_figures(
    number: int, connections: int, rate: float, bound: dict[str, float]
) -> None:
    stage = stage_of(number)
    assert (stage.connections, stage.rate) == (connections, rate)
    assert bounds(number, "plan") == bound


def test_rates_and_compression_have_a_stage_each_with_all_users() -> None:
    rates, compression = stage_of(14), stage_of(15)
    assert (rates.connections, rates.rate, rates.every_ms) == (10_000, 300, 1_000)
    assert bounds(14, "ours") | {"writes": 10_000, "cores": 0.5, "lost": 0} == bounds(14, "ours")
    assert (compression.connections, compression.encoding) == (10_000, "z1")
    assert bounds(15, "ours")["bytes"] == pytest.approx(0.45 * 371, abs=0.5)


@pytest.mark.parametrize(("plain", "bound"), [(None, 0.84), (0.4, 0.42), (0.9, 0.945)])
def test_compression_may_use_a_little_more_cpu_than_plain_text_on_the_same_machine(
    plain: float | None, bound: float
) -> None:
    stage = stage_of(15)
    same = stage_of(stage.plain_stage)
    assert (same.connections, same.rate) == (stage.connections, stage.rate)
    assert (same.encoding, stage.plain_stage < stage.number) == ("plain", True)
    criteria = stage.criteria_beside(plain)
    assert [c.figure for c in criteria] == [c.figure for c in stage.criteria]
    assert {c.figure: c.bound for c in criteria} == {
        **{c.figure: c.bound for c in stage.criteria},
        "cores": pytest.approx(bound),
    }


def test_the_plan_holds_its_fifth_test_for_half_an_hour() -> None:
    assert stage_of(5).hold_seconds == 30 * 60


@pytest.mark.parametrize("stage", LOADED, ids=lambda stage: str(stage.number))
def test_every_criterion_uses_a_known_figure(stage: Stage) -> None:
    assert stage.criteria
    assert {criterion.figure for criterion in stage.criteria} <= set(FIGURES)
    assert {criterion.source for criterion in stage.criteria} <= {"plan", "ours"}


@pytest.mark.parametrize("stage", LOADED, ids=lambda stage: str(stage.number))
def test_no_stage_but_the_unfiltered_one_may_lose_anything(
    stage: Stage,
) -> None:
    asked = {criterion.figure for criterion in stage.criteria}
    wanted = {criterion.figure for criterion in INTEGRITY} - ({"unseen"} if stage.is_cut else set())
    assert stage.number == 8 or wanted <= asked
    assert {"success", "pace", "held"} <= asked


def empty(stage: Stage, **changes: Any) -> list[str]:
    """The unmet criteria of a stage for an empty load with `changes`."""
    load = attrs.evolve(load_result(connections=stage.connections), **changes)
    return [check.what for check in checks(load, stage.criteria) if not check.is_met]


@pytest.mark.parametrize("stage", LOADED, ids=lambda stage: str(stage.number))
def test_a_stage_does_not_pass_with_hardly_any_events(stage: Stage) -> None:
    few = {"rate": stage.rate, "hold_seconds": 900.0, "published": 1, "publications": 1}
    assert "events published, of those planned" in empty(stage, **few)


def test_a_soak_with_too_little_churn_or_too_few_at_the_end_fails() -> None:
    soak = stage_of(10)
    held = Sample(at=1.0, phase="hold", connections=4_000, received_per_second=1.0)
    churn = {"churn_per_second": 20.0, "hold_seconds": 3_600.0, "churned": 1}
    complaints = empty(soak, **churn, series=[held], rejections={"503 Service Unavailable": 9})
    assert {
        "connections replaced, of those planned",
        "connected at the end of the hold",
        "connections refused",
    } <= set(complaints)


def test_the_host_must_meet_the_plans_bounds_too() -> None:
    load = load_result(
        series=[
            Sample(at=at, phase=phase, connections=1, received_per_second=1.0)
            for at, phase in ((1.0, "connecting"), (2.0, "hold"), (4.0, "hold"))
        ]
    )
    calm = [HostSample(at=at, cores=0.5, memory_mib=300.0) for at in (2.0, 3.0, 4.0)]
    busy = [HostSample(at=1.0, cores=1.9, memory_mib=7_300.0), *calm]  # while they connect
    cpu, memory = host_checks(stage_of(4), calm, load)
    assert (cpu.is_met, cpu.measured) == (True, "26.32 %")
    assert (memory.is_met, memory.measured) == (True, "300 MiB")
    cpu, memory = host_checks(stage_of(4), busy, load)
    assert cpu.is_met  # only the hold counts
    assert (memory.is_met, memory.measured) == (False, "7,300 MiB")
    assert not list(host_checks(stage_of(4), [], load))


@by_number
def test_the_server_accepts_the_settings_of_every_stage(stage: Stage) -> None:
    known = {variable.name for variable in variables()}
    settings = server_settings(stage)
    assert set(settings) - known <= {"WS_WORKER_POOL_SIZE"}
    taken = read_settings(settings)
    assert taken.cpu_limit_cores == SERVER_CORES
    assert taken.memory_limit_bytes == SERVER_MIB * 1024 * 1024
    assert taken.max_connections >= stage.connections
    assert taken.is_filtering == stage.is_filtered


@by_number
def test_a_short_hold_is_no_longer_than_the_whole_one(stage: Stage) -> None:
    assert stage.short_seconds <= stage.hold_seconds or not stage.connections
