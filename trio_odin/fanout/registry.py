"""The registry: an inverted index, channel ↔ subscribers.

A pattern such as `BTC.*` is indexed under its own name, like a channel. A channel has two parts, so
few patterns can match it, and an event is looked up under each of them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Hashable, Iterable, Sequence
from itertools import chain, count
from typing import Generic, TypeVar

from trio_odin.fanout.batch import Batch
from trio_odin.fanout.rates import Rates, held_back
from trio_odin.upstream.gaps import Gaps
from trio_odin.wire.channels import is_pattern, patterns_for
from trio_odin.wire.rates import EVERY_EVENT, Rate

S = TypeVar("S", bound=Hashable)
# To search for one subscriber costs as much as to copy so many.
_SEARCHES = 8


class _Channel(Generic[S]):
    """Who is subscribed to a channel, in the order of their numbers.

    Two flat arrays take a third of what a dict would, for ten thousand clients of 24 channels.
    """

    __slots__ = ("name", "numbers", "subscribers")

    def __init__(self, name: str) -> None:
        self.name = name
        self.numbers = array("Q")
        self.subscribers: list[S] = []

    def add(self, number: int, subscriber: S) -> bool:
        """Add `subscriber`, which has this number; False if it was there."""
        numbers = self.numbers
        if not numbers or number > numbers[-1]:  # nearly always: a new client
            numbers.append(number)
            self.subscribers.append(subscriber)
            return True
        place = bisect_left(numbers, number)
        if numbers[place] == number:
            return False
        self.numbers.insert(place, number)
        self.subscribers.insert(place, subscriber)
        return True

    def has(self, number: int) -> bool:
        """Whether the subscriber with this number is there."""
        place = bisect_left(self.numbers, number)
        return place < len(self.numbers) and self.numbers[place] == number

    def remove(self, number: int) -> bool:
        """Remove the subscriber with this number; False if it was not there."""
        place = bisect_left(self.numbers, number)
        if place == len(self.numbers) or self.numbers[place] != number:
            return False
        del self.numbers[place]
        del self.subscribers[place]
        return True


class _Own(Generic[S]):
    """A subscriber: its number, and its channels in order of subscription."""

    __slots__ = ("channels", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.channels: list[_Channel[S]] = []


def _each_once(channels: list[_Channel[S]]) -> Collection[S]:
    """All subscribers of `channels`, without those that come twice."""
    largest, *others = sorted(channels, key=lambda channel: -len(channel.subscribers))
    if _SEARCHES * sum(len(other.subscribers) for other in others) > len(largest.subscribers):
        return dict.fromkeys(chain.from_iterable(channel.subscribers for channel in channels))
    rest = {
        subscriber: None
        for other in others
        for number, subscriber in zip(other.numbers, other.subscribers, strict=True)
        if not largest.has(number)
    }
    return [*largest.subscribers, *rest] if rest else largest.subscribers


class Registry(Generic[S]):
    """The subscriptions in both directions: by channel, and by subscriber.

    A lookup costs O(1), or O(n) where a pattern matches as well; a subscription or its end O(log n)
    and the move of a short array for each channel of the request; a removal the same for each of
    that subscriber's channels. A channel without subscribers is not kept, nor is a subscriber
    without channels, so names that clients make up cannot pile up.

    Attributes:
        rates: the subscriptions at a rate. Only methods here change them.
        audience: the subscribers that asked for notices, each with the gaps that it was not sent
            yet.
        told_gone: those of them that were told that NATS is gone, and not yet that it is back.
    """

    def __init__(self, rates: Rates[S] | None = None) -> None:
        self.rates: Rates[S] = Rates() if rates is None else rates
        self._channels: dict[str, _Channel[S]] = {}  # patterns too
        self._patterns: set[str] = set()
        self._subscribers: dict[S, _Own[S]] = {}
        self._numbers = count(1)
        self.audience: dict[S, Gaps] = {}
        self.told_gone: set[S] = set()
        self._floors: dict[str, dict[S, int]] = {}

    def set_rate(self, subscriber: S, channels: Collection[str], rate: Rate) -> list[Batch]:
        """Have `subscriber` get `channels` at `rate`, whether it is subscribed to them or not.

        At `EVERY_EVENT`, `subscribe` has to follow. Returns what has to be sent before anything
        else; see `Rates.change`.
        """
        if rate == EVERY_EVENT and subscriber not in self.rates:
            return []
        names = dict.fromkeys(channels)
        floors = held_back(self._floors, subscriber, names)
        floors |= self.rates.held_back(subscriber, names)
        before = after = self._at_every_event(subscriber)
        if rate == EVERY_EVENT:
            after = list(dict.fromkeys([*before, *names]))
        else:
            self._unsubscribe(subscriber, names)
            after = self._at_every_event(subscriber)
        due = self.rates.change(subscriber, names, rate, every_event=(before, after))
        for name, offset in floors.items():  # what is held back stays so
            if rate == EVERY_EVENT:
                self._floors.setdefault(name, {})[subscriber] = offset
            else:
                self.rates.hold_back(subscriber, [name], offset)
        return due

    def subscribe(self, subscriber: S, channels: Iterable[str]) -> int:
        """Add subscriptions to every event; see `set_rate` for those that have another rate.

        Existing ones stay. Returns how many `subscriber` has now.
        """
        own = self._subscribers.get(subscriber)
        if own is None:
            own = self._subscribers[subscriber] = _Own(next(self._numbers))
        for name in channels:
            channel = self._channels.get(name)
            if channel is None:
                channel = self._channels[name] = _Channel(name)
                if is_pattern(name):
                    self._patterns.add(name)
            if channel.add(own.number, subscriber):
                own.channels.append(channel)
        self._forget_without_any(subscriber, own)
        return self.count(subscriber)

    def unsubscribe(self, subscriber: S, channels: Iterable[str]) -> int:
        """Remove subscriptions, ignoring those that do not exist. Returns how many are left."""
        names = dict.fromkeys(channels)
        before = self._at_every_event(subscriber) if subscriber in self.rates else ()
        self._unsubscribe(subscriber, names)
        if subscriber in self.rates:
            after = self._at_every_event(subscriber)
            self.rates.change(subscriber, names, EVERY_EVENT, every_event=(before, after))
        return self.count(subscriber)

    def _unsubscribe(self, subscriber: S, names: Iterable[str]) -> None:
        own = self._subscribers.get(subscriber)
        if own is None:
            return
        for name in names:
            channel = self._channels.get(name)
            if channel is not None and channel.remove(own.number):
                own.channels.remove(channel)
                self._forget_if_empty(subscriber, channel)
        self._forget_without_any(subscriber, own)

    def hold_back(self, subscriber: S, channels: Collection[str], offset: int) -> None:
        """Send `subscriber` nothing of `channels` up to `offset`: another server sent it that.

        It must be subscribed to them.
        """
        at_a_rate = set(self.rates.names(subscriber))
        self.rates.hold_back(subscriber, [one for one in channels if one in at_a_rate], offset)
        for channel in channels:
            if channel not in at_a_rate:
                self._floors.setdefault(self._channels[channel].name, {})[subscriber] = offset

    def forget_floors(self) -> None:
        """Hold nothing back from now on, because offsets count anew."""
        self._floors.clear()
        self.rates.forget_floors()

    def subscribers_from(self, channel: str, offset: int | None) -> Collection[S]:
        """Those who are to get the event of `channel` at `offset`, each once."""
        patterns = self._patterns and self._patterns.intersection(patterns_for(channel))
        if not patterns:
            return self._subscribers_from(channel, offset)
        names = [name for name in (channel, *patterns) if name in self._channels]
        if self._floors:
            some = (self._subscribers_from(name, offset) for name in names)
            return dict.fromkeys(chain.from_iterable(some))
        return _each_once([self._channels[name] for name in names])

    def _subscribers_from(self, name: str, offset: int | None) -> Collection[S]:
        """Those of them who are subscribed under this name."""
        everyone = self.subscribers(name)
        if not self._floors or offset is None or name not in self._floors:
            return everyone
        floors = self._floors[name]
        for subscriber in [one for one, floor in floors.items() if floor < offset]:
            del floors[subscriber]
        if not floors:
            del self._floors[name]
        return [one for one in everyone if one not in floors]

    def tell_of_gaps(self, subscriber: S, is_wanted: bool) -> None:
        """Add `subscriber` to the audience of gap notices, or remove it."""
        if is_wanted:
            self.audience.setdefault(subscriber, {})
        else:
            self.audience.pop(subscriber, None)
            self.told_gone.discard(subscriber)

    def tell_gone(self, subscriber: S, *, is_gone: bool) -> None:
        """Note that `subscriber`, of the audience, was told that NATS is gone, or is back."""
        if is_gone:
            self.told_gone.add(subscriber)
        else:
            self.told_gone.discard(subscriber)

    def remove(self, subscriber: S) -> None:
        """Remove `subscriber` from everything. One without subscriptions is ignored."""
        self.tell_of_gaps(subscriber, is_wanted=False)
        self.rates.remove(subscriber)
        if subscriber in self._subscribers:
            own = self._subscribers.pop(subscriber)
            for channel in own.channels:
                channel.remove(own.number)
                self._forget_if_empty(subscriber, channel)

    def subscribers(self, channel: str) -> Sequence[S]:
        """The subscribers of `channel`, a live view, in the order of their numbers."""
        found = self._channels.get(channel)
        return found.subscribers if found else ()

    def names(self) -> Collection[str]:
        """The channels and patterns that have a subscriber, at every event or at a rate."""
        return self._channels.keys() | self.rates.all_names()

    def named(self, subscriber: S) -> dict[str, Rate]:
        """The channels and patterns of `subscriber`, with the rate of each."""
        return dict.fromkeys(self._at_every_event(subscriber), EVERY_EVENT) | (
            self.rates.named(subscriber)
        )

    def has_any(self, subscriber: S, names: Collection[str]) -> bool:
        """Whether `subscriber` has one of `names`, as it gave them. It costs O(log n) a name."""
        own = self._subscribers.get(subscriber)
        channels = [self._channels[name] for name in names if name in self._channels] if own else ()
        if own and any(channel.has(own.number) for channel in channels):
            return True
        return self.rates.has_any(subscriber, names)

    def channels(self, subscriber: S) -> Collection[str]:
        """The channels of `subscriber`: in order of subscription, then those at a rate."""
        at_every_event = self._at_every_event(subscriber)
        if subscriber not in self.rates:
            return at_every_event
        return [*at_every_event, *self.rates.names(subscriber)]

    def _at_every_event(self, subscriber: S) -> Collection[str]:
        own = self._subscribers.get(subscriber)
        return [channel.name for channel in own.channels] if own else ()

    def count(self, subscriber: S) -> int:
        """How many channels `subscriber` has."""
        own = self._subscribers.get(subscriber)
        return (len(own.channels) if own else 0) + self.rates.count(subscriber)

    def channel_count(self) -> int:
        """How many channels have at least one subscriber."""
        at_a_rate = self.rates.all_names()
        return len(self._channels.keys() | at_a_rate) if at_a_rate else len(self._channels)

    def subscription_counts(self) -> list[int]:
        """For each subscriber that has any, the number of its subscriptions."""
        own, count = self._subscribers, self.rates.count
        with_any = [len(one.channels) + count(subscriber) for subscriber, one in own.items()]
        return with_any + [count(one) for one in self.rates.subscribers() if one not in own]

    def _forget_without_any(self, subscriber: S, own: _Own[S]) -> None:
        if not own.channels:
            del self._subscribers[subscriber]

    def _forget_if_empty(self, subscriber: S, channel: _Channel[S]) -> None:
        name = channel.name
        if name in self._floors:
            self._floors[name].pop(subscriber, None)
            if not self._floors[name]:
                del self._floors[name]
        if not channel.subscribers:
            self._patterns.discard(name)
            del self._channels[name]
