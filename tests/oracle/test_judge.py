"""The judge finds violations: made-up lives of a client, each with one fault."""

from __future__ import annotations

from typing import Any

import pytest

from tests.oracle.judge import (
    Began,
    Broke,
    Entry,
    Event,
    Gap,
    Incomplete,
    Left,
    Opened,
    Paused,
    Resumed,
    Resuming,
    Stated,
    Verdict,
    judge,
)
from tests.oracle.truth import Evidence, Sent, Truth

A, B = "A.b", "B.b"
_ALL = frozenset({A, B})
# Ten events in the first life of the stream, of A, B, A, B …, and ten in the second.
_PER_LIFE = 10


def _channel(number: int) -> str:
    return A if number % 2 else B


def _truth() -> Truth:
    evidence = Evidence()
    for number in range(1, 2 * _PER_LIFE + 1):
        second, offset = divmod(number - 1, _PER_LIFE)
        evidence.sent[number] = Sent(_channel(number), f'{{"n":{number}}}', number * 100)
        evidence.saw(number, offset + 1, number * 100)
        evidence.epochs["two" if second else "one"].add(number)
    return Truth(evidence)


class Life:
    """Writes a journal. Each entry is 1 ms after the previous one, unless it has a time."""

    def __init__(self) -> None:
        self.journal: list[Entry] = []
        self.now_ms = 100_000.0
        self._seq = 0

    def open(self, epoch: str | None = None, offset: int | None = None, **more: Any) -> Life:
        self._seq = 0
        return self.add(Opened, **{"channels": _ALL, "epoch": epoch, "offset": offset} | more)

    def fresh(self, offset: int = 0, epoch: str = "one") -> Life:
        """A first connection, acknowledged at an offset."""
        self.open()
        return self.add(Began, channels=_ALL, epoch=epoch, offset=offset)

    def got(self, *numbers: int, **changes: Any) -> Life:
        for number in numbers:
            self._seq += 1
            second, offset = divmod(number - 1, _PER_LIFE)
            content = {
                "epoch": "two" if second else "one",
                "channel": _channel(number),
                "number": number,
                "offset": offset + 1,
                "stored_ms": number * 100,
                "payload": f'{{"n":{number}}}',
                "seq": self._seq,
            }
            self.add(Event, **(content | changes))
        return self

    def batch(self, *events: tuple[int, int | None]) -> Life:
        """A tick, with the number of each event and how many it skipped."""
        to = (events[-1][0] - 1) % _PER_LIFE + 1
        for number, skipped in events:
            self.got(number, skipped=skipped, batch_to=to, seq=self._seq + 1)
            self._seq -= 1
        self._seq += 1
        return self

    def resumes(self, channel: str, offset: int) -> Life:
        """A command that resumes one channel at a rate."""
        return self.add(
            Resuming, channels=frozenset({channel}), epoch="one", offset=offset, at_a_rate=True
        )

    def pauses(self, channel: str, *, is_over: bool = False) -> Life:
        return self.add(Paused, channels=frozenset({channel}), is_over=is_over)

    def incomplete(self) -> Life:
        return self.add(Incomplete, channels=_ALL)

    def stated(self, offset: int, epoch: str = "one") -> Life:
        return self.add(Stated, epoch=epoch, offset=offset)

    def gap(
        self, reason: str, first: int | None, last: int | None, epoch: str | None = "one"
    ) -> Life:
        return self.add(Gap, reason=reason, first=first, last=last, epoch=epoch)

    def resumed(
        self, offset: int | None, epoch: str | None = "one", channels: str | None = None
    ) -> Life:
        of = None if channels is None else frozenset({channels})
        return self.add(Resumed, epoch=epoch, offset=offset, channels=of)

    def wait(self, ms: float) -> Life:
        self.now_ms += ms
        return self

    def broke(self) -> Life:
        return self.add(Broke)

    def left(self, channel: str, *, is_acknowledged: bool) -> Life:
        return self.add(Left, channels=frozenset({channel}), is_acknowledged=is_acknowledged)

    def add(self, kind: type[Entry], **content: Any) -> Life:
        self.now_ms += 1
        self.journal.append(kind(at_ms=self.now_ms, **content))
        return self

    def verdict(self) -> Verdict:
        return judge("it", self.journal, _truth())

    def findings(self) -> list[str]:
        """The kinds of findings without missing events, as most lives here end early."""
        found = [finding.kind for finding in self.verdict().findings]
        return [kind for kind in found if kind != "never came"]


_ONE = range(1, _PER_LIFE + 1)
_TWO = range(_PER_LIFE + 1, 2 * _PER_LIFE + 1)


def test_all_events_once_are_correct() -> None:
    life = Life().fresh().got(*_ONE).stated(10).gap("stream", None, None, "two").got(*_TWO)
    verdict = life.verdict()
    assert verdict.findings == []
    assert (verdict.delivered, verdict.declared) == (20, 0)


def test_events_before_the_acknowledgement_are_not_owed() -> None:
    assert Life().fresh(offset=3).got(4, 5, 6).findings() == []


def test_a_missing_event_is_a_silent_loss() -> None:
    assert Life().fresh().got(1, 2, 5).findings() == ["silent loss"]


def test_a_position_past_a_missing_event_is_a_silent_loss() -> None:
    assert Life().fresh().got(1, 2).stated(3).findings() == ["silent loss"]
    assert Life().fresh().got(1, 2).stated(2).findings() == []


def test_events_that_are_missing_at_the_end_are_found() -> None:
    verdict = Life().fresh().got(*_ONE).gap("stream", None, None, "two").got(*_TWO[:-1]).verdict()
    assert [(one.kind, one.detail) for one in verdict.findings] == [
        ("never came", "B.b: #20 at 10 of life 1")
    ]


def test_an_event_that_comes_twice_is_a_repeat() -> None:
    assert Life().fresh().got(1, 2, 1).findings() == ["repeat"]


def test_an_event_after_a_later_one_of_its_channel_is_found() -> None:
    assert Life().fresh().got(3, 1).findings() == ["silent loss", "reorder"]
    assert Life().fresh().got(2, 1).findings() == [], "the order of channels is free"


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(3, 3, []), (1, 3, []), (2, 2, ["silent loss"]), (4, 9, ["silent loss"]), (None, 3, [])],
)
def test_a_gap_declares_the_events_in_it(first: int | None, last: int, expected: list[str]) -> None:
    life = Life().fresh().got(1, 2).gap("window", first, last).wait(5000).got(5)
    assert life.findings() == expected
    assert expected or life.verdict().declared == 1


def test_a_gap_of_another_epoch_declares_nothing_of_this_one() -> None:
    life = Life().fresh().got(1, 2).gap("window", 3, 3, "two").wait(5000).got(5)
    assert life.findings() == ["silent loss"]


def _truth_of_two_lives_in_an_epoch() -> Truth:
    """Two events in the first life, three in the second, all of channel A; both are epoch one."""
    evidence = Evidence()
    for number, (offset, ms) in enumerate([(1, 10), (2, 20), (1, 30), (2, 40), (3, 50)], start=1):
        evidence.sent[number] = Sent(A, f'{{"n":{number}}}', ms)
        evidence.saw(number, offset, ms)
    evidence.epochs["one"] = {1, 5}
    return Truth(evidence)


def test_a_gap_declares_its_numbers_in_each_life_of_its_epoch() -> None:
    life = Life()
    life.now_ms = 15
    life.fresh().got(1, channel=A, stored_ms=10)
    life.now_ms = 55  # long after the first life
    life.stated(1).gap("window", 1, 2).got(5, channel=A, stored_ms=50, offset=3)
    assert judge("it", life.journal, _truth_of_two_lives_in_an_epoch()).findings == []


def test_a_stream_that_was_emptied_unnoticed_is_a_silent_loss() -> None:
    life = Life()
    life.now_ms = 15
    life.fresh().got(1, channel=A, stored_ms=10)
    life.now_ms = 55
    life.stated(1).got(5, channel=A, stored_ms=50, offset=3)
    verdict = judge("it", life.journal, _truth_of_two_lives_in_an_epoch())
    kinds = [finding.kind for finding in verdict.findings]
    assert kinds == ["unannounced", *["silent loss"] * 3]


def test_a_gap_without_numbers_declares_up_to_the_next_event() -> None:
    life = Life().fresh().got(1).gap("shed", None, None).got(6)
    assert life.findings() == []
    assert life.verdict().declared == 4
    assert life.wait(5000).got(9).findings() == ["silent loss"]


def test_a_gap_without_numbers_declares_up_to_the_next_position() -> None:
    life = Life().fresh().got(1).gap("shed", None, None).stated(4)
    assert life.findings() == []
    assert life.wait(5000).got(7, 8).findings() == ["silent loss"] * 2


def test_a_loss_in_the_second_after_a_notice_may_come_in_the_next() -> None:
    told = Life().fresh().gap("window", 1, 1).got(2, 5)
    assert told.wait(900).gap("window", 3, 3).findings() == []
    not_told = Life().fresh().gap("window", 1, 1).got(2, 5)
    assert not_told.wait(900).gap("window", 4, 4).wait(5000).stated(5).findings() == ["silent loss"]


def test_a_loss_of_the_last_second_may_stay_undeclared_at_a_break() -> None:
    life = Life().fresh().gap("window", 1, 1).got(2, 5)
    assert life.wait(500).broke().open("one", 5).resumed(5).findings() == []
    late = Life().fresh().gap("window", 1, 1).got(2, 5)
    assert late.wait(5000).broke().findings() == ["silent loss"]


def test_without_a_notice_there_is_no_such_second() -> None:
    assert Life().fresh().got(1, 2, 5).broke().findings() == ["silent loss"]


def test_the_gap_of_a_new_stream_declares_only_the_old_stream() -> None:
    life = Life().fresh().got(1).gap("stream", None, None, "two").wait(5000).got(11, 12)
    assert life.findings() == []
    assert life.verdict().declared == 9
    assert life.got(15).findings() == ["silent loss"]


def test_events_of_a_new_stream_without_its_gap_are_a_silent_loss() -> None:
    assert Life().fresh().got(*_ONE[:8], 11).findings() == ["silent loss"]


def test_a_gap_start_declares_up_to_its_end() -> None:
    life = Life().open()
    life.now_ms = 350  # the events up to 3 are in the stream
    life.add(Began, channels=_ALL, epoch=None, offset=None)
    life.now_ms = 850
    assert life.gap("start", None, 8).got(9, 10).findings() == []
    assert life.verdict().declared == 5


def test_a_start_without_its_gap_is_a_silent_loss() -> None:
    life = Life().open()
    life.now_ms = 350
    life.add(Began, channels=_ALL, epoch=None, offset=None)
    life.now_ms = 850
    assert life.got(9, 10).findings() == ["silent loss"] * 5


def test_a_channel_without_a_position_is_owed_from_its_resume_on() -> None:
    life = Life().add(Opened, channels=frozenset({A}), epoch="one", offset=2)
    life.incomplete().resumed(None, None)
    life.now_ms = 950
    life.add(Began, channels=frozenset({B}), epoch=None, offset=None).broke()
    life.open("one", 2).got(3, 4, 5, 6).resumed(6)
    assert life.findings() == []


def test_a_server_that_lags_may_send_up_to_the_position() -> None:
    life = Life().add(Opened, channels=frozenset({A}), epoch="one", offset=6).resumed(6)
    life.add(Began, channels=frozenset({B}), epoch="one", offset=6, behind_at=2)
    assert life.got(4, 8).findings() == []
    assert life.broke().open("one", 8).got(6).findings() == ["reorder"]


def test_a_server_that_lags_by_a_stream_sends_it_from_its_start() -> None:
    life = Life().add(Opened, channels=_ALL, epoch="one", offset=6).incomplete()
    life.resumed(4, "two").got(15).broke().open("two", 5).incomplete().resumed(8, "one")
    life.gap("stream", None, None, "two").got(11, 12, 13, 14).got(15, is_ignored=True).got(16, 17)
    assert life.findings() == []
    assert life.got(13).findings() == ["repeat"]


def test_an_event_twice_on_a_connection_is_a_repeat_even_if_ignored() -> None:
    life = Life().fresh().got(1, 2).broke().open("one", 0).got(1, 2, is_ignored=True)
    assert life.findings() == []
    assert life.got(2, is_ignored=True).findings() == ["repeat"]


def test_events_of_a_new_stream_need_a_declaration_before_them() -> None:
    life = Life().fresh().got(*_ONE).got(11, 12, epoch="one")
    assert life.findings() == ["unannounced"]
    life = Life().fresh().got(*_ONE).gap("window", 1, 2).got(13, 14, epoch="one")
    assert "unannounced" not in life.findings(), "it was emptied beyond recognition"
    life = Life().fresh().got(*_ONE).broke().open("one", 10).incomplete().resumed(0, "two")
    assert life.got(11, 12).findings() == []


@pytest.mark.parametrize(("offset", "needless"), [(6, 1), (None, 0)])
def test_an_incomplete_resume_of_a_short_absence_is_needless(
    offset: int | None, needless: int
) -> None:
    life = Life().fresh().got(1, 2).broke()
    life.now_ms = 1100
    life.open("one", 2).got(3).incomplete().resumed(offset)
    assert life.verdict().needless == needless
    life.broke().wait(60_000).open("one", 6).incomplete().resumed(8)
    assert life.verdict().needless == needless


def test_a_complete_resume_has_all_events() -> None:
    life = Life().fresh().got(1, 2).broke().open("one", 2)
    assert life.got(3, 4, 5).resumed(5).findings() == []
    life = Life().fresh().got(1, 2).broke().open("one", 2)
    assert life.got(5).resumed(5).findings() == ["silent loss"] * 2, "3, and 4 by the position"


def test_an_incomplete_resume_declares_up_to_its_position() -> None:
    life = Life().fresh().got(1, 2).broke().open("one", 2)
    life.got(5).incomplete().resumed(6)
    assert life.findings() == []
    assert life.verdict().declared == 3
    assert life.got(9).findings() == ["silent loss"], "7, and it is over"


def test_a_declaration_in_a_broken_resume_does_not_count() -> None:
    life = Life().fresh().got(1, 2).broke().open("one", 2)
    life.got(5).incomplete().broke().open("one", 2)
    assert life.got(6).resumed(6).findings() == ["silent loss"] * 2


def test_the_events_of_a_broken_resume_are_not_owed_again() -> None:
    life = Life().fresh().got(1, 2).broke().open("one", 2).got(3, 4).broke().open("one", 2)
    life.got(3, 4, is_ignored=True).got(5, 6).resumed(6)
    assert life.findings() == []
    assert life.verdict().ignored == 2


def test_an_event_that_was_ignored_but_never_taken_is_a_silent_loss() -> None:
    life = Life().fresh().got(1, 2).broke().open("one", 2).got(5).broke().open("one", 2)
    assert life.got(3, is_ignored=True).got(4).resumed(5).findings() == ["silent loss"]


def test_a_resume_into_another_epoch_declares_everything_between() -> None:
    life = Life().fresh().got(1, 2).broke().open("one", 2)
    life.got(15).incomplete().resumed(5, "two")
    assert life.findings() == []
    assert life.verdict().declared == 12


def test_a_resume_without_a_position_declares_up_to_the_next_event() -> None:
    life = Life().fresh().got(1, 2).broke().open("one", 2)
    life.now_ms = 350
    life.incomplete().resumed(None, None)
    life.now_ms = 850
    assert life.gap("start", None, 8).got(9).findings() == []
    assert life.got(13).findings() == ["silent loss"], "11: what is behind it is owed"


def test_resuming_another_channel_defers_nothing_of_the_others() -> None:
    life = Life().add(Opened, channels=frozenset({A}))
    life.add(Began, channels=frozenset({A}), epoch="one", offset=0).got(1, 3)
    life.add(Resuming, channels=frozenset({B}), epoch="one", offset=3).got(4, 7)
    assert life.findings() == ["silent loss"]


def test_a_dropped_channel_is_not_owed_and_must_not_come() -> None:
    life = Life().fresh().got(1, 2).left(B, is_acknowledged=False).got(3, 4, 5)
    assert life.findings() == [], "4 was on its way"
    life.left(B, is_acknowledged=True).got(7).stated(10)
    assert life.findings() == ["silent loss"], "9, of the other one"
    assert life.got(8).findings() == ["silent loss", "foreign"]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"payload": '{"n":9}'}, "wrong data"),
        ({"channel": B}, "wrong data"),
        ({"offset": 4}, "wrong offset"),
        ({"stored_ms": 301}, "wrong ts"),
        ({"seq": 4}, "seq hole"),
        ({"seq": 2}, "seq hole"),
    ],
)
def test_an_event_must_be_as_it_was_published_and_stored(
    changes: dict[str, Any], kind: str
) -> None:
    assert kind in Life().fresh().got(1, 2).got(3, **changes).findings()


def test_an_event_at_a_rate_stands_for_those_that_it_skipped() -> None:
    life = Life().fresh().batch((5, 2), (6, 2)).batch((8, 0)).batch((9, 1), (10, 0))
    verdict = life.verdict()
    assert [one.kind for one in verdict.findings] == ["never came"] * 10, "of the second life"
    assert (verdict.delivered, verdict.skipped, verdict.declared) == (5, 5, 0)


@pytest.mark.parametrize(
    ("skipped", "kind"),
    [(0, "silent loss"), (1, "silent loss"), (3, "wrong skipped"), (None, "unknown skipped")],
)
def test_what_an_event_has_skipped_is_counted_exactly(skipped: int | None, kind: str) -> None:
    """Three events of A came before 7, of which 1 was delivered."""
    assert Life().fresh().batch((1, 0)).batch((7, 2)).findings() == []
    assert kind in Life().fresh().batch((1, 0)).batch((7, skipped)).findings()


def test_an_update_that_was_conflated_is_counted_too() -> None:
    assert Life().fresh().got(1, 2).got(7, skipped=2).findings() == []
    assert Life().fresh().got(1, 2).got(7, skipped=1).findings() == ["silent loss"]


def test_a_batch_is_one_message() -> None:
    life = Life().fresh().batch((1, 0), (2, 0)).batch((3, 0)).batch((5, 0))
    assert life.findings() == []
    life = Life().fresh().batch((1, 0), (2, 0)).got(3, seq=1, batch_to=3)
    assert life.findings() == ["seq hole"], "two batches have two numbers"


def test_an_event_twice_in_batches_is_a_repeat() -> None:
    assert Life().fresh().batch((3, 1)).batch((3, 0)).findings() == ["repeat"]
    assert Life().fresh().batch((3, 1), (3, 0)).findings() == ["repeat"]


def test_an_older_event_in_a_later_batch_is_found() -> None:
    assert Life().fresh().batch((5, 2)).batch((3, 1)).findings() == ["reorder"]
    life = Life().fresh(offset=2).broke().open("one", 2, at_a_rate=True).resumed(2)
    assert life.batch((6, 1)).batch((4, 0)).findings() == ["reorder"]


def test_the_last_event_before_the_end_must_come_at_a_rate_too() -> None:
    life = Life().fresh().batch((9, 4), (10, 4)).gap("stream", None, None, "two")
    verdict = life.batch((18, 3), (19, 4)).verdict()
    assert [(one.kind, one.detail) for one in verdict.findings] == [
        ("never came", "B.b: #20 at 10 of life 1")
    ]


def test_what_is_declared_lost_may_be_counted_as_skipped_or_not() -> None:
    for skipped in (1, 2, 3):
        life = Life().fresh().batch((1, 0)).gap("window", 3, 5).wait(5000).batch((9, skipped))
        assert life.findings() == ([] if skipped != 0 else ["silent loss"])
    life = Life().fresh().batch((1, 0)).gap("window", 3, 5).wait(5000)
    assert life.batch((9, 0)).findings() == ["silent loss"], "7 is not declared"
    life = Life().fresh().batch((1, 0)).gap("window", 3, 5).wait(5000)
    assert life.batch((9, 4)).findings() == ["wrong skipped"]


def test_a_count_in_the_second_after_a_notice_waits_for_the_next_one() -> None:
    told = Life().fresh().gap("window", 1, 1).batch((7, 1))
    assert (
        told.wait(900).gap("window", 3, 3).wait(5000).stated(7).findings().count("silent loss") == 3
    )
    not_told = Life().fresh().gap("window", 1, 1).batch((7, 1))
    assert not_told.wait(900).gap("window", 2, 2).wait(5000).broke().findings() == ["silent loss"]


def test_a_resume_at_a_rate_brings_the_newest_and_counts_from_the_position() -> None:
    life = Life().fresh().batch((1, 0), (2, 0)).broke().open("one", 2, at_a_rate=True)
    life.got(7, skipped=2).got(8, skipped=2).resumed(8).batch((9, 0))
    assert life.findings() == []
    for wrong in (1, 3):
        life = Life().fresh().batch((1, 0), (2, 0)).broke().open("one", 2, at_a_rate=True)
        life.got(7, skipped=wrong).got(8, skipped=2).resumed(8)
        assert life.findings() == ["silent loss" if wrong == 1 else "wrong skipped"]
    life = Life().fresh().batch((1, 0), (2, 0)).broke().open("one", 2, at_a_rate=True)
    assert life.got(7, skipped=0).resumed(7).findings() == ["silent loss"] * 3, "2 × B, too"


def test_an_incomplete_resume_at_a_rate_counts_what_it_knows() -> None:
    life = Life().fresh().batch((1, 0), (2, 0)).broke().open("one", 2, at_a_rate=True)
    assert life.got(7, skipped=1).incomplete().resumed(8).batch((9, 0)).findings() == []
    assert life.batch((10, 1)).findings() == ["wrong skipped"], "it counts anew after the resume"


def test_the_count_starts_anew_with_the_gap_of_a_new_stream() -> None:
    """The server has named an epoch of which nobody got an event, so its offsets mean nothing."""
    life = Life().fresh().batch((1, 0), (2, 0)).broke()
    life.now_ms = 2100  # the second life is there
    life.open("one", 2, at_a_rate=True).incomplete().resumed(4, "unheard of")
    life.gap("stream", None, None, "two")
    assert life.batch((15, 2)).findings() == []
    assert life.wait(5000).batch((19, 0)).findings() == ["silent loss"]


def test_what_was_skipped_in_the_old_stream_may_be_counted_in_the_new_one() -> None:
    """Of channel A there are four events in the old stream after 1, and 11 and 13 in the new."""
    for skipped in range(8):
        life = Life().fresh().batch((1, 0)).gap("stream", None, None, "two").wait(5000)
        expected = ["silent loss"] if skipped < 2 else ["wrong skipped"] if skipped > 6 else []
        assert life.batch((15, skipped)).findings()[: len(expected) or None] == expected
    life = Life().fresh().batch((1, 0)).gap("stream", None, None, "two").batch((15, 6))
    assert life.batch((19, 1)).findings() == [], "it counts once"
    life = Life().fresh().batch((1, 0)).gap("stream", None, None, "two").batch((15, 6))
    assert life.wait(5000).batch((19, 2)).findings() == ["wrong skipped"]


def test_the_count_of_a_broken_resume_declares_nothing() -> None:
    life = Life().fresh().batch((1, 0), (2, 0)).broke().open("one", 2, at_a_rate=True)
    life.got(7, skipped=1).broke().open("one", 2, at_a_rate=True)
    again = life.got(7, skipped=2, is_ignored=True).got(8, skipped=2)
    assert again.resumed(8).findings() == []
    life = Life().fresh().batch((1, 0), (2, 0)).broke().open("one", 2, at_a_rate=True)
    life.got(7, skipped=1).broke().open("one", 7, at_a_rate=True).got(8, skipped=0)
    assert "silent loss" in life.resumed(8).findings()


def test_a_resume_from_before_what_came_counts_from_its_position() -> None:
    """At another rate the client has more; the position of this one is lower."""
    life = Life().fresh().batch((7, 3)).broke().open("one", 0, at_a_rate=True)
    life.got(7, skipped=3, is_ignored=True).got(8, skipped=3).resumed(8)
    assert life.findings() == []
    life = Life().fresh().batch((7, 3)).broke().open("one", 0, at_a_rate=True)
    assert life.got(7, skipped=3).findings() == ["repeat"]


def test_channels_of_another_rate_are_resumed_from_another_position() -> None:
    def life() -> Life:
        life = Life().fresh().got(1).batch((2, 0)).got(3, 5).broke()
        life.open("one", 5, channels=frozenset({A}), later=frozenset({B}))
        return life.resumed(5, channels=A)

    right = life().resumes(B, 2).got(8, skipped=2).resumed(8, channels=B).got(7, 9)
    assert right.findings() == []
    too_far = life().resumes(B, 4).got(8, skipped=1).resumed(8, channels=B).got(7, 9)
    assert too_far.findings() == ["silent loss"], "4 still waited for its tick"
    of_a = life().resumes(B, 2).got(8, skipped=2).resumed(8, channels=B).got(9)
    assert of_a.findings() == ["silent loss"], "7, of the other rate"


def test_a_position_says_nothing_of_channels_at_a_rate() -> None:
    def life() -> Life:
        return Life().fresh().got(1)

    of_a = life().add(Stated, epoch="one", offset=4, channels=frozenset({A}))
    assert of_a.findings() == ["silent loss"], "3, of A"
    of_b = life().add(Stated, epoch="one", offset=2, channels=frozenset({A}))
    assert of_b.batch((4, 1)).findings() == []


def test_what_is_due_comes_before_the_end_of_a_pause_is_acknowledged() -> None:
    due = {"epoch": "one", "offset": 6, "channels": frozenset({B})}
    life = Life().fresh().pauses(B).got(1, 3, 5).pauses(B, is_over=True)
    assert life.batch((6, 2)).add(Stated, **due).batch((8, 0)).findings() == []
    life = Life().fresh().pauses(B).got(1, 3, 5).pauses(B, is_over=True)
    assert life.add(Stated, **due).findings() == ["silent loss"] * 3


def test_nothing_comes_in_a_pause() -> None:
    assert Life().fresh().pauses(B).got(1).batch((2, 0)).findings() == ["paused"]
    life = Life().fresh().got(1, 2).pauses(B).resumes(B, 2)
    assert life.got(4, skipped=0).resumed(4).findings() == ["silent loss"], (
        "3; a resume may bring it"
    )


def test_an_event_whose_place_is_unknown_may_be_among_the_skipped() -> None:
    evidence = Evidence()
    for number in range(1, 5):
        evidence.sent[number] = Sent(A, f'{{"n":{number}}}', number * 100)
        evidence.epochs["one"].add(number)
        if number != 3:  # NATS has lost it, after the server had it
            evidence.saw(number, number, number * 100)
    for skipped, expected in [(0, ["silent loss"]), (1, []), (2, []), (3, ["wrong skipped"])]:
        life = Life().add(Opened, channels=frozenset({A}))
        life.add(Began, channels=frozenset({A}), epoch="one", offset=0).got(1, offset=1)
        life.add(
            Event,
            epoch="one",
            channel=A,
            number=4,
            offset=4,
            stored_ms=400,
            payload='{"n":4}',
            seq=2,
            skipped=skipped,
            batch_to=4,
        )
        found = judge("it", life.journal, Truth(evidence)).findings
        assert [one.kind for one in found] == expected


def test_a_channel_is_owed_from_its_subscription_if_the_position_is_lower() -> None:
    life = Life().open()
    life.now_ms = 350  # the events up to 3 are in the stream
    life.add(Began, channels=_ALL, epoch="one", offset=1, is_at_least=True)
    assert life.batch((4, 0), (5, 0)).findings() == [], "2 and 3 were before"
    assert life.batch((8, 0)).findings() == ["silent loss"], "6"
    life = Life().open()
    life.now_ms = 350
    life.add(Began, channels=_ALL, epoch="one", offset=1, is_at_least=True)
    assert life.batch((3, 0), (4, 0)).findings() == [], "or 3 was after it"


def test_a_resume_that_ends_at_a_lower_position_is_complete_up_to_there() -> None:
    life = Life().fresh().batch((1, 0), (2, 0)).broke().open("one", 2, at_a_rate=True)
    life.got(7, skipped=2).got(8, skipped=2)
    life.add(Resumed, epoch="one", offset=4, is_at_least=True)
    assert life.batch((9, 0)).findings() == []
    assert life.batch((10, 1)).findings() == ["wrong skipped"]


def test_an_incomplete_resume_declares_up_to_its_answer() -> None:
    """Its position may be lower: that of an event at a rate which waits for its tick."""
    for offset, is_at_least, expected in [(4, True, []), (4, False, ["silent loss"])]:
        life = Life().fresh().batch((1, 0), (2, 0)).broke().open("one", 2, at_a_rate=True)
        life.now_ms = 650  # the events up to 6 are in the stream
        life.incomplete()
        life.add(Resumed, epoch="one", offset=offset, is_at_least=is_at_least)
        assert life.batch((7, 0)).findings() == expected, "5 came before the answer"


def test_the_count_starts_anew_when_a_channel_comes_back() -> None:
    life = Life().fresh().batch((1, 0), (2, 0))
    life.left(B, is_acknowledged=False).left(B, is_acknowledged=True)
    life.now_ms = 450  # 4 was while it was away
    life.add(Began, channels=frozenset({B}), epoch="one", offset=3, is_at_least=True)
    assert life.batch((5, 1), (6, 0)).findings() == []
    assert life.batch((10, 0)).findings() == ["silent loss"]
