from __future__ import annotations

import base64
import random
from collections.abc import Collection, Iterable
from contextlib import suppress
from operator import itemgetter
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.admin.paging import (
    SORTS,
    FirstRows,
    cursor_of_text,
    key_of,
    merged,
    text_of_cursor,
)
from trio_odin.admin.questions import ConnectionPage, ConnectionRow, Cursor


class Place(NamedTuple):
    key: int
    number: int
    worker: int


PLACES = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(1, 40), st.integers(1, 3)),
    unique_by=lambda place: place[1:],
    max_size=40,
).map(lambda places: [Place(*place) for place in places])


def row(place: Place) -> msgspec.Raw:
    whole = ConnectionRow(
        id=f"{place.worker}-{place.number}",
        worker=place.worker,
        connection=place.number,
        address=None,
        subject=None,
        user_agent="",
        age_seconds=0.0,
        silent_seconds=0.0,
        channels=0,
        encoding="plain",
        state="idle",
        seq=0,
        queued=0,
        queued_bytes=place.key,
        skipped=0,
        dropped=0,
        bytes=None,
        is_lagging=False,
    )
    return msgspec.Raw(msgspec.json.encode(whole))


def ids(rows: Iterable[msgspec.Raw]) -> list[str]:
    return [msgspec.json.decode(one, type=ConnectionRow).id for one in rows]


def page_of(
    places: list[Place],
    limit: int,
    cursor: Cursor | None,
    *,
    is_descending: bool,
    closing: Collection[Place] = (),
) -> ConnectionPage:
    """What one worker answers; those that are `closing` are gone before they become rows."""
    first = FirstRows[Place](limit, is_descending=is_descending, after=cursor)
    for place in places:
        first.add([(place, place)])
    chosen = first.in_order()
    left = [place for _, place in chosen if place not in closing]
    return ConnectionPage(
        rows=[row(place) for place in left],
        places=list[Cursor](left),
        matching=len(places),
        total=len(places),
        ends_at=chosen[-1][0] if first.added > len(chosen) else None,
    )


@given(PLACES, st.integers(1, 7), st.booleans(), st.randoms())
def test_the_pages_of_all_workers_are_the_whole_list_once_and_in_order(
    places: list[Place], limit: int, is_descending: bool, chance: random.Random
) -> None:
    closing = {place for place in places if chance.random() < 0.3}
    workers = [[place for place in places if place.worker == number] for number in (1, 2, 3)]
    got: list[str] = []
    cursor: Cursor | None = None
    for _ in range(len(places) + 1):
        pages = [
            page_of(one, limit, cursor, is_descending=is_descending, closing=closing)
            for one in workers
        ]
        rows, cursor = merged(pages, limit, is_descending=is_descending)
        assert len(rows) <= limit
        got += ids(rows)
        if cursor is None:
            break
        cursor = cursor_of_text(text_of_cursor(cursor), "queued_bytes")
    sign = -1 if is_descending else 1
    left = [place for place in places if place not in closing]
    expected = sorted(left, key=lambda place: (sign * place.key, *place[1:]))
    assert got == [f"{place.worker}-{place.number}" for place in expected]


@pytest.mark.parametrize("is_descending", [False, True])
@pytest.mark.parametrize("limit", [1, 100, 2500, 10_000])
def test_the_first_of_many_texts_are_in_order(limit: int, *, is_descending: bool) -> None:
    places = [(f"10.0.{number % 50}.1", number, 1) for number in range(5000)]
    random.Random(4).shuffle(places)
    first = FirstRows[str](limit, is_descending=is_descending)
    for start in range(0, len(places), 32):
        first.add((place, place[0]) for place in places[start : start + 32])
    by_number = sorted(places, key=itemgetter(1))
    expected = sorted(by_number, key=itemgetter(0), reverse=is_descending)[:limit]
    assert first.in_order() == [(place, place[0]) for place in expected]
    assert first.added == 5000


def test_rows_of_one_place_do_not_have_to_be_comparable() -> None:
    pages = [
        ConnectionPage(
            rows=[row(Place(0, 7, 2))], places=[(0, 7, 2)], matching=1, total=1, ends_at=None
        )
        for _ in range(2)
    ]
    for is_descending in (False, True):
        rows, cursor = merged(pages, 5, is_descending=is_descending)
        assert ids(rows) == ["2-7", "2-7"]
        assert cursor is None


@given(st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False)))
def test_a_cursor_survives_its_text(key: float) -> None:
    assert cursor_of_text(text_of_cursor((key, 7, 2)), "seq") == (key, 7, 2)


@pytest.mark.parametrize("text", ["", "x", "====", "e30", "[1,2,3]", "\xff", "a" * 5000])
def test_what_is_not_a_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - several libraries raise it
        cursor_of_text(text, "seq")


@pytest.mark.parametrize(("key", "sort"), [("a", "seq"), (1, "address")])
def test_a_cursor_of_another_order_is_refused(key: str | int, sort: str) -> None:
    with pytest.raises(ValueError, match="something else"):
        cursor_of_text(text_of_cursor((key, 1, 1)), sort)


@pytest.mark.parametrize("sort", SORTS)
def test_what_is_unknown_comes_first_in_a_rising_list(sort: str) -> None:
    some = "10.0.0.1" if sort in {"address", "subject"} else 0
    assert key_of(sort, None) < key_of(sort, some)


@given(st.binary(max_size=60))
def test_no_text_of_a_cursor_raises_anything_else(data: bytes) -> None:
    with suppress(ValueError):
        cursor_of_text(base64.urlsafe_b64encode(data).decode(), "seq")
