"""What a user has of a server: events, gaps and the state of the connection, until it is closed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs

from trio_odin.client.connection import Position
from trio_odin.client.driver import Driver, Signal
from trio_odin.client.errors import ClientError
from trio_odin.client.items import Deliver, Event, Gap, Rate, Refused, State
from trio_odin.client.queues import POLICIES, Policy, number_of, queue_of
from trio_odin.client.subscription import Items, Subscription
from trio_odin.wire.channels import CHANNEL_RULE, is_name

# The subscription that a feed is made with. It also gets the states.
_OWN = 0


@attrs.frozen
class Wish:
    """What a subscription asks for; see `Feed.subscribe`."""

    names: tuple[str, ...]
    every_ms: Rate
    with_snapshot: bool
    queue: Policy
    after: Position | None = None

    @classmethod
    def of(
        cls,
        channels: str | Sequence[str],
        every_ms: Rate,
        snapshot: bool,
        queue: Policy,
        after: Position | None = None,
    ) -> Wish:
        """Check it.

        Raises:
            ClientError: a name, the rate or the queue is none that there is; or there is nothing
                to begin `after` the position.
        """
        names = (channels,) if isinstance(channels, str) else tuple(channels)
        for name in names:
            if not is_name(name):
                raise ClientError(f"{name!r}: {CHANNEL_RULE}; or * for a part, or > for all")
        if every_ms is not None and every_ms < 0:
            raise ClientError(f"every_ms={every_ms}: allowed is 0 or more, or None for a pause")
        if queue not in POLICIES:
            raise ClientError(f"queue={queue!r}: allowed is one of {', '.join(POLICIES)}")
        if after is not None and not names:
            raise ClientError(
                f"after={tuple(after)} without channels: name them in connect, as what is "
                "subscribed to later begins with its first values"
            )
        return cls(names, every_ms, snapshot, queue, after)


class Feed:
    """A connection to a server, or to the next one, until it is closed.

    A loop over it gives the events of the channels that it was made with.
    """

    def __init__(self, driver: Driver, wish: Wish) -> None:
        self._driver = driver
        self._core = driver.core
        self._queue: Policy = wish.queue
        self._full: set[int] = set()
        self._live_waiters = 0
        self._changed = driver.new_signal()
        self._subscriptions: dict[int, Subscription] = {}
        self._count = itertools.count(_OWN)
        driver.deliver = self._deliver
        self._own = self._subscribe(wish)

    def __aiter__(self) -> Items[Event]:
        return aiter(self._own)

    def items(self) -> Items[Event | Gap | Refused | State]:
        """Everything in its order: events, gaps, refused names, and how the connection is."""
        return self._own.items()

    @property
    def state(self) -> State:
        """How the connection is; of several, the worst one."""
        return self._core.state

    @property
    def bytes_received(self) -> int:
        """The size of all messages until now, as they came."""
        return self._driver.bytes_received

    def now_ms(self) -> float:
        """The time on the clock of `State.at` and `State.retry_at`, in milliseconds."""
        return self._driver.now_ms()

    def newest(self, channel: str) -> Event | None:
        """The newest event of a channel that is subscribed to, if there was one."""
        return self._core.newest(channel)

    def set_rate(self, every_ms: Rate) -> None:
        """Change the rate of the channels that it was made with; see `Subscription.set_rate`."""
        self._own.set_rate(every_ms)

    def subscribe(
        self,
        channels: str | Sequence[str],
        *,
        every_ms: Rate = 0,
        snapshot: bool = True,
        queue: Policy | None = None,
    ) -> Subscription:
        """Ask for channels and patterns, over the same connection.

        They begin with their first values, also if the feed began `after` a position.

        Args:
            channels: a name such as `BTC.trade` or `*.liquidity`, or several of them.
            every_ms: at most one event of each channel in so many ms; 0: all; None: paused.
            snapshot: whether the newest event of each channel comes first.
            queue: what happens to what is not taken; default: as for the feed.

        Raises:
            ClientError: an argument is none that there is; or the server has said no for good.
        """
        policy = self._queue if queue is None else queue
        return self._subscribe(Wish.of(channels, every_ms, snapshot, policy))

    def position(self) -> Position | None:
        """Where to go on another day: the `after` of the next `connect`.

        All events up to it were taken from the feed and its subscriptions, or given up by the
        policy `newest`, or their loss was reported by a gap that was taken: a loop over the feed
        alone passes over gaps, one over `items` does not. What is paused is not covered, unless
        everything is: its events from the pause may lie before the position.

        The `after` of `connect` is about the channels that it names, so name those of all
        subscriptions there.

        It may lie some seconds behind: events that come twice have the same `offset`. None before
        the server has given a position, and without JetStream. It can also be asked for after the
        end of the feed.
        """
        marks = (one.oldest() for one in self._subscriptions.values())
        first = min((mark for mark in marks if mark is not None), key=number_of, default=None)
        return self._driver.position() if first is None else first[1]

    async def wait_live(self) -> None:
        """Wait until it is connected and has everything that was asked for.

        Until then full queues keep what comes, even if nobody takes it.

        Raises:
            ClientError: the server has said no for good, the feed is closed, or a hundred thousand
                items wait in a queue of the policy `wait`.
        """
        self._live_waiters += 1
        self._driver.release()
        try:
            while self.state.name != "live":
                if self.is_over():
                    raise ClientError("the feed is closed")
                if any(one.is_crowded() for one in self._subscriptions.values()):
                    raise ClientError(
                        "too much waits to be taken before it is live: take items meanwhile, or "
                        "ask for fewer channels"
                    )
                await self._changed.wait()
        finally:
            self._live_waiters -= 1
            self._hold_if_full()

    async def aclose(self) -> None:
        """Close it in order, which takes a second at most. Loops over it end.

        If cancelled, the sockets are cut.
        """
        self._driver.act(self._core.close)
        await self._driver.wait_idle()

    # ---- for subscriptions

    def new_signal(self) -> Signal:
        """Make a signal that tasks can wait for."""
        return self._driver.new_signal()

    def is_over(self) -> bool:
        """Whether it was closed.

        Raises:
            ClientError: the server has said no for good.
        """
        if self.state.name == "closed" and self.state.cause:
            raise ClientError(f"{self._driver.target.shown}: {self.state.cause}")
        return self.state.name == "closed"

    def set_rate_of(self, number: int, every_ms: Rate) -> None:
        """Change the rate of a subscription."""
        self._driver.act(self._core.set_rate, number, every_ms)

    def unsubscribe(self, number: int) -> None:
        """End a subscription."""
        del self._subscriptions[number]
        self._driver.act(self._core.unsubscribe, number)

    def hold(self, number: int) -> None:
        """Stop reading: the queue of this subscription is full."""
        self._full.add(number)
        self._hold_if_full()

    def release(self, number: int) -> None:
        """Read on, unless another queue is full: this one has room again."""
        self._full.discard(number)
        if not self._full:
            self._driver.release()

    # ---- inside

    def _hold_if_full(self) -> None:
        if self._full and not self._live_waiters:
            self._driver.hold()

    def _change(self) -> None:
        changed, self._changed = self._changed, self._driver.new_signal()
        changed.set()

    def _subscribe(self, wish: Wish) -> Subscription:
        number = next(self._count)
        subscription = Subscription(self, number, wish.names, queue_of(wish.queue))
        self._subscriptions[number] = subscription
        if wish.names and not self.is_over():
            self._driver.act(
                self._core.subscribe,
                number,
                wish.names,
                wish.every_ms,
                with_snapshot=wish.with_snapshot,
            )
            if wish.after is not None:
                self._driver.act(self._core.begin_after, *wish.after)
        return subscription

    def _deliver(self, output: Deliver | State) -> None:
        if isinstance(output, Deliver):
            for number in output.subscriptions:
                if (subscription := self._subscriptions.get(number)) is not None:
                    subscription.put(output.item, self._driver.mark)
                    if self._live_waiters and subscription.is_crowded():
                        self._driver.hold()
                        self._change()
            return
        if (own := self._subscriptions.get(_OWN)) is not None:
            own.put(output, self._driver.mark)
        self._change()
        if output.name == "closed":
            for subscription in self._subscriptions.values():
                subscription.wake()
