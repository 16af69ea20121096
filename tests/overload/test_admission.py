from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.ledger.reasons import Rejection
from trio_odin.overload.admission import Admission
from trio_odin.overload.load import Load

# Each cause with its threshold, its input, and a value far above and far below.
CAUSES: list[tuple[Rejection, str, float, str]] = [
    (Rejection.OVERLOADED, "cpu_reject_percent", 75.0, "cpu_percent"),
    (Rejection.OVERLOADED, "cpu_reject_percent", 75.0, "loop_busy_percent"),
    (Rejection.MEMORY, "memory_reject_percent", 85.0, "memory_percent"),
    (Rejection.LAG, "lag_reject_seconds", 1.0, "lag_seconds"),
]


def door(**limits: Any) -> Admission:
    return Admission(**{"max_connections": 0, "cpu_reject_percent": 0, **limits})


def cpu(percent: float) -> Load:
    return Load(cpu_percent=percent)


def test_there_is_room_up_to_the_limit() -> None:
    answers = [door(max_connections=2).rejection(connections) for connections in (0, 1, 2, 3)]
    assert answers == [None, None, Rejection.AT_CAPACITY, Rejection.AT_CAPACITY]


def test_connections_of_other_workers_take_room_too() -> None:
    limited = door(max_connections=5)
    limited.connections_elsewhere = 3
    assert [limited.rejection(own) for own in (1, 2)] == [None, Rejection.AT_CAPACITY]
    limited.connections_elsewhere = 0
    assert limited.rejection(4) is None


def test_a_limit_of_0_means_no_limit() -> None:
    unlimited = door()
    unlimited.observe(Load(cpu_percent=5e3, loop_busy_percent=5e3, memory_percent=5e3,
                           lag_seconds=5e3))  # fmt: skip
    assert unlimited.rejection(0) is None
    assert unlimited.rejection(1_000_000) is None
    assert unlimited.address_rejection(1_000_000) is None
    assert unlimited.closed_by == []


def test_every_client_is_let_in_before_the_first_sample() -> None:
    assert door(cpu_reject_percent=75).rejection(0) is None


@pytest.mark.parametrize(("cause", "limit", "threshold", "figure"), CAUSES)
def test_a_value_equal_to_the_threshold_closes_admission(
    cause: Rejection, limit: str, threshold: float, figure: str
) -> None:
    limited = door(**{limit: threshold})
    limited.observe(Load(**{figure: threshold * 0.999}))
    assert limited.rejection(0) is None
    limited.observe(Load(**{figure: threshold}))
    assert limited.rejection(0) is cause
    assert limited.closed_by == [cause]


@pytest.mark.parametrize(("cause", "limit", "threshold", "figure"), CAUSES)
def test_a_removed_threshold_opens_admission(
    cause: Rejection, limit: str, threshold: float, figure: str
) -> None:
    limited = door(**{limit: threshold})
    limited.observe(Load(**{figure: threshold}))
    assert limited.rejection(0) is cause
    setattr(limited, limit, 0)
    limited.observe(Load(**{figure: threshold}))
    assert limited.rejection(0) is None


def test_the_first_reason_is_draining_then_capacity_then_overload() -> None:
    limited = door(max_connections=1, cpu_reject_percent=75, is_draining=True, max_per_address=3)
    limited.observe(cpu(100.0))
    assert limited.rejection(1) is Rejection.SHUTTING_DOWN
    limited.is_draining = False
    assert limited.rejection(1) is Rejection.AT_CAPACITY
    assert limited.rejection(0) is Rejection.OVERLOADED
    limited.observe(cpu(0.0))
    assert limited.rejection(0) is None
    assert limited.address_rejection(3) is Rejection.PER_ADDRESS
    assert limited.address_rejection(2) is None


def test_after_an_overload_the_cpu_must_fall_well_below_the_threshold() -> None:
    limited = door(cpu_reject_percent=75)
    states = []
    for percent in (60, 76, 74, 65, 64.9, 74, 75):
        limited.observe(cpu(percent))
        states.append(limited.closed_by == [Rejection.OVERLOADED])
    assert states == [False, True, True, True, False, False, True]


def test_memory_and_lateness_have_their_own_margin() -> None:
    limited = door(memory_reject_percent=85, lag_reject_seconds=1.0)
    closed = []
    for memory, lag in ((85, 1.0), (80, 0.5), (79.9, 0.5), (84.9, 0.49), (0, 0.99)):
        limited.observe(Load(memory_percent=memory, lag_seconds=lag))
        closed.append([cause.label for cause in limited.closed_by])
    assert closed == [["memory", "lag"], ["memory", "lag"], ["lag"], [], []]


@given(threshold=st.floats(20, 100), samples=st.lists(st.floats(0, 200), max_size=30))
def test_between_the_two_marks_admission_stays_as_it_was(
    threshold: float, samples: list[float]
) -> None:
    limited = door(cpu_reject_percent=threshold)
    for percent in samples:
        before = limited.closed_by
        limited.observe(cpu(percent))
        if percent >= threshold:
            assert limited.closed_by == [Rejection.OVERLOADED]
        elif percent < threshold - 10:
            assert limited.closed_by == []
        else:
            assert limited.closed_by == before


FIGURES = st.floats(0, 200)


@given(
    st.lists(
        st.builds(
            Load,
            cpu_percent=FIGURES,
            loop_busy_percent=FIGURES,
            memory_percent=FIGURES,
            lag_seconds=FIGURES,
        ),
        max_size=20,
    )
)
def test_each_cause_closes_and_opens_admission_independently(samples: list[Load]) -> None:
    limits = {limit: threshold for _, limit, threshold, _ in CAUSES}
    together = door(**limits)
    alone = {limit: door(**{limit: threshold}) for limit, threshold in limits.items()}
    for load in samples:
        together.observe(load)
        closed = set()
        for limited in alone.values():
            limited.observe(load)
            closed |= set(limited.closed_by)
        assert set(together.closed_by) == closed
        assert (together.rejection(0) in closed) == bool(closed)


@given(st.lists(st.tuples(FIGURES, FIGURES), max_size=20))
def test_the_cpu_is_judged_by_whichever_limit_is_nearer(samples: list[tuple[float, float]]) -> None:
    by_both, by_nearer = door(cpu_reject_percent=75), door(cpu_reject_percent=75)
    for of_limit, of_core in samples:
        by_both.observe(Load(cpu_percent=of_limit, loop_busy_percent=of_core))
        by_nearer.observe(cpu(max(of_limit, of_core)))
        assert by_both.closed_by == by_nearer.closed_by


@pytest.mark.parametrize("threshold", [1, 5, 10, 10.5, 75, 100])
def test_an_idle_cpu_ends_every_overload(threshold: float) -> None:
    limited = door(cpu_reject_percent=threshold)
    limited.observe(cpu(100.0))
    assert limited.closed_by == [Rejection.OVERLOADED]
    limited.observe(cpu(0.0))
    assert limited.closed_by == []


def test_the_texts_are_those_of_the_wire_document() -> None:
    assert {reason.label: (reason.status, reason.text) for reason in Rejection} == {
        "overloaded": (503, "Server overloaded"),
        "memory": (503, "Server overloaded"),
        "lag": (503, "Server overloaded"),
        "at_capacity": (503, "Server at capacity"),
        "files": (503, "Server at capacity"),
        "shutting_down": (503, "Server is shutting down"),
        "per_address": (429, "Too many connections from this address"),
        "origin": (403, "Origin not allowed"),
        "unauthorized": (401, "A token is needed"),
        "bad_request": (400, "Bad request"),
        "timeout": (408, "Request not complete in time"),
        "tls": (0, ""),
        "half_open": (0, ""),
    }
    come_back = [reason for reason in Rejection if reason.status in {429, 503}]
    assert all(reason.retry_after_seconds >= 1 for reason in come_back)


def test_a_sample_is_idle_by_default() -> None:
    assert set(attrs.asdict(Load()).values()) == {0.0}


def test_arriving_and_leaving_clients_do_not_close_admission() -> None:
    limited = door(cpu_reject_percent=75)
    limited.observe(Load(loop_busy_percent=99, turnover_percent=60))
    assert limited.rejection(0) is None
    limited.observe(Load(cpu_percent=99, turnover_of_limit_percent=60))
    assert limited.rejection(0) is None


def test_the_cost_of_connected_clients_closes_admission() -> None:
    limited = door(cpu_reject_percent=75)
    limited.observe(Load(loop_busy_percent=99, turnover_percent=20))
    assert limited.rejection(0) is Rejection.OVERLOADED
    limited.observe(Load(cpu_percent=99, turnover_of_limit_percent=20))
    assert limited.rejection(0) is Rejection.OVERLOADED
