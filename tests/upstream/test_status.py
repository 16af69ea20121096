from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_odin.ledger.snapshot import Trouble
from trio_odin.upstream.status import Upstream


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


def test_the_first_of_several_troubles_sets_the_time_and_the_last_one_the_sentence() -> None:
    upstream = Upstream()
    assert upstream.stats(1.0).trouble is None
    upstream.fail("connection refused", 2.0)
    upstream.fail("authorization violation", 5.0)
    assert upstream.stats(9.0).trouble == Trouble("authorization violation", 7.0)
    upstream.recover()
    assert upstream.stats(9.0).trouble is None
