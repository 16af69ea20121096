from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.overload.load import Load
from trio_odin.overload.load_shedder import LoadShedder


def cpu(percent: float) -> Load:
    return Load(cpu_percent=percent)


def test_the_share_grows_and_falls_by_ten_points_a_second() -> None:
    shedder = LoadShedder(cpu_pause_percent=80)
    shares = []
    for percent in (79.9, 80, 95, 100, 79, 70, 69.9, 69, 0, 0):
        shedder.observe(cpu(percent))
        shares.append(shedder.percent)
    assert shares == [0, 10, 20, 30, 30, 30, 20, 10, 0, 0]


def test_more_than_all_events_is_never_shed() -> None:
    shedder = LoadShedder(cpu_pause_percent=80)
    for _ in range(30):
        shedder.observe(Load(cpu_percent=100))
    assert shedder.percent == 100
    assert all(shedder.sheds() for _ in range(50))
    for _ in range(10):
        shedder.observe(cpu(0))
    assert shedder.percent == 0
    assert not any(shedder.sheds() for _ in range(50))


def test_above_the_memory_threshold_everything_is_shed_at_once() -> None:
    shedder = LoadShedder(cpu_pause_percent=80, memory_pause_percent=95)
    shares = []
    for memory in (94.9, 95, 90, 89.9, 94.9):
        shedder.observe(Load(memory_percent=memory))
        shares.append(shedder.percent)
    assert shares == [0, 100, 100, 0, 0]


def test_thresholds_of_0_are_off() -> None:
    shedder = LoadShedder()
    for _ in range(5):
        shedder.observe(Load(cpu_percent=1e6, memory_percent=1e6))
    assert shedder.percent == 0
    assert not shedder.sheds()


def test_a_removed_threshold_ends_the_shedding_step_by_step() -> None:
    shedder = LoadShedder(cpu_pause_percent=80)
    for _ in range(3):
        shedder.observe(cpu(100))
    shedder.cpu_pause_percent = 0
    shares = []
    for _ in range(4):
        shedder.observe(cpu(100))
        shares.append(shedder.percent)
    assert shares == [20, 10, 0, 0]


@pytest.mark.parametrize("steps", range(11))
def test_of_ten_events_the_exact_share_is_shed(steps: int) -> None:
    shedder = LoadShedder(cpu_pause_percent=80)
    for _ in range(steps):
        shedder.observe(cpu(100))
    shed = [shedder.sheds() for _ in range(200)]
    assert {sum(shed[start : start + 10]) for start in range(190)} == {steps}


def test_three_of_ten_are_spread_evenly() -> None:
    shedder = LoadShedder(cpu_pause_percent=80)
    for _ in range(3):
        shedder.observe(cpu(100))
    shed = [number for number in range(1, 31) if shedder.sheds()]
    gaps = {later - earlier for earlier, later in pairwise(shed)}
    assert len(shed) == 9
    assert gaps == {3, 4}


@given(st.lists(st.one_of(st.floats(0, 120), st.none()), max_size=200))
def test_the_number_shed_is_the_sum_of_the_shares(course: list[float | None]) -> None:
    """A number is a second with such a CPU, None is a publication."""
    shedder = LoadShedder(cpu_pause_percent=80)
    due, shed = 0, 0
    for step in course:
        if step is None:
            due += shedder.percent
            shed += shedder.sheds()
            assert shed == due // 100
        else:
            shedder.observe(cpu(step))
            assert 0 <= shedder.percent <= 100


def test_a_busy_loop_alone_sheds_nothing() -> None:
    shedder = LoadShedder(cpu_pause_percent=80)
    shedder.observe(Load(cpu_percent=79, loop_busy_percent=100, lag_seconds=9))
    assert shedder.percent == 0


def test_arriving_and_leaving_clients_cause_no_shedding() -> None:
    shedder = LoadShedder(cpu_pause_percent=80)
    shedder.observe(Load(cpu_percent=99, turnover_of_limit_percent=60))
    assert shedder.percent == 0
    shedder.observe(Load(cpu_percent=99, turnover_of_limit_percent=19))
    assert shedder.percent == 10
