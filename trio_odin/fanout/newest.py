"""The newest event of each channel: the first value of a client that subscribes later.

It is filled from JetStream at each start, and after each loss of unknown channels, and by every
event since. In core mode there is nothing to fill it from.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterator
from itertools import count
from typing import Final

from trio_odin.fanout.publication import Publication
from trio_odin.upstream.gaps import Mark
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.channels import is_pattern

UNKNOWN: Final = 2**64


class NewestEvent:
    """The newest event of one channel, as a message until somebody asks for it."""

    __slots__ = ("_content", "channel", "number", "offset", "prev", "size", "unix_ms")

    def __init__(self, number: int, channel: str, message: NatsMessage, prev: int | None) -> None:
        self.number = number  # counts up
        self.channel = channel
        self.offset = message.offset
        self.prev = prev
        self.unix_ms = message.unix_ms
        self.size = len(message.payload)
        self._content: bytes | Publication = message.payload

    def snapshot(self) -> Publication:
        """The event as a first value. Made once, and shared by all who ask for it."""
        if isinstance(self._content, bytes):
            self._content = self._publication(self._content, is_snapshot=True)
        elif not self._content.kept.size:  # its bytes were released: it could not be replayed
            self._content = self._content.again()
        return self._content

    def publication(self) -> Publication:
        """The event as it was when it was published."""
        if isinstance(self._content, bytes):
            return self._publication(self._content, is_snapshot=False)
        return self._content.as_published()

    def _publication(self, payload: bytes, *, is_snapshot: bool) -> Publication:
        return Publication(
            self.channel,
            payload,
            offset=self.offset,
            unix_ms=self.unix_ms,
            prev=self.prev,
            is_snapshot=is_snapshot,
        )


class NewestEvents:
    """The newest valid event of each channel, at most `channels_max` and `max_bytes` of payload.

    Beyond that, those channels go that have been quiet for longest.

    Attributes:
        used_bytes: what the payloads take.
    """

    def __init__(self, *, channels_max: int, max_bytes: int) -> None:
        self.channels_max = channels_max
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._lost_after = 0 if channels_max else UNKNOWN
        self._dropped = 0
        self._events: dict[str, NewestEvent] = {}  # the quietest channel comes first
        self._numbers = count()
        self._names: list[str] = []  # sorted

    @property
    def known_after(self) -> int:
        """Of each channel that had an event after this offset, the newest is here.

        `UNKNOWN` if no events are kept here.
        """
        return max(self._lost_after, self._dropped)

    def __len__(self) -> int:
        return len(self._events)

    def get(self, channel: str) -> NewestEvent | None:
        """The newest event of `channel`; None if there was none, or none is known any more."""
        return self._events.get(channel)

    def add(self, channel: str, message: NatsMessage, prev: int | None = None) -> None:
        """Keep `message`, the next valid event, as the newest one of its `channel`.

        `prev`: the offset of the event before it in the channel, if that is known.
        """
        if not self.channels_max:
            return
        before = self._events.pop(channel, None)
        if before is None:
            insort(self._names, channel)
        else:
            self.used_bytes -= before.size
        event = NewestEvent(next(self._numbers), channel, message, prev)
        self._events[channel] = event
        self.used_bytes += event.size
        if event.size > self.max_bytes:
            self._drop(channel)  # and not all the others
        while len(self._events) > self.channels_max or self.used_bytes > self.max_bytes:
            self._drop(next(iter(self._events)))

    def add_older(self, channel: str, message: NatsMessage) -> None:
        """Keep `message`, which may be older than others here, where there is room. `sort` then."""
        before = self._events.get(channel)
        if not self.channels_max or (before and (before.offset or 0) >= (message.offset or 0)):
            return
        has_room = (
            len(self._events) < self.channels_max
            and self.used_bytes + len(message.payload) <= self.max_bytes
        )
        if before or has_room:
            self.add(channel, message)
        else:
            self._dropped = max(self._dropped, message.offset or 0)

    def sort(self) -> None:
        """Put the events in order, after older ones were added."""
        self._events = {event.channel: event for event in self.in_order(self._events)}

    def note(self, mark: Mark) -> None:
        """Take in what happened to the stream. What was lost may have been the newest.

        An older event is not shown in the place of one that was shed: the stream is asked for it.
        """
        if mark.reached is not None and (mark.gaps or mark.is_broken):
            self._lost_after = max(self._lost_after, mark.reached)
        if mark.is_shed_unknown:
            self.forget_all(self.known_after)
        for channel in mark.shed:
            if channel in self._events:
                self._remove(channel)

    def note_known(self, position: int, known_after: int) -> None:
        """Note that at `position` the newest of each channel with events after that was added."""
        if self._lost_after <= position:
            self._lost_after = min(self._lost_after, known_after)

    def forget_all(self, known_after: int) -> None:
        """Forget everything: offsets count anew, or there are none any more."""
        self._events.clear()
        self._names.clear()
        self.used_bytes = self._dropped = 0
        self._lost_after = known_after if self.channels_max else UNKNOWN

    def matching(self, name: str) -> Collection[str]:
        """The channels that have an event here and that `name`, maybe a pattern, stands for."""
        if not is_pattern(name):
            return (name,) if name in self._events else ()
        symbol, _, event_type = name.partition(".")
        if symbol not in {"*", ">"}:
            return list(self.names(f"{symbol}."))
        if event_type in {"", "*", ">"}:
            return self._events.keys()
        ending = f".{event_type}"
        return [channel for channel in self._names if channel.endswith(ending)]

    def names(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """The channels that begin with `prefix`, sorted, from the first one after `after` on."""
        start = max(bisect_left(self._names, prefix), bisect_right(self._names, after))
        for number in range(start, len(self._names)):
            if not self._names[number].startswith(prefix):
                break
            yield self._names[number]

    def in_order(self, channels: Collection[str]) -> list[NewestEvent]:
        """The events of `channels` that have one, the oldest first."""
        found = [event for one in channels if (event := self._events.get(one)) is not None]
        return sorted(found, key=lambda event: (event.offset or 0, event.number))

    def _drop(self, channel: str) -> None:
        """Remove the event of `channel`, for which there is no room."""
        self._dropped = max(self._dropped, self._remove(channel).offset or 0)

    def _remove(self, channel: str) -> NewestEvent:
        event = self._events.pop(channel)
        self.used_bytes -= event.size
        del self._names[bisect_left(self._names, channel)]
        return event
