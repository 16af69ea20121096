"""A flight recorder: the last notable events of one connection, in a kilobyte.

It is written off the hot path, and read for the log when the connection is closed forcibly.
"""

from __future__ import annotations

import struct
from enum import Enum

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

# Milliseconds since the connection was opened, count, number of the event.
_RECORD = struct.Struct("<IIHxx")
_LARGEST = 0xFFFFFFFF
RECORDS_MAX = 85
# A ping and its pong alternate for hours; they stay two records.
_MERGED_WITH_LAST = 2


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
    DEPTH = "envelopes waiting"
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


_EVENTS = tuple(FlightEvent)
_NUMBERS = {event: number for number, event in enumerate(_EVENTS)}

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


class FlightRecorder:
    """Keeps the last `RECORDS_MAX` records; the oldest is removed first.

    An event that is among the last two records is not a new record: its count grows, and its time
    becomes that of the last occurrence.
    """

    __slots__ = ("_opened_at", "_records")

    def __init__(self, opened_at: float) -> None:
        """`opened_at`: monotonic seconds, from which times are counted."""
        self._opened_at = opened_at
        self._records = bytearray()

    def add(self, event: FlightEvent, now: float, count: int = 1) -> None:
        """Record that `event` happened `count` times; for `DEPTH`, that `count` messages wait."""
        records, number = self._records, _NUMBERS[event]
        ms = min(int((now - self._opened_at) * 1000), _LARGEST)
        end = len(records)
        begin = max(end - _RECORD.size * (_MERGED_WITH_LAST + 1), -1)
        for start in range(end - _RECORD.size, begin, -_RECORD.size):
            _, before, kind = _RECORD.unpack_from(records, start)
            if kind == number:
                count = max(count, before) if event is FlightEvent.DEPTH else count + before
                _RECORD.pack_into(records, start, ms, min(count, _LARGEST), number)
                return
        if end >= _RECORD.size * RECORDS_MAX:
            del records[: _RECORD.size]
        records += _RECORD.pack(ms, min(count, _LARGEST), number)

    def lines(self) -> list[str]:
        """The records in the order of their times, as text for a person."""
        records = sorted(_RECORD.iter_unpack(self._records), key=lambda record: record[0])
        return [
            f"{ms / 1000:.3f}s {_EVENTS[number].value}" + (f" x{count}" if count > 1 else "")
            for ms, count, number in records
        ]
