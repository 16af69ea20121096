from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.connection.client import objects_of
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.replay_buffer import ReplayBudget, ReplayBuffer


def publication(number: int) -> Publication:
    return Publication("BTC.trade", json.dumps(number).encode(), offset=None, unix_ms=1)


def filled(capacity: int, appended: int) -> tuple[ReplayBuffer, list[Publication]]:
    replay_buffer = ReplayBuffer(capacity)
    publications = [publication(number) for number in range(1, appended + 1)]
    for one in publications:
        replay_buffer.append(one)
    return replay_buffer, publications


@given(
    capacity=st.integers(0, 6),
    appended=st.integers(0, 15),
    first=st.integers(-20, 20) | st.integers(),
    last=st.integers(-20, 20) | st.integers(),
)
def test_a_range_equals_that_of_a_complete_list_without_old_entries(
    capacity: int, appended: int, first: int, last: int
) -> None:
    replay_buffer, everything = filled(capacity, appended)
    asked = [(n, one) for n, one in enumerate(everything, start=1) if first <= n <= last]
    kept, count = replay_buffer.between(first, last)
    assert [(n, one.frame(n)) for n, one in kept] == [
        (n, one.frame(n)) for n, one in asked if n > appended - capacity
    ]
    assert count == len(asked)


@given(st.integers(0, 5), st.integers(0, 20))
def test_numbers_count_up_from_1_without_a_gap(capacity: int, appended: int) -> None:
    replay_buffer = ReplayBuffer(capacity)
    assert replay_buffer.seq == 0
    given_out = [replay_buffer.append(publication(n)) for n in range(appended)]
    assert given_out == list(range(1, appended + 1))
    assert replay_buffer.seq == appended


def test_the_bytes_are_kept_without_a_copy() -> None:
    one = Publication("BTC.trade", b'"%b"' % (b"x" * 1_000_000), offset=None, unix_ms=1)
    tracemalloc.start()
    try:
        histories = [ReplayBuffer(2) for _ in range(10)]
        for replay_buffer in histories:
            replay_buffer.append(one)
        again = [replay_buffer.between(1, 1).kept[0][1] for replay_buffer in histories]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {each.frame(1) for each in again} == {one.frame(1)}
    assert taken < 100_000


def test_no_more_than_the_capacity_is_kept() -> None:
    replay_buffer, _ = filled(100, 1000)
    assert len(replay_buffer.kept or ()) == 100
    kept, asked = replay_buffer.between(1, 1000)
    assert [seq for seq, _ in kept] == list(range(901, 1001))
    assert asked == 1000


@pytest.mark.parametrize(("first", "last"), [(5, 4), (0, 0), (11, 99), (-5, -1), (2**80, 2**90)])
def test_an_empty_range_asks_for_nothing(first: int, last: int) -> None:
    replay_buffer, _ = filled(10, 10)
    assert replay_buffer.between(first, last) == ([], 0)


def test_a_kept_envelope_gets_its_first_number_again() -> None:
    replay_buffer, _ = filled(3, 12)
    kept, _ = replay_buffer.between(1, 99)
    objects = objects_of(one.frame(seq) for seq, one in kept)
    assert [(o["seq"], o["data"]) for o in objects] == [(10, 10), (11, 11), (12, 12)]


# --- the shared budget


def large(number: int, size: int = 1000) -> Publication:
    payload = b'{"n":%d,"x":"%b"}' % (number, b"x" * size)
    return Publication("BTC.trade", payload, offset=None, unix_ms=1)


def numbers_of(replay_buffer: ReplayBuffer) -> list[int]:
    frames = [one.frame(seq) for seq, one in replay_buffer.between(1, replay_buffer.seq).kept]
    return [event["data"]["n"] for event in objects_of(frames)]


def kept_in(replay_buffer: ReplayBuffer) -> list[int]:
    return [seq for seq, _ in replay_buffer.between(1, replay_buffer.seq).kept]


def test_above_the_limit_the_oldest_are_released_everywhere() -> None:
    publications = [large(number) for number in range(5)]
    budget, histories = ReplayBudget(), [ReplayBuffer(10), ReplayBuffer(10)]
    for publication in publications[:3]:
        budget.add(publication.kept)
    budget = ReplayBudget(budget.used_bytes)  # three fit exactly
    for publication in publications:
        budget.add(publication.kept)
        for replay_buffer in histories:
            replay_buffer.append(publication)
    assert [kept_in(replay_buffer) for replay_buffer in histories] == [[3, 4, 5]] * 2
    assert budget.used_bytes == budget.limit_bytes
    assert histories[0].between(1, 5).asked == 5
    frame = publications[0].frame(1)
    assert objects_of([frame])[0]["data"]["n"] == 0, "who is to get it gets it all the same"


def test_an_envelope_that_nobody_keeps_makes_room() -> None:
    budget, replay_buffer, quiet = ReplayBudget(10_000), ReplayBuffer(2), ReplayBuffer(2)
    for number in range(100):
        publication = large(number)
        budget.add(publication.kept)
        replay_buffer.append(publication)
        if number == 0:
            quiet.append(publication)
        del publication
    assert kept_in(quiet) == [1], "it is old, but there is room for it"
    assert kept_in(replay_buffer) == [99, 100]
    assert 3000 < budget.used_bytes < 6000
    del replay_buffer, quiet
    assert budget.used_bytes == 0


def test_an_envelope_added_again_counts_once() -> None:
    budget, publication = ReplayBudget(10_000), large(1)
    budget.add(publication.kept)
    used = budget.used_bytes
    budget.add(publication.kept)
    assert budget.used_bytes == used > 1000


def test_an_envelope_above_the_limit_is_not_kept_and_clears_others() -> None:
    budget, replay_buffer = ReplayBudget(5000), ReplayBuffer(10)
    for publication in (large(1), large(2, 10_000), large(3)):
        budget.add(publication.kept)
        replay_buffer.append(publication)
    assert kept_in(replay_buffer) == [3]
    assert budget.used_bytes < 5000


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2), st.booleans()), max_size=40),
    st.integers(0, 12_000),
)
def test_the_newest_are_kept_and_counted_in_any_sequence(
    steps: list[tuple[int, int, bool]], limit: int
) -> None:
    budget, without_limit = ReplayBudget(limit), ReplayBudget(10**9)
    histories, was_over = [ReplayBuffer(3) for _ in range(3)], False
    for number, (size, who, is_new) in enumerate(steps):
        if is_new:
            histories[who] = ReplayBuffer(3)
        publication = large(number, size)
        without_limit.add(publication.kept)  # first: it knows the size
        was_over = was_over or without_limit.used_bytes > limit
        budget.add(publication.kept)
        histories[who].append(publication)
        del publication
        held = {
            id(one): one for replay_buffer in histories for one in replay_buffer.kept or ()
        }.values()
        assert budget.used_bytes <= limit
        assert sum(one.size for one in held) <= budget.used_bytes
        if not was_over:
            assert all(one.publication() for one in held)
            assert budget.used_bytes == without_limit.used_bytes
        in_order = [numbers_of(replay_buffer) for replay_buffer in histories]
        assert all(numbers == sorted(numbers) for numbers in in_order)
        assert number in in_order[who] or was_over
