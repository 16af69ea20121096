"""The last events of all channels, for clients that come back after a lost connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from itertools import takewhile
from typing import Final, NamedTuple

from trio_odin.core.publication import InvalidPayload, NatsMessage, Publication

# Also read from before the start, for the clients of a server or worker that has just ended.
RECENT_EVENTS_MAX: Final = 4096
_BYTES_MAX: Final = 64 * 1024 * 1024


class Missed(NamedTuple):
    """What a client has missed, oldest first; not `is_complete`: there may have been more."""

    publications: list[Publication]
    is_complete: bool


class RecentEvent:
    """An event of the stream: its publication, or its payload if nobody wanted it when it came."""

    __slots__ = ("arrived_at", "channel", "content", "offset", "size")

    def __init__(self, message: NatsMessage, offset: int, channel: str | None) -> None:
        self.content: Publication | bytes = b"" if channel is None else message.payload
        self.size = len(self.content)
        self.offset = offset
        self.arrived_at = message.arrived_at
        self.channel = channel

    def publish(self, unix_ms: int) -> Publication | None:
        """The publication, made now if nobody wanted it then; None if it cannot be one."""
        if isinstance(self.content, Publication):
            return self.content
        if self.channel is None:
            return None
        try:
            self.content = Publication(
                self.channel, self.content, offset=self.offset, unix_ms=unix_ms
            )
        except InvalidPayload:
            self.channel = None
            return None
        return self.content


class Recent:
    """Events by their offset: at most `capacity`, none kept longer than `max_age_seconds`.

    Only an unbroken run of events is kept, each of which names the one before it: across a hole
    nobody could say what was missed. An event without an offset, as there is without JetStream, is
    not kept.

    Attributes:
        last: the newest offset, -1 if there is none yet.
    """

    def __init__(
        self,
        *,
        max_age_seconds: float,
        capacity: int = RECENT_EVENTS_MAX,
        max_bytes: int = _BYTES_MAX,
    ) -> None:
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._bytes = 0
        self._max_age_seconds = max_age_seconds
        self._events: deque[RecentEvent] = deque()
        # Every event behind the first of these offsets, up to the second, is here.
        self._complete_after = 0
        self.last = -1

    def add(self, message: NatsMessage, channel: str | None) -> RecentEvent | None:
        """Keep `message`, of `channel` if it belongs to one; None if it has no offset."""
        offset = message.offset
        if offset is None:
            return None
        before = offset - 1 if message.before is None else message.before
        if before != self.last:
            self._events.clear()
            self._bytes = 0
            self._complete_after = before
        event = RecentEvent(message, offset, channel)
        self._bytes += event.size
        self._forget(message.arrived_at - self._max_age_seconds)
        self._events.append(event)
        self.last = offset
        return event

    def _forget(self, arrived_before: float) -> None:
        """Make room for one more."""
        events = self._events
        while events and (
            len(events) >= self._capacity
            or self._bytes > self._max_bytes
            or events[0].arrived_at < arrived_before
        ):
            oldest = events.popleft()
            self._bytes -= oldest.size
            self._complete_after = oldest.offset

    def after(
        self, offset: int, channels: Collection[str], *, at_most: int, unix_ms: int
    ) -> Missed:
        """The newest events of `channels` behind `offset`, `at_most` so many."""
        newer = takewhile(lambda event: event.offset > offset, reversed(self._events))
        missed: list[Publication] = []
        for event in newer:
            if event.channel in channels and (publication := event.publish(unix_ms)):
                if len(missed) == at_most:
                    return Missed(missed[::-1], is_complete=False)
                missed.append(publication)
        # An offset that we do not know yet may be of a stream that was made anew since.
        return Missed(missed[::-1], self._complete_after <= offset <= self.last)
