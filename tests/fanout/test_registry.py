from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.connection.client import objects_of
from trio_odin.fanout.registry import Registry, _Channel
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.rates import EVERY_EVENT

SUBSCRIBERS = st.integers(0, 3)
CHANNELS = st.sampled_from(["A.trade", "B.trade", "C.trade", "D.social", "E.social"])
REQUESTS = st.lists(CHANNELS, max_size=7)


class RegistryAgainstPairs(RuleBasedStateMachine):
    """The model is a set of pairs in order of subscription, and the subscribers in order of age."""

    def __init__(self) -> None:
        super().__init__()
        self.registry: Registry[int] = Registry()
        self.pairs: dict[tuple[int, str], None] = {}
        self.ages: list[int] = []

    def channels(self, subscriber: int) -> list[str]:
        return [channel for one, channel in self.pairs if one == subscriber]

    def forget_ages(self) -> None:
        self.ages = [one for one in self.ages if self.channels(one)]

    @rule(subscriber=SUBSCRIBERS, request=REQUESTS)
    def subscribe(self, subscriber: int, request: list[str]) -> None:
        self.pairs |= {(subscriber, channel): None for channel in request}
        self.ages += [subscriber] if subscriber not in self.ages else []
        self.forget_ages()
        count = self.registry.subscribe(subscriber, request)
        assert count == len(self.channels(subscriber))

    @rule(subscriber=SUBSCRIBERS, request=REQUESTS)
    def unsubscribe(self, subscriber: int, request: list[str]) -> None:
        for channel in request:
            self.pairs.pop((subscriber, channel), None)
        self.forget_ages()
        count = self.registry.unsubscribe(subscriber, request)
        assert count == len(self.channels(subscriber))

    @rule(subscriber=SUBSCRIBERS)
    def remove(self, subscriber: int) -> None:
        self.pairs = {pair: None for pair in self.pairs if pair[0] != subscriber}
        self.forget_ages()
        self.registry.remove(subscriber)

    @invariant()
    def index_and_inverse_hold_the_pairs_in_order(self) -> None:
        for channel in {channel for _, channel in self.pairs} | {"A.trade"}:
            expected = [one for one in self.ages if (one, channel) in self.pairs]
            assert list(self.registry.subscribers(channel)) == expected
        for subscriber in range(4):
            assert list(self.registry.channels(subscriber)) == self.channels(subscriber)

    @invariant()
    def nothing_empty_is_kept(self) -> None:
        assert self.registry._channels.keys() == {channel for _, channel in self.pairs}
        assert self.registry._subscribers.keys() == {subscriber for subscriber, _ in self.pairs}

    @invariant()
    def counts_are_right(self) -> None:
        assert self.registry.channel_count() == len({channel for _, channel in self.pairs})
        subscribers = {subscriber for subscriber, _ in self.pairs}
        expected = sorted(len(self.channels(subscriber)) for subscriber in subscribers)
        assert sorted(self.registry.subscription_counts()) == expected


TestRegistryAgainstPairs = RegistryAgainstPairs.TestCase
TestRegistryAgainstPairs.settings = settings(max_examples=100, stateful_step_count=30)


def test_a_channel_requested_twice_counts_once() -> None:
    registry: Registry[str] = Registry()
    assert registry.subscribe("me", ["A.trade", "A.trade", "B.trade"]) == 2
    assert registry.unsubscribe("me", ["A.trade", "A.trade"]) == 1
    assert list(registry.channels("me")) == ["B.trade"]


def test_unsubscribing_an_unknown_channel_changes_nothing() -> None:
    registry: Registry[str] = Registry()
    registry.subscribe("other", ["A.trade"])
    assert registry.unsubscribe("me", ["A.trade"]) == 0
    assert registry.unsubscribe("other", ["B.trade"]) == 1
    assert list(registry.subscribers("A.trade")) == ["other"]
    assert registry.channel_count() == 1


def test_an_unknown_subscriber_is_removed_without_an_error() -> None:
    registry: Registry[str] = Registry()
    registry.remove("nobody")
    assert registry.channel_count() == 0
    assert registry.subscription_counts() == []


def test_an_empty_request_leaves_no_trace() -> None:
    registry: Registry[str] = Registry()
    assert registry.subscribe("me", []) == 0
    assert registry.unsubscribe("me", []) == 0
    assert registry.subscription_counts() == []


def test_subscribing_again_keeps_the_place_in_the_order() -> None:
    registry: Registry[str] = Registry()
    for subscriber in ("first", "second", "first"):
        registry.subscribe(subscriber, ["A.trade"])
    assert list(registry.subscribers("A.trade")) == ["first", "second"]


def test_a_view_shows_later_changes() -> None:
    registry: Registry[str] = Registry()
    registry.subscribe("first", ["A.trade"])
    subscribers = registry.subscribers("A.trade")
    registry.subscribe("second", ["A.trade"])
    assert list(subscribers) == ["first", "second"]


def test_who_came_first_comes_first_in_each_channel() -> None:
    registry: Registry[str] = Registry()
    registry.subscribe("first", ["A.trade"])
    registry.subscribe("second", ["B.trade"])
    registry.subscribe("first", ["B.trade"])
    assert list(registry.subscribers("B.trade")) == ["first", "second"]
    registry.unsubscribe("first", ["A.trade", "B.trade"])
    registry.subscribe("first", ["B.trade"])
    assert list(registry.subscribers("B.trade")) == ["second", "first"], "it came again"


EVERYTHING = "went through everything"


class Spied(dict[Any, Any]):
    """A dict that records the used keys."""

    def __init__(self, content: dict[Any, Any], used: list[Any]) -> None:
        super().__init__(content)
        self.used = used

    def __getitem__(self, key: Any) -> Any:
        self.used.append(key)
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.used.append(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self.used.append(key)
        super().__delitem__(key)

    def __contains__(self, key: object) -> bool:
        self.used.append(key)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[Any]:
        self.used.append(EVERYTHING)
        return super().__iter__()

    def get(self, key: Any, default: Any = None) -> Any:
        self.used.append(key)
        return super().get(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        self.used.append(key)
        return super().pop(key, *default)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        self.used.append(key)
        return super().setdefault(key, default)

    def keys(self) -> Any:
        self.used.append(EVERYTHING)
        return super().keys()

    def values(self) -> Any:
        self.used.append(EVERYTHING)
        return super().values()

    def items(self) -> Any:
        self.used.append(EVERYTHING)
        return super().items()

    def copy(self) -> Any:
        self.used.append(EVERYTHING)
        return super().copy()


@pytest.fixture
def crowded() -> tuple[Registry[str], list[Any], list[Any]]:
    """Many subscribers of many channels; with lists of the channels and subscribers visited."""
    registry: Registry[str] = Registry()
    for number in range(200):
        registry.subscribe(f"other{number}", ["shared.trade", f"own{number}.trade"])
    registry.subscribe("me", ["shared.trade", "own7.trade", "mine.trade"])
    channels_used: list[Any] = []
    subscribers_used: list[Any] = []
    registry._channels = Spied(registry._channels, channels_used)
    registry._subscribers = Spied(registry._subscribers, subscribers_used)
    return registry, channels_used, subscribers_used


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The channels whose subscribers are searched or changed, in order."""
    names: list[str] = []

    def spied(then: Callable[..., bool]) -> Callable[..., bool]:
        def note(channel: _Channel[str], *args: Any) -> bool:
            names.append(channel.name)
            return then(channel, *args)

        return note

    for name in ("add", "remove"):
        monkeypatch.setattr(_Channel, name, spied(getattr(_Channel, name)))
    return names


def test_a_departure_touches_only_its_own_channels(
    crowded: tuple[Registry[str], list[Any], list[Any]], changed: list[str]
) -> None:
    registry, channels_used, subscribers_used = crowded
    registry.remove("me")
    assert sorted(changed) == ["mine.trade", "own7.trade", "shared.trade"]
    assert set(channels_used) <= {"shared.trade", "own7.trade", "mine.trade"}
    assert set(subscribers_used) == {"me"}
    assert len(channels_used) + len(subscribers_used) < 20
    assert "mine.trade" not in registry._channels
    assert len(registry.subscribers("shared.trade")) == 200


def test_a_request_touches_only_the_channels_it_names(
    crowded: tuple[Registry[str], list[Any], list[Any]], changed: list[str]
) -> None:
    registry, channels_used, subscribers_used = crowded
    assert registry.unsubscribe("me", ["shared.trade", "own8.trade"]) == 2
    assert registry.subscribe("me", ["own9.trade"]) == 3
    assert changed == ["shared.trade", "own8.trade", "own9.trade"]
    assert set(channels_used) <= {"shared.trade", "own8.trade", "own9.trade"}
    assert set(subscribers_used) == {"me"}
    assert len(channels_used) + len(subscribers_used) < 20


def test_a_listener_to_gaps_stays_until_it_is_removed() -> None:
    registry: Registry[str] = Registry()
    registry.tell_of_gaps("a", True)
    registry.tell_of_gaps("b", True)
    registry.subscribe("a", ["BTC.trade"])
    registry.unsubscribe("a", ["BTC.trade"])
    assert list(registry.audience) == ["a", "b"]
    registry.remove("a")
    registry.tell_of_gaps("b", False)
    registry.tell_of_gaps("c", False)
    assert registry.audience == {}


# --- patterns


@pytest.mark.parametrize("by_pattern", [0, 1, 30, 299, 300])
def test_everyone_gets_an_event_once_however_many_names_match(by_pattern: int) -> None:
    """With few patterns the others are searched for, with many all are put together."""
    registry: Registry[int] = Registry()
    for subscriber in range(300):
        names = ["A.trade"] if subscriber % 3 else ["B.trade"]
        if subscriber < by_pattern:
            names += ["A.*"] if subscriber % 2 else ["*.trade", ">"]
        registry.subscribe(subscriber, names)
    expected = {one for one in range(300) if one % 3 or one < by_pattern}
    found = list(registry.subscribers_from("A.trade", 7))
    assert len(found) == len(set(found))
    assert set(found) == expected
    for subscriber in range(300):
        registry.unsubscribe(subscriber, ["A.trade"])
    found = list(registry.subscribers_from("A.trade", 8))
    assert sorted(found) == list(range(by_pattern))
    for subscriber in range(300):
        registry.remove(subscriber)
    assert not registry.subscribers_from("A.trade", 9)
    assert not registry._patterns


def test_what_is_held_back_under_one_name_comes_under_another() -> None:
    registry: Registry[str] = Registry()
    registry.subscribe("back", ["A.*"])
    registry.hold_back("back", ["A.*"], 10)
    registry.subscribe("live", ["A.trade"])
    assert list(registry.subscribers_from("A.trade", 10)) == ["live"]
    assert set(registry.subscribers_from("A.trade", 11)) == {"back", "live"}
    registry.hold_back("back", ["A.*"], 20)
    registry.subscribe("back", ["*.trade"])
    assert set(registry.subscribers_from("A.trade", 15)) == {"back", "live"}
    assert list(registry.subscribers_from("A.social", 15)) == []


def _add(registry: Registry[str], channel: str, offset: int) -> None:
    message = NatsMessage(f"odin.token.{channel}", b"%d" % offset, offset, 0.0, offset)
    if registry.rates.wants(channel):
        registry.rates.add(channel, message, None)


def _owed(registry: Registry[str], subscriber: str) -> list[int]:
    """The offsets of what waits for a tick."""
    batch = registry.rates.owed(subscriber)
    assert batch is not None
    (content,) = objects_of([batch.frame(1)])
    return [event["offset"] for event in content["events"]]


def test_what_is_held_back_under_one_name_comes_under_another_at_a_rate() -> None:
    """The client resumes its rates one by one, and has come further at that of the pattern."""
    registry: Registry[str] = Registry()
    registry.set_rate("back", ["A.trade"], 100)
    registry.set_rate("back", [">"], 250)
    registry.hold_back("back", [">"], 10)
    _add(registry, "A.trade", 9)
    _add(registry, "A.social", 10)
    assert _owed(registry, "back") == [9]
    registry.set_rate("one", ["A.trade", "A.*"], 100)
    registry.hold_back("one", ["A.*"], 20)
    _add(registry, "A.trade", 15)
    assert _owed(registry, "one") == [15]


def test_what_is_held_back_stays_so_when_the_rate_changes() -> None:
    registry: Registry[str] = Registry()
    registry.subscribe("it", ["A.trade"])
    registry.hold_back("it", ["A.trade"], 10)
    for rate in (100, None, 250):
        registry.set_rate("it", ["A.trade"], rate)
    _add(registry, "A.trade", 8)
    assert registry.rates.owed("it") is None
    assert registry.set_rate("it", ["A.trade"], EVERY_EVENT) is None
    registry.subscribe("it", ["A.trade"])
    assert list(registry.subscribers_from("A.trade", 9)) == []
    registry.set_rate("it", ["A.trade"], 250)
    _add(registry, "A.trade", 10)
    assert registry.rates.owed("it") is None
    _add(registry, "A.trade", 11)
    assert _owed(registry, "it") == [11]
    registry.unsubscribe("it", ["A.trade"])
    registry.set_rate("it", ["A.trade"], 250)
    _add(registry, "A.trade", 10)
    assert _owed(registry, "it") == [10], "it was dropped meanwhile"
