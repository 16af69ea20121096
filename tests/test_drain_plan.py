from __future__ import annotations

import json
from bisect import bisect_left
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.drain import RECONNECTS_PER_SECOND, DrainPlan, notice, plan_drain

COUNTS = st.integers(0, 20_000)
RATES = st.floats(1, 10_000)
SECONDS = st.floats(0.1, 120)
PHASES = st.floats(0, 1, exclude_max=True)


def plan(connections: int, rate: float, seconds: float, phase: float = 0.0) -> DrainPlan:
    return plan_drain(connections, reconnects_per_second=rate, drain_seconds=seconds, phase=phase)


def _window(seconds: float) -> float:
    """The time for the slots, in which it is known that the rate is kept."""
    return min(seconds * 0.4, seconds - 10) if seconds > 20 else seconds * 0.4


@given(COUNTS, RATES, SECONDS, PHASES)
def test_every_connection_has_a_slot_and_time_is_left_at_the_end(
    connections: int, rate: float, seconds: float, phase: float
) -> None:
    planned = plan(connections, rate, seconds, phase)
    assert len(planned.slots) == connections
    assert all(before < after for before, after in pairwise(planned.slots))
    assert all(slot >= 0 for slot in planned.slots)
    assert planned.both_seconds == min(2, seconds * 0.1)
    # Half of the time, or as much as necessary, is for the rest of the drain.
    latest = max([0, *planned.slots]) + planned.both_seconds
    assert seconds - latest >= min(5, seconds * 0.3) + min(3, seconds * 0.2) - 1e-6
    assert latest < planned.cut_seconds < seconds


@given(COUNTS, RATES, SECONDS, PHASES)
def test_no_second_has_more_slots_than_the_rate_if_time_permits(
    connections: int, rate: float, seconds: float, phase: float
) -> None:
    slots = plan(connections, rate, seconds, phase).slots
    window = _window(seconds)
    allowed = ceil(max(rate, connections / window)) + 1  # 1 for the rounding of floats
    for number, slot in enumerate(slots):
        assert bisect_left(slots, slot + 1) - number <= allowed


@given(COUNTS, SECONDS)
def test_the_rate_is_kept_if_the_time_is_enough(connections: int, seconds: float) -> None:
    slots = plan(connections, 2000, seconds).slots
    if connections / 2000 <= _window(seconds):
        assert slots == pytest.approx([number / 2000 for number in range(connections)])


def test_one_client_does_not_wait_and_ten_thousand_wait_five_seconds() -> None:
    assert plan(1, RECONNECTS_PER_SECOND, 30, phase=0.999).slots[0] < 0.001
    assert plan(50, RECONNECTS_PER_SECOND, 30).slots[-1] < 0.03
    assert plan(10_000, RECONNECTS_PER_SECOND, 30).slots[-1] == pytest.approx(5, abs=0.001)


def test_too_many_clients_for_the_time_go_faster() -> None:
    planned = plan(1000, 10, 30)
    assert planned.slots[-1] == pytest.approx(20, abs=0.1)
    assert planned.cut_seconds == 27


def test_a_plan_without_clients_is_empty() -> None:
    assert plan(0, 2000, 30).slots == []


@given(st.floats(-5, 100))
def test_the_notice_is_one_text_frame_of_json_with_whole_milliseconds(seconds: float) -> None:
    frame = notice(seconds)
    assert frame[0] == 0x81
    assert frame[1] == len(frame) - 2
    message = json.loads(frame[2:])
    assert message.keys() == {"type", "reconnect_in_ms"}
    assert message["type"] == "server:draining"
    assert message["reconnect_in_ms"] == max(0, round(seconds * 1000))
