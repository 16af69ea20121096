from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.demo.control import Control, Schedule


@given(
    rate=st.floats(0.1, 10_000),
    pauses=st.lists(st.floats(0, 5), max_size=50),
)
def test_every_tick_comes_once_however_often_the_schedule_is_read(
    rate: float, pauses: list[float]
) -> None:
    """Open loop: the delay of each reading does not change the sum."""
    schedule = Schedule(rate=rate, start=100.0)
    now, taken = 100.0, 0
    for pause in pauses:
        now += pause
        taken += schedule.take_due(now)
        assert abs(taken - (now - 100.0) * rate) <= 1 + 1e-6
        assert schedule.take_due(now) == 0
        assert schedule.next_at > now - 1e-6


def test_a_late_tick_does_not_shift_the_rest() -> None:
    schedule = Schedule(rate=10, start=0)
    assert schedule.take_due(0.09) == 0
    assert schedule.take_due(0.57) == 5
    assert schedule.next_at == pytest.approx(0.6)


@given(rate=st.floats(0.01, 100_000), start=st.floats(0, 1e6), ticks=st.integers(1, 50))
def test_a_tick_is_taken_at_the_very_moment_it_is_due(
    rate: float, start: float, ticks: int
) -> None:
    schedule = Schedule(rate=rate, start=start)
    for _ in range(ticks):
        assert schedule.take_due(schedule.next_at) >= 1


def control() -> Control:
    return Control(rate=12, tokens=("BTC", "ETH"))


def send(to: Control, **command: Any) -> dict[str, Any]:
    return to.command(json.dumps(command).encode(), now=100, unix_ms=5)


def test_start_takes_its_options_and_resets_the_statistics() -> None:
    it = control()
    it.stats.errors = 9
    answer = send(
        it, action="start", messagesPerSecond=25, tokens=["SOL"], duration=1500, connections=7
    )
    assert answer == {
        "success": True,
        "message": "Publishing 25 messages a second",
        "stats": {"messagesPublished": 0, "startTime": 5, "errors": 0},
        "activeTokens": ["SOL"],
    }
    assert it.run is not None
    assert it.run.ends_at == 101.5
    assert it.report() == {
        "success": True,
        "stats": {"messagesPublished": 0, "startTime": 5, "errors": 0},
        "isPublishing": True,
        "activeTokens": ["SOL"],
        "configuration": {"connections": 7, "messagesPerSecond": 25, "tokens": ["SOL"]},
    }


def test_a_second_start_is_refused_and_a_second_stop_is_not() -> None:
    it = control()
    assert send(it, action="stop")["success"] is True
    assert send(it, action="start")["success"] is True
    assert send(it, action="start") == {
        "success": False,
        "message": "Already publishing: stop first",
    }
    assert send(it, action="stop")["success"] is True
    assert it.run is None


def test_configure_changes_a_run_in_progress_and_leaves_the_rest() -> None:
    it = control()
    send(it, action="start", duration=2000)
    assert send(it, action="configure", messagesPerSecond=50)["success"] is True
    assert it.run is not None
    assert (it.run.rate, it.run.tokens, it.run.ends_at) == (50, ("BTC", "ETH"), 102)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        b'{"action":"explode"}',
        b'{"action":7}',
        b'{"action":"start","messagesPerSecond":0}',
        b'{"action":"start","messagesPerSecond":-1}',
        b'{"action":"start","messagesPerSecond":1e9}',
        b'{"action":"start","messagesPerSecond":"many"}',
        b'{"action":"start","tokens":[]}',
        b'{"action":"start","tokens":["B.C"]}',
        b'{"action":"start","duration":-1}',
        b'{"action":"start","connections":-1}',
        b"[" * 100_000,
        b'{"action":"\xff"}',
    ],
)
def test_a_bad_command_is_answered_with_the_reason_and_has_no_effect(body: bytes) -> None:
    it = control()
    before = it.report()
    answer = it.command(body, now=100, unix_ms=5)
    assert answer["success"] is False
    assert answer["message"]
    assert it.report() == before
