"""First come, first served, whatever is deferred meanwhile."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.fanout.flush_queue import FlushQueue
from trio_odin.fanout.publication import Publication
from trio_odin.ledger.counters import Ledger


@attrs.define(eq=False)
class Recorder:
    """An outbound side that takes everything, and notes who was written to."""

    name: int
    turns: list[tuple[int, list[Publication]]]
    deferred: list[Publication] | None = None

    def flush(self) -> None:
        if self.deferred:
            self.turns.append((self.name, self.deferred))
            self.deferred = []

    def take_turn(self) -> int:
        count = len(self.deferred or ())
        self.flush()
        self.deferred = None
        return count


def publication(number: int) -> Publication:
    return Publication("BTC.trade", b"%d" % number, offset=number, unix_ms=1)


STEPS = st.lists(
    st.sets(st.integers(0, 40)) | st.none(),  # who is subscribed to the next event; None: a slice
    max_size=40,
)


@given(STEPS)
async def test_turns_come_in_the_order_of_the_first_deferral(steps: list[set[int] | None]) -> None:
    turns: list[tuple[int, list[Publication]]] = []
    recorders: list[Any] = [Recorder(name, turns) for name in range(41)]
    queue = FlushQueue(Ledger())
    expected: dict[int, list[Publication]] = {}
    for number, step in enumerate(steps):
        if step is None:
            turns.clear()
            queue.flush(0.0)
            assert turns == list(expected.items())[: len(turns)]
            assert turns or not expected, "a slice serves somebody"
            for name, _ in turns:
                del expected[name]
        else:
            event = publication(number)
            queue.defer(event, [recorders[name] for name in step])
            for name in step:
                expected.setdefault(name, []).append(event)
    turns.clear()
    while queue:
        queue.flush(0.0)
    assert turns == list(expected.items())


async def test_who_was_written_to_before_its_turn_waits_no_longer_than_one_sweep() -> None:
    """A command or a notice flushes what is deferred."""
    turns: list[tuple[int, list[Publication]]] = []
    recorders: list[Any] = [Recorder(name, turns) for name in range(3)]
    queue = FlushQueue(Ledger())
    first, second, third = map(publication, range(3))
    queue.defer(first, recorders)
    recorders[1].flush()
    queue.defer(second, recorders[1:])
    recorders[1].flush()
    queue.defer(third, recorders[1:2])
    before = turns.copy()
    assert len(queue) == 3
    queue.flush(1.0)
    assert before == [(1, [first]), (1, [second])]
    assert turns[2:] == [(0, [first]), (1, [third]), (2, [first, second])]
    assert not queue


async def test_an_event_is_timed_until_its_last_write() -> None:
    ledger = Ledger()
    turns: list[tuple[int, list[Publication]]] = []
    recorders: list[Any] = [Recorder(name, turns) for name in range(40)]
    queue = FlushQueue(ledger)
    queue.time(0.0)
    assert sum(ledger.fan_out.counts) == 1, "nobody is subscribed"
    queue.defer(publication(1), recorders[:20])
    queue.time(0.0)
    queue.defer(publication(2), recorders)
    queue.time(0.0)
    written = []
    while queue:
        queue.flush(0.0)
        written.append((len(turns), sum(ledger.fan_out.counts)))
    assert written == [(8, 1), (16, 1), (24, 2), (32, 2), (40, 3)]


async def test_the_clock_is_looked_at_after_eight_single_turns_or_one_of_many() -> None:
    turns: list[tuple[int, list[Publication]]] = []
    recorders: list[Any] = [Recorder(name, turns) for name in range(20)]
    queue = FlushQueue(Ledger())
    queue.defer(publication(1), recorders)
    queue.flush(0.0)
    assert len(turns) == 8
    for number in range(2, 102):
        queue.defer(publication(number), recorders)
    queue.flush(0.0)
    assert len(turns) == 9
