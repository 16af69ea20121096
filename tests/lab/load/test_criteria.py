from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.load.made_up import held, load_result
from trio_odin.lab.fleet.latency import durations
from trio_odin.lab.load.criteria import FIGURES, INTEGRITY, Criterion, at_least, at_most, checks
from trio_odin.lab.load.result import Reconnects, Sample, ServerFigures


def steps(*p99_ms: float) -> list[Sample]:
    """A hold with these latencies, a second each."""
    return [
        Sample(at=at, phase="hold", connections=100, received_per_second=1.0, p99_ms=ms)
        for at, ms in enumerate(p99_ms)
    ]


FOUND = [
    ("success", {"connected": 95}, 0.95, "95 %"),
    ("rejected", {"rejections": {"503 Service Unavailable": 3, "429": 2}}, 5, "5"),
    ("cpu", {"server": ServerFigures(percent=12.5)}, 0.125, "12.5 %"),
    ("cores", {"server": ServerFigures(cores=0.5)}, 0.5, "0.50 cores"),
    ("memory", {"server": ServerFigures(held_mib=2048.0)}, 2048, "2,048 MiB"),
    ("p99", {"latency": durations({20: 100})}, pytest.approx(2, rel=0.01), "2 ms"),
    ("drift", {"series": steps(10, 10, 20, 20, 30, 40)}, 3.5, "3.50 times"),
    ("held", {"series": steps(1, 1)}, 1.0, "100 %"),
    ("pace", {"rate": 10.0, "hold_seconds": 30.0, "published": 285}, 0.95, "95 %"),
    ("published", {"publications": 1234}, 1234, "1,234"),
    ("per_event", {"delivered": 2000, "publications": 20}, 100, "100"),
    ("writes", {"frames_per_second": 9_876.4}, 9_876.4, "9,876"),
    ("bytes", {"delivery_wire_bytes": 136.6}, 136.6, "137"),
    ("lost", {"lost": 3}, 3, "3"),
    ("unseen", {"unseen": 2}, 2, "2"),
    ("gaps", {"gaps": 4}, 4, "4"),
    ("unexplained", {"unexplained": 4}, 4, "4"),
    ("repeated", {"repeated": 5}, 5, "5"),
    ("foreign", {"foreign": 6}, 6, "6"),
    ("unreadable", {"unreadable": 7}, 7, "7"),
    ("errors", {"error_replies": 8}, 8, "8"),
    ("disconnects", {"disconnects": {"1001 bye": 1, "1006": 8}}, 9, "9"),
    ("imbalance", {"server": ServerFigures(imbalance=11.0)}, 11, "11"),
    ("returned", {"reconnects": Reconnects(lost=8, back=6, seconds=2.5, ms=None)}, 0.75, "75 %"),
    (
        "return_seconds",
        {"reconnects": Reconnects(lost=8, back=6, seconds=2.5, ms=None)},
        2.5,
        "2.5 s",
    ),
    (
        "churned",
        {"churned": 95, "churn_per_second": 10.0, "hold_seconds": 10.0},
        0.95,
        "95 %",
    ),
    (
        "growth",
        {"series": held(*range(1, 11), 100, 100, *[500.0] * 6, 110, 110)},
        pytest.approx(10),
        "+10.00 %",
    ),
]


@pytest.mark.parametrize(("name", "changes", "value", "shown"), FOUND)
def test_a_figure_comes_from_the_result(
    name: str, changes: dict[str, Any], value: float, shown: str
) -> None:
    figure = FIGURES[name]
    measured = figure.of(load_result(**changes))
    assert measured == value
    assert measured is not None
    assert figure.show(measured) == shown


def test_every_figure_is_tested_here() -> None:
    assert [name for name, *_ in FOUND] == list(FIGURES)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cpu", {"server": ServerFigures()}),
        ("memory", {"server": ServerFigures()}),
        ("imbalance", {"server": ServerFigures()}),
        ("p99", {"latency": None}),
        ("unseen", {"unseen": None}),
        ("returned", {"reconnects": None}),
        ("returned", {"reconnects": Reconnects(lost=0, back=0, seconds=0, ms=None)}),
        ("return_seconds", {"reconnects": None}),
        ("growth", {"series": []}),
        ("growth", {"series": held(*[1.0] * 9)}),
        ("growth", {"series": held(*[1.0] * 20, phase="idle")}),
        ("growth", {"series": held(*[None] * 20)}),
    ],
)
def test_an_unknown_figure_is_not_met_unless_it_is_excused(
    name: str, changes: dict[str, Any]
) -> None:
    result = load_result(**changes)
    assert FIGURES[name].of(result) is None
    for strict in (at_most(name, 1e9), at_least(name, 0)):
        check = strict.check(result)
        assert (check.is_met, check.measured) == (False, "unknown")
    assert Criterion(name, 0, is_excused=True).check(result).is_met


def test_without_publications_there_is_no_division() -> None:
    result = load_result(publications=0, delivered=0)
    assert FIGURES["per_event"].of(result) == 0


@pytest.mark.parametrize(
    ("lost", "below", "above"), [(4, True, False), (5, True, True), (6, False, True)]
)
def test_a_bound_itself_is_still_met(lost: int, *, below: bool, above: bool) -> None:
    result = load_result(lost=lost)
    assert at_most("lost", 5).check(result).is_met is below
    assert at_least("lost", 5).check(result).is_met is above


def test_a_check_has_the_bound_the_measured_figure_and_the_source() -> None:
    check = at_least("success", 1.0, "plan").check(load_result(connected=99))
    assert (check.what, check.wanted, check.measured, check.source) == (
        "connected and subscribed",
        "at least 100 %",
        "99 %",
        "plan",
    )
    assert at_most("lost", 0).check(load_result()).source == "ours"


@given(
    st.sampled_from(["lost", "gaps", "repeated"]),
    st.integers(0, 10**6),
    st.floats(allow_nan=False),
    st.booleans(),
    st.booleans(),
)
def test_a_criterion_is_met_if_and_only_if_the_comparison_holds(
    name: str, value: int, bound: float, is_least: bool, is_excused: bool
) -> None:
    criterion = Criterion(name, bound, is_least=is_least, is_excused=is_excused)
    check = criterion.check(load_result(**{name: value}))
    assert check.is_met == (value >= bound if is_least else value <= bound)


def met(**changes: Any) -> list[bool]:
    return [check.is_met for check in checks(load_result(**changes), INTEGRITY)]


def test_a_load_without_any_breach_holds_all_of_integrity() -> None:
    assert all(met())


@pytest.mark.parametrize(
    "breach",
    [
        {"publications": 0},
        {"lost": 1},
        {"unseen": 1},
        {"gaps": 1},
        {"repeated": 1},
        {"foreign": 1},
        {"unreadable": 1},
        {"error_replies": 1},
        {"disconnects": {"1006": 1}},
        {"server": ServerFigures(imbalance=1.0)},
    ],
)
def test_each_breach_is_caught_by_one_criterion_of_integrity(
    breach: dict[str, Any],
) -> None:
    assert met(**breach).count(False) == 1


def test_integrity_excuses_servers_and_publishers_without_figures() -> None:
    assert all(met(unseen=None, published=None, server=ServerFigures()))
