from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.core.admission import Admission, Rejection


def test_there_is_room_up_to_the_limit() -> None:
    door = Admission(max_connections=2, cpu_reject_percent=75)
    answers = [door.rejection(connections) for connections in (0, 1, 2, 3)]
    assert answers == [None, None, Rejection.AT_CAPACITY, Rejection.AT_CAPACITY]


def test_connections_of_other_workers_take_room_too() -> None:
    door = Admission(max_connections=5, cpu_reject_percent=0)
    door.connections_elsewhere = 3
    assert [door.rejection(own) for own in (1, 2)] == [None, Rejection.AT_CAPACITY]
    door.connections_elsewhere = 0
    assert door.rejection(4) is None


def test_a_limit_of_0_is_none() -> None:
    door = Admission(max_connections=0, cpu_reject_percent=0)
    door.observe_cpu(5000.0)
    assert door.rejection(0) is None
    assert door.rejection(1_000_000) is None
    assert not door.is_overloaded


def test_every_client_is_let_in_before_the_first_sample() -> None:
    assert Admission(max_connections=0, cpu_reject_percent=75).rejection(0) is None


def test_the_threshold_itself_is_overload() -> None:
    door = Admission(max_connections=0, cpu_reject_percent=75)
    door.observe_cpu(74.9)
    assert door.rejection(0) is None
    door.observe_cpu(75.0)
    assert door.rejection(0) is Rejection.OVERLOADED


def test_a_server_that_leaves_says_so_first_then_capacity_then_overload() -> None:
    door = Admission(max_connections=1, cpu_reject_percent=75, is_draining=True)
    door.observe_cpu(100.0)
    assert door.rejection(1) is Rejection.SHUTTING_DOWN
    door.is_draining = False
    assert door.rejection(1) is Rejection.AT_CAPACITY
    assert door.rejection(0) is Rejection.OVERLOADED


def test_once_overloaded_the_cpu_has_to_fall_well_below_the_threshold() -> None:
    door = Admission(max_connections=0, cpu_reject_percent=75)
    states = []
    for percent in (60, 76, 74, 65, 64.9, 74, 75):
        door.observe_cpu(percent)
        states.append(door.is_overloaded)
    assert states == [False, True, True, True, False, False, True]


@given(threshold=st.floats(20, 100), samples=st.lists(st.floats(0, 200), max_size=30))
def test_between_the_two_marks_the_door_stays_as_it_was(
    threshold: float, samples: list[float]
) -> None:
    door = Admission(max_connections=0, cpu_reject_percent=threshold)
    for percent in samples:
        before = door.is_overloaded
        door.observe_cpu(percent)
        if percent >= threshold:
            assert door.is_overloaded
        elif percent < threshold - 10:
            assert not door.is_overloaded
        else:
            assert door.is_overloaded == before


@pytest.mark.parametrize("threshold", [1, 5, 10, 10.5, 75, 100])
def test_an_idle_cpu_ends_every_overload(threshold: float) -> None:
    door = Admission(max_connections=0, cpu_reject_percent=threshold)
    door.observe_cpu(100.0)
    assert door.is_overloaded
    door.observe_cpu(0.0)
    assert not door.is_overloaded


def test_the_texts_of_the_wire_document() -> None:
    assert {reason.label: reason.text for reason in Rejection} == {
        "overloaded": "Server overloaded",
        "at_capacity": "Server at capacity",
        "shutting_down": "Server is shutting down",
    }
