"""The outbox: what waits for one connection's socket, in order, until its writer task takes it.

A memory channel keeps the order, and a `Backlog` decides what may wait. Both exist only from the
first item that waits until the last one is written.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeAlias

import attrs
import trio

from trio_odin.fanout.flight import REFUSALS, FlightEvent, FlightRecorder
from trio_odin.fanout.slow_consumers import Backlog, OutboxRules, QueuedMessage
from trio_odin.ledger.counters import Deliveries
from trio_odin.ledger.reasons import Dropped

# A joined write takes at most about this much; the outbox may hold far more in large messages.
JOINED_MAX_BYTES = 64 * 1024
# From this size on a frame is written from the bytes that all its receivers share.
_LARGE_BYTES = 16 * 1024
# From this many waiting messages on, the flight recorder notes each doubling.
_DEPTH_MARK = 16


@attrs.define(eq=False)
class QueuedBytes:
    """Ready bytes that wait; a task may be waiting for `is_written`."""

    data: bytes
    is_written: bool = False

    def pieces(self) -> list[memoryview]:
        """The bytes that are still to be written, in pieces."""
        return [memoryview(self.data)]

    @property
    def size(self) -> int:
        """How many bytes are still to be written."""
        return len(self.data)


QueuedItem: TypeAlias = QueuedMessage | QueuedBytes
# An annotation, because `open_memory_channel[...]` evaluates the type anew per connection.
_Channel: TypeAlias = tuple[
    trio.MemorySendChannel[QueuedItem], trio.MemoryReceiveChannel[QueuedItem]
]


@attrs.frozen
class Joined:
    """What one write takes: its items and their bytes, `size` in all. Large ones are not copied."""

    items: list[QueuedItem]
    buffers: list[bytes | memoryview]
    size: int


class Outbox:
    """Messages and ready bytes that wait, within the limits of `rules`."""

    __slots__ = (
        "_backlog",
        "_channel",
        "_deliveries",
        "_dropped",
        "_flight",
        "_rules",
        "_skipped_total",
    )

    def __init__(self, rules: OutboxRules, deliveries: Deliveries, flight: FlightRecorder) -> None:
        self._rules = rules
        self._deliveries = deliveries
        self._flight = flight
        self._channel: _Channel | None = None
        self._backlog: Backlog | None = None  # nothing waits
        # In earlier backlogs: messages that gave way to newer ones, or found no room.
        self._skipped_total = self._dropped = 0

    def queue(self, message: QueuedMessage) -> Dropped | None:
        """Let `message` wait, or return why not; then it counts as dropped, unless it is resent."""
        backlog = self._begin_to_wait()
        room = self._rules.capacity - self._waiting_items()
        refusal = backlog.admit(message, room=room)
        if refusal is not None:
            self._note(FlightEvent.CUT_SHORT if message.is_resent else REFUSALS[refusal])
            return refusal
        if room < 1:
            for item in backlog.without_superseded(list(self._all())):
                self._append(item)
        self._append(message)
        depth = backlog.messages
        if depth >= _DEPTH_MARK and depth & (depth - 1) == 0 and not message.skipped:
            self._note(FlightEvent.DEPTH, depth)
        return None

    def queue_bytes(self, data: bytes) -> QueuedBytes:
        """Let ready bytes wait. They are never refused; see `has_room_for`."""
        self._begin_to_wait().reply_waits(len(data))
        item = QueuedBytes(data)
        self._append(item)
        return item

    def has_room_for(self, size: int) -> bool:
        """Whether `size` ready bytes that no task awaits may wait, within the limits of events."""
        backlog = self._begin_to_wait()
        return backlog.may_wait(size, room=self._rules.capacity - self._waiting_items())

    def is_too_slow(self, *, had_room: bool) -> bool:
        """Whether to evict the client, after a delivery that had room or had none."""
        return self._backlog is not None and self._backlog.is_too_slow(had_room=had_room)

    def take(self) -> QueuedItem | None:
        """Take the first item; None if nothing waits."""
        return next(self._all(), None)

    def join(self, first: QueuedItem) -> Joined:
        """As many items from `first` on as one write should take, without the superseded ones."""
        backlog = self._begin_to_wait()
        items: list[QueuedItem] = []
        buffers: list[bytes | memoryview] = []
        joined = bytearray()
        size = skipped = 0
        for item in itertools.chain([first], self._all()):
            if isinstance(item, QueuedMessage):
                if not backlog.take(item):
                    continue
                skipped += item.skipped
            items.append(item)
            size += item.size
            if item.size < _LARGE_BYTES:
                for piece in item.pieces():
                    joined += piece
            else:
                buffers += [bytes(joined), *item.pieces()]
                joined.clear()
            if size >= JOINED_MAX_BYTES:
                break
        if skipped:
            self._note(FlightEvent.CONFLATED, skipped)
        return Joined(items, [*buffers, bytes(joined)], size)

    def written(self, joined: Joined) -> bool:
        """Count `joined` as written. Returns whether nothing waits now."""
        backlog = self._begin_to_wait()
        messages = events = 0
        for item in joined.items:
            if isinstance(item, QueuedBytes):
                item.is_written = True
            else:
                messages += 1
                events += item.publication.events
        backlog.written(messages, events, joined.size)
        return not self._waiting_items()

    def forget_backlog(self) -> None:
        """End the backlog, of which nothing waits any longer; its totals are kept."""
        if self._backlog is not None:
            self._skipped_total = self._backlog.skipped_total
            self._dropped += self._backlog.dropped
            self._backlog = self._channel = None
            self._note(FlightEvent.EMPTIED)

    def abandon(self) -> None:
        """Count all that waits as dropped: nothing of it will be written."""
        if self._backlog is not None:
            self._backlog.abandon()

    def _begin_to_wait(self) -> Backlog:
        if self._backlog is None:
            self._backlog = Backlog(
                self._rules, self._deliveries, skipped_total=self._skipped_total
            )
            # Without a limit: the backlog limits messages, see `queue`. The sender of a reply waits
            # until it is written, so there are no more replies than tasks that send: the reader.
            self._channel = trio.open_memory_channel(math.inf)
            self._note(FlightEvent.BEGAN_TO_WAIT)
        return self._backlog

    def _waiting_items(self) -> int:
        return self._channel[0].statistics().current_buffer_used if self._channel else 0

    def _append(self, item: QueuedItem) -> None:
        if self._channel is not None:  # it has begun to wait
            self._channel[0].send_nowait(item)

    def _all(self) -> Iterator[QueuedItem]:
        """Take items, one after the other, until none is left."""
        with suppress(trio.WouldBlock):
            while self._channel is not None:
                yield self._channel[1].receive_nowait()

    def _note(self, event: FlightEvent, count: int = 1) -> None:
        self._flight.add(event, trio.current_time(), count)

    @property
    def waiting_messages(self) -> int:
        """How many messages wait or are being written."""
        return self._backlog.messages if self._backlog else 0

    @property
    def waiting_bytes(self) -> int:
        """The bytes that wait or are being written."""
        return self._backlog.bytes if self._backlog else 0

    @property
    def dropped(self) -> int:
        """How many messages found no room."""
        return self._dropped + (self._backlog.dropped if self._backlog else 0)

    @property
    def conflated(self) -> int:
        """How many messages gave way to newer ones of their channel."""
        return self._skipped_total + (self._backlog.conflated if self._backlog else 0)
