"""One client's session: text in, frames out, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from typing import Any, Generic, TypeVar

import attrs
import msgspec

from trio_odin.auth.grants import Grant
from trio_odin.fanout.answers import Answer, Resend
from trio_odin.fanout.registry import Registry
from trio_odin.fanout.replay_buffer import ReplayBudget, ReplayBuffer
from trio_odin.fanout.resume_buffer import Missed, ResumeBuffer
from trio_odin.ledger.counters import Traffic
from trio_odin.net.token_bucket import TokenBucket
from trio_odin.upstream.status import NatsStatus
from trio_odin.wire.channels import CHANNEL_RULE, is_channel
from trio_odin.wire.commands import (
    Command,
    CommandId,
    ErrorCode,
    Heartbeat,
    Malformed,
    Replay,
    Subscribe,
    Unknown,
    Unsubscribe,
    id_in,
    parse_command,
)
from trio_odin.wire.frames import text_frame

S = TypeVar("S", bound=Hashable)

# An error reply names at most this many channels.
_NAMED_CHANNELS_MAX = 8
# Why a resume or a replay is incomplete.
_FORGOTTEN = "There may have been more than is kept"
_CUT_SHORT = "You read too slowly for all of them: read, and ask for the rest"


@attrs.frozen
class SessionLimits:
    """What one client may do. `commands_per_second` 0 is no limit.

    Attributes:
        can_resume: False where a connection gets every event from its first moment on: resumed
            events would come twice.
        replay_budget: shared by all clients.
    """

    replay_capacity: int = 100
    resume_channel_events: int = 100
    resume_events: int = 500
    max_channels: int = 256
    command_burst: int = 100
    commands_per_second: float = 10.0
    can_resume: bool = True
    replay_budget: ReplayBudget = attrs.field(factory=ReplayBudget)


class Session(Generic[S]):
    """Executes the commands of `subscriber` on the registry and on its replay buffer.

    docs/protocol.md describes the protocol.

    Attributes:
        grant: what the client's token allows; None where no token is needed.
        replay_buffer: the last messages to the client, which can be replayed.
        last_command: what its last message was; None if it was over the rate limit and not read.
    """

    __slots__ = (
        "_bucket",
        "_limits",
        "_nats_status",
        "_registry",
        "_resume_buffer",
        "_subscriber",
        "_traffic",
        "grant",
        "last_command",
        "replay_buffer",
    )

    def __init__(
        self,
        subscriber: S,
        registry: Registry[S],
        *,
        replay_buffer: ReplayBuffer,
        resume_buffer: ResumeBuffer,
        limits: SessionLimits,
        traffic: Traffic,
        nats_status: NatsStatus,
        now: float,
        grant: Grant | None = None,
    ) -> None:
        self._subscriber = subscriber
        self._registry = registry
        self._resume_buffer = resume_buffer
        self._limits = limits
        self._traffic = traffic
        self._nats_status = nats_status
        self._bucket = TokenBucket(
            burst=limits.command_burst, per_second=limits.commands_per_second, now=now
        )
        self.replay_buffer = replay_buffer
        self.grant = grant
        self.last_command: type[Command] | None = None

    def receive(self, text: str, *, now: float, unix_ms: int) -> list[Answer]:
        """Execute one text message; returns the answers to it, in order.

        Args:
            text: the message; any text is allowed.
            now: monotonic seconds, for the rate limit and the age of data from NATS.
            unix_ms: the time of day, for the answer to a heartbeat.
        """
        if not self._bucket.take(now):
            self._traffic.rate_limited += 1
            self.last_command = None
            too_many = "Too many messages, slow down"
            return [self._error(ErrorCode.RATE_LIMIT_EXCEEDED, too_many, id_in(text))]
        command = parse_command(text)
        self.last_command = type(command)
        self._traffic.commands[self.last_command.__name__.lower()] += 1
        match command:
            case Subscribe():
                return self._subscribe(command)
            case Unsubscribe(channels, command_id):
                count = self._registry.unsubscribe(self._subscriber, channels)
                ack = {"type": "unsubscription_ack", "unsubscribed": channels, "count": count}
                return [_reply(ack, command_id)]
            case Replay(first, last, command_id):
                last = self.replay_buffer.seq if last is None else last
                return [self._replay(first, last, command_id)]
            case Heartbeat(command_id, about_nats):
                pong = {"type": "pong", "ts": unix_ms}
                return [_reply(pong | self._freshness(now) if about_nats else pong, command_id)]
            case Malformed(code, message, command_id):
                return [self._error(code, message, command_id)]
            case Unknown():
                return []

    def allows_ping(self, now: float) -> bool:
        """Whether a WebSocket ping at `now` may be answered; it counts against the rate limit."""
        is_allowed = self._bucket.take(now)
        self._traffic.rate_limited += not is_allowed
        return is_allowed

    def _subscribe(self, command: Subscribe) -> list[Answer]:
        channels, command_id = command.channels, command.id
        is_resume = command.after is not None
        if is_resume or command.notices is not None:  # a resume needs gap notices
            self._registry.tell_of_gaps(self._subscriber, command.notices is not False)
        good, bad = _split(channels, is_channel)
        granted, forbidden = (good, []) if self.grant is None else _split(good, self.grant.allows)
        allowed, excess = self._within_limit(granted)
        held = set(self._registry.channels(self._subscriber)) if is_resume else ()
        count = self._registry.subscribe(self._subscriber, allowed)
        replies: list[Answer] = []
        if allowed or not channels:
            ack = {"type": "subscription_ack", "subscribed": allowed, "count": count}
            if self._subscriber in self._registry.audience or is_resume:
                ack["epoch"] = self._resume_buffer.epoch
                if not is_resume:  # a resume states its position at its end
                    ack["offset"] = self._resume_buffer.position
            replies.append(_reply(ack, command_id))
        limit = f"at most {self._limits.max_channels} channels a connection"
        for code, refused, reason in (
            (ErrorCode.INVALID_CHANNEL, bad, CHANNEL_RULE),
            (ErrorCode.FORBIDDEN_CHANNEL, forbidden, "the token does not allow it"),
            (ErrorCode.TOO_MANY_CHANNELS, excess, limit),
        ):
            if refused:
                message = f"Not subscribed to {_named(refused)}: {reason}"
                replies.append(self._error(code, message, command_id))
        if is_resume:
            replies.append(self._resume(command, set(allowed).difference(held)))
        return replies

    def _resume(self, command: Subscribe, channels: Collection[str]) -> Resend:
        """The events in `channels` after `after`, as further messages of this connection."""
        missed = self._missed(command, channels)
        publications = missed.publications

        def finish(sent: int) -> list[bytes]:
            for publication in publications[:sent]:  # what did not fit gets no number
                self._limits.replay_budget.add(publication.kept)
                self.replay_buffer.append(publication)
            self._traffic.resumed += sent
            frames, position = [], self._resume_buffer.position
            if sent == len(publications) and missed.is_complete and position is not None:
                position = max(position, command.after or 0)  # the client's own if we are behind
            else:
                self._traffic.resumed_incompletely += 1
                is_cut = sent < len(publications)
                incomplete = {
                    "type": "resume_incomplete",
                    "after": command.after,
                    "sent": sent,
                    "message": _CUT_SHORT if is_cut else _FORGOTTEN,
                }
                frames.append(_reply(incomplete, command.id))
            resumed = {"type": "resumed", "sent": sent, "offset": position}
            return [*frames, _reply(resumed, command.id)]

        return Resend(list(enumerate(publications, self.replay_buffer.seq + 1)), finish)

    def _missed(self, command: Subscribe, channels: Collection[str]) -> Missed:
        after, epoch, resume_buffer = command.after, command.epoch, self._resume_buffer
        is_known = epoch is not None and epoch == resume_buffer.epoch
        if after is None or not self._limits.can_resume or resume_buffer.position is None:
            return Missed([], is_complete=False)
        if after > resume_buffer.position:
            # An offset of an unknown epoch may be of a stream that was made anew.
            if is_known:
                self._registry.hold_back(self._subscriber, channels, after)
            return Missed([], is_complete=is_known)
        if epoch is not None and not is_known:
            return Missed([], is_complete=False)
        limits = self._limits
        return resume_buffer.after(
            after, channels, of_each=limits.resume_channel_events, in_all=limits.resume_events
        )

    def _freshness(self, now: float) -> dict[str, Any]:
        nats_status = self._nats_status
        return {
            "nats": "connected" if nats_status.is_connected else "disconnected",
            "age_ms": _milliseconds(nats_status.age_seconds(now)),
            "event_age_ms": _milliseconds(nats_status.event_age_seconds(now)),
            "offset": self._resume_buffer.position,
        }

    def _within_limit(self, channels: list[str]) -> tuple[list[str], list[str]]:
        """Split `channels` into those within the limit and the rest, each in order."""
        have = set(self._registry.channels(self._subscriber))
        if len(have) + len(channels) <= self._limits.max_channels:
            return channels, []
        allowed: list[str] = []
        excess: list[str] = []
        new: set[str] = set()
        for channel in channels:
            if channel in have or channel in new:
                allowed.append(channel)
            elif len(have) + len(new) < self._limits.max_channels:
                new.add(channel)
                allowed.append(channel)
            else:
                excess.append(channel)
        return allowed, excess

    def _replay(self, first: int, last: int, command_id: CommandId) -> Resend:
        replay = self.replay_buffer.between(first, last)

        def finish(sent: int) -> list[bytes]:
            self._traffic.replayed += sent
            if sent == replay.asked:
                return []
            is_cut = sent < len(replay.kept)
            capacity = self._limits.replay_capacity
            incomplete = {
                "type": "replay_incomplete",
                "sent": sent,
                "total": replay.asked,
                "message": _CUT_SHORT if is_cut else f"Only the last {capacity} messages are kept",
            }
            return [_reply(incomplete, command_id)]

        return Resend(replay.kept, finish)

    def _error(self, code: ErrorCode, message: str, command_id: CommandId = None) -> bytes:
        self._traffic.errors[code.value] += 1
        return _reply({"type": "error", "code": code.value, "message": message}, command_id)


def _split(channels: list[str], is_good: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """The good channels and the others, each in order. The second list is mostly empty."""
    good = [channel for channel in channels if is_good(channel)]
    if len(good) == len(channels):
        return good, []
    return good, [channel for channel in channels if not is_good(channel)]


def _reply(content: dict[str, Any], command_id: CommandId) -> bytes:
    if command_id is not None:
        content["id"] = command_id
    return text_frame(msgspec.json.encode(content))


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _named(channels: list[str]) -> str:
    """The channels as an error reply names them: only a few, and long names cut."""
    shown = ", ".join(repr(channel[:80]) for channel in channels[:_NAMED_CHANNELS_MAX])
    more = len(channels) - _NAMED_CHANNELS_MAX
    return f"{shown} and {more} more" if more > 0 else shown
