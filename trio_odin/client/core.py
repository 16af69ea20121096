"""The decisions of a client, without sockets: what to ask for, what to believe, what to hand out.

A shell reports what happened and when, and carries out what `take` returns; see `items`. The same
core exists in TypeScript, and tests/client/vectors has what both of them have to answer.

    subscribe, set_rate, unsubscribe          the user
            │
          Core      which name has which rate, who gets an event, and whether it is a newer one
            │ 1 : n
          Link      up to 256 names: connections, positions, commands
            │
    opened, received, lost, tick              the sockets and the clock
"""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import attrs

from trio_odin.client.items import (
    AskToken,
    Deliver,
    Event,
    Gap,
    Options,
    Output,
    Rate,
    Refused,
    State,
)
from trio_odin.client.link import Link, Message, Position, is_pattern, names_for, speed

# An event of an older stream can come from a server that lags, within seconds.
_EPOCHS_MAX: Final = 3
# While a connection is open, time must not pass unnoticed for longer than this.
_TICK_MS: Final = 2_000
_REFRESH_MS: Final = 30_000
_MOVED_ON: Final = {"TOO_MANY_CHANNELS", "TOO_MANY_PATTERNS"}
_WORST_LAST: Final = ("live", "stale", "connecting", "offline")


@attrs.define(eq=False)
class _Subscription:
    """Names that are wanted together. `withheld`: channels with an event in a pause."""

    id: int
    names: tuple[str, ...]
    every_ms: Rate
    with_snapshot: bool
    withheld: set[str] = attrs.field(factory=set)


class Core:
    """All subscriptions of a client, and the links that serve them.

    Times are milliseconds of any clock that does not go back. Nothing here waits or raises.

    Args:
        urls: where to connect; the next one when one does not answer.
        needs_token: whether the shell has tokens.
        options: the numbers.
        random: gives numbers from 0 to 1, for the delays.

    Attributes:
        state: the state of the worst link.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        needs_token: bool = False,
        options: Options | None = None,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self.options = options or Options()
        self.random = random
        self.state = State(name="connecting")
        self._urls = list(urls)
        self._needs_token = needs_token
        self._token: str | None = None
        self._token_until = float("inf")
        self._is_asked = False
        self._outputs: list[Output] = []
        self._links: list[Link] = []
        self._link_of: dict[str, Link] = {}
        self._subscriptions: dict[int, _Subscription] = {}
        self._holders: dict[str, list[_Subscription]] = {}
        self._newest: dict[str, Event] = {}
        self._last: dict[str, dict[str, int]] = {}  # by epoch and channel
        # A gap of a name after the last event of a channel explains a hole.
        self._serial = 0
        self._event_serials: dict[str, int] = {}
        self._gap_serials: dict[str, int] = {}
        self._conns = 0
        self._is_hidden = False
        self._seen_at: float | None = None
        self._closed: str | None = None  # the cause
        self._moved: list[str] = []  # names that need another link

    # ---- for the shell

    def take(self) -> list[Output]:
        """What there is to do, in this order."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def start(self, now: float) -> None:
        """Begin to connect."""
        self._enter(now)
        if not self._links:
            self._add_link()
            self._links[0].dial(now)
        self._leave(now)

    def begin_after(self, now: float, epoch: str, offset: int) -> None:
        """Begin with what follows a position that an earlier program had reached.

        To be called after `subscribe`, before anything is open.
        """
        self._enter(now)
        for link in self._links:
            link.begin_after(Position(epoch, offset))
        self._leave(now)

    def opened(self, now: float, conn: int) -> None:
        """A socket is open, and commands can be sent."""
        self._enter(now)
        for link in self._links:
            link.opened(now, conn)
        self._leave(now)

    def received(self, now: float, conn: int, message: Message) -> None:
        """A message has arrived."""
        self._enter(now)
        for link in self._links:
            link.received(now, conn, message)
        self._leave(now)

    def lost(self, now: float, conn: int, code: int, cause: str) -> None:
        """A socket was not opened or has ended.

        Args:
            now: the time.
            conn: which one.
            code: the close code, the status of the HTTP answer, or 1006.
            cause: the reason, such as the server's text.
        """
        self._enter(now)
        for link in list(self._links):
            link.lost(now, conn, code, cause)
        self._leave(now)

    def take_token(self, now: float, token: str, valid_ms: float | None) -> None:
        """Here is a token, and for how long it is valid, if that is known."""
        self._enter(now)
        self._is_asked = False
        self._token = token
        self._token_until = float("inf") if valid_ms is None else now + valid_ms
        for link in self._links:
            link.take_token(now, token)
        self._leave(now)

    def token_failed(self, now: float, cause: str) -> None:
        """There is no token now."""
        self._enter(now)
        self._is_asked = False
        for link in self._links:
            link.token_failed(now, cause)
        self._leave(now)

    def tick(self, now: float) -> None:
        """Do what is due. To be called at `deadline`, or after it."""
        self._enter(now)
        if self._token is not None and self._token_until - _REFRESH_MS <= now:
            self._token_until = float("inf")  # once; then the server says that it has expired
            self._ask_token()
        for link in self._links:
            link.tick(now)
        self._leave(now)

    def deadline(self) -> float | None:
        """When to call `tick`; None: not before something else has happened."""
        if self.state.name == "closed":
            return None
        times = [time for link in self._links if (time := link.deadline()) is not None]
        if times and self._seen_at is not None and any(link.conns() for link in self._links):
            times.append(self._seen_at + _TICK_MS)
        if self._token is not None and self._token_until != float("inf"):
            times.append(self._token_until - _REFRESH_MS)
        return min(times, default=None)

    # ---- for the environment

    def probe(self, now: float) -> None:
        """The network may be back, or somebody looks again: find out at once."""
        self._enter(now)
        for link in self._links:
            link.probe(now)
            link.tick(now)
        self._leave(now)

    def hide(self, now: float, *, is_hidden: bool) -> None:
        """Nobody looks, or somebody does again: see `Options.hidden_every_ms`."""
        self._enter(now)
        if is_hidden != self._is_hidden:
            self._is_hidden = is_hidden
            self._update(now, list(self._holders))
        self._leave(now)

    # ---- for the user

    def subscribe(
        self,
        now: float,
        number: int,
        names: Iterable[str],
        every_ms: Rate = 0,
        *,
        with_snapshot: bool = True,
    ) -> None:
        """Want channels and patterns, as the subscription `number`.

        Of several subscriptions to a name, the fastest rate counts for all of them.
        """
        self._enter(now)
        names = tuple(dict.fromkeys(names))
        subscription = _Subscription(number, names, every_ms, with_snapshot)
        self._subscriptions[number] = subscription
        for name in subscription.names:
            self._holders.setdefault(name, []).append(subscription)
        if every_ms is None:
            subscription.withheld.update(self._matching(subscription))
        elif with_snapshot:
            self._deliver_newest(subscription, self._matching(subscription))
        self._update(now, subscription.names)
        self._leave(now)

    def set_rate(self, now: float, number: int, every_ms: Rate) -> None:
        """Change the rate of a subscription. When a pause ends, the newest events come."""
        self._enter(now)
        if (subscription := self._subscriptions.get(number)) is not None:
            subscription.every_ms = every_ms
            if every_ms is not None:
                withheld, subscription.withheld = subscription.withheld, set()
                self._deliver_newest(subscription, withheld)
            self._update(now, subscription.names)
        self._leave(now)

    def unsubscribe(self, now: float, number: int) -> None:
        """End a subscription."""
        self._enter(now)
        if (subscription := self._subscriptions.pop(number, None)) is not None:
            for name in subscription.names:
                self._holders[name].remove(subscription)
                if not self._holders[name]:
                    del self._holders[name]
            self._update(now, subscription.names)
        self._leave(now)

    def close(self, now: float) -> None:
        """End everything."""
        self._enter(now)
        self.fail("")
        self._leave(now)

    def newest(self, channel: str) -> Event | None:
        """The newest event of a channel that is subscribed to, if there was one."""
        return self._newest.get(channel)

    # ---- what a link needs

    def put(self, output: Output) -> None:
        """Have the shell do something."""
        self._outputs.append(output)

    def next_conn(self) -> int:
        """The number of a new connection."""
        self._conns += 1
        return self._conns

    def url(self, number: int) -> str:
        """The URL of a try."""
        return self._urls[number % len(self._urls)]

    def has_token(self, link: Link) -> bool:
        """Whether a connection can be opened; if not, a token is asked for."""
        if not self._needs_token or self._token is not None:
            return True
        self._ask_token()
        return False

    def token_now(self) -> str | None:
        """The token for a new connection."""
        return self._token

    def forget_token(self) -> bool:
        """The token was refused; whether there may be another one."""
        self._token = None
        return self._needs_token

    def _ask_token(self) -> None:
        if not self._is_asked:
            self._is_asked = True
            self.put(AskToken())

    def deliver(self, event: Event, *, is_alone: bool) -> None:
        """Hand an event out, unless it is not newer than the last one of its channel.

        If it `is_alone`, the event before it in its channel must have come.
        """
        channel = event.channel
        if event.offset is not None and event.epoch is not None:
            last = self._last_of(event.epoch)
            before = last.get(channel)
            if before is not None:
                if event.offset <= before:
                    return
                if is_alone and event.skipped == 0 and (event.prev or 0) > before:
                    self._find_hole(channel)
            last[channel] = event.offset
        self._event_serials[channel] = self._serial
        receivers = self._receivers(channel)
        if not receivers:
            return
        self._newest[channel] = event
        numbers = []
        for subscription in receivers:
            if subscription.every_ms is None:
                subscription.withheld.add(channel)
            elif subscription.with_snapshot or not event.is_snapshot:
                numbers.append(subscription.id)
        if numbers:
            self.put(Deliver(tuple(numbers), event))

    def _last_of(self, epoch: str) -> dict[str, int]:
        last = self._last.get(epoch)
        if last is None:
            while len(self._last) >= _EPOCHS_MAX:
                del self._last[next(iter(self._last))]
            last = self._last[epoch] = {}
        return last

    def _find_hole(self, channel: str) -> None:
        since = self._event_serials.get(channel, 0)
        if all(self._gap_serials.get(name, 0) <= since for name in names_for(channel)):
            self.declare([channel], None, "hole")

    def declare(self, names: Iterable[str], missed: int | None, reason: str) -> None:
        """Report a gap to whoever wants one of `names`."""
        self._serial += 1
        gone = list(names)
        self._gap_serials |= dict.fromkeys(gone, self._serial)
        by_subscription: dict[int, list[str]] = {}
        for name in gone:
            for subscription in self._interested(name):
                by_subscription.setdefault(subscription.id, []).append(name)
        together: dict[tuple[str, ...], list[int]] = {}
        for number, its in by_subscription.items():
            together.setdefault(tuple(its), []).append(number)
        for channels, numbers in together.items():
            gap = Gap(channels=channels, missed=missed, reason=reason)
            self.put(Deliver(tuple(numbers), gap))

    def _interested(self, name: str) -> list[_Subscription]:
        return self._receivers(name) if not is_pattern(name) else self._holders.get(name, [])

    def refuse(self, link: Link, name: str, code: str) -> None:
        """The server does not give a name on this link: try another link, or report it."""
        limit = link.max_patterns if is_pattern(name) else link.max_channels
        if code in _MOVED_ON and limit > 0:
            link.unwant(name)
            del self._link_of[name]
            self._moved.append(name)
            return
        numbers = tuple(subscription.id for subscription in self._holders.get(name, ()))
        if numbers:
            self.put(Deliver(numbers, Refused(channel=name, code=code)))

    def forget(self, names: Iterable[str]) -> None:
        """Forget the events of names that are no longer subscribed to."""
        for name in names:
            gone = [name] if not is_pattern(name) else list(self._event_serials)
            for channel in gone:
                if not self._receivers(channel):
                    self._newest.pop(channel, None)
                    self._event_serials.pop(channel, None)
                    self._gap_serials.pop(channel, None)
                    for last in self._last.values():
                        last.pop(channel, None)

    def restart_offsets(self, epoch: str) -> None:
        """The offsets of `epoch` have started again."""
        self._last.pop(epoch, None)

    def fail(self, cause: str) -> None:
        """End everything for good."""
        for link in self._links:
            link.close()
        self._links.clear()
        self._link_of.clear()
        self._closed = cause

    # ---- inside

    def _enter(self, now: float) -> None:
        limit = self.options.hidden_freeze_ms if self._is_hidden else self.options.freeze_ms
        before, self._seen_at = self._seen_at, now
        if before is not None and now - before > limit:
            for link in self._links:
                link.thaw(now)

    def _leave(self, now: float) -> None:
        moved, self._moved = self._moved, []
        self._update(now, moved)
        state = self._state()
        if (state.name, state.cause, state.retry_at) != (
            self.state.name,
            self.state.cause,
            self.state.retry_at,
        ):
            self.state = attrs.evolve(state, at=now)
            self.put(self.state)

    def _state(self) -> State:
        if self._closed is not None:
            return State(name="closed", cause=self._closed)
        states = [link.state() for link in self._links]
        if not states:
            return State(name="connecting")
        return max(states, key=lambda state: _WORST_LAST.index(state.name))

    def _rate_of(self, holders: list[_Subscription]) -> Rate:
        rate = min((one.every_ms for one in holders), key=speed)
        if self._is_hidden and rate:
            return max(rate, self.options.hidden_every_ms)
        return rate

    def _update(self, now: float, names: Iterable[str]) -> None:
        """Pass on what is wanted of these names, and have the links act."""
        if self._closed is not None:
            return
        for name in names:
            holders = self._holders.get(name)
            link = self._link_of.get(name)
            if holders:
                if link is None:
                    link = self._link_of[name] = self._link_for(now, name)
                rate = self._rate_of(holders)
                if link.wants.get(name, "none") != rate:
                    link.want(name, rate)
            elif link is not None:
                link.unwant(name)
                del self._link_of[name]
        for link in self._links[1:]:
            if not link.wants:
                link.close()
                self._links.remove(link)
        for link in self._links:
            link.pump(now)

    def _link_for(self, now: float, name: str) -> Link:
        for link in self._links:
            if link.has_room_for(name):
                return link
        link = self._add_link()
        link.dial(now)
        return link

    def _add_link(self) -> Link:
        link = Link(self)
        self._links.append(link)
        return link

    def _receivers(self, channel: str) -> list[_Subscription]:
        """The subscriptions that have a channel, each once."""
        found = {
            subscription.id: subscription
            for name in names_for(channel)
            for subscription in self._holders.get(name, ())
        }
        return list(found.values())

    def _matching(self, subscription: _Subscription) -> list[str]:
        """The channels of a subscription that have an event."""
        names = set(subscription.names)
        if any(map(is_pattern, names)):
            return [one for one in self._newest if not names.isdisjoint(names_for(one))]
        return [one for one in subscription.names if one in self._newest]

    def _deliver_newest(self, subscription: _Subscription, channels: Iterable[str]) -> None:
        for channel in channels:
            if (event := self._newest.get(channel)) is not None:
                self.put(Deliver((subscription.id,), attrs.evolve(event, is_snapshot=True)))
