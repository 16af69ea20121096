"""The hub: the live connections, the registry, and the fan-out."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

import trio

from trio_odin.fanout.invalid_events import InvalidEventLog
from trio_odin.fanout.notices import Notices
from trio_odin.fanout.outbound import Outbound, defer_all, fan_out
from trio_odin.fanout.publication import InvalidPayload, Publication
from trio_odin.fanout.registry import Registry
from trio_odin.fanout.replay_buffer import ReplayBudget
from trio_odin.fanout.resume_buffer import ResumeBuffer
from trio_odin.fanout.slow_consumers import OutboxRules, SlowPolicy
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.reasons import CloseReason, GapReason, Invalid, Shed
from trio_odin.ledger.snapshot import FanOutStats
from trio_odin.net.token_bucket import TokenBucket
from trio_odin.overload.budgets import inbound_bytes, outboxes_bytes, replay_bytes
from trio_odin.overload.byte_budget import ByteBudget
from trio_odin.overload.pacing import Pace
from trio_odin.overload.turns import Turns
from trio_odin.settings.settings import Settings
from trio_odin.upstream.gaps import Gap, Mark
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.upstream.status import NatsStatus
from trio_odin.wire.channels import CHANNEL_RULE, channel_of_subject

# After so much work readers, pings and the load monitor get their turn within a round.
_SLICE_SECONDS = 0.005
# A round joins at most this many messages; the rest of the inbound queue is for the next one.
_JOINED_MAX_MESSAGES = 1000
# For this long after the start a command that uses offsets waits for the stream position.
_SETTLE_SECONDS = 5.0
_SETTLED_BETWEEN_CHECKPOINTS = 50


class Member(Hashable, Protocol):
    """What the hub needs of a connection."""

    @property
    def outbound(self) -> Outbound:
        """Takes the messages to it."""
        ...


M = TypeVar("M", bound=Member)


class Hub(Generic[M]):
    """Takes messages from the inbound queue and hands each to its subscribers.

    Attributes:
        registry: the subscriptions.
        members: the connections whose handshake is complete.
        ledger: the counters of the server.
        resume_buffer: the stream position, and the last events, for clients that resume.
        notices: reports what was lost.
        inbound_budget: bytes that may wait in the inbound queue.
        outbox_rules: what may wait for each connection, and for all.
        replay_budget: what all connections together keep for replay.
        nats_status: what sessions may report of NATS.
        is_filtering: whether a connection gets only what it is subscribed to; if not, everything.
        taken: messages taken from the inbound queue so far.
        turns: how clients give way to events; None: not at all.
    """

    def __init__(self, settings: Settings, ledger: Ledger, turns: Turns | None = None) -> None:
        self.turns = turns
        self.taken = 0
        self.registry: Registry[Outbound] = Registry()
        self.members: dict[M, None] = {}
        self.ledger = ledger
        self.resume_buffer = ResumeBuffer(max_age_seconds=settings.stream_max_age_seconds)
        self.notices = Notices(ledger.publications, self.registry, self.resume_buffer)
        self._unsettled_until = trio.current_time() + _SETTLE_SECONDS
        self._waiting_to_settle = trio.lowlevel.ParkingLot()
        self.nats_status = NatsStatus()
        self.outbox_rules = OutboxRules(
            policy=SlowPolicy(settings.slow_policy),
            capacity=settings.outbox_capacity,
            max_bytes=settings.outbox_bytes,
            write_deadline_seconds=settings.write_deadline_seconds,
            budget=ByteBudget(outboxes_bytes(settings)),
        )
        self.inbound_budget = ByteBudget(inbound_bytes(settings))
        self.replay_budget = ReplayBudget(replay_bytes(settings))
        self._inbound_capacity = settings.inbound_capacity
        self._invalid_events = InvalidEventLog()
        self._pace = Pace(settings.max_flush_delay_seconds)
        self.is_filtering = settings.is_filtering
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Apply the rate of `settings`."""
        self._rate = TokenBucket(
            burst=max(1.0, settings.max_broadcast_rate),
            per_second=settings.max_broadcast_rate,
            now=trio.current_time(),
        )

    def stats(self, *, fed: int) -> FanOutStats:
        """The connections, and what waits. `fed`: messages put into the inbound queue so far."""
        outboxes, replay = self.outbox_rules.budget, self.replay_budget
        return FanOutStats(
            connections=len(self.members),
            subscription_counts=self.registry.subscription_counts(),
            channels=self.registry.channel_count(),
            # Not the memory channel's own count: a message on its way to the hub is not in it.
            inbound_waiting=fed - self.taken,
            inbound_capacity=self._inbound_capacity,
            outbox_bytes=outboxes.used_bytes,
            outbox_bytes_limit=outboxes.limit_bytes,
            replay_bytes=replay.used_bytes,
            replay_bytes_limit=replay.limit_bytes,
        )

    def join(self, member: M) -> None:
        """Add `member`, which can be subscribed from now on; see `leave`."""
        self.members[member] = None
        self.ledger.traffic.accepted += 1

    def leave(self, member: M, reason: CloseReason) -> None:
        """Remove `member`, which has ended for `reason`, with all its subscriptions."""
        del self.members[member]
        self.registry.remove(member.outbound)
        self.ledger.traffic.closed[reason.label] += 1

    async def wait_settled(self) -> None:
        """Wait until the position can be stated: it is known, and the losses up to it are reported.

        The wait ends some seconds after the start: clients of a server that was restarted ask at
        once to resume where they were. Once NATS is reached, the backfill has the same time again.
        """
        if not self.resume_buffer.is_settled:
            with trio.move_on_at(self._unsettled_until):
                await self._waiting_to_settle.park()
        await self.notices.tell_due()

    async def run(self, inbound_receive: trio.MemoryReceiveChannel[NatsMessage | Mark]) -> None:
        """Publish the inbound queue; returns once its sending side is closed and it is empty.

        The tasks of the connections run between two messages, never within a fan-out. What waits
        in the queue when a round begins is joined: each connection gets it in one write.
        """
        async for first in inbound_receive:
            if delay := self._pace.delay(trio.current_time()):
                await trio.sleep(delay)
            work = _Work()
            items = [first, *_waiting(inbound_receive)]
            if len(items) == 1:
                await self._take(first, None)
            else:
                await self._take_joined(items, work)
            ended = trio.current_time()
            self._pace.worked(ended - work.seconds(), ended)
            for item in items:
                if isinstance(item, NatsMessage):
                    self.ledger.fan_out.add(ended - item.arrived_at)

    async def _take_joined(self, items: list[NatsMessage | Mark], work: _Work) -> None:
        """Take all `items`, then write to each connection once."""
        unflushed: list[Outbound] = []
        for item in items:
            await self._take(item, unflushed)
            if work.is_long():
                await work.pause()
        for outbound in unflushed:
            outbound.flush()
            if work.is_long():
                await work.pause()

    async def _take(self, item: NatsMessage | Mark, unflushed: list[Outbound] | None) -> None:
        """Take one item of the inbound queue. A gap that is due is reported before it."""
        if isinstance(item, Mark):
            await self.notices.tell_due()  # a report under way names the old epoch
            self.note(item)
            await self._let_settled_go_on()
            return
        await self.notices.tell_due()
        self.taken += 1
        self.inbound_budget.used_bytes -= len(item.payload)
        was_settled = self.resume_buffer.is_settled
        self.publish(item, unflushed)
        if not was_settled:
            await self._let_settled_go_on()

    def note(self, mark: Mark) -> None:
        """Take in what happened to the stream. The position moves before any gap is reported."""
        is_first = not self.resume_buffer.is_entered
        if mark.epoch != self.resume_buffer.epoch:
            self.registry.forget_floors()
        self.resume_buffer.note(mark)
        if is_first:
            self._unsettled_until = trio.current_time() + _SETTLE_SECONDS
        self.notices.declare(*mark.gaps)
        if is_first and (self.registry.channel_count() or self.registry.audience):
            self.notices.declare(Gap(GapReason.START, last=self.resume_buffer.position))

    async def _let_settled_go_on(self) -> None:
        """Wake those who wait for the position, some at a time, as there may be thousands."""
        if self.resume_buffer.is_settled:
            while self._waiting_to_settle:
                self._waiting_to_settle.unpark(count=_SETTLED_BETWEEN_CHECKPOINTS)
                await trio.lowlevel.checkpoint()

    def publish(self, message: NatsMessage, unflushed: list[Outbound] | None = None) -> None:
        """Turn a message from NATS into a publication and fan it out. Never waits, never raises.

        With `unflushed`, writes are deferred, and each subscriber to be flushed is added to it.
        """
        publications = self.ledger.publications
        channel = channel_of_subject(message.subject)
        event = self.resume_buffer.add(message, channel)
        if message.is_backfill:
            publications.backfilled += 1
            return
        if channel is None:
            error = f"parts three and four are no channel: {CHANNEL_RULE}"
            self._refuse(message, Invalid.SUBJECT, error)
            return
        subscribers: Collection[Outbound]
        if self.is_filtering:
            subscribers = self.registry.subscribers_from(channel, message.offset)
        else:
            subscribers = [member.outbound for member in self.members]
        if not subscribers:
            publications.unmatched += 1
            return
        if not self._rate.take(trio.current_time()):
            publications.shed[Shed.BROADCAST_RATE] += 1
            self.notices.declare(Gap(GapReason.SHED, 1, message.offset, message.offset))
            return
        try:
            publication = Publication(
                channel,
                message.payload,
                offset=message.offset,
                unix_ms=message.unix_ms,
            )
        except InvalidPayload as error:
            self._refuse(message, Invalid.PAYLOAD, str(error))
            return
        self.replay_budget.add(publication.kept)
        if event is not None:
            event.content = publication
        publications.fanned_out += 1
        self.notices.tell_owed(subscribers)
        if unflushed is None:
            fan_out(publication, subscribers, self.ledger)
        else:
            defer_all(publication, subscribers, unflushed, self.ledger)

    def _refuse(self, message: NatsMessage, reason: Invalid, error: str) -> None:
        self.ledger.publications.invalid[reason] += 1
        self._invalid_events.write(message, reason, error)


class _Work:
    """The work of a round, in slices: all other tasks have a turn between two of them.

    A turn may be long while thousands connect at once. So there is one after each slice and not
    after each message, and what other tasks do in it does not count as work of the round.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._slice_began = trio.current_time()

    def is_long(self) -> bool:
        """Whether the current slice has lasted long enough."""
        return trio.current_time() - self._slice_began >= _SLICE_SECONDS

    async def pause(self) -> None:
        """End the slice, let all other tasks have a turn, and begin the next slice."""
        self._seconds = self.seconds()
        await trio.lowlevel.checkpoint()
        self._slice_began = trio.current_time()

    def seconds(self) -> float:
        """Return the seconds that the round has worked so far."""
        return self._seconds + trio.current_time() - self._slice_began


def _waiting(
    inbound_receive: trio.MemoryReceiveChannel[NatsMessage | Mark],
) -> Iterator[NatsMessage | Mark]:
    """The items in the inbound queue now, as many as a round joins."""
    with suppress(trio.WouldBlock, trio.EndOfChannel):
        for _ in range(_JOINED_MAX_MESSAGES):
            yield inbound_receive.receive_nowait()
