"""The hub: the live connections, the registry, and the fan-out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Generic, Protocol, TypeAlias, TypeVar

import trio

from trio_odin.fanout.feed import Feed
from trio_odin.fanout.flush_queue import FlushQueue
from trio_odin.fanout.invalid_events import InvalidEventLog
from trio_odin.fanout.notices import Notices
from trio_odin.fanout.outbound import Outbound, fan_out
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.registry import Registry
from trio_odin.fanout.replay_buffer import ReplayBudget
from trio_odin.fanout.slow_consumers import OutboxRules, SlowPolicy
from trio_odin.fanout.ticks import Ticks
from trio_odin.fanout.traces import FANNED_OUT, TracedEvent, Traces
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.reasons import CloseReason, GapReason, Invalid, Shed
from trio_odin.ledger.snapshot import FanOutStats
from trio_odin.net.token_bucket import TokenBucket
from trio_odin.overload.budgets import (
    inbound_bytes,
    outboxes_bytes,
    replay_bytes,
    windows_bytes,
)
from trio_odin.overload.byte_budget import ByteBudget
from trio_odin.overload.turns import Turns
from trio_odin.settings.settings import Settings
from trio_odin.telemetry.spans import GiveSpan
from trio_odin.upstream.gaps import Gap, Mark
from trio_odin.upstream.nats_message import NatsMessage, Newest
from trio_odin.upstream.status import NatsStatus
from trio_odin.wire.channels import CHANNEL_RULE

# After so much work all other tasks have a turn; a message takes some turns from NATS to the hub.
# What waits in the flush queue is written for longer where the others take longer (`Turns`).
_SLICE_SECONDS = 0.002
# More messages are not taken before the first of them is written to everyone: so a connection never
# has more deferred, and what is too much stays in the inbound queue, which sheds and counts.
_UNFINISHED_MAX = 256
# Some 12 ms of work. To defer a message costs a sixth more than to write it at once, so most events
# should not, but one with more subscribers than this must not hold up all other tasks.
_WRITTEN_AT_ONCE = 1000
# Multiples of it are spread evenly, wherever one stops.
_GOLDEN_RATIO = 0.618034
# For this long after the start a command that uses offsets waits for the stream position.
_SETTLE_SECONDS = 5.0
_SETTLED_BETWEEN_CHECKPOINTS = 50


class Member(Hashable, Protocol):
    """What the hub needs of a connection."""

    @property
    def outbound(self) -> Outbound:
        """Takes the messages to it."""
        ...


class _Publish(Protocol):
    """`Hub.publish`."""

    def __call__(self, message: NatsMessage, *, is_alone: bool) -> None: ...


FromNats: TypeAlias = NatsMessage | Mark | Newest
M = TypeVar("M", bound=Member)
T = TypeVar("T")


class Hub(Generic[M]):
    """Takes messages from the inbound queue and hands each to its subscribers.

    Attributes:
        registry: the subscriptions.
        members: the connections whose handshake is complete.
        ledger: the counters of the server.
        resume_buffer: the stream position, and the last events, for clients that resume.
        newest_events: the newest event of each channel, for clients that subscribe.
        notices: reports what was lost.
        inbound_budget: bytes that may wait in the inbound queue.
        outbox_rules: what may wait for each connection, and for all.
        replay_budget: what all connections together keep for replay.
        window_budget: what is kept of earlier messages of clients that refer to them when they
            deflate others.
        nats_status: what sessions may report of NATS.
        is_filtering: whether a connection gets only what it is subscribed to; if not, everything.
        taken: messages taken from the inbound queue so far.
        ticks: sends events to the subscriptions at a rate.
        turns: how clients give way to events; None: not at all.
        traces: the events that are traced; None: none are.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        turns: Turns | None = None,
        give_span: GiveSpan | None = None,
    ) -> None:
        self.turns = turns
        self.traces: Traces | None = None
        if give_span is not None:
            self.traces = Traces(give_span, ledger.traces, settings, now=trio.current_time())
        self.taken = 0
        self.ticks = Ticks(max_batch_bytes=settings.outbox_bytes)
        self.registry: Registry[Outbound] = Registry(self.ticks.rates)
        self.members: dict[M, None] = {}
        self._encodings: Counter[str] = Counter()
        self.ledger = ledger
        self._feed = Feed(
            max_age_seconds=settings.stream_max_age_seconds,
            # Without the filter a client gets every event from its first moment on.
            channels_max=settings.snapshot_channels * settings.is_filtering,
            max_bytes=settings.snapshot_bytes,
        )
        self.resume_buffer = self._feed.resume_buffer
        self.newest_events = self._feed.newest_events
        self.nats_status = NatsStatus()
        self.notices = Notices(
            ledger.publications, self.registry, self.resume_buffer, self.nats_status
        )
        self._unsettled_until = trio.current_time() + _SETTLE_SECONDS
        self._waiting_to_settle = trio.lowlevel.ParkingLot()
        self.outbox_rules = OutboxRules(
            policy=SlowPolicy(settings.slow_policy),
            capacity=settings.outbox_capacity,
            max_bytes=settings.outbox_bytes,
            write_deadline_seconds=settings.write_deadline_seconds,
            budget=ByteBudget(outboxes_bytes(settings)),
        )
        self.inbound_budget = ByteBudget(inbound_bytes(settings))
        self.replay_budget = ReplayBudget(replay_bytes(settings))
        self.window_budget = ByteBudget(windows_bytes(settings))
        self._inbound_capacity = settings.inbound_capacity
        self._invalid_events = InvalidEventLog()
        self._flush_queue = FlushQueue(ledger)
        self._first = 0.0  # where in a list of subscribers the last fan-out began
        self.is_filtering = settings.is_filtering
        self._publish_next: _Publish = self.publish
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Apply the rates of `settings`."""
        now = trio.current_time()
        self._rate = TokenBucket(
            burst=max(1.0, settings.max_broadcast_rate),
            per_second=settings.max_broadcast_rate,
            now=now,
        )
        if self.traces is not None:
            self.traces.reload(settings, now)

    def stats(self, *, fed: int) -> FanOutStats:
        """The connections, and what waits. `fed`: messages put into the inbound queue so far."""
        outboxes, replay = self.outbox_rules.budget, self.replay_budget
        return FanOutStats(
            connections=len(self.members),
            encodings=dict(self._encodings),
            subscription_counts=self.registry.subscription_counts(),
            channels=self.registry.channel_count(),
            # Not the memory channel's own count: a message on its way to the hub is not in it.
            inbound_waiting=fed - self.taken,
            inbound_capacity=self._inbound_capacity,
            outbox_bytes=outboxes.used_bytes,
            outbox_bytes_limit=outboxes.limit_bytes,
            replay_bytes=replay.used_bytes,
            replay_bytes_limit=replay.limit_bytes,
            snapshot_channels=len(self.newest_events),
            snapshot_bytes=self.newest_events.used_bytes,
        )

    def join(self, member: M) -> None:
        """Add `member`, which can be subscribed from now on; see `leave`."""
        self.members[member] = None
        self._encodings[member.outbound.encoding.label] += 1
        self.ledger.traffic.accepted += 1

    def leave(self, member: M, reason: CloseReason) -> None:
        """Remove `member`, which has ended for `reason`, with all its subscriptions."""
        del self.members[member]
        self._encodings[member.outbound.encoding.label] -= 1
        self.registry.remove(member.outbound)
        self.ledger.traffic.closed[reason.label] += 1

    def watch(self, look: Callable[[NatsMessage], object] | None) -> None:
        """Have `look` see each message before it is published; None: nobody does any longer.

        While nobody does, it costs nothing. `look` must not wait or raise.
        """
        if look is None:
            self._publish_next = self.publish
            return

        def look_and_publish(message: NatsMessage, *, is_alone: bool) -> None:
            look(message)
            self.publish(message, is_alone=is_alone)

        self._publish_next = look_and_publish

    async def wait_settled(self) -> None:
        """Wait until the position can be stated: it is known, and the losses up to it are reported.

        The newest event of each channel is known then, too, as far as the stream has it.

        The wait ends some seconds after the start: clients of a server that was restarted ask at
        once to resume where they were. Once NATS is reached, the backfill has the same time again.
        """
        if not self._feed.is_settled:
            with trio.move_on_at(self._unsettled_until):
                await self._waiting_to_settle.park()
        await self.notices.tell_due()

    async def run(self, inbound_receive: trio.MemoryReceiveChannel[FromNats]) -> None:
        """Publish the inbound queue; returns once its sending side is closed and it is empty.

        All other tasks have a turn after each slice of the work, never within a fan-out. A message
        that nothing precedes is written at once. Otherwise it is deferred, and each connection gets
        all that it has by then in one write, when its turn in the flush queue comes.
        """
        async for first in inbound_receive:
            waiting = inbound_receive.statistics().current_buffer_used
            await self._take(first, is_alone=not waiting)
            if waiting:
                await self._take_what_waits(inbound_receive)
            while self._flush_queue:
                self._flush_queue.flush(self._writing_seconds())
                await trio.lowlevel.checkpoint()
                await self._take_what_waits(inbound_receive)

    async def _take_what_waits(self, inbound_receive: trio.MemoryReceiveChannel[FromNats]) -> None:
        """Take what waits in the inbound queue, for a slice at most."""
        ends_at = trio.current_time() + _SLICE_SECONDS
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while self._flush_queue.unfinished < _UNFINISHED_MAX and trio.current_time() < ends_at:
                await self._take(inbound_receive.receive_nowait(), is_alone=False)

    def _writing_seconds(self) -> float:
        return _SLICE_SECONDS if self.turns is None else self.turns.events_seconds()

    async def _take(self, item: FromNats, *, is_alone: bool) -> None:
        """Take one item of the inbound queue. A gap that is due is reported before it."""
        if isinstance(item, Newest):
            self._feed.add_newest(item)
            await self._let_settled_go_on()
            return
        if isinstance(item, Mark):
            await self.notices.tell_due()  # a report under way names the old epoch
            self.note(item)
            await self._let_settled_go_on()
            return
        await self.notices.tell_due()
        self.taken += 1
        self.inbound_budget.used_bytes -= len(item.payload)
        was_settled = self._feed.is_settled
        self._publish_next(item, is_alone=is_alone)
        self._flush_queue.time(item.arrived_at)
        if not was_settled:
            await self._let_settled_go_on()

    def note(self, mark: Mark) -> None:
        """Take in what happened to the stream. The position moves before any gap is reported."""
        is_first = not self.resume_buffer.is_entered
        if mark.epoch != self.resume_buffer.epoch:
            self.registry.forget_floors()
            self.registry.rates.updates.leave_stream()
        self._feed.note(mark)
        if is_first:
            self._unsettled_until = trio.current_time() + _SETTLE_SECONDS
        self.notices.declare(*mark.gaps)
        if is_first and (self.registry.channel_count() or self.registry.audience):
            self.notices.declare(Gap(GapReason.START, last=self.resume_buffer.position))

    async def _let_settled_go_on(self) -> None:
        """Wake those who wait for the position, some at a time, as there may be thousands."""
        if self._feed.is_settled:
            while self._waiting_to_settle:
                self._waiting_to_settle.unpark(count=_SETTLED_BETWEEN_CHECKPOINTS)
                await trio.lowlevel.checkpoint()

    def publish(self, message: NatsMessage, *, is_alone: bool = True) -> None:
        """Turn a message from NATS into a publication and fan it out. Never waits, never raises.

        If it `is_alone`, nothing waits and the first subscribers are written to at once.
        """
        if message.trace is None:
            self._publish(message, None, is_alone=is_alone)
        else:
            self._publish_traced(message, is_alone=is_alone)

    def _publish_traced(self, message: NatsMessage, *, is_alone: bool) -> None:
        traced = None
        if self.traces is not None:
            traced = self.traces.begin(message, trio.current_time())
        if traced is None:  # there are too many
            self._publish(message._replace(trace=None), None, is_alone=is_alone)
        else:
            traced.fanned_out(self._publish(traced.message, traced, is_alone=is_alone))

    def _publish(self, message: NatsMessage, traced: TracedEvent | None, *, is_alone: bool) -> str:
        """Publish a message, which may be `traced`; returns what became of it, as in the ledger."""
        publications = self.ledger.publications
        channel, why_not, prev, resumable = self._feed.add(message)
        offset = message.offset
        if message.is_backfill:
            publications.backfilled += 1
            return "recalled"
        if channel is None:
            error = f"parts three and four are no channel: {CHANNEL_RULE}"
            self._refuse(message, Invalid.SUBJECT, error)
            return "invalid"
        subscribers: Collection[Outbound]
        is_wanted = self.registry.rates.wants(channel)
        if self.is_filtering:
            subscribers = self.registry.subscribers_from(channel, offset)
        else:
            subscribers = [member.outbound for member in self.members]
        if not subscribers and not is_wanted:
            publications.unmatched += 1
            return "unmatched"
        if subscribers and not self._rate.take(trio.current_time()):
            publications.shed[Shed.BROADCAST_RATE] += 1
            self.notices.declare(Gap(GapReason.SHED, 1, offset, offset))
            return "shed"
        if why_not:
            self._refuse(message, Invalid.PAYLOAD, why_not)
            return "invalid"
        publications.fanned_out += 1
        if is_wanted:
            self.registry.rates.add(channel, message, prev)
            if not subscribers:
                return FANNED_OUT
        publication = Publication(
            channel,
            message.payload,
            offset=offset,
            unix_ms=message.unix_ms,
            prev=prev,
            trace=message.trace,
        )
        if resumable is not None:
            resumable.content = publication
        self._fan_out(publication, subscribers, traced, is_alone=is_alone)
        return FANNED_OUT

    def _fan_out(
        self,
        publication: Publication,
        subscribers: Collection[Outbound],
        traced: TracedEvent | None,
        *,
        is_alone: bool,
    ) -> None:
        if traced is not None:
            publication = traced.watch(publication, len(subscribers))
        self.replay_budget.add(publication.kept)
        self.notices.tell_owed(subscribers)
        self._first = (self._first + _GOLDEN_RATIO) % 1
        everyone = _starting_with(int(self._first * len(subscribers)), subscribers)
        if is_alone and not self._flush_queue:
            fan_out(publication, islice(everyone, _WRITTEN_AT_ONCE), self.ledger)
        self._flush_queue.defer(publication, everyone)

    def _refuse(self, message: NatsMessage, reason: Invalid, error: str) -> None:
        self.ledger.publications.invalid[reason] += 1
        self._invalid_events.write(message, reason, error)


def _starting_with(number: int, subscribers: Collection[T]) -> Iterator[T]:
    """All of `subscribers`, beginning with this one: nobody is always the last to be served."""
    return chain(islice(subscribers, number, None), islice(subscribers, number))
