"""What a user has of some channels: a loop over events, or over everything that happens.

Nothing here depends on trio or asyncio, except that the feed gives signals of one of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from trio_odin.client.driver import Signal
from trio_odin.client.errors import ClientWarning
from trio_odin.client.items import Event, Gap, Rate, Refused, State
from trio_odin.client.queues import Item, Mark, Queue

_T = TypeVar("_T")
_EVERYTHING = (Event, Gap, Refused, State)


class _Feed(Protocol):
    """What a subscription needs of its feed."""

    def new_signal(self) -> Signal: ...
    def is_over(self) -> bool: ...
    def hold(self, number: int) -> None: ...
    def release(self, number: int) -> None: ...
    def set_rate_of(self, number: int, every_ms: Rate) -> None: ...
    def unsubscribe(self, number: int) -> None: ...


class Items(Generic[_T]):
    """An asynchronous iterator over items of one kind. It ends with the subscription or the feed.

    One over events alone gives a ClientWarning for each name that the server refuses.

    Raises:
        ClientError: the server has said no for good.

    Cancellation loses no item. Several loops over one subscription share its items.
    """

    def __init__(
        self, next_item: Callable[[], Awaitable[Item | None]], kinds: tuple[type, ...]
    ) -> None:
        self._next_item = next_item
        self._kinds = kinds

    def __aiter__(self) -> Items[_T]:
        return self

    async def __anext__(self) -> _T:
        while (item := await self._next_item()) is not None:
            if isinstance(item, self._kinds):
                return item  # type: ignore[return-value]
            if isinstance(item, Refused):
                what = f"the server refuses {item.channel!r}: {item.code!r}; see items()"
                warnings.warn(what, ClientWarning, stacklevel=2)
        raise StopAsyncIteration


class Subscription:
    """Channels and patterns of a feed, with a queue of their own.

    It lasts until `close`, or until the end of the block if it is used as a context manager.

    Attributes:
        channels: the names that were asked for.
    """

    def __init__(self, feed: _Feed, number: int, channels: tuple[str, ...], queue: Queue) -> None:
        self.channels = channels
        self._feed = feed
        self._number = number
        self._queue = queue
        self._is_full = False
        self._is_closed = False
        self._signal: Signal | None = None

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> Items[Event]:
        return Items(self._next_item, (Event,))

    def items(self) -> Items[Event | Gap | Refused | State]:
        """Everything in its order: events, gaps, and names that the server refuses."""
        return Items(self._next_item, _EVERYTHING)

    def set_rate(self, every_ms: Rate) -> None:
        """Change the rate: milliseconds between two events of a channel, 0 for all, None: pause.

        When a pause ends, the newest event of each channel comes.
        """
        if not self._is_closed:
            self._feed.set_rate_of(self._number, every_ms)

    def close(self) -> None:
        """End it. What waits is dropped, and loops over it end."""
        if self._is_closed:
            return
        self._is_closed = True
        self._queue.clear()
        self._let_go()
        self.wake()
        self._feed.unsubscribe(self._number)

    # ---- for the feed

    def put(self, item: Item, mark: Mark) -> None:
        """Have an item wait for whoever iterates."""
        self._queue.put(item, mark)
        if self._queue.is_full and not self._is_full:
            self._is_full = True
            self._feed.hold(self._number)
        self.wake()

    def oldest(self) -> Mark | None:
        """The mark of the first event or gap that waits, if there is one."""
        return self._queue.oldest()

    def is_crowded(self) -> bool:
        """Whether so much waits that no more can be read, whatever is waited for."""
        return self._queue.is_crowded

    def wake(self) -> None:
        """Have loops look again."""
        signal, self._signal = self._signal, None
        if signal is not None:
            signal.set()

    def _let_go(self) -> None:
        if self._is_full and self._queue.has_room:
            self._is_full = False
            self._feed.release(self._number)

    async def _next_item(self) -> Item | None:
        while (item := self._queue.take()) is None:
            if self._is_closed or self._feed.is_over():
                return None
            if self._signal is None:
                self._signal = self._feed.new_signal()
            await self._signal.wait()
        self._let_go()
        return item
