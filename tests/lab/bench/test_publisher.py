"""The publisher of a stage, on trio's clock and on the machine's."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import pytest
import trio

from tests.lab.load.made_up import load_plan
from trio_odin.lab.bench.runner import _Publisher
from trio_odin.lab.fleet.events import Event


class Publishing:
    """The published events, each after a pause."""

    def __init__(self, pause: float = 0.0) -> None:
        self.events: list[Event] = []
        self._pause = pause

    async def __call__(self, events: Sequence[Event]) -> None:
        await trio.sleep(self._pause * len(events))
        self.events += events


async def published(rate: float, seconds: float, pause: float = 0.0) -> tuple[_Publisher, int]:
    """A publisher stopped after `seconds`, and the number of events it should have published."""
    publishing = Publishing(pause)
    numbers = itertools.count(5)
    async with trio.open_nursery() as nursery:
        publisher = _Publisher(load_plan(rate=rate), publishing, numbers, nursery)
        await publisher.stop()  # not started yet, as when nobody could connect
        publisher = _Publisher(load_plan(rate=rate), publishing, numbers, nursery)
        await publisher.start()
        await trio.sleep(seconds)
        stopped_ns = time.monotonic_ns()
        await publisher.stop()
        await publisher.stop()
    events = publishing.events
    assert publisher.events == [(event.channel, event.number) for event in events]
    assert publisher.published == len(events)
    assert [event.number for event in events] == list(range(5, 5 + len(events)))
    gaps = {b.due_ns - a.due_ns for a, b in itertools.pairwise(events)}
    assert all(abs(gap - 1e9 / rate) <= 1 for gap in gaps)
    assert max(event.due_ns for event in events) <= stopped_ns + 1e9 / rate
    return publisher, 1 + int((stopped_ns - events[0].due_ns) * rate / 1e9)


async def test_events_are_published_on_schedule_until_it_is_stopped() -> None:
    publisher, due = await published(rate=50.0, seconds=0.4)
    assert publisher.published == pytest.approx(due, abs=1)
    assert publisher.is_ours


async def test_a_late_publisher_publishes_everything_due_and_then_ends() -> None:
    with trio.fail_after(20):
        publisher, due = await published(rate=200.0, seconds=0.3, pause=0.02)
    assert publisher.published == pytest.approx(due, abs=1)
    assert publisher.late_ms > 100
