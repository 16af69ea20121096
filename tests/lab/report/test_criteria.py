from __future__ import annotations

import io
from collections.abc import Sequence

import attrs
import pytest
from rich.console import Console

from tests.lab.report.made_up import made_up
from trio_odin.lab.capacity.stages import stage_of
from trio_odin.lab.load.criteria import Check, Criterion, at_most, checks, tally
from trio_odin.lab.load.report import render, verdict
from trio_odin.lab.load.result import LoadResult, Sample


def load_with(p99: list[float | None], memory: list[float] | None = None) -> LoadResult:
    """A load with a second of its hold for each, after one of another phase."""
    stage = made_up().stage(5)
    assert stage is not None
    assert stage.load is not None
    mib: Sequence[float | None] = memory or [None] * len(p99)
    before = Sample(at=1, phase="connecting", connections=1, received_per_second=0, p99_ms=1e6)
    held = [
        attrs.evolve(before, at=n + 2, phase="hold", p99_ms=ms, server_mib=m)
        for n, (ms, m) in enumerate(zip(p99, mib, strict=True))
    ]
    return attrs.evolve(stage.load, series=[before, *held])


def a_check(*, is_met: bool = True, is_known: bool = True) -> Check:
    return Check(what="", wanted="", measured="", is_met=is_met, is_known=is_known)


@pytest.mark.parametrize(
    ("p99", "measured", "is_met"),
    [
        ([10, 10, 10, 10, 10, 10], "1.00 times", True),
        ([10, 20, 30, 40, 50, 60, 70, 80, 90], "4.00 times", False),
        ([10, 900, 10, 10, 10, 10, 900, 10, 10], "1.00 times", True),  # one second is not a backlog
        ([10, None, 12, None, 5, 5, None, 22, None, 20], "1.91 times", True),
        ([900, 20, 20], "0.02 times", True),
    ],
)
def test_a_latency_that_grows_is_drift(
    p99: list[float | None], measured: str, is_met: bool
) -> None:
    found = at_most("drift", 3.0).check(load_with(p99))
    assert (found.measured, found.is_met, found.is_known) == (measured, is_met, True)


@pytest.mark.parametrize(
    "p99", [[], [10, 10], [10, 10, 10, 10, None, None], [None, None, 10, 10, 10, 10]]
)
def test_an_unknown_drift_is_not_met(p99: list[float | None]) -> None:
    found = at_most("drift", 3.0).check(load_with(p99))
    assert (found.measured, found.is_met, found.is_known) == ("unknown", False, False)


def test_growth_is_over_the_second_half() -> None:
    memory = [50.0, *[0.0] * 4, 100.0, *[0.0] * 3, 101.0]
    found = at_most("growth", 3.0).check(load_with([None] * 10, memory))
    assert found.measured == "+1.00 %"


def test_an_excused_criterion_is_met_but_not_known() -> None:
    load = attrs.evolve(load_with([]), unseen=None)
    excused, strict = checks(load, [Criterion("unseen", 0, is_excused=True), at_most("unseen", 0)])
    assert (excused.is_met, excused.is_known) == (True, False)
    assert (strict.is_met, strict.is_known) == (False, False)
    assert tally([excused, strict]) == "0 of 1, 1 not known"


def test_an_unknown_criterion_is_not_counted() -> None:
    found = [a_check(), a_check(is_known=False), a_check(is_met=False)]
    assert tally(found) == "1 of 2, 1 not known"
    assert tally(found[::2], "checks") == "1 of 2 checks"
    load = load_with([])
    assert verdict(load, found) == "NOT passed: 1 of 2 criteria, 1 not known"
    assert verdict(load, found[:2]) == "passed: 1 of 1 criteria, 1 not known"
    screen = io.StringIO()
    render(load, found[:2], Console(file=screen, width=200))
    assert "not met" not in screen.getvalue()


@pytest.mark.parametrize(("number", "bound"), [(5, 0.40), (6, 0.80), (7, 0.70)])
def test_the_servers_cpu_is_bounded_below_that_of_a_process(number: int, bound: float) -> None:
    ours = [c for c in stage_of(number).criteria if c.source == "ours"]
    assert at_most("cores", bound) in ours
    assert "cpu" not in {criterion.figure for criterion in ours}


@pytest.mark.parametrize("number", [4, 5, 6, 7, 10])
def test_a_growing_backlog_passes_no_long_stage(number: int) -> None:
    assert at_most("drift", 3.0) in stage_of(number).criteria
