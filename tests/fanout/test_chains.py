from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_odin.fanout.chains import Chains
from trio_odin.ledger.reasons import GapReason
from trio_odin.upstream.gaps import Gap, Mark

A, B, C = "A.trade", "B.trade", "C.trade"
ENTERED = Mark("e", 0)


def entered(channels_max: int = 100) -> Chains:
    chains = Chains(channels_max)
    chains.note(ENTERED, is_new_epoch=True)
    return chains


@given(st.lists(st.sampled_from([A, B, C]), max_size=30), st.integers(1, 3))
def test_prev_is_the_event_before_or_not_stated(events: list[str], channels_max: int) -> None:
    chains = entered(channels_max)
    last: dict[str, int] = {}
    for offset, channel in enumerate(events, start=1):
        prev = chains.link(channel, offset)
        others = {one for one, at in last.items() if at > last.get(channel, 0)}
        if channel in last and len(others) < channels_max:
            assert prev == last[channel]
        else:
            assert prev is None
        last[channel] = offset


def test_an_event_that_was_shed_is_in_the_chain() -> None:
    chains = entered()
    chains.link(A, 1)
    chains.link(B, 2)
    gap = Gap(GapReason.SHED, 1, 3, 3)
    chains.note(Mark("e", 3, gaps=(gap,), shed={A: 3}), is_new_epoch=False)
    assert chains.link(A, 4) == 3, "the client has 1, and so knows that it missed one"
    assert chains.link(B, 5) == 2, "nothing of this channel was shed"


def test_nothing_is_stated_after_a_loss_of_unknown_channels() -> None:
    for mark in (
        Mark("e", 9, gaps=(Gap(GapReason.WINDOW, 3, 7, 9),)),
        Mark("e", 9, is_broken=True),
        Mark("e", 9, gaps=(Gap(GapReason.SHED, 3, 7, 9),), is_shed_unknown=True),
    ):
        chains = entered()
        chains.link(A, 1)
        chains.note(mark, is_new_epoch=False)
        assert chains.link(A, 10) is None
        assert chains.link(A, 11) == 10


def test_what_the_stream_knows_is_the_event_before_the_first_one() -> None:
    chains = entered()
    chains.learn(A, 5, position=7)
    chains.learn(B, 6, position=7)
    assert chains.link(A, 8) == 5
    assert chains.link(A, 9) == 8
    assert chains.link(C, 10) is None
    chains.learn(C, 3, position=7)
    assert chains.link(C, 11) == 10, "its events have come since"


def test_the_newest_event_may_come_itself_after_it_was_learned() -> None:
    chains = entered()
    chains.learn(A, 8, position=7)
    assert chains.link(A, 6) is None
    assert chains.link(A, 8) == 6


def test_what_is_doubtful_is_unlearned() -> None:
    chains = entered()
    chains.learn(A, 5, position=7)
    chains.unlearn(A)
    assert chains.link(A, 8) is None


def test_what_was_asked_before_a_loss_is_not_learned_after_it() -> None:
    chains = entered()
    chains.note(Mark("e", 9, gaps=(Gap(GapReason.WINDOW, 3, 7, 9),)), is_new_epoch=False)
    chains.learn(A, 5, position=7)
    assert chains.link(A, 10) is None
    chains.learn(B, 5, position=9)
    assert chains.link(B, 11) == 5


def test_another_epoch_and_core_mode_forget_everything() -> None:
    for mark in (Mark("f", 0), Mark(None, None)):
        chains = entered()
        chains.link(A, 1)
        chains.note(mark, is_new_epoch=True)
        assert chains.link(A, 2) is None
