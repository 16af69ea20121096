"""The hub: the live connections, the registry, and the fan-out."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import trio

from trio_odin.config import Settings
from trio_odin.core.closing import CloseReason
from trio_odin.core.history import History
from trio_odin.core.ledger import Invalid, Ledger, Shed
from trio_odin.core.names import channel_of_subject
from trio_odin.core.publication import InvalidPayload, NatsMessage, Publication
from trio_odin.core.ratelimit import TokenBucket
from trio_odin.core.registry import Registry
from trio_odin.core.session import SessionLimits

# A large frame costs more to keep for every seq until the fan-out ends than to make again.
_SHARED_FRAME_MAX_BYTES = 4096


class _Outlet(Protocol):
    def offer(self, publication: Publication, seq: int, frame: bytes) -> int: ...


class Member(Hashable, Protocol):
    """What the hub needs of a connection."""

    @property
    def history(self) -> History:
        """Numbers its envelopes and keeps the last ones."""
        ...

    @property
    def outlet(self) -> _Outlet:
        """Takes an envelope without waiting; see `Outlet.offer`."""
        ...

    @property
    def close_reason(self) -> CloseReason | None:
        """Why it ended."""
        ...


M = TypeVar("M", bound=Member)


class Hub(Generic[M]):
    """Takes messages from the feed and hands each to whom it concerns.

    Attributes:
        registry: who is subscribed to what.
        members: the connections whose handshake is complete.
        ledger: the books of the server.
        is_draining: whoever joins now has to leave at once.
        taken: messages taken from the feed so far.
    """

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.is_draining = False
        self.taken = 0
        self.registry: Registry[M] = Registry()
        self.members: dict[M, None] = {}
        self.ledger = ledger
        self.session_limits = SessionLimits(
            replay_capacity=settings.replay_capacity,
            max_channels=settings.max_channels,
            command_burst=settings.command_burst,
            commands_per_second=settings.commands_per_second,
        )
        self._is_filtering = settings.is_filtering
        self._rate = TokenBucket(
            burst=max(1.0, settings.max_broadcast_rate),
            per_second=settings.max_broadcast_rate,
            now=trio.current_time(),
        )

    @contextmanager
    def membership(self, member: M) -> Iterator[None]:
        """Within it, `member` can be subscribed; it has no subscription left afterwards."""
        self.members[member] = None
        self.ledger.traffic.accepted += 1
        otherwise = CloseReason.STOPPED
        try:
            yield
        except Exception:
            otherwise = CloseReason.INTERNAL_ERROR
            raise
        finally:
            del self.members[member]
            self.registry.remove(member)
            reason = member.close_reason or otherwise
            self.ledger.traffic.closed[reason.label] += 1

    async def run(self, feed_receive: trio.MemoryReceiveChannel[NatsMessage]) -> None:
        """Publish everything in the feed; returns when its sending side was closed and it is empty.

        The tasks of the connections run between two messages, never within a fan-out.
        """
        async for message in feed_receive:
            self.taken += 1
            self.publish(message)

    def publish(self, message: NatsMessage) -> None:
        """Turn a message from NATS into a publication and fan it out. Never waits, never raises."""
        publications = self.ledger.publications
        channel = channel_of_subject(message.subject)
        if channel is None:
            publications.invalid[Invalid.SUBJECT] += 1
            return
        subscribers = self.registry.subscribers(channel) if self._is_filtering else self.members
        if not subscribers:
            publications.unmatched += 1
            return
        if not self._rate.take(trio.current_time()):
            publications.shed[Shed.BROADCAST_RATE] += 1
            return
        try:
            publication = Publication(
                channel,
                message.payload,
                offset=message.offset,
                unix_ms=time.time_ns() // 1_000_000,
            )
        except InvalidPayload:
            publications.invalid[Invalid.PAYLOAD] += 1
            return
        publications.fanned_out += 1
        self._fan_out(publication, subscribers)

    def _fan_out(self, publication: Publication, subscribers: Iterable[M]) -> None:
        """Hand `publication` to every one of `subscribers`.

        Not one checkpoint in here, so the registry cannot change under the loop. Connections that
        came together count alike, so a frame is often shared by all that are at the same seq.
        """
        frames: dict[int, bytes] = {}
        matched = written = sent_bytes = 0
        for member in subscribers:
            seq = member.history.append(publication)
            frame = frames.get(seq)
            if frame is None:
                frame = publication.frame(seq)
                if len(frame) <= _SHARED_FRAME_MAX_BYTES:
                    frames[seq] = frame
            matched += 1
            if sent := member.outlet.offer(publication, seq, frame):
                written += 1
                sent_bytes += sent
        self.ledger.deliveries.matched += matched
        self.ledger.deliveries.written += written
        self.ledger.traffic.bytes_sent += sent_bytes
