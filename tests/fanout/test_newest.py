from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.connection.client import objects_of
from trio_odin.fanout.newest import UNKNOWN, NewestEvents
from trio_odin.ledger.reasons import GapReason
from trio_odin.upstream.gaps import Gap, Mark
from trio_odin.upstream.nats_message import NatsMessage

CHANNELS = ["A.trade", "A.social", "B.trade", "B-1.trade", "C.social"]


def message(channel: str, offset: int | None, size: int = 1) -> NatsMessage:
    payload = b"1" * size
    return NatsMessage(f"odin.token.{channel}", payload, offset, 0.0, unix_ms=offset or 0)


class NewestAgainstADict(RuleBasedStateMachine):
    """The model: the last event of each channel, in order of their offsets, the last few of it."""

    @initialize(most=st.integers(1, 4), max_bytes=st.integers(1, 12))
    def start(self, most: int, max_bytes: int) -> None:
        self.most, self.max_bytes = most, max_bytes
        self.newest = NewestEvents(channels_max=most, max_bytes=max_bytes)
        self.model: dict[str, tuple[int, int]] = {}
        self.offset = self.dropped = 0

    @rule(channel=st.sampled_from(CHANNELS), size=st.integers(1, 5))
    def publish(self, channel: str, size: int) -> None:
        self.offset += 1
        self.newest.add(channel, message(channel, self.offset, size))
        self.model.pop(channel, None)
        self.model[channel] = (self.offset, size)
        if size > self.max_bytes:
            self.drop(channel)
        while len(self.model) > self.most or self.bytes > self.max_bytes:
            self.drop(next(iter(self.model)))

    def drop(self, channel: str) -> None:
        self.dropped = max(self.dropped, self.model.pop(channel)[0])

    @rule(channel=st.sampled_from(CHANNELS), back=st.integers(1, 5))
    def an_older_one_is_found(self, channel: str, back: int) -> None:
        offset = self.offset - back
        if offset < 1 or any(offset == one for one, _ in self.model.values()):
            return
        self.newest.add_older(channel, message(channel, offset))
        self.newest.sort()
        if offset > self.model.get(channel, (offset, 0))[0]:
            self.model[channel] = (offset, 1)
            self.model = dict(sorted(self.model.items(), key=lambda item: item[1][0]))
        elif channel not in self.model:
            if len(self.model) < self.most and self.bytes < self.max_bytes:
                self.model[channel] = (offset, 1)
                self.model = dict(sorted(self.model.items(), key=lambda item: item[1][0]))
            else:
                self.dropped = max(self.dropped, offset)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.model.values())

    @invariant()
    def both_have_the_same(self) -> None:
        assert len(self.newest) == len(self.model)
        assert self.newest.used_bytes == self.bytes
        assert self.newest.known_after == self.dropped
        for channel in CHANNELS:
            event = self.newest.get(channel)
            assert (event.offset if event else None) == self.model.get(channel, (None,))[0]

    @invariant()
    def patterns_and_prefixes_find_the_same_as_a_scan(self) -> None:
        for name in [*CHANNELS, "A.*", "A.>", "B.*", "*.trade", "*.social", "*.*", "*.>", ">"]:
            symbol, _, event_type = name.partition(".")
            expected = {
                channel
                for channel in self.model
                if (symbol in {"*", ">"} or channel.startswith(f"{symbol}."))
                and (event_type in {"", "*", ">"} or channel.endswith(f".{event_type}"))
            }
            assert set(self.newest.matching(name)) == expected
        for prefix in ["", "A", "A.", "B", "B.t", "Z"]:
            expected_names = sorted(one for one in self.model if one.startswith(prefix))
            assert list(self.newest.names(prefix)) == expected_names
            for after in CHANNELS:
                later = [one for one in expected_names if one > after]
                assert list(self.newest.names(prefix, after=after)) == later


TestNewestAgainstADict = NewestAgainstADict.TestCase
TestNewestAgainstADict.settings = settings(max_examples=60, stateful_step_count=20)


def test_a_snapshot_is_made_once_and_says_that_it_is_one() -> None:
    newest = NewestEvents(channels_max=10, max_bytes=1000)
    newest.add("A.trade", message("A.trade", 7), prev=3)
    event = newest.get("A.trade")
    assert event is not None
    assert event.snapshot() is event.snapshot()
    (first, as_published) = objects_of([event.snapshot().frame(1), event.publication().frame(2)])
    assert (first["offset"], first["prev"], first["snapshot"]) == (7, 3, True)
    assert (as_published["offset"], as_published["prev"]) == (7, 3)
    assert "snapshot" not in as_published


@given(st.integers(0, 5))
def test_what_was_lost_may_have_been_the_newest(reached: int) -> None:
    newest = NewestEvents(channels_max=10, max_bytes=1000)
    newest.forget_all(2)
    newest.note_known(3, 1)
    assert newest.known_after == 1
    newest.note(Mark("e", reached, gaps=(Gap(GapReason.SHED, 1, reached, reached),)))
    assert newest.known_after == max(reached, 1)
    newest.note_known(3, 1)
    assert newest.known_after == (1 if reached <= 3 else reached)


def test_without_room_for_any_nothing_is_known() -> None:
    newest = NewestEvents(channels_max=0, max_bytes=1000)
    newest.add("A.trade", message("A.trade", 7))
    newest.note_known(7, 0)
    newest.forget_all(0)
    assert (len(newest), newest.known_after) == (0, UNKNOWN)


def test_an_event_larger_than_all_room_takes_the_older_one_away() -> None:
    newest = NewestEvents(channels_max=10, max_bytes=10)
    newest.add("B.trade", message("B.trade", 1))
    newest.add("A.trade", message("A.trade", 2))
    newest.add("A.trade", message("A.trade", 3, size=11))
    assert newest.get("A.trade") is None, "an old price would be shown as the newest"
    assert newest.get("B.trade") is not None, "the others stay"
    assert newest.known_after == 3


def test_what_is_found_later_may_be_newer_than_what_was_found_before() -> None:
    newest = NewestEvents(channels_max=1, max_bytes=10)
    for offset in (7, 8, 6):
        newest.add_older("A.trade", message("A.trade", offset))
    event = newest.get("A.trade")
    assert event is not None
    assert event.offset == 8
    assert newest.known_after == 0


def test_without_offsets_the_last_one_that_came_counts() -> None:
    newest = NewestEvents(channels_max=10, max_bytes=1000)
    newest.add("A.trade", message("A.trade", None))
    newest.add("A.trade", NatsMessage("odin.token.A.trade", b"22", None, 0.0, 5))
    event = newest.get("A.trade")
    assert event is not None
    assert (event.size, event.unix_ms) == (2, 5)
