"""A stream and servers without sockets: the real sessions, rates and buffers, in steps.

Only what needs a socket or a task is left out: a connection is a list of messages, and a server
takes events from the stream when it is told to, so that it can be behind another one.
"""

from __future__ import annotations

import json
from typing import Any, cast

import attrs
import trio
from trio.testing import MockClock

from tests.connection.client import as_sent, objects_of
from trio_odin.connection.session import Session, SessionLimits
from trio_odin.fanout.batch import Batch
from trio_odin.fanout.feed import Feed
from trio_odin.fanout.notices import Notices
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.registry import Registry
from trio_odin.fanout.replay_buffer import ReplayBuffer
from trio_odin.fanout.ticks import Ticks
from trio_odin.ledger.counters import Traffic
from trio_odin.ledger.reasons import GapReason
from trio_odin.upstream.gaps import Gap, Mark
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.upstream.status import NatsStatus

Message = dict[str, Any]
# Few, so that resumes are incomplete at times.
_LIMITS = SessionLimits(
    resume_channel_events=4, resume_events=6, least_every_ms=50, commands_per_second=0
)


@attrs.define
class Stream:
    """The events of one epoch, as NATS keeps them."""

    epoch: str
    events: list[NatsMessage] = attrs.field(factory=list)


@attrs.define(eq=False)
class Link:
    """The server's end of a connection: what it has sent, and the client has not read yet."""

    node: Node
    session: Session[Any] = attrs.field(init=False)
    sent: list[Message] = attrs.field(factory=list)
    is_open: bool = True
    # Whether the socket takes nothing of a rate now.
    is_busy: bool = False

    def __attrs_post_init__(self) -> None:
        self.session = self.node.session_of(self)

    def may_take(self) -> bool:
        """As `Outbound` does."""
        return not self.is_busy

    def take_batch(self, batch: Batch, _: dict[Any, bytes]) -> bool:
        """As `Outbound` does."""
        if not self.is_busy:
            self._send([batch.frame(self.session.replay_buffer.append(batch))])
        return not self.is_busy

    def take(self, publication: Publication) -> None:
        """Send an event at once."""
        self._send([publication.frame(self.session.replay_buffer.append(publication))])

    def receive(self, command: Message, now_ms: float) -> None:
        """Execute a command of the client."""
        text = json.dumps(command)
        answers = self.session.receive(text, now=now_ms / 1000, unix_ms=round(now_ms))
        self._send(as_sent(answers, self.session.replay_buffer))

    def _send(self, frames: list[bytes]) -> None:
        self.sent += objects_of(frames)


class _Told:
    """Gaps are reported at once here, so no client is owed one."""

    def has_told(self, _: Link) -> bool:
        return True


class Node:
    """A server. It has taken the events of its stream up to `position`."""

    def __init__(self, stream: Stream) -> None:
        self.ticks = Ticks(slice_seconds=0.0)
        self.registry: Registry[Any] = Registry(cast("Any", self.ticks.rates))
        self.feed = Feed(max_age_seconds=30.0, channels_max=100, max_bytes=1 << 20)
        self.nats_status = NatsStatus()
        self.nats_status.is_connected = True
        self.links: list[Link] = []
        self.is_draining = False
        self.position = 0
        self._elapsed = 0.0
        self._stream = stream
        self.feed.note(Mark(stream.epoch, 0))

    def session_of(self, link: Link) -> Session[Any]:
        """Make the session of a connection."""
        return Session(
            link,
            self.registry,
            replay_buffer=ReplayBuffer(_LIMITS.replay_capacity),
            resume_buffer=self.feed.resume_buffer,
            limits=_LIMITS,
            traffic=Traffic(),
            nats_status=self.nats_status,
            now=0.0,
            newest_events=self.feed.newest_events,
        )

    def accept(self) -> Link:
        """A new connection."""
        link = Link(self)
        self.links.append(link)
        return link

    def close(self, link: Link) -> None:
        """End a connection; what it has sent may still be read."""
        link.is_open = False
        self.links.remove(link)
        self.registry.remove(link)

    def notice(self, message: Message) -> None:
        """Tell all clients something."""
        for link in self.links:
            link.sent.append(message)

    # ---- events

    def backfill(self, count: int) -> None:
        """Take events from before the start, which are news to nobody, and can be resumed."""
        for message in self._stream.events[:count]:
            self.feed.add(message)
        self.position = count
        self.feed.note(Mark(self._stream.epoch, count, backfill_end=count))

    def follow(self, stream: Stream) -> None:
        """Notice that the stream was made anew."""
        if stream is self._stream:
            return
        self._stream, self.position = stream, 0
        self.registry.forget_floors()
        self.registry.rates.updates.leave_stream()
        self.feed.note(Mark(stream.epoch, 0, gaps=(Gap(GapReason.STREAM),)))
        told = {"type": "gap", "reason": "stream", "missed": None, "from": None, "to": None}
        for link in self.links:
            if link in self.registry.audience:
                link.sent.append({**told, "epoch": stream.epoch, "ts": 0})

    def take(self, count: int) -> None:
        """Take some events of the stream, as the hub does."""
        for message in self._stream.events[self.position : self.position + count]:
            self.position += 1
            channel, _, prev, resumable = self.feed.add(message)
            assert channel is not None
            if self.registry.rates.wants(channel):
                self.registry.rates.add(channel, message, prev)
            publication = Publication(
                channel, message.payload, offset=message.offset, unix_ms=message.unix_ms, prev=prev
            )
            if resumable is not None:
                resumable.content = publication
            for link in self.registry.subscribers_from(channel, message.offset):
                link.take(publication)

    def is_behind(self) -> bool:
        """Whether the stream has more."""
        return self.position < len(self._stream.events)

    def pass_time(self, ms: float) -> None:
        """Serve the ticks of this time."""
        clock = MockClock(autojump_threshold=0)
        clock.jump(self._elapsed)
        self._elapsed += ms / 1000

        async def main() -> None:
            with trio.move_on_after(ms / 1000):
                await self.ticks.run(cast("Notices", _Told()))

        trio.run(main, clock=clock)
