"""Sorting and paging: the first rows of many, the next page by a cursor, pages of all workers."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from trio_odin.admin.questions import ConnectionPage, Cursor

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

# So many rows are sorted into those that are in order already: less than a millisecond.
_UNORDERED_MAX: Final = 1000
_cursors: Final = msgspec.json.Decoder(tuple[int | float | str, int, int])


class FirstRows(Generic[T]):
    """Keeps the first rows in order, of all that are added. Among equal keys the lower number wins.

    No call takes long, as rows are put in order some at a time: what is in order already costs
    little to sort again.

    Args:
        limit: how many rows are kept.
        is_descending: the greatest first.
        after: where the page before has ended; None: this is the first one.

    Attributes:
        added: how many rows come after the cursor.
    """

    def __init__(self, limit: int, *, is_descending: bool, after: Cursor | None = None) -> None:
        self.added = 0
        self._limit = limit
        self._is_descending = is_descending
        self._sign = -1 if is_descending else 1
        self._after = None if after is None else self._ranked(*after)
        # Key, number, worker, a unique number, row. Python compares such tuples without calling
        # a function, and never gets to the row.
        self._rows: list[tuple[Any, int, int, int, T]] = []
        self._seen = 0
        self._unordered = 0

    def add(self, rows: Iterable[tuple[Cursor, T]]) -> None:
        """Add rows, each with its place: its key, its number and its worker."""
        sign, after = self._sign, self._after
        ranked = [
            (key, sign * number, sign * worker, at, row)
            for at, ((key, number, worker), row) in enumerate(rows, self._seen)
        ]
        self._seen += len(ranked)
        if after is not None and self._is_descending:
            ranked = [one for one in ranked if one[:3] < after]
        elif after is not None:
            ranked = [one for one in ranked if one[:3] > after]
        self._rows += ranked
        self.added += len(ranked)
        self._unordered += len(ranked)
        if self._unordered >= _UNORDERED_MAX:
            self._put_in_order()

    def in_order(self) -> list[tuple[Cursor, T]]:
        """The rows that are kept, each with its place."""
        self._put_in_order()
        sign = self._sign
        return [
            ((key, sign * number, sign * worker), row) for key, number, worker, _, row in self._rows
        ]

    def _put_in_order(self) -> None:
        self._rows.sort(reverse=self._is_descending)
        del self._rows[self._limit :]
        self._unordered = 0

    def _ranked(self, key: Any, number: int, worker: int) -> Cursor:
        return key, self._sign * number, self._sign * worker


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
) -> tuple[list[msgspec.Raw], Cursor | None]:
    """One page of those of all workers, and where the next one begins; None if there is none."""
    if len(pages) == 1:
        return pages[0].rows, pages[0].ends_at
    first = FirstRows[msgspec.Raw](limit, is_descending=is_descending)
    for page in pages:
        first.add(zip(page.places, page.rows, strict=True))
    chosen = first.in_order()
    ends = FirstRows[None](1, is_descending=is_descending)
    ends.add((page.ends_at, None) for page in pages if page.ends_at is not None)
    end = next((place for place, _ in ends.in_order()), None)
    if end is not None:
        # A worker whose page is short, as connections have closed, has rows after its end that
        # belong before those of the others.
        ended = FirstRows[msgspec.Raw](limit, is_descending=is_descending, after=end)
        ended.add(chosen)
        chosen = chosen[: len(chosen) - ended.added]
    if len(chosen) == limit and (end is not None or first.added > limit):
        end = chosen[-1][0]
    return [row for _, row in chosen], end


def key_of(sort: str, value: Any) -> Any:
    """The key of a field's value: an unknown one is the least."""
    if sort in TEXTS:
        return value or ""
    return -1 if value is None else value
