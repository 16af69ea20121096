"""The wire of every peer, and who is subscribed to what."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import Generic, TypeVar

import msgspec

_Member = TypeVar("_Member", bound=Hashable)


def asked_channels(command: str | bytes) -> list[str]:
    """The channels of a subscribe command; none if it is anything else."""
    try:
        decoded = msgspec.json.decode(command)
    except msgspec.DecodeError:
        return []
    match decoded:
        case {"type": "subscribe", "channels": [*channels]}:
            return [str(channel) for channel in channels]
    return []


def acknowledgement(channels: Iterable[str]) -> bytes:
    """The answer to a subscribe command."""
    return msgspec.json.encode({"type": "subscription_ack", "subscribed": list(channels)})


def delivery(channel: str, payload: bytes) -> bytes:
    """The text that a subscriber gets. The payload is JSON and goes in as it came."""
    return b'{"channel":"%b","data":%b}' % (channel.encode(), payload)


class Subscriptions(Generic[_Member]):
    """Members by channel."""

    def __init__(self) -> None:
        self._members: dict[str, set[_Member]] = {}

    def add(self, member: _Member, channels: Iterable[str]) -> None:
        """Subscribe `member` to `channels`."""
        for channel in channels:
            self._members.setdefault(channel, set()).add(member)

    def remove(self, member: _Member) -> list[str]:
        """Forget `member`; returns the channels it was subscribed to."""
        channels = [channel for channel, members in self._members.items() if member in members]
        for channel in channels:
            self._members[channel].remove(member)
        return channels

    def of(self, channel: str) -> Collection[_Member]:
        """Who is subscribed to `channel`: the set itself, so not to be kept over an await."""
        return self._members.get(channel, ())
