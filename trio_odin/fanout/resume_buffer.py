"""The server's position in the stream, and the last events, for clients that resume.

Nothing else answers up to which offset of which stream clients have been served: see the table in
docs/decisions/0020-where-a-client-stands.md. All that changes the answer comes in order through the
inbound queue: events are `add`ed, marks `note`d.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import takewhile
from typing import Final

from trio_odin.fanout.publication import Publication
from trio_odin.upstream.gaps import Mark
from trio_odin.upstream.nats_message import NatsMessage

# Also the size of the backfill, for the clients of a server or worker that has just ended.
RESUME_EVENTS_MAX: Final = 4096
_BYTES_MAX: Final = 64 * 1024 * 1024


class ResumableEvent:
    """An event of the stream: its publication, or its payload if it had no subscriber.

    Attributes:
        channel: the channel; None of what is no valid event, and is kept for its offset.
        prev: the offset of the event before it in its channel; None if that is not known.
    """

    __slots__ = ("arrived_at", "channel", "content", "offset", "prev", "size", "unix_ms")

    def __init__(
        self, message: NatsMessage, offset: int, channel: str | None, prev: int | None
    ) -> None:
        self.content: Publication | bytes = b"" if channel is None else message.payload
        self.size = len(self.content)
        self.offset = offset
        self.prev = prev
        self.arrived_at = message.arrived_at
        self.unix_ms = message.unix_ms
        self.channel = channel

    def publication(self) -> Publication:
        """The publication, made now if it had no subscriber then. The event has to be valid."""
        if not isinstance(self.content, Publication):
            self.content = Publication(
                str(self.channel),
                self.content,
                offset=self.offset,
                unix_ms=self.unix_ms,
                prev=self.prev,
            )
        return self.content


class ResumeBuffer:
    """Events by their offset: at most `capacity`, none kept longer than `max_age_seconds`.

    Only an unbroken run of events is kept: across a loss the server could not say what was missed.
    Where the missing events are older than the start, those before them are kept for the newest
    events of quiet channels. An event without an offset, as in core mode, is not kept.

    Attributes:
        epoch: which numbering the offsets belong to; None before NATS was reached, and in core
            mode.
        taken: the offset up to which everything was taken in; -1 if nothing is known.
        is_entered: whether NATS was reached once, so that there is a position or will never be one.
        is_settled: whether the position is known and the backfill has been read.
    """

    def __init__(
        self,
        *,
        max_age_seconds: float,
        capacity: int = RESUME_EVENTS_MAX,
        max_bytes: int = _BYTES_MAX,
    ) -> None:
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._bytes = 0
        self._max_age_seconds = max_age_seconds
        self._events: deque[ResumableEvent] = deque()
        self.taken = -1
        # Every event after the first of these offsets is here; up to the second it is backfill.
        self._complete_after = 0
        self._backfill_end = 0
        self.epoch: str | None = None
        self.is_entered = False
        self.is_settled = False

    @property
    def position(self) -> int | None:
        """Up to this offset clients were sent the events of their channels, or a gap notice.

        None: not known, because NATS was not reached yet or has no JetStream.
        """
        return None if self.taken < 0 else max(self.taken, self._backfill_end)

    def note(self, mark: Mark) -> None:
        """Move to another position, maybe in another stream."""
        if mark.reached is None:
            self._forget_all(-1)
            self.is_settled = True
        else:
            if mark.epoch != self.epoch or mark.gaps or self.taken < 0:
                self._forget_all(mark.reached)
            elif mark.is_broken:
                self._complete_after = mark.reached
            self.taken = max(mark.reached, self.taken)
            self.is_settled = self.taken >= mark.backfill_end
        self.epoch, self._backfill_end, self.is_entered = mark.epoch, mark.backfill_end, True

    def _forget_all(self, reached: int) -> None:
        self._events.clear()
        self._bytes = 0
        self.taken = self._complete_after = reached

    def add(
        self, message: NatsMessage, channel: str | None, prev: int | None = None
    ) -> ResumableEvent | None:
        """Keep `message`, of `channel` if it is a valid event; returns None if it has no offset."""
        offset = message.offset
        if offset is None:
            return None
        event = ResumableEvent(message, offset, channel, prev)
        self._bytes += event.size
        self._forget(message.arrived_at - self._max_age_seconds)
        self._events.append(event)
        self.taken = offset
        if not self.is_settled:
            self.is_settled = offset >= self._backfill_end
        return event

    def _forget(self, arrived_before: float) -> None:
        """Make room for one more event."""
        events = self._events
        while events and (
            len(events) >= self._capacity
            or self._bytes > self._max_bytes
            or events[0].arrived_at < arrived_before
        ):
            oldest = events.popleft()
            self._bytes -= oldest.size
            self._complete_after = max(oldest.offset, self._complete_after)

    def newer_than(self, offset: int) -> Iterator[ResumableEvent]:
        """The events after `offset` that are kept, the newest one first."""
        return takewhile(lambda event: event.offset > offset, reversed(self._events))

    def has_all_after(self, offset: int) -> bool:
        """Whether `newer_than` gives every event after `offset` that there was."""
        return self._complete_after <= offset and self.is_settled
