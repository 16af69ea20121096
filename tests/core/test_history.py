from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.client import objects_of
from trio_odin.core.history import History
from trio_odin.core.publication import Publication


def publication(number: int) -> Publication:
    return Publication("BTC.trade", json.dumps(number).encode(), offset=None, unix_ms=1)


def filled(capacity: int, appended: int) -> tuple[History, list[Publication]]:
    history = History(capacity)
    publications = [publication(number) for number in range(1, appended + 1)]
    for one in publications:
        history.append(one)
    return history, publications


@given(
    capacity=st.integers(0, 6),
    appended=st.integers(0, 15),
    first=st.integers(-20, 20) | st.integers(),
    last=st.integers(-20, 20) | st.integers(),
)
def test_a_range_gives_what_a_list_of_everything_would_less_what_is_too_old(
    capacity: int, appended: int, first: int, last: int
) -> None:
    history, everything = filled(capacity, appended)
    asked = [(n, one) for n, one in enumerate(everything, start=1) if first <= n <= last]
    kept, count = history.between(first, last)
    assert kept == [(n, one) for n, one in asked if n > appended - capacity]
    assert count == len(asked)


@given(st.integers(0, 5), st.integers(0, 20))
def test_numbers_count_up_from_1_without_a_gap(capacity: int, appended: int) -> None:
    history = History(capacity)
    assert history.seq == 0
    given_out = [history.append(publication(n)) for n in range(appended)]
    assert given_out == list(range(1, appended + 1))
    assert history.seq == appended


def test_the_same_publication_is_kept_not_a_copy() -> None:
    history = History(2)
    one = publication(1)
    history.append(one)
    assert history.between(1, 1).kept[0][1] is one


def test_no_more_than_the_capacity_is_kept() -> None:
    history, _ = filled(100, 1000)
    assert len(history.kept) == 100
    kept, asked = history.between(1, 1000)
    assert [seq for seq, _ in kept] == list(range(901, 1001))
    assert asked == 1000


@pytest.mark.parametrize(("first", "last"), [(5, 4), (0, 0), (11, 99), (-5, -1), (2**80, 2**90)])
def test_a_range_with_nothing_in_it_asks_for_nothing(first: int, last: int) -> None:
    history, _ = filled(10, 10)
    assert history.between(first, last) == ([], 0)


def test_a_kept_envelope_has_its_first_number_again() -> None:
    history, _ = filled(3, 12)
    kept, _ = history.between(1, 99)
    objects = objects_of(one.frame(seq) for seq, one in kept)
    assert [(o["seq"], o["data"]) for o in objects] == [(10, 10), (11, 11), (12, 12)]
