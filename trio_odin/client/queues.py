"""What waits for a slow consumer: the newest of each channel, or everything up to a limit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable
from typing import Final, Literal, TypeAlias

import attrs

from trio_odin.client.connection import Position
from trio_odin.client.items import Event, Gap, Refused, State

# After which number of inputs something came, and everything up to where was known then.
Mark: TypeAlias = tuple[int, Position | None]
_NO_MARK: Final[Mark] = (0, None)
Item: TypeAlias = Event | Gap | Refused | State
Policy: TypeAlias = Literal["newest", "wait"]

POLICIES: Final = ("newest", "wait")
# For the policy `wait`. The message that fills a queue is still taken whole, 1 MiB at most.
_FULL_FROM: Final = 1_000
# While a program waits for all first values it cannot take them: there may be many more.
_CROWDED_FROM: Final = 100_000


class Queue(ABC):
    """Items of one subscription that wait to be taken.

    Attributes:
        is_full: whether no further message should be read from the socket.
        has_room: whether reading can go on, once it was full.
        is_crowded: whether it has to stop even if the program waits for more.
    """

    is_full: bool = False
    has_room: bool = True
    is_crowded: bool = False

    @abstractmethod
    def put(self, item: Item, mark: Mark = _NO_MARK) -> None:
        """Add an item."""

    @abstractmethod
    def oldest(self) -> Mark | None:
        """The mark of the first event or gap that waits, if there is one."""

    @abstractmethod
    def take(self) -> Item | None:
        """Remove the first item, if there is one."""

    @abstractmethod
    def clear(self) -> None:
        """Remove all."""


class Newest(Queue):
    """Keeps the newest event of each channel; what it replaces counts as `skipped`.

    It has at most one event for each channel, one gap for each reason, a refusal for each name, and
    one state. What takes the place of another item has its place in the queue as well, so that the
    busiest channel has its turn. Only a state goes to the end: it is about what follows.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, tuple[Item, Mark]] = {}

    def put(self, item: Item, mark: Mark = _NO_MARK) -> None:
        """Add an item."""
        key = _key(item)
        if isinstance(item, State):
            self._waiting.pop(key, None)
        waiting = self._waiting.get(key)
        if waiting is not None:
            older, its = waiting
            item = _merged(older, item)
            mark = its if isinstance(item, Gap) else mark  # of an event, the newest one counts
        self._waiting[key] = item, mark

    def oldest(self) -> Mark | None:
        """The mark of the first event or gap that waits, if there is one."""
        marks = (mark for item, mark in self._waiting.values() if isinstance(item, Event | Gap))
        return min(marks, key=number_of, default=None)

    def take(self) -> Item | None:
        """Remove the first item, if there is one."""
        for key in self._waiting:
            return self._waiting.pop(key)[0]
        return None

    def clear(self) -> None:
        """Remove all."""
        self._waiting.clear()


def number_of(mark: Mark) -> int:
    """By which marks are in order."""
    return mark[0]


def _key(item: Item) -> Hashable:
    if isinstance(item, Event):
        return item.channel
    if isinstance(item, Gap):
        return Gap, item.reason
    if isinstance(item, Refused):
        return Refused, item.channel
    return State


def _merged(older: Item, item: Item) -> Item:
    if isinstance(item, Event) and isinstance(older, Event):
        is_counted = older.skipped is not None and item.skipped is not None
        skipped = older.skipped + 1 + item.skipped if is_counted else None  # type: ignore[operator]
        return attrs.evolve(item, skipped=skipped)
    if isinstance(item, Gap) and isinstance(older, Gap):
        is_counted = older.missed is not None and item.missed is not None
        missed = older.missed + item.missed if is_counted else None  # type: ignore[operator]
        channels = tuple(dict.fromkeys((*older.channels, *item.channels)))
        return Gap(channels=channels, missed=missed, reason=item.reason)
    return item


class InOrder(Queue):
    """Keeps every item. When it is full the socket is not read any further until it is half empty.

    States do not fill it: one that nobody saw gives way to the next.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Item, Mark]] = deque()

    def put(self, item: Item, mark: Mark = _NO_MARK) -> None:
        """Add an item."""
        if isinstance(item, State) and self._waiting and isinstance(self._waiting[-1][0], State):
            self._waiting.pop()
        self._waiting.append((item, mark))
        self._measure()

    def oldest(self) -> Mark | None:
        """The mark of the first event or gap that waits, if there is one."""
        # Those that came later have later marks.
        marks = (mark for item, mark in self._waiting if isinstance(item, Event | Gap))
        return next(marks, None)

    def take(self) -> Item | None:
        """Remove the first item, if there is one."""
        item = self._waiting.popleft()[0] if self._waiting else None
        self._measure()
        return item

    def clear(self) -> None:
        """Remove all."""
        self._waiting.clear()
        self._measure()

    def _measure(self) -> None:
        self.is_full = len(self._waiting) >= _FULL_FROM
        self.is_crowded = len(self._waiting) >= _CROWDED_FROM
        self.has_room = len(self._waiting) <= _FULL_FROM // 2


def queue_of(policy: Policy) -> Queue:
    """A queue by its name."""
    return Newest() if policy == "newest" else InOrder()
