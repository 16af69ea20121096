"""A flight recorder: the last notable events of one connection.

It is written off the hot path, and read for the log when the connection is closed forcibly.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from trio_odin.ledger.reasons import Dropped
from trio_odin.wire.commands import (
    Channels,
    Command,
    Heartbeat,
    Malformed,
    Replay,
    Subscribe,
    Token,
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
    CHANNELS = "channels"
    TOKEN = "token"  # noqa: S105 - not a secret
    MALFORMED = "malformed command"
    UNKNOWN = "unknown command"
    RATE_LIMITED = "rate limited"
    REPLY_WAITED = "reply waited"
    CUT_SHORT = "resume, replay or snapshot cut short"
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
    Channels: FlightEvent.CHANNELS,
    Token: FlightEvent.TOKEN,
    Malformed: FlightEvent.MALFORMED,
    Unknown: FlightEvent.UNKNOWN,
    None: FlightEvent.RATE_LIMITED,
}


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
        # Event, time of its last occurrence, count; flat, as every connection has a few.
        self._records: list[Any] = []

    def add(self, event: FlightEvent, now: float, count: int = 1) -> None:
        """Record that `event` happened `count` times; for `DEPTH`, that `count` messages wait."""
        records = self._records
        end = len(records)
        for at in range(end - 3, max(end - 3 * _MERGED_WITH_LAST, 0) - 1, -3):
            if records[at] is event:
                before = records[at + 2]
                is_depth = event is FlightEvent.DEPTH
                records[at + 1 : at + 3] = now, max(before, count) if is_depth else before + count
                return
        records += event, now, count
        del records[: -3 * RECORDS_MAX]

    def lines(self) -> list[str]:
        """The records in the order of their times, as text for a person."""
        parts = self._records
        records = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
        return [
            f"{at - self.opened_at:.3f}s {event.value}" + (f" x{count}" if count > 1 else "")
            for event, at, count in sorted(records, key=lambda record: record[1])
        ]
