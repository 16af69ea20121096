from __future__ import annotations

from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from trio_odin.fanout.flight import COMMANDS, RECORDS_MAX, REFUSALS, FlightEvent, FlightRecorder
from trio_odin.ledger.reasons import Dropped
from trio_odin.wire.commands import Command


def test_events_have_their_time_since_the_connection_was_opened() -> None:
    flight = FlightRecorder(100.0)
    flight.add(FlightEvent.SUBSCRIBE, 100.0)
    flight.add(FlightEvent.CONFLATED, 101.25, 7)
    assert flight.lines() == ["0.000s subscribe", "1.250s conflated x7"]


def test_alternating_events_become_a_line_each() -> None:
    flight = FlightRecorder(0.0)
    for number in range(1000):
        flight.add(FlightEvent.PING, number)
        flight.add(FlightEvent.PONG, number + 0.25)
        flight.add(FlightEvent.HEARTBEAT, number + 0.5)
    flight.add(FlightEvent.PING, 1000)
    assert flight.lines() == [
        "999.250s pong x1000",
        "999.500s heartbeat x1000",
        "1000.000s ping x1001",
    ]


def test_a_depth_mark_is_the_highest_depth_reached() -> None:
    flight = FlightRecorder(0.0)
    for depth in (16, 32, 64, 16):
        flight.add(FlightEvent.DEPTH, 1.0, depth)
    assert flight.lines() == ["1.000s messages waiting x64"]


@given(
    st.lists(
        st.tuples(st.sampled_from(FlightEvent), st.integers(1, 2**40), st.floats(0, 1e9)),
        max_size=300,
    )
)
def test_a_recorder_is_bounded_and_keeps_the_newest(
    events: list[tuple[FlightEvent, int, float]],
) -> None:
    flight = FlightRecorder(0.0)
    for event, count, now in events:
        flight.add(event, now, count)
        assert len(flight.lines()) <= RECORDS_MAX
        assert any(event.value in line for line in flight.lines())


def test_the_oldest_events_are_forgotten_first() -> None:
    flight = FlightRecorder(0.0)
    turns = [
        FlightEvent.EMPTIED,
        FlightEvent.SUBSCRIBE,
        FlightEvent.REPLAY,
        FlightEvent.BEGAN_TO_WAIT,
        FlightEvent.DEPTH,
    ]
    for number in range(301):
        flight.add(turns[number % 5], number)
    lines = flight.lines()
    assert len(lines) == RECORDS_MAX
    assert lines[0].startswith(f"{301 - RECORDS_MAX}.000s")
    assert lines[-1] == "300.000s outbox emptied"


def test_every_command_and_every_error_has_an_event() -> None:
    assert set(COMMANDS) == {*get_args(Command), None}
    assert set(Dropped) - set(REFUSALS) == {Dropped.CLOSING, Dropped.WORKER_LOST}
