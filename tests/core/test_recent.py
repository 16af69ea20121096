from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.core.client import objects_of
from trio_odin.core.publication import NatsMessage, Publication
from trio_odin.core.recent import Missed, Recent

CHANNELS = ["BTC.trade", "ETH.trade", "SOL.trade"]


def message(offset: int | None, arrived_at: float = 0.0, payload: bytes = b"1") -> NatsMessage:
    return NatsMessage("odin.token.BTC.trade", payload, offset, arrived_at)


def filled(offsets: range, **options: float) -> Recent:
    recent = Recent(max_age_seconds=30.0, **options)  # type: ignore[arg-type]
    for offset in offsets:
        recent.add(message(offset, payload=b"%d" % offset), "BTC.trade")
    return recent


def after(recent: Recent, offset: int, *channels: str, at_most: int = 100) -> Missed:
    return recent.after(offset, channels or CHANNELS, at_most=at_most, unix_ms=7)


def offsets_of(publications: list[Publication]) -> list[int]:
    return [content["offset"] for content in objects_of(one.frame(1) for one in publications)]


@given(
    kept=st.integers(1, 8),
    events=st.lists(st.sampled_from(CHANNELS), max_size=20),
    asked=st.integers(0, 25),
    wanted=st.sets(st.sampled_from(CHANNELS)),
    at_most=st.integers(0, 10),
)
@example(kept=1, events=[], asked=0, wanted={"BTC.trade"}, at_most=1)
def test_what_was_missed_is_what_a_list_of_everything_says_or_it_is_said_to_be_incomplete(
    kept: int, events: list[str], asked: int, wanted: set[str], at_most: int
) -> None:
    recent = Recent(max_age_seconds=30.0, capacity=kept)
    for offset, channel in enumerate(events, start=1):
        recent.add(message(offset), channel)
    truth = [n for n, channel in enumerate(events, start=1) if n > asked and channel in wanted]
    missed = after(recent, asked, *wanted, at_most=at_most) if wanted else Missed([], True)
    got = offsets_of(missed.publications)
    if missed.is_complete:
        assert got == truth
    else:
        assert got == truth[len(truth) - len(got) :]
        assert len(got) == at_most or asked < len(events) - kept or asked >= len(events)


def test_the_originals_come_again_byte_for_byte() -> None:
    recent = Recent(max_age_seconds=30.0)
    event = recent.add(message(5), "BTC.trade")
    assert event is not None
    publication = event.content = Publication("BTC.trade", b'{"price":1}', offset=5, unix_ms=1)
    assert after(recent, 4).publications == [publication]


def test_an_event_that_nobody_wanted_when_it_came_is_made_once() -> None:
    recent = filled(range(1, 3))
    first, again = after(recent, 1), after(recent, 1)
    assert first.publications[0] is again.publications[0]
    (content,) = objects_of(one.frame(9) for one in first.publications)
    assert (content["seq"], content["ts"], content["data"]) == (9, 7, 2)


def test_a_hole_forgets_what_was_before_it() -> None:
    recent = filled(range(1, 5))
    recent.add(message(7), "BTC.trade")
    assert after(recent, 4) == Missed(after(recent, 6).publications, is_complete=False)
    assert after(recent, 6).is_complete


def test_what_is_too_old_is_forgotten_when_the_next_one_comes() -> None:
    recent = Recent(max_age_seconds=30.0)
    for offset, arrived_at in [(1, 0.0), (2, 10.0), (3, 35.0)]:
        recent.add(message(offset, arrived_at), "BTC.trade")
    assert offsets_of(after(recent, 1).publications) == [2, 3]
    assert after(recent, 1).is_complete
    assert not after(recent, 0).is_complete


@pytest.mark.parametrize("asked", [0, 4, 10**30])
def test_an_offset_that_was_not_seen_yet_is_of_another_stream(asked: int) -> None:
    assert not after(Recent(max_age_seconds=30.0), asked).is_complete
    recent = filled(range(1, 4))
    assert after(recent, asked).is_complete == (asked == 0)


def test_nothing_is_kept_without_an_offset() -> None:
    recent = Recent(max_age_seconds=30.0)
    assert recent.add(message(None), "BTC.trade") is None
    assert after(recent, 0) == Missed([], is_complete=False)


def test_what_belongs_to_no_channel_or_is_no_json_counts_as_seen_and_is_left_out() -> None:
    recent = filled(range(1, 2))
    recent.add(message(2), None)
    recent.add(message(3, payload=b"{"), "BTC.trade")
    recent.add(message(4, payload=json.dumps("last").encode()), "BTC.trade")
    missed = after(recent, 1)
    assert offsets_of(missed.publications) == [4]
    assert missed.is_complete


def test_messages_of_others_between_ours_are_no_hole() -> None:
    recent = filled(range(1, 4))
    recent.add(NatsMessage("odin.token.BTC.trade", b"9", 9, 0.0, before=3), "BTC.trade")
    assert offsets_of(after(recent, 2).publications) == [3, 9]
    assert after(recent, 2).is_complete


def test_what_is_kept_is_bounded_in_bytes_too() -> None:
    recent = Recent(max_age_seconds=30.0, max_bytes=250)
    for offset in range(1, 8):
        recent.add(message(offset, payload=b"1" * 100), "BTC.trade")
    assert offsets_of(after(recent, 5).publications) == [6, 7]
    assert not after(recent, 4).is_complete
