"""A flight recorder: the last notable events of one connection.

It is written off the hot path, and read for the log when the connection is closed forcibly.
"""

from __future__ import annotations

from enum import Enum

import attrs

from trio_odin.ledger.reasons import Dropped
from trio_odin.wire.commands import (
    Command,
    Heartbeat,
    Malformed,
    Replay,
    Subscribe,
    Unknown,
    Unsubscribe,
)

RECORDS_MAX = 32
# Heartbeat, ping and pong alternate for hours; they stay three records.
_MERGED_WITH_LAST = 4


class FlightEvent(Enum):
    """What is recorded; the value is its text in the log."""

    SUBSCRIBE = "subscribe"
    UNSUBSCRIBE = "unsubscribe"
    REPLAY = "replay"
    HEARTBEAT = "heartbeat"
    MALFORMED = "malformed command"
    UNKNOWN = "unknown command"
    RATE_LIMITED = "rate limited"
    REPLY_WAITED = "reply waited"
    CUT_SHORT = "resume or replay cut short"
    BEGAN_TO_WAIT = "outbox began to fill"
    DEPTH = "messages waiting"
    EMPTIED = "outbox emptied"
    OUTBOX_FULL = "dropped: outbox full"
    OUTBOX_BYTES = "dropped: bytes of the outbox"
    TOTAL_OUTBOX_BYTES = "dropped: bytes of all outboxes"
    CONFLATED = "conflated"
    PING = "ping"
    PING_SKIPPED = "ping skipped"
    PONG = "pong"
    SLOW_WRITE = "write of a second or more"
    STALLED = "write stalled"
    CLOSING = "close frame"


REFUSALS = {
    Dropped.OUTBOX_FULL: FlightEvent.OUTBOX_FULL,
    Dropped.OUTBOX_BYTES: FlightEvent.OUTBOX_BYTES,
    Dropped.TOTAL_OUTBOX_BYTES: FlightEvent.TOTAL_OUTBOX_BYTES,
}
COMMANDS: dict[type[Command] | None, FlightEvent] = {
    Subscribe: FlightEvent.SUBSCRIBE,
    Unsubscribe: FlightEvent.UNSUBSCRIBE,
    Replay: FlightEvent.REPLAY,
    Heartbeat: FlightEvent.HEARTBEAT,
    Malformed: FlightEvent.MALFORMED,
    Unknown: FlightEvent.UNKNOWN,
    None: FlightEvent.RATE_LIMITED,
}


@attrs.define(eq=False, weakref_slot=False)
class _Record:
    """An event, how often it happened, and when it did last, in monotonic seconds."""

    event: FlightEvent
    at: float
    count: int


class FlightRecorder:
    """Keeps the last `RECORDS_MAX` records; the oldest is removed first.

    An event that is among the last four records is not a new record: its count grows, and its time
    becomes that of the last occurrence.

    Attributes:
        opened_at: monotonic seconds, from which times are counted.
    """

    __slots__ = ("_records", "opened_at")

    def __init__(self, opened_at: float) -> None:
        self.opened_at = opened_at
        self._records: list[_Record] = []

    def add(self, event: FlightEvent, now: float, count: int = 1) -> None:
        """Record that `event` happened `count` times; for `DEPTH`, that `count` messages wait."""
        for record in self._records[-_MERGED_WITH_LAST:]:
            if record.event is event:
                is_depth = event is FlightEvent.DEPTH
                record.count = max(record.count, count) if is_depth else record.count + count
                record.at = now
                return
        self._records.append(_Record(event, now, count))
        del self._records[:-RECORDS_MAX]

    def lines(self) -> list[str]:
        """The records in the order of their times, as text for a person."""
        return [
            f"{record.at - self.opened_at:.3f}s {record.event.value}"
            + (f" x{record.count}" if record.count > 1 else "")
            for record in sorted(self._records, key=lambda record: record.at)
        ]
