"""The newest event of each channel that somebody gets at a rate, by which a tick knows what is new.

A tick asks what has changed since the one before. Events are numbered in the order in which they
came, so that question, and how many events a channel had since then, need a number only.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import NamedTuple

import msgspec

from trio_odin.fanout.publication import trace_key
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.channels import patterns_for

# How many events can be counted one by one: for the longest rate at thousands of events a second,
# and for pauses of minutes to hours. They take sixteen bytes each.
HISTORY_MAX = 1 << 20


class Part(NamedTuple):
    """What a batch has of an event.

    Attributes:
        since: the number of the last event before it that its receivers were sent.
        fragment: the JSON object.
        skipped: how many events gave way to it, as far as they are known.
        unix_ms: when NATS stored it.
    """

    since: int
    fragment: bytes
    skipped: int
    unix_ms: int


class Update:
    """The newest event of one channel, and when the ones before it came.

    Attributes:
        channel: its channel.
        number: the event's own number.
    """

    __slots__ = (
        "_fragment",
        "_known_after",
        "_message",
        "_numbers",
        "_offsets",
        "_part",
        "_prev",
        "channel",
        "number",
    )

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.number = 0
        self._numbers = array("Q")
        self._offsets = array("Q")
        self._known_after = 0  # events up to this number are no longer counted
        self._fragment: tuple[int | None, bytes] | None = None
        self._part: Part | None = None

    def take(self, number: int, message: NatsMessage, prev: int | None) -> None:
        """Replace the event by a newer one."""
        self.number = number
        self._numbers.append(number)
        self._offsets.append(message.offset or 0)
        self._message, self._prev = message, prev
        self._fragment = self._part = None

    @property
    def size(self) -> int:
        """About the bytes that it takes in a batch."""
        return len(self._message.payload)

    def skipped(self, since: int) -> int | None:
        """How many events after number `since` came before this one; None: more than are known."""
        return None if since < self._known_after else self.counted(since)

    def first_offset(self, since: int) -> int | None:
        """The offset of the first event after number `since`; there is one.

        None without offsets, or if it was of an earlier stream. 1, which is the least, if it is not
        known.
        """
        if since < self._known_after:
            return 1
        return self._offsets[bisect_right(self._numbers, since)] or None

    def counted(self, since: int) -> int:
        """The same, as far as they are known."""
        return len(self._numbers) - bisect_right(self._numbers, since) - 1

    def __len__(self) -> int:
        """How many events are counted."""
        return len(self._numbers)

    def leave_stream(self) -> None:
        """Have no offset any longer: the stream that it counted in has gone."""
        self._message, self._prev = self._message._replace(offset=None), None
        self._offsets = array("Q", bytes(8 * len(self._offsets)))
        self._fragment = self._part = None

    def forget(self, before: int) -> int:
        """Count no events up to the number `before`, except this one. Returns how many those are.

        A channel that has no others has lost none: what is known of it stays known.
        """
        gone = min(bisect_right(self._numbers, before), len(self._numbers) - 1)
        if gone:
            self._known_after = self._numbers[gone - 1]
            del self._numbers[:gone]
            del self._offsets[:gone]
        return gone

    def part(self, since: int) -> Part:
        """The event as a part of a batch, for who was sent everything up to the number `since`.

        All members of a slot ask for the same number, one after the other.
        """
        if self._part is None or self._part.since != since:
            counted, skipped = self.counted(since), self.skipped(since)
            if self._fragment is None or self._fragment[0] != skipped:
                self._fragment = skipped, self._made(skipped)
            self._part = Part(since, self._fragment[1], counted, self._message.unix_ms)
        return self._part

    def _made(self, skipped: int | None) -> bytes:
        message = self._message
        keys = b'{"channel":' + msgspec.json.encode(self.channel)
        if message.offset is not None:
            keys += b',"offset":%d' % message.offset
        if self._prev is not None:
            keys += b',"prev":%d' % self._prev
        if skipped != 0:
            keys += b',"skipped":' + msgspec.json.encode(skipped)
        if message.trace is not None:
            keys += trace_key(message.trace)
        return b'%b,"ts":%d,"data":%b}' % (keys, message.unix_ms, message.payload)


class Changes:
    """The channels with an event after some number, in the order of their newest events."""

    def __init__(self, updates: Iterable[Update]) -> None:
        self.updates = {update.channel: update for update in updates}
        self._names = frozenset(self.updates)
        self._by_pattern: dict[str, list[str]] | None = None

    def are_apart(self, exact: set[str], patterns: set[str]) -> bool:
        """Whether it is certain, at a glance, that none is among them or matches one."""
        return not patterns and self._names.isdisjoint(exact)

    def matching(self, exact: set[str], patterns: set[str]) -> set[str]:
        """Those of them that are among `exact` or match one of `patterns`."""
        found = self._names & exact
        if patterns:
            by_pattern = self._under_patterns()
            found = found.union(*(by_pattern.get(pattern, ()) for pattern in patterns))
        return set(found)

    def _under_patterns(self) -> dict[str, list[str]]:
        if self._by_pattern is None:
            self._by_pattern = {}
            for name in self._names:
                for pattern in patterns_for(name):
                    self._by_pattern.setdefault(pattern, []).append(name)
        return self._by_pattern


class Updates:
    """The newest event of each channel, by channel.

    Args:
        history_max: how many events are counted; beyond that, the oldest half is forgotten.

    Attributes:
        number: of the newest event of all.
    """

    def __init__(self, history_max: int = HISTORY_MAX) -> None:
        self.number = 0
        self._history_max = history_max
        self._counted = 0
        self._asked, self._changes = (0, 0), Changes(())
        self._updates: dict[str, Update] = {}  # the channel that was quiet for longest is first

    def __len__(self) -> int:
        return len(self._updates)

    def get(self, channel: str) -> Update | None:
        """The newest event of `channel`; None if there was none since it is wanted."""
        return self._updates.get(channel)

    def add(self, channel: str, message: NatsMessage, prev: int | None) -> int:
        """Take in the next event of `channel`; returns its number."""
        self.number += 1
        update = self._updates.pop(channel, None) or Update(channel)
        update.take(self.number, message, prev)
        self._updates[channel] = update
        self._counted += 1
        if self._counted > self._history_max + len(self._updates):
            self._forget_half()
        return self.number

    def _forget_half(self) -> None:
        before = self.number - self._history_max // 2
        self._counted -= sum(update.forget(before) for update in self._updates.values())

    def after(self, number: int) -> Changes:
        """What has changed after the event of this number."""
        asked = number, self.number
        if self._asked != asked:  # all cohorts of a slot ask the same
            newest_first = reversed(self._updates.values())
            later = list(takewhile(lambda update: update.number > number, newest_first))
            self._asked, self._changes = asked, Changes(reversed(later))
        return self._changes

    def leave_stream(self) -> None:
        """Note that offsets count anew: the events here are those of a stream that has gone."""
        for update in self._updates.values():
            update.leave_stream()

    def clear(self) -> None:
        """Forget all channels."""
        self._updates.clear()
        self._counted = 0
        self._asked = (-1, -1)

    def forget_where(self, is_needless: Callable[[Update], bool]) -> None:
        """Forget the channels of such updates."""
        for update in list(filter(is_needless, self._updates.values())):
            self.forget(update.channel)

    def forget(self, channel: str) -> None:
        """Forget one channel, if it is here."""
        self._asked = (-1, -1)
        update = self._updates.pop(channel, None)
        if update is not None:
            self._counted -= len(update)
