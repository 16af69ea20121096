"""Checks and counts the events that a fleet received: numbers, channels, latency. Pure.

Theory of operation. A publication's envelopes differ between subscribers only in `seq`, which is
the first key. So a frame costs one slice for `seq` and one look-up of the bytes after it: the first
frame with those bytes is decoded in full, and all others have the same content, because they are
equal to it. A server that makes those bytes per connection is read as correctly, only slower.
`batches.py` has the same for the events of a tick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

import attrs

from trio_odin.lab.fleet.batches import Batch, BatchReader, KnownEvent, Part, Standing, is_batch
from trio_odin.lab.fleet.dialects import Dialect
from trio_odin.lab.fleet.events import Event, Kind
from trio_odin.lab.fleet.latency import LAST_BUCKET, NS_PER_BUCKET, step_of_bucket

# Bounds the memory for the bytes after `seq`; forgotten ones are decoded again.
_KNOWN_MAX = 16_384
_KNOWN_MAX_BYTES = 16 * 1024 * 1024
# Of a connection that is watched for hours, the first latencies have to do.
STEPS_MAX = 1000


def _each_once(channels: Iterable[str]) -> frozenset[str]:
    return frozenset(channels)


@attrs.define(eq=False, on_setattr=attrs.setters.NO_OP)
class Subscriber:
    """The subscription of one connection, and how far it has received.

    `steps` has its latencies while it is watched, see `step_of_bucket`. `standing` has its events
    by channel, if it receives batches.
    """

    channels: frozenset[str] = attrs.field(converter=_each_once)
    is_counted: bool = True
    seq: int = 0
    order: int = 0
    steps: bytearray | None = None
    standing: Standing | None = None


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
        received: number of events, also of those in a batch.
        frames: messages that carried them.
        skipped: events that were reported to have given way to these.
        unexplained: events before which one is missing in the channel, by `prev`, although none
            was reported as skipped; counted in batches.
        deliveries: of each event, to counted subscribers.
        buckets: latencies from the planned moment, in tenths of a millisecond, with counts.
        gaps: missing envelopes, by the jumps of `seq`.
        repeated: events that came twice, or after a later one, on the same connection; they and
            the foreign ones are otherwise counted only in `received`.
        foreign: events of a channel that the connection did not subscribe to. An event that does
            not name its channel is not counted as foreign.
    """

    received: int = 0
    frames: int = 0
    skipped: int = 0
    unexplained: int = 0
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
        self._collected_skipped = 0
        self._known: dict[bytes, KnownEvent | Batch] = {}
        self._events: dict[tuple[str, int], KnownEvent] = {}
        self._batches = BatchReader(kind.event_in, self._event)
        self._starts: dict[tuple[frozenset[str], bool], Standing] = {}
        self._reset()

    def _reset(self) -> None:
        self._received = self._gaps = self._repeated = self._foreign = 0
        self._frames_of_batches = self._in_batches = self._skipped = self._unexplained = 0
        self._buckets: Counter[int] = Counter()
        self._events.clear()
        self._forget()

    def _forget(self) -> None:
        # Members of a cohort that take a batch before and after it part company. Each part of them
        # costs some microseconds a batch, and nothing is miscounted.
        self._known.clear()
        self._known_bytes = 0
        self._batches.clear()

    @property
    def total(self) -> int:
        """How many events were received so far."""
        return self._collected + self._received

    @property
    def skipped(self) -> int:
        """How many events were reported as skipped so far."""
        return self._collected_skipped + self._skipped

    def standing_of(self, subscriber: Subscriber) -> Standing:
        """The position of a subscriber; an empty one, which its like share, before any batch."""
        if subscriber.standing is None:
            key = (subscriber.channels, subscriber.is_counted)
            start = self._starts.get(key)
            if start is None:
                start = self._starts[key] = Standing(*key)
            subscriber.standing = start
        return subscriber.standing

    def take_known(self, subscriber: Subscriber, payload: bytes, now_ns: int) -> bool:
        """Record `payload` if the bytes that its subscribers share were seen before."""
        seq, shared = self._seq_and_rest(payload)
        found = self._known.get(shared)
        if found is None:
            return False
        if type(found) is KnownEvent:
            self._enter(subscriber, seq, found, now_ns)
        else:
            self._enter_batch(subscriber, seq, cast("Batch", found), now_ns)
        return True

    def take(self, subscriber: Subscriber, unit: bytes, now_ns: int) -> bool:
        """Record one whole message; returns False if it carries no event.

        Args:
            subscriber: that of the message's connection; it is updated.
            unit: the message.
            now_ns: time of receipt, by the clock of the kind of event.
        """
        seq, shared = self._seq_and_rest(unit)
        return self.take_encoded(subscriber, seq, shared, _as_it_is, now_ns)

    def take_encoded(
        self,
        subscriber: Subscriber,
        seq: int,
        shared: bytes,
        decode: Callable[[bytes], bytes],
        now_ns: int,
    ) -> bool:
        """Record one whole message whose number is known; returns False if it carries no event.

        Args:
            subscriber: that of the message's connection; it is updated.
            seq: number of the message.
            shared: the bytes that all its subscribers get.
            decode: makes the message's text, without `seq`, of these; called once for them.
            now_ns: time of receipt, by the clock of the kind of event.
        """
        found = self._known.get(shared) or self._learn(shared, decode(shared))
        if found is None:
            return False
        if isinstance(found, Batch):
            self._enter_batch(subscriber, seq, found, now_ns)
        else:
            self._enter(subscriber, seq, found, now_ns)
        return True

    def _learn(self, shared: bytes, text: bytes) -> KnownEvent | Batch | None:
        found = self._batches.read(text) if is_batch(text) else self._single(text)
        if found is None:
            return None
        if len(self._known) >= _KNOWN_MAX or self._known_bytes >= _KNOWN_MAX_BYTES:
            self._settle()
            self._forget()
        self._known[shared] = found
        self._known_bytes += len(shared)
        return found

    def _single(self, text: bytes) -> KnownEvent | Batch | None:
        found = self._event_in(text)
        if found is None:
            return None
        event = self._event(found)
        # Older events of its channel gave way to it: it is accounted for like that of a tick.
        return Batch([Part(event, 0, 0, found.skipped)]) if found.skipped else event

    def _event(self, found: Event) -> KnownEvent:
        key = (found.channel, found.number)
        event = self._events.get(key)
        if event is None:
            order = found.number if found.is_ordered else 0
            event = KnownEvent(found.number, found.due_ns, found.channel, order)
            self._events[key] = event
        return event

    def _enter(self, subscriber: Subscriber, seq: int, event: KnownEvent, now_ns: int) -> None:
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

    def _enter_batch(self, subscriber: Subscriber, seq: int, batch: Batch, now_ns: int) -> None:
        self._received += batch.size
        self._in_batches += batch.size
        self._frames_of_batches += 1
        if seq == subscriber.seq + 1:
            subscriber.seq = seq
        elif seq and not self._is_later(subscriber, seq):
            self._repeated += batch.size - 1  # of one it is counted
            return
        step = batch.step(subscriber.standing or self.standing_of(subscriber))
        arrivals, arrival = step.arrivals, now_ns // NS_PER_BUCKET
        arrivals[arrival] = arrivals.get(arrival, 0) + 1
        self._skipped += step.skipped
        subscriber.standing = step.standing
        subscriber.order = max(subscriber.order, batch.order)
        if (steps := subscriber.steps) is not None and len(steps) < STEPS_MAX:
            # That of its newest event: the others had to wait for the tick.
            bucket = max(0, (now_ns - batch.due_ns) // NS_PER_BUCKET)
            steps.append(self._step_of_bucket[min(bucket, LAST_BUCKET)])

    def _settle(self) -> None:
        """Enter the events of the known batches, as often as they came."""
        steps = [
            step
            for found in self._known.values()
            if isinstance(found, Batch)
            for step in found.steps.values()
        ]
        for step in steps:
            times = sum(step.arrivals.values())
            self._unexplained += step.unexplained * times
            self._repeated += step.repeated * times
            self._foreign += step.foreign * times
            if step.standing.is_counted:
                for event in step.events:
                    event.deliveries += times
            for arrival, count in step.arrivals.items():
                for event in step.events:
                    late = arrival - event.due_ns // NS_PER_BUCKET
                    self._buckets[max(0, late)] += count

    def _is_later(self, subscriber: Subscriber, seq: int) -> bool:
        if seq <= subscriber.seq:
            self._repeated += 1
            return False
        self._gaps += seq - subscriber.seq - 1
        subscriber.seq = seq
        return True

    def collect(self) -> Received:
        """Return the events since the last call, and keep the order of each subscriber."""
        self._settle()
        received = Received(
            received=self._received,
            frames=self._received - self._in_batches + self._frames_of_batches,
            skipped=self._skipped,
            unexplained=self._unexplained,
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
        self._collected_skipped += self._skipped
        self._reset()
        return received


def _as_it_is(shared: bytes) -> bytes:
    return shared
