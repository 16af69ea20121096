"""Accounts for the events of a tick, which a whole cohort receives in one frame. Pure.

Theory of operation. The members of a cohort get the same batches, and have received the same
before. So the position of a connection is an immutable *standing*, which they share: for each
channel its newest event, and how many events came or were reported as skipped. What a batch does
to a standing is found once, as a *step*, whatever the number of members:

    standing ──► batch.step(standing) ──► step: next standing, events, skipped, breaches
                                            └── arrivals: how often it was taken, and when

Taking a batch then costs what taking a single event costs. A cohort of one costs more, but no more
than the events that it received.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import attrs
import msgspec

from trio_odin.lab.fleet.events import Event

# Of a channel: order and offset of its newest event (0: unknown), events received, events skipped.
_Mark: TypeAlias = tuple[int, int, int, int]
_NO_MARK: _Mark = (0, 0, 0, 0)
_BATCH_TYPE = b'"type":"price:batch"'
# Before the type are at most `seq` and `ts`, or the beginning of an event's payload.
_TYPE_WITHIN_BYTES = 64


@attrs.define(eq=False, on_setattr=attrs.setters.NO_OP)
class KnownEvent:
    """An event that a subscriber has received. `order` is 0 where numbers do not show the order."""

    number: int
    due_ns: int
    channel: str
    order: int
    deliveries: int = 0


class Part(NamedTuple):
    """An event in a batch.

    Args:
        event: the event.
        offset, prev: its number in the stream, and that of the event before it in its channel;
            0: unknown.
        skipped: events of its channel that gave way to it.
    """

    event: KnownEvent
    offset: int
    prev: int
    skipped: int


class Tally(NamedTuple):
    """Connections that received as many events of a channel, and were told of as many skipped."""

    channel: str
    received: int
    skipped: int
    connections: int


@attrs.frozen(eq=False)
class Standing:
    """The position of a connection. Compared by identity, as members of a cohort share it."""

    channels: frozenset[str]
    is_counted: bool
    marks: Mapping[str, _Mark] = attrs.field(factory=dict)

    def after_a_break(self) -> Standing:
        """The position after a reconnect: the order still holds, the chain of events does not."""
        marks = {
            channel: (order, 0, received, skipped)
            for channel, (order, _, received, skipped) in self.marks.items()
        }
        return attrs.evolve(self, marks=marks)


@attrs.define(eq=False, on_setattr=attrs.setters.NO_OP)
class Step:
    """What a batch does to a standing.

    Attributes:
        standing: the next one.
        events: those that are received in order, on subscribed channels.
        skipped: events that these were reported to have replaced.
        unexplained: events before which one is missing that was not reported as skipped.
        repeated, foreign: see `Received`.
        arrivals: times at which the batch was taken from this standing, with their number.
    """

    standing: Standing
    events: list[KnownEvent]
    skipped: int
    unexplained: int
    repeated: int
    foreign: int
    arrivals: dict[int, int] = attrs.field(factory=dict)


class Batch:
    """The events of one frame.

    Attributes:
        size: number of events.
        order: the highest of their orders; `due_ns`: the latest of their planned moments.
        steps: those taken so far.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.size = len(parts)
        self.order = max([part[0].order for part in parts])
        self.due_ns = max([part[0].due_ns for part in parts])
        self.steps: dict[Standing, Step] = {}
        self._parts = parts

    def step(self, standing: Standing) -> Step:
        """The step from `standing`."""
        step = self.steps.get(standing)
        if step is None:
            step = self.steps[standing] = self._made(standing)
        return step

    def _made(self, standing: Standing) -> Step:
        # In a cohort of one it is made for each frame: some 24 rounds, so names are local.
        channels, marks = standing.channels, dict(standing.marks)
        events: list[KnownEvent] = []
        all_skipped = unexplained = repeated = foreign = 0
        for event, offset, prev, skipped in self._parts:
            channel, order = event.channel, event.order
            last, last_offset, received, skipped_before = marks.get(channel, _NO_MARK)
            if channel not in channels and channel:
                foreign += 1
            elif order and order <= last:
                repeated += 1
            else:
                # Who skips nothing has the event before this one.
                if not skipped and prev and last_offset and prev != last_offset:
                    unexplained += 1
                all_skipped += skipped
                events.append(event)
                marks[channel] = (order or last, offset, received + 1, skipped_before + skipped)
        after = Standing(channels, standing.is_counted, marks)
        return Step(after, events, all_skipped, unexplained, repeated, foreign)


class _Entry(msgspec.Struct):
    """An event of a batch, without its data. Absent keys are unknown."""

    offset: int | None = None
    prev: int | None = None
    skipped: int = 0


class _Frame(msgspec.Struct):
    events: list[msgspec.Raw]


_read_frame = msgspec.json.Decoder(_Frame).decode
_read_entry = msgspec.json.Decoder(_Entry).decode


def is_batch(shared: bytes) -> bool:
    """Whether a message, whole or without its `seq`, is a batch."""
    return shared.find(_BATCH_TYPE, 0, _TYPE_WITHIN_BYTES) >= 0


class BatchReader:
    """Reads batches. The same event is in those of many cohorts, as the same bytes."""

    def __init__(
        self,
        event_in: Callable[[bytes], Event | None],
        known: Callable[[Event], KnownEvent],
    ) -> None:
        self._event_in = event_in
        self._known = known
        self._parts: dict[bytes, Part] = {}

    def clear(self) -> None:
        """Forget the events."""
        self._parts.clear()

    def read(self, shared: bytes) -> Batch | None:
        """The batch in a message, whole or without its `seq`; None if it cannot be read."""
        text = b'{"seq":0' + shared if shared.startswith(b",") else shared
        try:
            parts = [self._part(bytes(raw)) for raw in _read_frame(text).events]
        except (msgspec.DecodeError, LookupError):
            return None
        return Batch(parts) if parts else None

    def _part(self, raw: bytes) -> Part:
        part = self._parts.get(raw)
        if part is None:
            event, entry = self._event_in(raw), _read_entry(raw)
            if event is None:
                raise LookupError("an entry without an event")
            part = self._parts[raw] = Part(
                self._known(event), entry.offset or 0, entry.prev or 0, entry.skipped
            )
        return part


def tallies(standings: Iterable[Standing]) -> list[Tally]:
    """Group counted connections by the events of each channel that they account for.

    Args:
        standings: that of each connection; an empty one if it has received no batch.
    """
    found: Counter[tuple[str, int, int]] = Counter()
    for standing, connections in Counter(standings).items():
        if standing.is_counted:
            for channel in standing.channels:
                _, _, received, skipped = standing.marks.get(channel, _NO_MARK)
                found[channel, received, skipped] += connections
    return [Tally(*key, connections) for key, connections in found.items()]
