"""The wire protocol of every peer, and its subscriptions."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import Generic, TypeVar

import msgspec

_Member = TypeVar("_Member", bound=Hashable)


def asked_channels(command: str | bytes) -> list[str]:
    """The channels of a subscribe command; empty for any other text."""
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
    """The text that a subscriber receives. The payload is JSON and is inserted unchanged."""
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
        """Remove `member`; returns the channels it was subscribed to."""
        channels = [channel for channel, members in self._members.items() if member in members]
        for channel in channels:
            self._members[channel].remove(member)
        return channels

    def of(self, channel: str) -> Collection[_Member]:
        """The subscribers of `channel`: the set itself, so do not keep it across an await."""
        return self._members.get(channel, ())
