"""The registry: an inverted index, channel ↔ subscribers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Generic, TypeVar

from trio_odin.upstream.gaps import Gaps

S = TypeVar("S")

_NOBODY: Mapping[object, None] = {}


class Registry(Generic[S]):
    """The subscriptions in both directions: by channel, and by subscriber.

    Every operation costs O(size of the request): a subscription O(channels asked for), a lookup
    O(1), a removal O(that subscriber's channels). A channel without subscribers is not kept, nor is
    a subscriber without channels, so names that clients make up cannot pile up.

    Dicts serve as ordered sets: denser than sets, and a fan-out goes in the order of subscription.

    Attributes:
        audience: the subscribers that asked for gap notices, each with the gaps that it was not
            sent yet.
    """

    def __init__(self) -> None:
        self._subscribers: dict[str, dict[S, None]] = {}
        self._channels: dict[S, dict[str, None]] = {}
        self._names: dict[str, str] = {}
        self.audience: dict[S, Gaps] = {}
        self._floors: dict[str, dict[S, int]] = {}

    def subscribe(self, subscriber: S, channels: Iterable[str]) -> int:
        """Add subscriptions; existing ones stay. Returns how many `subscriber` has now."""
        own = self._channels.setdefault(subscriber, {})
        for name in channels:
            # One string for all subscribers of a channel, as each command is parsed into new ones.
            # Not sys.intern, which on some Pythons never frees the names that clients make up.
            channel = self._names.setdefault(name, name)
            own[channel] = None
            subscribers = self._subscribers.get(channel)
            if subscribers is None:
                subscribers = self._subscribers[channel] = {}
            subscribers[subscriber] = None
        return self._count_or_forget(subscriber, own)

    def unsubscribe(self, subscriber: S, channels: Iterable[str]) -> int:
        """Remove subscriptions, ignoring those that do not exist. Returns how many are left."""
        own = self._channels.get(subscriber, {})
        for channel in channels:
            if channel in own:
                del own[channel]
                self._forget(subscriber, channel)
        return self._count_or_forget(subscriber, own)

    def hold_back(self, subscriber: S, channels: Iterable[str], offset: int) -> None:
        """Send `subscriber` nothing of `channels` up to `offset`: another server sent it that.

        It must be subscribed to them.
        """
        for channel in channels:
            self._floors.setdefault(self._names[channel], {})[subscriber] = offset

    def forget_floors(self) -> None:
        """Hold nothing back from now on, because offsets count anew."""
        self._floors.clear()

    def subscribers_from(self, channel: str, offset: int | None) -> Collection[S]:
        """The subscribers of `channel` that are to get its event at `offset`."""
        everyone = self.subscribers(channel)
        if not self._floors or offset is None or channel not in self._floors:
            return everyone
        floors = self._floors[channel]
        for subscriber in [one for one, floor in floors.items() if floor < offset]:
            del floors[subscriber]
        if not floors:
            del self._floors[channel]
        return [one for one in everyone if one not in floors]

    def tell_of_gaps(self, subscriber: S, is_wanted: bool) -> None:
        """Add `subscriber` to the audience of gap notices, or remove it."""
        if is_wanted:
            self.audience.setdefault(subscriber, {})
        else:
            self.audience.pop(subscriber, None)

    def remove(self, subscriber: S) -> None:
        """Remove `subscriber` from everything. One without subscriptions is ignored."""
        self.audience.pop(subscriber, None)
        for channel in self._channels.pop(subscriber, {}):
            self._forget(subscriber, channel)

    def subscribers(self, channel: str) -> Collection[S]:
        """The subscribers of `channel`, a live view in order of subscription."""
        return self._subscribers.get(channel, _NOBODY).keys()  # type: ignore[return-value]

    def channels(self, subscriber: S) -> Collection[str]:
        """The channels of `subscriber`, a live view in order of subscription."""
        return self._channels.get(subscriber, {}).keys()

    def channel_count(self) -> int:
        """How many channels have at least one subscriber."""
        return len(self._subscribers)

    def subscription_counts(self) -> list[int]:
        """For each subscriber that has any, the number of its subscriptions."""
        return [len(own) for own in self._channels.values()]

    def _count_or_forget(self, subscriber: S, own: dict[str, None]) -> int:
        if not own:
            self._channels.pop(subscriber, None)
        return len(own)

    def _forget(self, subscriber: S, channel: str) -> None:
        subscribers = self._subscribers[channel]
        del subscribers[subscriber]
        if channel in self._floors:
            self._floors[channel].pop(subscriber, None)
            if not self._floors[channel]:
                del self._floors[channel]
        if not subscribers:
            del self._subscribers[channel]
            del self._names[channel]
