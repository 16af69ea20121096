from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_odin.core.gaps import Gap, GapReason
from trio_odin.core.upstream import Upstream


def test_what_never_came_has_no_age() -> None:
    upstream = Upstream()
    assert upstream.age_seconds(5.0) is None
    assert upstream.event_age_seconds(5.0) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 100)), min_size=1))
def test_the_age_is_that_of_the_last_sign_of_life_and_an_event_is_one(
    steps: list[tuple[bool, int]],
) -> None:
    upstream, now, event_at = Upstream(), 0, None
    for is_event, pause in steps:
        now += pause
        if is_event:
            upstream.heard_event(now)
            event_at = now
        else:
            upstream.heard(now)
    assert upstream.age_seconds(now + 7) == 7
    assert upstream.event_age_seconds(now) == (None if event_at is None else now - event_at)


def test_gaps_are_taken_once() -> None:
    upstream = Upstream()
    upstream.declare(Gap(GapReason.WINDOW, 2, 5, 6), Gap(GapReason.STREAM))
    upstream.declare(Gap(GapReason.WINDOW, 1, 9, 9))
    upstream.declare()
    assert upstream.take_gaps() == {
        GapReason.WINDOW: Gap(GapReason.WINDOW, 3, 5, 9),
        GapReason.STREAM: Gap(GapReason.STREAM),
    }
    assert upstream.take_gaps() == {}
