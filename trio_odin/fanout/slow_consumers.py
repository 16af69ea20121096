"""When a client reads too slowly: what may wait for it, what gives way, and when it is evicted.

The `Outbox` carries out what is decided here. A `Backlog` knows what waits in it, and counts that:

    admit ──► queued ──► taken ──► written
       │        └──► superseded by a newer one of its channel (conflated)
       └──► refused: dropped, with the reason; is_too_slow says whether that was once too often
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TypeVar

import attrs

from trio_odin.fanout.publication import Publication
from trio_odin.ledger.counters import Deliveries
from trio_odin.ledger.reasons import Dropped
from trio_odin.overload.byte_budget import ByteBudget
from trio_odin.wire.compression import PLAIN, Encoding

FULL_OUTBOXES_IN_A_ROW = 3
# To remove superseded messages is to go through the whole outbox: only if they are 1/8 of it.
_SUPERSEDED_SHARE = 8

T = TypeVar("T")


class SlowPolicy(Enum):
    """What becomes of a message for which there is no room, and of its client."""

    EVICT = "evict"
    CONFLATE = "conflate"
    DROP = "drop"


@attrs.frozen
class OutboxRules:
    """What may wait for a connection: `capacity` messages and replies, `max_bytes` bytes."""

    policy: SlowPolicy = SlowPolicy.EVICT
    capacity: int = 512
    max_bytes: int = 1024 * 1024
    write_deadline_seconds: float = 5.0
    budget: ByteBudget = attrs.field(factory=ByteBudget)


@attrs.define(eq=False)
class QueuedMessage:
    """A message that waits, as references only.

    Attributes:
        sent: how many bytes of its frame are written.
        skipped: how many older messages of its channel gave way to it.
        is_superseded: whether it gave way itself.
        is_resent: whether the client asked for it: nothing gives way to it, nor it to anything.
        is_replayed: whether it was sent before under the same number.
        skipped_total: how many messages of all channels it reports as skipped; 0: it reports none.
        dropped_before: how many messages with lower numbers were dropped.
        encoding: that of the connection.
    """

    publication: Publication
    seq: int
    sent: int = 0
    skipped: int = 0
    is_superseded: bool = False
    is_resent: bool = False
    is_replayed: bool = False
    skipped_total: int = 0
    dropped_before: int = 0
    encoding: Encoding = PLAIN

    def pieces(self) -> list[memoryview]:
        """The bytes that are still to be written, in pieces."""
        rest, sent = [], self.sent
        for piece in self.publication.pieces(
            self.seq, self.skipped, self.skipped_total, self.encoding
        ):
            if sent < len(piece):
                rest.append(memoryview(piece)[sent:])
            sent = max(0, sent - len(piece))
        return rest

    @property
    def size(self) -> int:
        """How many bytes are still to be written."""
        whole = self.publication.frame_bytes(
            self.seq, self.skipped, self.skipped_total, self.encoding
        )
        return whole - self.sent


class SlowConsumerWatch:
    """Counts deliveries in a row that found the outbox full. One that fits resets the count."""

    __slots__ = ("_full_in_a_row",)

    def __init__(self) -> None:
        self._full_in_a_row = 0

    def outbox_accepted(self) -> None:
        """Note that a message was written or found room."""
        self._full_in_a_row = 0

    def outbox_full(self) -> bool:
        """Note that a message found no room. Returns whether to evict the connection now."""
        self._full_in_a_row += 1
        return self._full_in_a_row >= FULL_OUTBOXES_IN_A_ROW


class Backlog:
    """What waits for one socket, from the first bytes that it did not take until all are written.

    Attributes:
        messages: how many wait or are being written.
        events: how many events they have.
        bytes: bytes of those and of waiting replies.
        dropped: messages that found no room.
        conflated: messages that gave way to newer ones.
        skipped_total: messages of this connection that gave way to newer ones, up to the last one
            that was taken.
    """

    __slots__ = (
        "_deliveries",
        "_newest",
        "_rules",
        "_superseded",
        "_untaken",
        "_watch",
        "bytes",
        "conflated",
        "dropped",
        "events",
        "messages",
        "skipped_total",
    )

    def __init__(
        self, rules: OutboxRules, deliveries: Deliveries, *, skipped_total: int = 0
    ) -> None:
        self._rules = rules
        self._deliveries = deliveries
        self._watch = SlowConsumerWatch()
        self._newest: dict[str, QueuedMessage] = {}  # by channel, if the policy is to conflate
        self._superseded = 0  # superseded messages still in the outbox
        self.dropped = self.conflated = 0
        # The number of the next message to be taken, if none before it is skipped or dropped.
        self._untaken: int | None = None
        self.skipped_total = skipped_total
        self.messages = self.events = 0
        self.bytes = 0

    def admit(self, message: QueuedMessage, *, room: int) -> Dropped | None:
        """Decide whether `message` may wait, and count it; a resent one is not counted as dropped.

        Args:
            message: the newest message of the connection.
            room: free slots in the outbox; below 0 if replies, which are never refused, took more.

        Returns:
            Why it may not wait; None if it may. If there is no room then, the caller makes some by
            removing the superseded messages, see `without_superseded`.
        """
        if self._untaken is None and not message.is_replayed:
            self._untaken = message.seq - self.skipped_total
        message.dropped_before = self.dropped
        channel = message.publication.channel
        # Nothing gives way to a batch, nor it to anything: it has no channel.
        can_conflate = bool(channel) and not message.is_resent
        older = self._newest.get(channel) if can_conflate else None
        if older is not None:
            message.skipped = older.skipped + 1
        size, freed = message.size, older.size if older else 0
        refusal = self._refusal(size, freed, room, self._superseded + (older is not None))
        if refusal is not None:
            if not message.is_resent:
                self.dropped += 1
                self._deliveries.dropped[refusal] += message.publication.events
            return refusal
        self._grow(size - freed)
        if older is None:
            self.messages += 1
            self.events += message.publication.events
            self._deliveries.queued += message.publication.events
        else:
            older.is_superseded = True
            older.publication = message.publication  # frees the event that nobody will get
            self._superseded += 1
            self.conflated += 1
            self._deliveries.conflated += 1
        may_give_way = self._rules.policy is SlowPolicy.CONFLATE and not message.sent
        if may_give_way and can_conflate:
            self._newest[channel] = message
        return None

    def _refusal(self, size: int, freed: int, room: int, superseded: int) -> Dropped | None:
        """Why it may not wait; of several reasons, the one nearest to the client."""
        if self.bytes == freed:
            return None  # alone: else a message over the limit would never get through
        rules = self._rules
        if room < 1 and superseded < max(rules.capacity // _SUPERSEDED_SHARE, 1 - room):
            return Dropped.OUTBOX_FULL
        if size <= freed:
            return None
        if self.bytes + size - freed > rules.max_bytes:
            return Dropped.OUTBOX_BYTES
        if not rules.budget.has_room_for(size - freed):
            return Dropped.TOTAL_OUTBOX_BYTES
        return None

    def is_too_slow(self, *, had_room: bool) -> bool:
        """Whether to evict the client, after a delivery that had room or had none."""
        if had_room:
            self._watch.outbox_accepted()
            return False
        return self._rules.policy is not SlowPolicy.DROP and self._watch.outbox_full()

    def pin(self, message: QueuedMessage) -> None:
        """Keep `message`, which has left the outbox but was not taken yet, from giving way."""
        if self._newest.get(message.publication.channel) is message:
            del self._newest[message.publication.channel]

    def take(self, message: QueuedMessage) -> bool:
        """Take `message` to be written now. Returns False if it was superseded: skip it.

        All messages with lower numbers were taken, dropped or superseded before. If more were
        superseded than were reported to the client, this message reports how many.
        """
        if message.is_superseded:
            self._superseded -= 1
            return False
        self.pin(message)
        if self._untaken is not None and not message.is_replayed:
            total = message.seq - self._untaken - message.dropped_before
            self._untaken += 1
            if total > self.skipped_total:
                size = message.size
                self.skipped_total = message.skipped_total = total
                self._grow(message.size - size)
        return True

    def without_superseded(self, items: Iterable[T]) -> list[T]:
        """The `items` of the outbox without the superseded messages, in order."""
        self._superseded = 0
        return [
            item for item in items if not (isinstance(item, QueuedMessage) and item.is_superseded)
        ]

    def may_wait(self, size: int, *, room: int) -> bool:
        """Whether `size` ready bytes that no task awaits may wait, within the limits of events."""
        return room > 0 and self._refusal(size, 0, room, 0) is None

    def reply_waits(self, size: int) -> None:
        """Count a waiting reply. It is never refused: the client's next command waits for it."""
        self._grow(size)

    def written(self, messages: int, events: int, size: int) -> None:
        """Count what was written. What was abandoned meanwhile stays counted as dropped."""
        events = min(events, self.events)
        self.messages = max(0, self.messages - messages)
        self.events -= events
        self._deliveries.queued -= events
        self._deliveries.written += events
        self.give_back(size)

    def abandon(self) -> None:
        """Count all that waits as dropped: nothing of it will be written."""
        self._deliveries.queued -= self.events
        self._deliveries.dropped[Dropped.CLOSING] += self.events
        self.messages = self.events = 0
        self.give_back(self.bytes)

    def give_back(self, size: int) -> None:
        """Count `size` bytes as no longer waiting."""
        self._grow(-min(size, self.bytes))

    def _grow(self, size: int) -> None:
        self.bytes += size
        self._rules.budget.used_bytes += size
