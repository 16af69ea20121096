from __future__ import annotations

import json
from collections import Counter
from typing import NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from tests.connection.client import objects_of
from trio_odin.fanout.missed import Most, Wanted, missed
from trio_odin.fanout.newest import NewestEvents
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.resume_buffer import ResumeBuffer
from trio_odin.ledger.reasons import GapReason
from trio_odin.upstream.gaps import Gap, Mark
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.channels import ChannelSet

CHANNELS = ["BTC.trade", "ETH.trade", "SOL.trade"]


def message(offset: int | None, arrived_at: float = 0.0, payload: bytes = b"1") -> NatsMessage:
    return NatsMessage("odin.token.BTC.trade", payload, offset, arrived_at, unix_ms=7)


def entered(reached: int = 0, backfill_end: int = 0, **options: float) -> ResumeBuffer:
    """A buffer that knows its position."""
    resume_buffer = ResumeBuffer(max_age_seconds=30.0, **options)  # type: ignore[arg-type]
    resume_buffer.note(Mark("e", reached, backfill_end))
    return resume_buffer


def filled(offsets: range, **options: float) -> ResumeBuffer:
    resume_buffer = ResumeBuffer(max_age_seconds=30.0, **options)  # type: ignore[arg-type]
    resume_buffer.note(Mark("e", offsets.start - 1))
    for offset in offsets:
        resume_buffer.add(message(offset, payload=b"%d" % offset), "BTC.trade")
    return resume_buffer


class Answer(NamedTuple):
    publications: list[Publication]
    is_complete: bool


def after(
    resume_buffer: ResumeBuffer, offset: int, *channels: str, of_each: int = 100, in_all: int = 100
) -> Answer:
    """What a client has missed, where nothing is known of the newest events."""
    wanted = Wanted(ChannelSet(channels or CHANNELS), ChannelSet([]))
    nothing = NewestEvents(channels_max=0, max_bytes=0)
    most = Most(of_each, in_all, 1000)
    publications, incomplete = missed(offset, wanted, resume_buffer, nothing, most)
    return Answer(publications, not incomplete)


def offsets_of(publications: list[Publication]) -> list[int]:
    return [content["offset"] for content in objects_of(one.frame(1) for one in publications)]


@given(
    kept=st.integers(1, 8),
    events=st.lists(st.sampled_from(CHANNELS), max_size=20),
    asked=st.integers(0, 25),
    wanted=st.sets(st.sampled_from(CHANNELS), min_size=1),
    of_each=st.integers(1, 5),
    in_all=st.integers(1, 10),
)
@example(kept=1, events=[], asked=0, wanted={"BTC.trade"}, of_each=1, in_all=1)
def test_missed_events_equal_a_model_or_are_reported_incomplete(
    kept: int, events: list[str], asked: int, wanted: set[str], of_each: int, in_all: int
) -> None:
    resume_buffer = entered(capacity=kept)
    for offset, channel in enumerate(events, start=1):
        resume_buffer.add(message(offset), channel)
    truth = [n for n, channel in enumerate(events, start=1) if n > asked and channel in wanted]
    answer = after(resume_buffer, asked, *wanted, of_each=of_each, in_all=in_all)
    got = offsets_of(answer.publications)
    assert got == sorted(got)
    if answer.is_complete:
        assert got == truth
    else:
        assert set(got) < set(truth) or asked < len(events) - kept
    counts = Counter(events[offset - 1] for offset in got)
    assert all(count <= of_each for count in counts.values())
    # The newest one of each channel always comes, even if others have taken all the room.
    assert len(got) < in_all + max(1, len(counts))
    for channel in wanted:
        theirs = [n for n in truth if events[n - 1] == channel and n > len(events) - kept]
        ours = [n for n in got if events[n - 1] == channel]
        assert ours == theirs[len(theirs) - len(ours) :], "the newest ones"
        assert ours or not theirs, "at least one of each"


def test_the_originals_come_again_byte_for_byte() -> None:
    resume_buffer = entered(4)
    event = resume_buffer.add(message(5), "BTC.trade")
    assert event is not None
    publication = event.content = Publication("BTC.trade", b'{"price":1}', offset=5, unix_ms=1)
    assert after(resume_buffer, 4).publications == [publication]


def test_an_event_without_subscribers_is_framed_once_when_resumed() -> None:
    resume_buffer = filled(range(1, 3))
    first, again = after(resume_buffer, 1), after(resume_buffer, 1)
    assert first.publications[0] is again.publications[0]
    (content,) = objects_of(one.frame(9) for one in first.publications)
    assert (content["seq"], content["ts"], content["data"]) == (9, 7, 2)


def test_a_gap_forgets_the_events_before_it() -> None:
    resume_buffer = filled(range(1, 5))
    resume_buffer.note(Mark("e", 6, 0, (Gap(GapReason.WINDOW, 2, 5, 6),)))
    assert resume_buffer.position == 6
    assert after(resume_buffer, 4) == Answer([], is_complete=False)
    resume_buffer.add(message(7), "BTC.trade")
    assert offsets_of(after(resume_buffer, 6).publications) == [7]
    assert after(resume_buffer, 6).is_complete


def test_a_loss_in_the_backfill_is_incomplete_but_forgets_nothing() -> None:
    resume_buffer = entered(0, backfill_end=9, capacity=6)
    for offset in (1, 2, 3):
        resume_buffer.add(message(offset), "BTC.trade")
    resume_buffer.note(Mark("e", 6, backfill_end=9, is_broken=True))
    for offset in (7, 8, 9):
        resume_buffer.add(message(offset), "BTC.trade")
    assert resume_buffer.is_settled
    assert after(resume_buffer, 6).is_complete
    answer = after(resume_buffer, 1)
    assert offsets_of(answer.publications) == [2, 3, 7, 8, 9]
    assert not answer.is_complete
    resume_buffer.add(message(10), "BTC.trade")
    assert not after(resume_buffer, 5).is_complete, "also once the oldest one is forgotten"
    assert after(resume_buffer, 6).is_complete


def test_an_expired_event_is_forgotten_when_the_next_one_comes() -> None:
    resume_buffer = entered()
    for offset, arrived_at in [(1, 0.0), (2, 10.0), (3, 35.0)]:
        resume_buffer.add(message(offset, arrived_at), "BTC.trade")
    assert offsets_of(after(resume_buffer, 1).publications) == [2, 3]
    assert after(resume_buffer, 1).is_complete
    assert not after(resume_buffer, 0).is_complete


def test_without_knowledge_nothing_is_complete() -> None:
    resume_buffer = ResumeBuffer(max_age_seconds=30.0)
    assert resume_buffer.position is None
    assert not after(resume_buffer, 0).is_complete


def test_a_stream_made_anew_changes_epoch_and_position_in_one_step() -> None:
    resume_buffer = filled(range(1, 101))
    assert (resume_buffer.epoch, resume_buffer.position) == ("e", 100)
    resume_buffer.note(Mark("f", 0, 0, (Gap(GapReason.STREAM),)))
    assert (resume_buffer.epoch, resume_buffer.position) == ("f", 0)
    assert after(resume_buffer, 0) == Answer([], is_complete=True), "nothing of the old one"


def test_an_empty_stream_is_complete_from_its_end_on() -> None:
    resume_buffer = entered(5, backfill_end=5)
    assert resume_buffer.is_settled
    assert resume_buffer.position == 5
    assert after(resume_buffer, 5).is_complete
    assert not after(resume_buffer, 4).is_complete


def test_during_the_backfill_its_end_is_stated_and_nothing_complete() -> None:
    resume_buffer = entered(6, backfill_end=9)
    for offset in (7, 8):
        resume_buffer.add(message(offset), "BTC.trade")
        assert (resume_buffer.is_settled, resume_buffer.position) == (False, 9)
        assert not after(resume_buffer, 7).is_complete
    resume_buffer.add(message(9), "BTC.trade")
    assert resume_buffer.is_settled
    assert offsets_of(after(resume_buffer, 7).publications) == [8, 9]
    assert after(resume_buffer, 7).is_complete


def test_the_backfill_may_end_with_a_message_of_others() -> None:
    resume_buffer = entered(6, backfill_end=9)
    resume_buffer.add(message(7), "BTC.trade")
    resume_buffer.note(Mark("e", 9, 9))
    assert (resume_buffer.is_settled, resume_buffer.position) == (True, 9)
    assert offsets_of(after(resume_buffer, 6).publications) == [7], "nothing was lost"
    assert after(resume_buffer, 6).is_complete


def test_without_offsets_there_is_no_position_and_nothing_to_wait_for() -> None:
    resume_buffer = ResumeBuffer(max_age_seconds=30.0)
    resume_buffer.note(Mark(None, None))
    assert (resume_buffer.is_settled, resume_buffer.position, resume_buffer.epoch) == (
        True,
        None,
        None,
    )


def test_nothing_is_kept_without_an_offset() -> None:
    resume_buffer = ResumeBuffer(max_age_seconds=30.0)
    assert resume_buffer.add(message(None), "BTC.trade") is None
    assert after(resume_buffer, 0) == Answer([], is_complete=False)


def test_invalid_events_count_as_seen_and_are_left_out() -> None:
    resume_buffer = filled(range(1, 2))
    resume_buffer.add(message(2), None)
    resume_buffer.add(message(3, payload=b"{"), None)
    resume_buffer.add(message(4, payload=json.dumps("last").encode()), "BTC.trade")
    answer = after(resume_buffer, 1)
    assert offsets_of(answer.publications) == [4]
    assert answer.is_complete


def test_foreign_messages_between_events_are_not_a_hole() -> None:
    resume_buffer = filled(range(1, 4))
    resume_buffer.add(message(9, payload=b"9"), "BTC.trade")
    assert offsets_of(after(resume_buffer, 2).publications) == [3, 9]
    assert after(resume_buffer, 2).is_complete


def test_the_buffer_is_bounded_in_bytes() -> None:
    resume_buffer = entered(max_bytes=250)
    for offset in range(1, 8):
        resume_buffer.add(message(offset, payload=b"1" * 100), "BTC.trade")
    assert offsets_of(after(resume_buffer, 5).publications) == [6, 7]
    assert not after(resume_buffer, 4).is_complete


def test_while_the_backfill_is_read_nothing_is_complete() -> None:
    """What is still to come may be of a channel that nobody knows yet."""
    resume_buffer = entered(reached=5, backfill_end=9)
    newest_events = NewestEvents(channels_max=10, max_bytes=100)
    newest_events.forget_all(5)
    for names in (["BTC.*"], ["BTC.trade"], [">"]):
        wanted = Wanted(ChannelSet(names), ChannelSet([]))
        result = missed(6, wanted, resume_buffer, newest_events, Most(9, 9, 9))
        assert result.incomplete == names
    resume_buffer.add(message(9), "ETH.trade")
    wanted = Wanted(ChannelSet(["BTC.*"]), ChannelSet([]))
    assert missed(6, wanted, resume_buffer, newest_events, Most(9, 9, 9)).incomplete == []
