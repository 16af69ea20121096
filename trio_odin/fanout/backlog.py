"""When a client reads too slowly: what may wait for it, what gives way, and when it is closed.

The outlet has the outbox, a memory channel, and executes what is decided here. A `Backlog` knows
what waits in it, and keeps the books of that:

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

FULL_OUTBOXES_IN_A_ROW = 3
# To take the superseded out of an outbox is to go through all of it: they have to be this share.
_SUPERSEDED_SHARE = 8

T = TypeVar("T")


class SlowPolicy(Enum):
    """What becomes of an envelope for which there is no room, and of its client."""

    EVICT = "evict"
    CONFLATE = "conflate"
    DROP = "drop"


@attrs.frozen
class OutboxRules:
    """What may wait for a connection: `capacity` envelopes and replies, `max_bytes` bytes."""

    policy: SlowPolicy = SlowPolicy.EVICT
    capacity: int = 512
    max_bytes: int = 1024 * 1024
    write_deadline_seconds: float = 5.0
    budget: ByteBudget = attrs.field(factory=ByteBudget)


@attrs.define(eq=False)
class QueuedMessage:
    """An envelope that waits: references only. The first `sent` bytes of its frame are out.

    `skipped` older ones of its channel gave way to it; if it `is_superseded` it did so itself. One
    that `is_resent` was asked for: nothing gives way to it, nor it to anything; if it `is_replayed`
    it has its number for the second time. `skipped_total` is what it says of all channels, 0 if
    nothing; `dropped_before` are the envelopes with lower numbers that were given up.
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

    def pieces(self) -> list[memoryview]:
        """What is still to be written."""
        rest, sent = [], self.sent
        for piece in self.publication.pieces(self.seq, self.skipped, self.skipped_total):
            if sent < len(piece):
                rest.append(memoryview(piece)[sent:])
            sent = max(0, sent - len(piece))
        return rest

    @property
    def size(self) -> int:
        """How many bytes that is."""
        whole = self.publication.frame_bytes(self.seq, self.skipped, self.skipped_total)
        return whole - self.sent


class SlowConsumerWatch:
    """Counts deliveries in a row that found the outbox full. A delivery that fits starts anew."""

    __slots__ = ("_full_in_a_row",)

    def __init__(self) -> None:
        self._full_in_a_row = 0

    def outbox_accepted(self) -> None:
        """An envelope went out or found room."""
        self._full_in_a_row = 0

    def outbox_full(self) -> bool:
        """An envelope found no room. Returns whether the connection is now to be evicted."""
        self._full_in_a_row += 1
        return self._full_in_a_row >= FULL_OUTBOXES_IN_A_ROW


class Backlog:
    """What waits for one socket, from the first bytes it would not take until the last are out.

    Attributes:
        envelopes: how many wait or are being written.
        bytes: of those and of replies.
        dropped: envelopes that found no room.
        conflated: envelopes that gave way to newer ones.
        skipped_total: envelopes of this connection that gave way to newer ones, up to the last one
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
        "messages",
        "skipped_total",
    )

    def __init__(
        self, rules: OutboxRules, deliveries: Deliveries, *, skipped_total: int = 0
    ) -> None:
        self._rules = rules
        self._deliveries = deliveries
        self._watch = SlowConsumerWatch()
        self._newest: dict[str, QueuedMessage] = {}  # of each channel, if the policy is to conflate
        self._superseded = 0  # that are still in the outbox
        self.dropped = self.conflated = 0
        # The number of the next envelope to be taken, if none before it is skipped or dropped.
        self._untaken: int | None = None
        self.skipped_total = skipped_total
        self.messages = 0
        self.bytes = 0

    def admit(self, message: QueuedMessage, *, room: int) -> Dropped | None:
        """Decide whether `message` may wait, and book it; if not, as dropped, unless it is resent.

        Args:
            message: the newest one of the connection.
            room: free places in the outbox. Replies take one without asking: it may be below 0.

        Returns:
            Why it may not wait. None: it may; where there is no room it is made by taking out
            of the outbox what was superseded, see `without_superseded`.
        """
        if self._untaken is None and not message.is_replayed:
            self._untaken = message.seq - self.skipped_total
        message.dropped_before = self.dropped
        channel = message.publication.channel
        older = None if message.is_resent else self._newest.get(channel)
        if older is not None:
            message.skipped = older.skipped + 1
        size, freed = message.size, older.size if older else 0
        refusal = self._refusal(size, freed, room, self._superseded + (older is not None))
        if refusal is not None:
            if not message.is_resent:
                self.dropped += 1
                self._deliveries.dropped[refusal] += 1
            return refusal
        self._grow(size - freed)
        if older is None:
            self.messages += 1
            self._deliveries.queued += 1
        else:
            older.is_superseded = True
            older.publication = message.publication  # lets go of what nobody will get
            self._superseded += 1
            self.conflated += 1
            self._deliveries.conflated += 1
        may_give_way = self._rules.policy is SlowPolicy.CONFLATE and not message.sent
        if may_give_way and not message.is_resent:
            self._newest[channel] = message
        return None

    def _refusal(self, size: int, freed: int, room: int, superseded: int) -> Dropped | None:
        """Why it may not wait. If there are several reasons, the one nearest to the client."""
        if self.bytes == freed:
            return None  # alone: else one over the limit would never get through
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
        """Whether the client is to be evicted, after a delivery that had room or had none."""
        if had_room:
            self._watch.outbox_accepted()
            return False
        return self._rules.policy is not SlowPolicy.DROP and self._watch.outbox_full()

    def pin(self, message: QueuedMessage) -> None:
        """`message` has left the outbox, but was not taken yet: it does not give way any more."""
        if self._newest.get(message.publication.channel) is message:
            del self._newest[message.publication.channel]

    def take(self, message: QueuedMessage) -> bool:
        """`message` is to be written now. False: it was superseded, skip it.

        All with lower numbers were taken, dropped or superseded before; if more were superseded
        than the client knows of, this one says how many.
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
        """All that is in the outbox but for what was superseded, in order."""
        self._superseded = 0
        return [
            item for item in items if not (isinstance(item, QueuedMessage) and item.is_superseded)
        ]

    def may_wait(self, size: int, *, room: int) -> bool:
        """Whether `size` ready bytes may wait that nobody waits for, under the limits of events."""
        return room > 0 and self._refusal(size, 0, room, 0) is None

    def reply_waits(self, size: int) -> None:
        """A reply waits. That is never refused: the client's next command waits for it."""
        self._grow(size)

    def written(self, messages: int, size: int) -> None:
        """So much is out. What was abandoned meanwhile is booked as dropped, and stays so."""
        messages = min(messages, self.messages)
        self.messages -= messages
        self._deliveries.queued -= messages
        self._deliveries.written += messages
        self.give_back(size)

    def abandon(self) -> None:
        """Nothing of it will be written any more."""
        self._deliveries.queued -= self.messages
        self._deliveries.dropped[Dropped.CLOSING] += self.messages
        self.messages = 0
        self.give_back(self.bytes)

    def give_back(self, size: int) -> None:
        """`size` bytes wait no more."""
        self._grow(-min(size, self.bytes))

    def _grow(self, size: int) -> None:
        self.bytes += size
        self._rules.budget.used_bytes += size
