"""A session: one client's side of the conversation. Text in, frames out, no waiting."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import attrs
import msgspec

from trio_odin.core.commands import (
    CommandId,
    ErrorCode,
    Heartbeat,
    Malformed,
    Replay,
    Subscribe,
    Unknown,
    Unsubscribe,
    parse_command,
)
from trio_odin.core.frame import text_frame
from trio_odin.core.history import History
from trio_odin.core.ledger import Traffic
from trio_odin.core.names import CHANNEL_RULE, is_channel
from trio_odin.core.ratelimit import TokenBucket
from trio_odin.core.registry import Registry

S = TypeVar("S", bound=Hashable)

# An error names at most so many of the channels that it is about.
_NAMED_CHANNELS_MAX = 8


@attrs.frozen
class SessionLimits:
    """What one client may do. `commands_per_second` 0 is no limit."""

    replay_capacity: int = 100
    max_channels: int = 256
    command_burst: int = 100
    commands_per_second: float = 10.0


class Session(Generic[S]):
    """Executes the commands of `subscriber` on the registry and on its history.

    The wire it speaks is described in docs/protocol.md.
    """

    __slots__ = ("_bucket", "_limits", "_registry", "_subscriber", "_traffic", "history")

    def __init__(
        self,
        subscriber: S,
        registry: Registry[S],
        *,
        history: History,
        limits: SessionLimits,
        traffic: Traffic,
        now: float,
    ) -> None:
        self._subscriber = subscriber
        self._registry = registry
        self._limits = limits
        self._traffic = traffic
        self._bucket = TokenBucket(
            burst=limits.command_burst, per_second=limits.commands_per_second, now=now
        )
        self.history = history

    def receive(self, text: str, *, now: float, unix_ms: int) -> list[bytes]:
        """Execute one text message and return the frames that answer it, in order.

        Args:
            text: the message; any text is allowed.
            now: monotonic seconds, for the rate limit.
            unix_ms: the time of day, for the answer to a heartbeat.
        """
        if not self._bucket.take(now):
            self._traffic.rate_limited += 1
            return [self._error(ErrorCode.RATE_LIMIT_EXCEEDED, "Too many messages, slow down")]
        command = parse_command(text)
        self._traffic.commands[type(command).__name__.lower()] += 1
        match command:
            case Subscribe(channels, command_id):
                return self._subscribe(channels, command_id)
            case Unsubscribe(channels, command_id):
                count = self._registry.unsubscribe(self._subscriber, channels)
                ack = {"type": "unsubscription_ack", "unsubscribed": channels, "count": count}
                return [_reply(ack, command_id)]
            case Replay(first, last, command_id):
                return self._replay(first, self.history.seq if last is None else last, command_id)
            case Heartbeat(command_id):
                return [_reply({"type": "pong", "ts": unix_ms}, command_id)]
            case Malformed(code, message, command_id):
                return [self._error(code, message, command_id)]
            case Unknown():
                return []

    def _subscribe(self, channels: list[str], command_id: CommandId) -> list[bytes]:
        good = [channel for channel in channels if is_channel(channel)]
        allowed, excess = self._within_limit(good)
        count = self._registry.subscribe(self._subscriber, allowed)
        replies = []
        if allowed or not channels:
            ack = {"type": "subscription_ack", "subscribed": allowed, "count": count}
            replies.append(_reply(ack, command_id))
        if len(good) < len(channels):
            bad = [channel for channel in channels if not is_channel(channel)]
            message = f"Not subscribed to {_named(bad)}: {CHANNEL_RULE}"
            replies.append(self._error(ErrorCode.INVALID_CHANNEL, message, command_id))
        if excess:
            message = (
                f"Not subscribed to {_named(excess)}: "
                f"at most {self._limits.max_channels} channels a connection"
            )
            replies.append(self._error(ErrorCode.TOO_MANY_CHANNELS, message, command_id))
        return replies

    def _within_limit(self, channels: list[str]) -> tuple[list[str], list[str]]:
        """Split into those that fit under the limit of channels, in order, and the rest."""
        have = self._registry.channels(self._subscriber)
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

    def _replay(self, first: int, last: int, command_id: CommandId) -> list[bytes]:
        replay = self.history.between(first, last)
        self._traffic.replayed += len(replay.kept)
        frames = [publication.frame(seq) for seq, publication in replay.kept]
        if len(frames) < replay.asked:
            incomplete = {
                "type": "replay_incomplete",
                "sent": len(frames),
                "total": replay.asked,
                "message": f"Only the last {self._limits.replay_capacity} messages are kept",
            }
            frames.append(_reply(incomplete, command_id))
        return frames

    def _error(self, code: ErrorCode, message: str, command_id: CommandId = None) -> bytes:
        self._traffic.errors[code.value] += 1
        return _reply({"type": "error", "code": code.value, "message": message}, command_id)


def _reply(content: dict[str, Any], command_id: CommandId) -> bytes:
    if command_id is not None:
        content["id"] = command_id
    return text_frame(msgspec.json.encode(content))


def _named(channels: list[str]) -> str:
    """The channels as a client may see them again: a few of them, and none at full length."""
    shown = ", ".join(repr(channel[:80]) for channel in channels[:_NAMED_CHANNELS_MAX])
    more = len(channels) - _NAMED_CHANNELS_MAX
    return f"{shown} and {more} more" if more > 0 else shown
