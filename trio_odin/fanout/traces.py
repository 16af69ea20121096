"""Traces: what became of the events whose publisher records a trace.

    publisher's span
    └── received         arrival from NATS → the hub takes it
        └── fan-out      the hub takes it → it is written or waits, for every subscriber
            ├── last write     the same begin → nothing of it waits for a socket
            └── client's span, as events name the fan-out in `trace`

Only events with a sampled `traceparent` come here, and of these as many a second as are allowed.
The hub notes times; the spans are made later, by a task that does nothing else.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final
from weakref import ReferenceType, ref

from trio_odin.fanout.publication import Publication
from trio_odin.ledger.counters import TraceCounters
from trio_odin.net.token_bucket import TokenBucket
from trio_odin.settings.settings import Settings
from trio_odin.telemetry.spans import GiveSpan, Span
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.trace_context import TraceContext

# Longer than a socket may take nothing (WS_WRITE_DEADLINE) by default.
LAST_WRITE_MAX_SECONDS: Final = 10.0
_NS: Final = 1_000_000_000


class TracedEvent:
    """An event on its way through the hub, and the times of its spans.

    Attributes:
        message: the message, with the place in the trace of the fan-out in place of the
            publisher's.
    """

    def __init__(
        self,
        message: NatsMessage,
        parent: TraceContext,
        begun_ns: int,
        taken_ns: int,
        end: Callable[[TracedEvent], object],
        clock: Callable[[], int],
    ) -> None:
        self._parent = parent
        self._received = parent.under(_new_id())
        self._fan_out = parent.under(_new_id())
        self.message = message._replace(trace=self._fan_out)
        self._begun_ns, self._taken_ns = begun_ns, taken_ns
        self._fanned_out_ns = taken_ns
        self._written_ns = 0
        self._outcome = ""
        self._subscribers = 0
        self._end, self._clock = end, clock
        # None: nothing of it waits, or that is not of interest any longer.
        self._watch: ReferenceType[Publication] | None = None

    def watch(self, publication: Publication, subscribers: int) -> Publication:
        """The publication to hand to so many `subscribers`.

        It lives as long as something has to be written: whatever waits for a socket, an outbox or a
        turn, refers to it, and nothing else does. So to see its end costs a delivery nothing.
        """
        self._subscribers = subscribers
        watched = publication.watched()
        self._watch = ref(watched, self._note_written)
        return watched

    def _note_written(self, _: ReferenceType[Publication]) -> None:
        # Python may call this in any thread and at any moment: nothing else is touched here.
        self._written_ns = self._clock()
        self._watch = None
        self._end(self)

    def fanned_out(self, outcome: str) -> None:
        """Note what became of it, once the hub has done with it."""
        self._outcome = outcome
        self._fanned_out_ns = self._clock()
        if not self._subscribers:
            self._end(self)

    def has_taken_too_long(self, now_ns: int) -> bool:
        """Whether the last write is not worth waiting for any longer."""
        return now_ns - self._taken_ns > LAST_WRITE_MAX_SECONDS * _NS

    def spans(self, now_ns: int) -> list[Span]:
        """The spans, as far as there were any; a last write that is still awaited ends now."""
        message = self.message
        attributes: dict[str, str | int | bool] = {
            "messaging.system": "nats",
            "messaging.destination.name": message.subject,
            "messaging.message.body.size": len(message.payload),
            "trio_odin.outcome": self._outcome,
        }
        if message.offset is not None:
            attributes["trio_odin.offset"] = message.offset
        spans = [
            Span(
                "received",
                self._received,
                self._parent.span_id,
                "consumer",
                self._begun_ns,
                self._taken_ns,
                attributes,
            )
        ]
        if self._outcome != FANNED_OUT:
            return spans
        attributes = attributes | {"trio_odin.subscribers": self._subscribers}
        received_id, fan_out_id = self._received.span_id, self._fan_out.span_id
        began, ended = self._taken_ns, max(self._taken_ns, self._fanned_out_ns)
        spans.append(
            Span("fan-out", self._fan_out, received_id, "producer", began, ended, attributes)
        )
        if self._subscribers:
            is_cut = not self._written_ns
            written = max(began, self._written_ns or now_ns)
            attributes = attributes | {"trio_odin.is_unfinished": is_cut}
            last = self._parent.under(_new_id())
            spans.append(
                Span("last write", last, fan_out_id, "internal", began, written, attributes)
            )
        return spans


class Traces:
    """The events that are traced. Made only if spans are exported.

    Args:
        give: takes each span.
        counters: counts events that are traced, and those that are too many.
        settings: how many events are traced in a second.
        now: in monotonic seconds.
        clock: the time in Unix nanoseconds.
    """

    def __init__(
        self,
        give: GiveSpan,
        counters: TraceCounters,
        settings: Settings,
        *,
        now: float,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._give = give
        self._counters = counters
        self._clock = clock
        # Both are as short as the limit allows: their events stay for some seconds at most.
        self._unfinished: dict[TracedEvent, None] = {}
        self._ended: deque[TracedEvent] = deque()
        self.reload(settings, now)

    def reload(self, settings: Settings, now: float) -> None:
        """Apply the limit of `settings`."""
        rate = float(settings.traces_per_second)
        self._rate = TokenBucket(burst=rate, per_second=rate, now=now)

    def begin(self, message: NatsMessage, now: float) -> TracedEvent | None:
        """Begin to trace `message`, which the hub takes now; None if it is not to be traced."""
        parent = message.trace
        if parent is None:
            return None
        if not self._rate.take(now):
            self._counters.over_limit += 1
            return None
        self._counters.events += 1
        taken_ns = self._clock()
        begun_ns = taken_ns - round(max(0.0, now - message.arrived_at) * _NS)
        event = TracedEvent(message, parent, begun_ns, taken_ns, self._ended.append, self._clock)
        self._unfinished[event] = None
        return event

    def collect(self, *, is_last: bool = False) -> None:
        """Give the spans of the events that have ended or take too long; all, if it `is_last`."""
        while self._ended:
            self._finish(self._ended.popleft())
        now_ns = self._clock()
        for event in list(self._unfinished):
            if not (is_last or event.has_taken_too_long(now_ns)):
                break  # they are in the order in which they came
            self._finish(event)

    def _finish(self, event: TracedEvent) -> None:
        if event in self._unfinished:  # else it has taken too long, and ended after that
            del self._unfinished[event]
            for span in event.spans(self._clock()):
                self._give(span)


FANNED_OUT: Final = "fanned_out"


def _new_id() -> str:
    """A number for a span: 16 hexadecimal digits, not all zeros."""
    return f"{random.getrandbits(64) or 1:016x}"
