"""The hub: the live connections, the registry, and the fan-out."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

import trio

from trio_odin.config import Settings
from trio_odin.core.backpressure import ByteBudget, OutboxRules, SlowPolicy
from trio_odin.core.closing import CloseReason
from trio_odin.core.gaps import Gap, GapReason, Mark
from trio_odin.core.history import ReplayBudget
from trio_odin.core.ledger import Invalid, Ledger, Shed
from trio_odin.core.names import CHANNEL_RULE, channel_of_subject
from trio_odin.core.pacing import Pace
from trio_odin.core.publication import InvalidPayload, NatsMessage, Publication
from trio_odin.core.ratelimit import TokenBucket
from trio_odin.core.recent import Recent
from trio_odin.core.registry import Registry
from trio_odin.core.session import SessionLimits
from trio_odin.core.upstream import Upstream
from trio_odin.server.connection_log import ConnectionLog
from trio_odin.server.invalid_events import InvalidEventLog
from trio_odin.server.notices import Notices
from trio_odin.server.turns import Turns
from trio_odin.telemetry.cgroup import memory_group
from trio_odin.telemetry.meters import MemoryMeter

# After so much work readers, pings and the guard get their turn within a round.
_SLICE_SECONDS = 0.005
# A round joins at most so many messages; the rest of the feed is for the next one.
_JOINED_MAX_MESSAGES = 1000
# From the start, until which a command that uses offsets waits for the position in the stream.
_SETTLE_SECONDS = 5.0
_SETTLED_BETWEEN_CHECKPOINTS = 50
# What waits in all outboxes may take this share of the memory, if nothing else is said.
_OUTBOXES_SHARE_OF_MEMORY = 4
# And likewise what is kept for replay, and what waits in the feeds of all workers.
_REPLAY_SHARE_OF_MEMORY = 8
_FEED_SHARE_OF_MEMORY = 8


class Subscriber(Hashable, Protocol):
    """What a fan-out hands envelopes to; see `Outlet`."""

    def deliver(self, publication: Publication, frames: dict[int, bytes]) -> int:
        """Take one envelope now; returns the bytes written at once."""
        ...

    def defer(self, publication: Publication) -> bool:
        """Take one envelope for the next `flush`; returns whether it is the first."""
        ...

    def flush(self) -> None:
        """Write what was deferred."""
        ...


class Member(Hashable, Protocol):
    """What the hub needs of a connection."""

    @property
    def outlet(self) -> Subscriber:
        """Takes its envelopes."""
        ...


M = TypeVar("M", bound=Member)


class Hub(Generic[M]):
    """Takes messages from the feed and hands each to whom it concerns.

    Attributes:
        registry: who is subscribed to what.
        members: the connections whose handshake is complete.
        ledger: the books of the server.
        recent: where the server stands, and the last events, for clients that come back.
        notices: tells of what was lost.
        feed_budget: bytes that may wait in the feed.
        outbox_rules: what may wait for each connection, and for all.
        replay_budget: what all connections together keep for replay.
        connection_log: where it is logged that one came or went.
        upstream: what sessions may say of NATS.
        is_draining: whoever joins now has to leave at once.
        taken: messages taken from the feed so far.
        turns: how clients give way to events; None: not at all.
    """

    def __init__(self, settings: Settings, ledger: Ledger, turns: Turns | None = None) -> None:
        self.turns = turns
        self.is_draining = False
        self.taken = 0
        self.registry: Registry[Subscriber] = Registry()
        self.members: dict[M, None] = {}
        self.ledger = ledger
        self.recent = Recent(max_age_seconds=settings.stream_max_age_seconds)
        self.notices = Notices(ledger.publications, self.registry, self.recent)
        self._unsettled_until = trio.current_time() + _SETTLE_SECONDS
        self._waiting_to_settle = trio.lowlevel.ParkingLot()
        self.upstream = Upstream()
        self.outbox_rules = OutboxRules(
            policy=SlowPolicy(settings.slow_policy),
            capacity=settings.outbox_capacity,
            max_bytes=settings.outbox_bytes,
            write_deadline_seconds=settings.write_deadline_seconds,
            budget=ByteBudget(total_outbox_bytes(settings)),
        )
        feeds_bytes = _memory_bytes(settings) // _FEED_SHARE_OF_MEMORY
        self.feed_budget = ByteBudget(feeds_bytes // settings.workers)
        self.replay_budget = ReplayBudget(total_replay_bytes(settings))
        self.connection_log = ConnectionLog()
        self._invalid_events = InvalidEventLog()
        self._pace = Pace(settings.max_flush_delay_seconds)
        self._is_filtering = settings.is_filtering
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Take on the limits of `settings`: of sessions for those that join from now on."""
        self.session_limits = SessionLimits(
            replay_capacity=settings.replay_capacity,
            resume_channel_events=settings.resume_channel_events,
            resume_events=settings.resume_events,
            max_channels=settings.max_channels,
            command_burst=settings.command_burst,
            commands_per_second=settings.commands_per_second,
            can_resume=self._is_filtering,
            replay_budget=self.replay_budget,
        )
        self._rate = TokenBucket(
            burst=max(1.0, settings.max_broadcast_rate),
            per_second=settings.max_broadcast_rate,
            now=trio.current_time(),
        )

    def join(self, member: M) -> None:
        """From now on `member` can be subscribed; see `leave`."""
        self.members[member] = None
        self.ledger.traffic.accepted += 1

    def leave(self, member: M, reason: CloseReason) -> None:
        """`member` has ended, for `reason`; it has no subscription left."""
        del self.members[member]
        self.registry.remove(member.outlet)
        self.ledger.traffic.closed[reason.label] += 1

    async def wait_settled(self) -> None:
        """Wait until the position can be stated: it is known, and the losses up to it are told.

        It is waited for only within some seconds from the start: a server that was restarted is
        asked at once by clients that want to go on where they were. So many seconds again are for
        reading what is older than the start, once NATS is reached.
        """
        if not self.recent.is_settled:
            with trio.move_on_at(self._unsettled_until):
                await self._waiting_to_settle.park()
        await self.notices.tell_due()

    async def run(self, feed_receive: trio.MemoryReceiveChannel[NatsMessage | Mark]) -> None:
        """Publish everything in the feed; returns when its sending side was closed and it is empty.

        The tasks of the connections run between two messages, never within a fan-out. What waits
        in the feed when a round begins is joined: each connection gets it in one write.
        """
        async for first in feed_receive:
            if delay := self._pace.delay(trio.current_time()):
                await trio.sleep(delay)
            work = _Work()
            items = [first, *_waiting(feed_receive)]
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
        """Take them all, then write to each connection once what it gets of them."""
        dirty: list[Subscriber] = []
        for item in items:
            await self._take(item, dirty)
            await work.pause_if_long()
        for outlet in dirty:
            outlet.flush()
            await work.pause_if_long()

    async def _take(self, item: NatsMessage | Mark, dirty: list[Subscriber] | None) -> None:
        """Take one item of the feed. A gap that is due is told before it."""
        if isinstance(item, Mark):
            await self.notices.tell_due()  # a telling under way names the epoch that it is of
            self.note(item)
            await self._let_settled_go_on()
            return
        await self.notices.tell_due()
        self.taken += 1
        self.feed_budget.used_bytes -= len(item.payload)
        was_settled = self.recent.is_settled
        self.publish(item, dirty)
        if not was_settled:
            await self._let_settled_go_on()

    def note(self, mark: Mark) -> None:
        """Take in what happened to the stream. The position is moved before anybody is told."""
        is_first = not self.recent.is_entered
        if mark.epoch != self.recent.epoch:
            self.registry.forget_floors()
        self.recent.note(mark)
        if is_first:
            self._unsettled_until = trio.current_time() + _SETTLE_SECONDS
        self.notices.declare(*mark.gaps)
        if is_first and (self.registry.channel_count() or self.registry.audience):
            self.notices.declare(Gap(GapReason.START, last=self.recent.position))

    async def _let_settled_go_on(self) -> None:
        """Some at a time: thousands may have waited, and others have their turn between them."""
        if self.recent.is_settled:
            while self._waiting_to_settle:
                self._waiting_to_settle.unpark(count=_SETTLED_BETWEEN_CHECKPOINTS)
                await trio.lowlevel.checkpoint()

    def publish(self, message: NatsMessage, dirty: list[Subscriber] | None = None) -> None:
        """Turn a message from NATS into a publication and fan it out. Never waits, never raises.

        With `dirty`, envelopes are deferred, and each outlet to be flushed is added to it.
        """
        publications = self.ledger.publications
        channel = channel_of_subject(message.subject)
        event = self.recent.add(message, channel)
        if message.is_past:
            publications.recalled += 1
            return
        if channel is None:
            error = f"parts three and four are no channel: {CHANNEL_RULE}"
            self._refuse(message, Invalid.SUBJECT, error)
            return
        subscribers: Collection[Subscriber]
        if self._is_filtering:
            subscribers = self.registry.subscribers_from(channel, message.offset)
        else:
            subscribers = [member.outlet for member in self.members]
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
        if dirty is None:
            self._fan_out(publication, subscribers)
        else:
            self._defer(publication, subscribers, dirty)

    def _refuse(self, message: NatsMessage, reason: Invalid, error: str) -> None:
        self.ledger.publications.invalid[reason] += 1
        self._invalid_events.write(message, reason, error)

    def _fan_out(self, publication: Publication, subscribers: Iterable[Subscriber]) -> None:
        """Hand `publication` to every one of `subscribers`.

        Not one checkpoint in here, so the registry cannot change under the loop. Connections that
        came together count alike, so a frame is often shared by all that are at the same seq.
        """
        frames: dict[int, bytes] = {}
        matched = written = sent_bytes = 0
        for subscriber in subscribers:
            matched += 1
            if sent := subscriber.deliver(publication, frames):
                written += 1
                sent_bytes += sent
        self.ledger.deliveries.matched += matched
        self.ledger.deliveries.written += written
        self.ledger.traffic.bytes_sent += sent_bytes

    def _defer(
        self,
        publication: Publication,
        subscribers: Iterable[Subscriber],
        dirty: list[Subscriber],
    ) -> None:
        """Like `_fan_out`, but for the writes: they come with the flush."""
        matched = 0
        for subscriber in subscribers:
            matched += 1
            if subscriber.defer(publication):
                dirty.append(subscriber)
        # Where `defer` has flushed, `queued` was too small until here; nobody could look.
        self.ledger.deliveries.matched += matched
        self.ledger.deliveries.queued += matched


def total_outbox_bytes(settings: Settings) -> int:
    """Bytes that may wait in all outboxes together."""
    return settings.total_outbox_bytes or _memory_bytes(settings) // _OUTBOXES_SHARE_OF_MEMORY


def total_replay_bytes(settings: Settings) -> int:
    """Bytes that all connections together may keep for replay."""
    return settings.total_replay_bytes or _memory_bytes(settings) // _REPLAY_SHARE_OF_MEMORY


def _memory_bytes(settings: Settings) -> int:
    return MemoryMeter(settings.memory_limit_bytes, memory_group()).limit_bytes


class _Work:
    """The work of a round, in slices: all other tasks have a turn between two of them.

    A turn may be long, when thousands connect at once. So there is one after each slice and not
    after each message, and what other tasks did in it is not the work of the round.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._slice_began = trio.current_time()

    async def pause_if_long(self) -> None:
        """Let all others have a turn, if the present slice has lasted long enough."""
        now = trio.current_time()
        if now - self._slice_began >= _SLICE_SECONDS:
            self._seconds += now - self._slice_began
            await trio.lowlevel.checkpoint()
            self._slice_began = trio.current_time()

    def seconds(self) -> float:
        """How long the round has worked so far."""
        return self._seconds + trio.current_time() - self._slice_began


def _waiting(
    feed_receive: trio.MemoryReceiveChannel[NatsMessage | Mark],
) -> Iterator[NatsMessage | Mark]:
    """What is in the feed now."""
    with suppress(trio.WouldBlock, trio.EndOfChannel):
        for _ in range(_JOINED_MAX_MESSAGES):
            yield feed_receive.receive_nowait()
