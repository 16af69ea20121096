from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_odin.ledger.snapshot import Trouble
from trio_odin.upstream.status import NatsStatus


def test_an_event_that_never_came_has_no_age() -> None:
    nats_status = NatsStatus()
    assert nats_status.age_seconds(5.0) is None
    assert nats_status.event_age_seconds(5.0) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 100)), min_size=1))
def test_the_age_is_that_of_the_last_sign_of_life(
    steps: list[tuple[bool, int]],
) -> None:
    nats_status, now, event_at = NatsStatus(), 0, None
    for is_event, pause in steps:
        now += pause
        if is_event:
            nats_status.heard_event(now)
            event_at = now
        else:
            nats_status.heard(now)
    assert nats_status.age_seconds(now + 7) == 7
    assert nats_status.event_age_seconds(now) == (None if event_at is None else now - event_at)


def test_the_first_problem_sets_the_time_and_the_last_the_sentence() -> None:
    nats_status = NatsStatus()
    assert nats_status.stats(1.0).trouble is None
    nats_status.fail("connection refused", 2.0)
    nats_status.fail("authorization violation", 5.0)
    assert nats_status.stats(9.0).trouble == Trouble("authorization violation", 7.0)
    nats_status.recover()
    assert nats_status.stats(9.0).trouble is None
