from __future__ import annotations

import base64
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.admin.paging import (
    SORTS,
    Keyed,
    cursor_of_text,
    first_of,
    is_after,
    key_of,
    merged,
    text_of_cursor,
)
from trio_odin.admin.questions import ConnectionPage, ConnectionRow, Cursor

PLACES = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(1, 40), st.integers(1, 3)),
    unique_by=lambda place: place[1:],
    max_size=40,
).map(lambda places: [Keyed(*place) for place in places])


def row(place: Keyed) -> ConnectionRow:
    return ConnectionRow(
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


def page_of(
    places: list[Keyed], limit: int, cursor: Cursor | None, *, is_descending: bool
) -> ConnectionPage:
    """What one worker answers."""
    after = [
        (place, place) for place in places if is_after(place, cursor, is_descending=is_descending)
    ]
    chosen = first_of(after, limit, is_descending=is_descending)
    return ConnectionPage(
        rows=[row(place) for place, _ in chosen],
        keys=[place.key for place, _ in chosen],
        matching=len(places),
        total=len(places),
        has_more=len(after) > len(chosen),
    )


@given(PLACES, st.integers(1, 7), st.booleans())
def test_the_pages_of_all_workers_are_the_whole_list_once_and_in_order(
    places: list[Keyed], limit: int, is_descending: bool
) -> None:
    workers = [[place for place in places if place.worker == number] for number in (1, 2, 3)]
    got: list[str] = []
    cursor: Cursor | None = None
    for _ in range(len(places) + 1):
        pages = [page_of(one, limit, cursor, is_descending=is_descending) for one in workers]
        rows, cursor = merged(pages, limit, is_descending=is_descending)
        assert len(rows) <= limit
        got += [one.id for one in rows]
        if cursor is None:
            break
        cursor = cursor_of_text(text_of_cursor(cursor), "queued_bytes")
    sign = -1 if is_descending else 1
    expected = sorted(places, key=lambda place: (sign * place.key, *place[1:]))
    assert got == [f"{place.worker}-{place.number}" for place in expected]


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
