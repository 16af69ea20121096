"""The decisions of a client, without sockets: what to ask for, what to believe, what to hand out.

A shell reports what happened and when, and carries out what `take` returns; see `items`. The same
core exists in TypeScript, and tests/client/vectors has what both of them have to answer.

    subscribe, set_rate, unsubscribe          the user
            │
          Core      which name has which rate, who gets an event, and whether it is a newer one
            │ 1 : n
          Link      up to 256 names, over all connections: when to dial, when to leave
            │ 1 : 1, or 2 in a hand-over
      Connection    commands, positions, signs of life
            │
    opened, received, lost, tick              the sockets and the clock
"""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import Final

import attrs

from trio_odin.client.connection import Message, Position, is_pattern, names_for, speed
from trio_odin.client.items import (
    AskToken,
    Deliver,
    Dial,
    Drop,
    Event,
    Gap,
    Options,
    Output,
    Rate,
    Refused,
    Send,
    State,
)
from trio_odin.client.link import Link

# Time must not pass unnoticed for longer than this: see `Options.freeze_ms`.
_TICK_MS: Final = 2_000
_REFRESH_MS: Final = 30_000
_AGAIN_MS: Final = 5_000
_WORST_LAST: Final = ("live", "stale", "connecting", "offline")


@attrs.define(eq=False)
class _Subscription:
    """Names that are wanted together.

    Attributes:
        withheld: channels of which it has not got the newest event, as it is paused.
    """

    id: int
    names: dict[str, None]
    every_ms: Rate
    with_snapshot: bool
    withheld: dict[str, None] = attrs.field(factory=dict)

    def known(self, newest: Mapping[str, Event]) -> list[str]:
        """Its channels that are in `newest`."""
        # Not each of very many channels for each subscription.
        some = newest if any(map(is_pattern, self.names)) else self.names
        names = self.names.keys()
        return [one for one in some if one in newest and not names.isdisjoint(names_for(one))]


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
        has_others: whether there are other servers, if one says no.
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
        self.has_others = len(self._urls) > 1
        self._needs_token = needs_token
        self._token: str | None = None
        self._refresh_at = inf
        self._is_asked = False
        # Which stream has followed which, the last time.
        self._succession: tuple[str | None, str | None] = None, None
        self._outputs: list[Output] = []
        self._links: list[Link] = []
        self._subscriptions: dict[int, _Subscription] = {}
        self._holders: dict[str, dict[int, _Subscription]] = {}  # by name, those that want it
        self._newest: dict[str, Event] = {}
        # Of the channels with gaps after their newest event, by which name, and why.
        self._gaps: dict[str, dict[str, str]] = {}
        self._conns = 0
        self._is_hidden = False
        self._seen_at: float | None = None
        self._closed: str | None = None  # the cause
        self._changed: list[str] = []  # names that may need another rate or link

    # ---- for the shell

    def take(self) -> list[Output]:
        """What there is to do, in this order."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def start(self, now: float) -> None:
        """Begin to connect."""
        self._enter(now)
        if not self._links and self._closed is None:
            self._add_link(now)
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
        # If it seems to have expired, a clock is wrong: the server will say so.
        is_known = valid_ms is not None and valid_ms > 0
        self._refresh_at = inf
        if valid_ms is not None and is_known:
            self._refresh_at = now + max(valid_ms - _REFRESH_MS, valid_ms / 2)
        for link in self._links:
            link.take_token(now, token)
        self._leave(now)

    def token_failed(self, now: float, cause: str) -> None:
        """There is no token now."""
        self._enter(now)
        self._is_asked = False
        if self._token is not None:  # it is still valid
            self._refresh_at = now + _AGAIN_MS
        for link in self._links:
            link.token_failed(now, cause)
        self._leave(now)

    def tick(self, now: float) -> None:
        """Do what is due. To be called at `deadline`, or after it."""
        self._enter(now)
        if self._refresh_at <= now:
            self._refresh_at = inf  # once; then the server says that it has expired
            self._ask_token()
        for link in self._links:
            link.tick(now)
        self._leave(now)

    def deadline(self) -> float | None:
        """When to call `tick`; None: not before something else has happened."""
        if self._closed is not None or self._seen_at is None:
            return None
        times = [link.deadline() for link in self._links]
        return min([self._seen_at + _TICK_MS, self._refresh_at, *times])

    # ---- for the environment

    def probe(self, now: float) -> None:
        """The network may be back, or somebody looks again: find out at once."""
        self._enter(now)
        for link in self._links:
            link.probe(now)
        self._leave(now)

    def hide(self, now: float, *, is_hidden: bool) -> None:
        """Nobody looks, or somebody does again: see `Options.hidden_every_ms`."""
        self._enter(now)
        if is_hidden != self._is_hidden:
            self._is_hidden = is_hidden
            self._changed = list(self._holders)
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

        Of several subscriptions to a name or channel, the fastest rate counts for all of them: a
        slower one gets the events of the faster one, too.
        """
        self._enter(now)
        one = _Subscription(number, dict.fromkeys(names), every_ms, with_snapshot)
        one.withheld = dict.fromkeys(one.known(self._newest) if with_snapshot else ())
        self._subscriptions[number] = one
        for name in one.names:
            self._holders.setdefault(name, {})[number] = one
        may_be_old = [name for name in one.withheld if self._gaps.get(name)]
        self._release(one)
        for name in may_be_old:
            reason = next(iter(self._gaps[name].values()))
            gap = Gap(channels=(name,), missed=None, reason=reason)
            self._put(Deliver((number,), gap))
        self._changed = list(one.names)
        self._leave(now)

    def set_rate(self, now: float, number: int, every_ms: Rate) -> None:
        """Change the rate of a subscription. When a pause ends, the newest events come."""
        self._enter(now)
        if (one := self._subscriptions.get(number)) is not None:
            one.every_ms = every_ms
            self._release(one)
            self._changed = list(one.names)
        self._leave(now)

    def unsubscribe(self, now: float, number: int) -> None:
        """End a subscription."""
        self._enter(now)
        if (one := self._subscriptions.pop(number, None)) is not None:
            self._changed = list(one.names)
            for name in one.names:
                self._holders[name].pop(number)
        self._leave(now)

    def position(self) -> Position | None:
        """Everything up to it has come, or its loss was reported; None if that is not known.

        Several links and rates have positions each: it is the lowest one. Those of paused channels
        count only if there are no others, as they stay where the pause began.
        """
        lowest: Position | None = None
        for link in self._links:
            wanted = link.wanted
            if not wanted.rates:
                continue
            positions = [at for rate, at in wanted.positions.items() if rate is not None]
            positions = positions or [*wanted.positions.values()]
            if not positions:
                return None
            for at in positions:
                if lowest is not None and at.epoch != lowest.epoch:
                    return None
                if lowest is None or at.offset < lowest.offset:
                    lowest = at
        return lowest

    def close(self, now: float, cause: str = "") -> None:
        """End everything, for a cause if something is wrong."""
        self._enter(now)
        self.fail(cause)
        self._leave(now)

    def newest(self, channel: str) -> Event | None:
        """The newest event of a channel that is subscribed to, if there was one."""
        return self._newest.get(channel)

    # ---- what a link needs

    def dial(self, tries: int) -> int | None:
        """Have a socket opened; returns its number. Without a token one is asked for: None."""
        if self._needs_token and self._token is None:
            self._ask_token()
            return None
        self._conns += 1
        self._put(Dial(self._conns, self._urls[tries % len(self._urls)], self._token))
        return self._conns

    def send(self, conn: int, message: Message) -> None:
        """Have a message sent."""
        self._put(Send(conn, message))

    def drop(self, conn: int, code: int) -> None:
        """Have a socket closed."""
        self._put(Drop(conn, code))

    def has_other_token(self) -> bool:
        """The token was refused; whether there may be another one."""
        self._token = None
        return self._needs_token

    def _ask_token(self) -> None:
        if not self._is_asked:
            self._is_asked = True
            self._put(AskToken())

    def deliver(self, event: Event, *, is_alone: bool) -> None:
        """Hand an event out, unless it is not newer than the last one of its channel.

        If it `is_alone`, the event before it in its channel must have come. What came between two
        streams is not known, and who knows an event of the former one has to be told.
        """
        channel, before = event.channel, self._newest.get(event.channel)
        receivers = self._receivers(channel)
        told_by = self._gaps.pop(channel, {})
        if before is not None:
            if not self._is_newer(event, before):
                self._gaps[channel] = told_by
                return
            is_other = event.epoch != before.epoch
            if event.is_snapshot:
                if is_other or event.prev != before.offset:
                    event = attrs.evolve(event, skipped=None)
            elif is_other or (is_alone and _is_hole(before, event)):
                self._report_hole(channel, receivers, told_by)
        self._keep(event)
        numbers = []
        for one in receivers:
            if one.every_ms is None:
                one.withheld[channel] = None
            # What follows another event is news to everybody.
            elif one.with_snapshot or before is not None or not event.is_snapshot:
                numbers.append(one.id)
        if numbers:
            self._put(Deliver(tuple(numbers), event))

    def _keep(self, event: Event) -> None:
        """Keep the newest event of its channel, and forget the one that came first, if need be."""
        newest = self._newest
        newest.pop(event.channel, None)
        newest[event.channel] = event
        if len(newest) > self.options.max_newest:
            oldest = next(iter(newest))
            kept = newest.pop(oldest)
            if oldest in self._holders:
                newest[oldest] = kept
            else:
                self._gaps.pop(oldest, None)

    def _report_hole(
        self, channel: str, receivers: Iterable[_Subscription], told_by: Iterable[str]
    ) -> None:
        """Report events that are missing to those who were not told of a gap there."""
        for one in receivers:
            if channel not in told_by and one.names.keys().isdisjoint(told_by):
                gap = Gap(channels=(channel,), missed=None, reason="hole")
                self._put(Deliver((one.id,), gap))

    def declare(self, names: Iterable[str], missed: int | None, reason: str) -> None:
        """Report a gap to whoever wants one of `names`."""
        gone = dict.fromkeys(names)
        is_first = reason == "snapshot"  # then nothing is missing after the newest events
        if not is_first:
            self._mark(gone, reason)
        lacking: dict[int, list[str]] = {}
        for name in gone:
            for one in self._receivers(name):
                if one.with_snapshot or not is_first:
                    lacking.setdefault(one.id, []).append(name)
        for number, channels in lacking.items():
            # How many of them it lacks is known if it wants all of them.
            its = missed if len(channels) == len(gone) else None
            gap = Gap(channels=tuple(channels), missed=its, reason=reason)
            self._put(Deliver((number,), gap))

    def _mark(self, gone: Mapping[str, None], reason: str) -> None:
        """Note a gap after the newest events of these names."""
        for channel in self._newest if any(map(is_pattern, gone)) else self._newest.keys() & gone:
            for name in gone.keys() & {*names_for(channel)}:
                self._gaps.setdefault(channel, {})[name] = reason

    def follow(self, before: str | None, epoch: str | None) -> None:
        """Note that the stream `epoch` has taken the place of another one."""
        self._succession = before, epoch

    def _is_newer(self, event: Event, before: Event) -> bool:
        """Whether an event is newer than `before` of the same channel."""
        is_counted = event.offset is not None and before.offset is not None
        if is_counted and event.epoch == before.epoch:
            return (event.offset or 0) > (before.offset or 0)
        # Without offsets, events are new as they come, but a first value may be one that has come.
        # And a server that lags can bring an event of an older stream, or one without an offset:
        # times tell, unless it is known which stream is newer. The clock of another NATS node may
        # be behind.
        has_order = event.epoch is None or before.epoch is None
        is_next = event.offset is not None and (before.epoch, event.epoch) == self._succession
        is_new = (has_order and not event.is_snapshot) or is_next
        return is_new or event.unix_ms > before.unix_ms

    def refuse(self, link: Link, name: str, code: str, *, is_full: bool) -> None:
        """The server does not give a name on this link: try another link, or report it."""
        if is_full:
            link.unwant(name)
            self._changed.append(name)
        elif numbers := tuple(one.id for one in self._holders_of(name)):
            self._put(Deliver(numbers, Refused(channel=name, code=code)))

    def forget(self, names: Iterable[str]) -> None:
        """Forget what nobody wants of these names, unless the server sends it all the same."""
        for name in names:
            for channel in list(self._newest) if is_pattern(name) else [name]:
                is_wanted = bool(self._receivers(channel))
                if not is_wanted and not any(link.holds(channel) for link in self._links):
                    self._newest.pop(channel, None)
                    self._gaps.pop(channel, None)

    def fail(self, cause: str) -> None:
        """End everything for good."""
        self._closed = cause
        for link in self._links:
            link.close()
        self._links.clear()

    # ---- inside

    def _put(self, output: Output) -> None:
        self._outputs.append(output)

    def _enter(self, now: float) -> None:
        limit = self.options.hidden_freeze_ms if self._is_hidden else self.options.freeze_ms
        before, self._seen_at = self._seen_at, now
        if before is not None and now - before > limit:
            for link in self._links:
                link.thaw(now)

    def _leave(self, now: float) -> None:
        self._update(now)
        state = attrs.evolve(self._state(), at=self.state.at)
        if state != self.state:
            self.state = attrs.evolve(state, at=now)
            self._put(self.state)

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

    def _update(self, now: float) -> None:
        """Pass on what is wanted of the names that have changed, and have the links act."""
        if self._closed is not None:
            return
        for name in self._changed:
            holders = self._holders_of(name)
            link = next((one for one in self._links if name in one.wanted.rates), None)
            if holders:
                room = (one for one in self._links if one.has_room_for(name))
                link = link or next(room, None) or self._add_link(now)
                rate = self._rate_of(holders)
                if link.wanted.rates.get(name, "none") != rate:
                    link.want(name, rate)
            else:
                self._holders.pop(name, None)
                if link is not None:
                    link.unwant(name)
        self._changed = []
        for link in self._links[1:]:
            if not link.wanted.rates:
                link.close()
                self._links.remove(link)
        for link in self._links:
            link.pump(now)

    def _add_link(self, now: float) -> Link:
        link = Link(self)
        self._links.append(link)
        link.dial(now)
        return link

    def _holders_of(self, name: str) -> list[_Subscription]:
        return list(self._holders.get(name, {}).values())

    def _receivers(self, name: str) -> list[_Subscription]:
        """Those that want a pattern, or a channel by any name: first those that name it."""
        found: dict[int, _Subscription] = {}
        for one in _forms(name):
            found |= self._holders.get(one, {})
        return list(found.values())

    def _release(self, one: _Subscription) -> None:
        """Hand out the newest events that a subscription has not got, unless it is paused."""
        if one.every_ms is None:
            return
        for channel in one.withheld:
            if (event := self._newest.get(channel)) is not None:
                self._put(Deliver((one.id,), attrs.evolve(event, is_snapshot=True)))
        one.withheld = {}


def _forms(name: str) -> tuple[str, ...]:
    return (name,) if is_pattern(name) else names_for(name)


def _is_hole(before: Event, event: Event) -> bool:
    """Whether there was an event between these two of a stream that should have come as well."""
    return event.skipped == 0 and (event.prev or 0) > (before.offset or inf)
