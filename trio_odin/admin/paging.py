"""Sorting and paging: the first rows by a heap, the next page by a cursor, pages of all workers."""

from __future__ import annotations

import heapq
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from trio_odin.admin.questions import ConnectionPage, ConnectionRow, Cursor

T = TypeVar("T")

# What a list can be sorted by, and whether the greatest comes first if nothing else is asked for.
SORTS: Final = {
    "queued_bytes": True,
    "queued": True,
    "dropped": True,
    "skipped": True,
    "seq": True,
    "bytes": True,
    "age_seconds": True,
    "silent_seconds": True,
    "channels": True,
    "connection": False,
    "address": False,
    "subject": False,
}

TEXTS: Final = frozenset({"address", "subject"})

_cursors: Final = msgspec.json.Decoder(tuple[int | float | str, int, int])


class Keyed(NamedTuple):
    """A row's place in the order: its key, then its number and worker, which are unique."""

    key: Any
    number: int
    worker: int


def first_of(
    keyed: Iterable[tuple[Keyed, T]], limit: int, *, is_descending: bool
) -> list[tuple[Keyed, T]]:
    """The first `limit` of `keyed` in order. Among equal keys the lower number comes first."""
    if not is_descending:
        return heapq.nsmallest(limit, keyed, key=itemgetter(0))
    keyed = list(keyed)
    if keyed and isinstance(keyed[0][0].key, str):
        return heapq.nlargest(limit, keyed, key=_falling)
    # Without a function in Python for each comparison: the numbers of a worker are unique.
    ranks = [(-place[0], place[1], place[2], at) for at, (place, _) in enumerate(keyed)]
    return [keyed[at] for *_, at in heapq.nsmallest(limit, ranks)]


def _falling(one: tuple[Keyed, object]) -> tuple[Any, int, int]:
    key, number, worker = one[0]
    return key, -number, -worker


def is_after(keyed: Keyed, cursor: Cursor | None, *, is_descending: bool) -> bool:
    """Whether a row comes after the cursor."""
    if cursor is None:
        return True
    if keyed[0] == cursor[0]:
        return keyed[1:] > tuple(cursor[1:])
    return bool(keyed[0] < cursor[0] if is_descending else keyed[0] > cursor[0])


def text_of_cursor(cursor: Cursor) -> str:
    """A cursor as it stands in a query string."""
    return urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def cursor_of_text(text: str, sort: str) -> Cursor:
    """Read a cursor into a list that is sorted by `sort`.

    Raises:
        ValueError: it is not one.
    """
    padded = text + "=" * (-len(text) % 4)
    cursor = _cursors.decode(urlsafe_b64decode(padded.encode()))  # both raise ValueErrors
    if isinstance(cursor[0], str) != (sort in TEXTS):
        raise ValueError("it is of a list that is sorted by something else")
    return cursor


def merged(
    pages: Sequence[ConnectionPage], limit: int, *, is_descending: bool
) -> tuple[list[ConnectionRow], Cursor | None]:
    """One page of those of all workers, and where the next one begins; None if there is none."""
    if len(pages) == 1:
        return _with_cursor(pages[0].rows, pages[0].keys, has_more=pages[0].has_more)
    keyed = [
        (Keyed(key, row.connection, row.worker), row)
        for page in pages
        for key, row in zip(page.keys, page.rows, strict=True)
    ]
    chosen = first_of(keyed, limit, is_descending=is_descending)
    has_more = len(chosen) < len(keyed) or any(page.has_more for page in pages)
    keys = [place.key for place, _ in chosen]
    return _with_cursor([row for _, row in chosen], keys, has_more=has_more)


def _with_cursor(
    rows: list[ConnectionRow], keys: list[Any], *, has_more: bool
) -> tuple[list[ConnectionRow], Cursor | None]:
    if not rows or not has_more:
        return rows, None
    return rows, (keys[-1], rows[-1].connection, rows[-1].worker)


def key_of(sort: str, value: Any) -> Any:
    """The key of a field's value: an unknown one is the least."""
    if sort in TEXTS:
        return value or ""
    return -1 if value is None else value
