"""Checks and counts the events that a fleet received: numbers, channels, latency. Pure.

Theory of operation. A publication's envelopes differ between subscribers only in `seq`, which is
the first key. So a frame costs one slice for `seq` and one look-up of the bytes after it: the first
frame with those bytes is decoded in full, and all others have the same content, because they are
equal to it. A server that makes those bytes per connection is read as correctly, only slower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import attrs

from trio_odin.lab.fleet.dialects import Dialect
from trio_odin.lab.fleet.events import Kind
from trio_odin.lab.fleet.latency import LAST_BUCKET, NS_PER_BUCKET, step_of_bucket

# Bounds the memory for the bytes after `seq`; forgotten ones are decoded again.
_KNOWN_MAX = 16_384
# Of a connection that is watched for hours, the first latencies have to do.
STEPS_MAX = 1000


def _each_once(channels: Iterable[str]) -> frozenset[str]:
    return frozenset(channels)


@attrs.define(eq=False, on_setattr=attrs.setters.NO_OP)
class Subscriber:
    """The subscription of one connection, and how far it has received.

    `steps` has its latencies while it is watched, see `step_of_bucket`.
    """

    channels: frozenset[str] = attrs.field(converter=_each_once)
    is_counted: bool = True
    seq: int = 0
    order: int = 0
    steps: bytearray | None = None


@attrs.define(eq=False, on_setattr=attrs.setters.NO_OP)
class _Event:
    """An event that a subscriber has received. `order` is 0 where numbers do not show the order."""

    number: int
    due_ns: int
    channel: str
    order: int
    deliveries: int = 0


class Deliveries(NamedTuple):
    """The number of times that counted subscribers received an event."""

    number: int
    due_ns: int
    channel: str
    times: int


@attrs.frozen(kw_only=True)
class Received:
    """The events received since the last collect.

    Args:
        received: number of events.
        deliveries: of each event, to counted subscribers.
        buckets: latencies from the planned moment, in tenths of a millisecond, with counts.
        gaps: missing envelopes, by the jumps of `seq`.
        repeated: events that came twice, or after a later one, on the same connection; they and
            the foreign ones are otherwise counted only in `received`.
        foreign: events of a channel that the connection did not subscribe to. An event that does
            not name its channel is not counted as foreign.
    """

    received: int = 0
    deliveries: list[Deliveries] = attrs.field(factory=list)
    buckets: dict[int, int] = attrs.field(factory=dict)
    gaps: int = 0
    repeated: int = 0
    foreign: int = 0


class Books:
    """Records every frame of every subscriber of a fleet."""

    def __init__(self, dialect: Dialect, kind: Kind) -> None:
        self._collected = 0
        self._seq_and_rest = dialect.seq_and_rest
        self._event_in = kind.event_in
        self._step_of_bucket = step_of_bucket()
        self._known: dict[bytes, _Event] = {}
        self._events: dict[tuple[str, int], _Event] = {}
        self._reset()

    def _reset(self) -> None:
        self._received = self._gaps = self._repeated = self._foreign = 0
        self._buckets: Counter[int] = Counter()
        self._events.clear()
        self._known.clear()

    @property
    def total(self) -> int:
        """How many events were received so far."""
        return self._collected + self._received

    def take_known(self, subscriber: Subscriber, payload: bytes, now_ns: int) -> bool:
        """Record `payload` if the bytes that its subscribers share were seen before."""
        seq, shared = self._seq_and_rest(payload)
        event = self._known.get(shared)
        if event is None:
            return False
        self._enter(subscriber, seq, event, now_ns)
        return True

    def take(self, subscriber: Subscriber, unit: bytes, now_ns: int) -> bool:
        """Record one whole message; returns False if it carries no event.

        Args:
            subscriber: that of the message's connection; it is updated.
            unit: the message.
            now_ns: time of receipt, by the clock of the kind of event.
        """
        seq, shared = self._seq_and_rest(unit)
        event = self._known.get(shared) or self._learn(shared)
        if event is None:
            return False
        self._enter(subscriber, seq, event, now_ns)
        return True

    def _learn(self, shared: bytes) -> _Event | None:
        found = self._event_in(shared)
        if found is None:
            return None
        key = (found.channel, found.number)
        event = self._events.get(key)
        if event is None:
            order = found.number if found.is_ordered else 0
            event = _Event(found.number, found.due_ns, found.channel, order)
            self._events[key] = event
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[shared] = event
        return event

    def _enter(self, subscriber: Subscriber, seq: int, event: _Event, now_ns: int) -> None:
        self._received += 1
        if seq == subscriber.seq + 1:
            subscriber.seq = seq
        elif seq and not self._is_later(subscriber, seq):
            return
        if order := event.order:
            if order <= subscriber.order:
                self._repeated += 1
                return
            subscriber.order = order
        if event.channel not in subscriber.channels and event.channel:
            self._foreign += 1
            return
        if subscriber.is_counted:
            event.deliveries += 1
        bucket = (now_ns - event.due_ns) // NS_PER_BUCKET
        if bucket < 0:  # a clock was set back
            bucket = 0
        self._buckets[bucket] += 1
        if (steps := subscriber.steps) is not None and len(steps) < STEPS_MAX:
            steps.append(self._step_of_bucket[min(bucket, LAST_BUCKET)])

    def _is_later(self, subscriber: Subscriber, seq: int) -> bool:
        if seq <= subscriber.seq:
            self._repeated += 1
            return False
        self._gaps += seq - subscriber.seq - 1
        subscriber.seq = seq
        return True

    def collect(self) -> Received:
        """Return the events since the last call, and keep the order of each subscriber."""
        received = Received(
            received=self._received,
            deliveries=[
                Deliveries(event.number, event.due_ns, event.channel, event.deliveries)
                for event in self._events.values()
            ],
            buckets=dict(self._buckets),
            gaps=self._gaps,
            repeated=self._repeated,
            foreign=self._foreign,
        )
        self._collected += self._received
        self._reset()
        return received
