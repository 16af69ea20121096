from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_odin.core.backpressure import FULL_OUTBOXES_IN_A_ROW, SlowConsumerWatch


def test_the_third_full_outbox_in_a_row_is_one_too_many() -> None:
    watch = SlowConsumerWatch()
    assert [watch.outbox_full() for _ in range(4)] == [False, False, True, True]
    assert FULL_OUTBOXES_IN_A_ROW == 3


def test_a_delivery_that_fits_starts_the_count_anew() -> None:
    watch = SlowConsumerWatch()
    assert not any([watch.outbox_full(), watch.outbox_full()])
    watch.outbox_accepted()
    assert [watch.outbox_full() for _ in range(3)] == [False, False, True]


@given(st.text(st.sampled_from("f.")))
def test_eviction_is_due_exactly_when_the_last_three_found_it_full(deliveries: str) -> None:
    watch = SlowConsumerWatch()
    for end, delivery in enumerate(deliveries, start=1):
        if delivery == ".":
            watch.outbox_accepted()
        else:
            assert watch.outbox_full() == deliveries[:end].endswith("fff")


def test_watches_do_not_count_for_each_other() -> None:
    first, second = SlowConsumerWatch(), SlowConsumerWatch()
    assert not any([first.outbox_full(), first.outbox_full()])
    assert not second.outbox_full()
