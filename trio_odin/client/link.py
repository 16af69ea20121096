"""One link: a set of names, and the connection that has them now.

A link opens a connection, watches it, and replaces it when it is lost or about to be. What the next
one has to bring is what the one before had, after its positions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Final, Protocol

from trio_odin.client.connection import (
    Connection,
    Message,
    Position,
    Recipient,
    Wanted,
    is_pattern,
    names_for,
    speed,
)
from trio_odin.client.items import Rate, State

__all__ = ["Feed", "Link", "Message", "Position", "is_pattern", "names_for", "speed"]

# "At once" for many clients: they are spread over this time.
_SOON_MS: Final = 1_000
_DOUBLED_MAX: Final = 16

# A status of HTTP, the same after an upgrade with 4 before it, or a close code.
_NEW_TOKEN = re.compile("4?401|4001")
_NEVER_AGAIN = re.compile("4?403|100[2379]|1010|4[5-9]..")
_SAY_WHEN = re.compile("4?(429|503)")
_GOING_AWAY: Final = 1001
_LEFT: Final = 4000
_SECONDS = re.compile(r"again in (\d{1,6}) s$")
_WAIT_MAX_MS: Final = 60_000


class Feed(Recipient, Protocol):
    """What a link needs of the core that has it."""

    random: Callable[[], float]
    has_others: bool

    def dial(self, tries: int) -> int | None:
        """Have a socket opened; returns its number. Without a token one is asked for: None."""

    def drop(self, conn: int, code: int) -> None:
        """Have a socket closed."""

    def has_other_token(self) -> bool:
        """The token was refused; whether there may be another one."""
        ...

    def refuse(self, link: Link, name: str, code: str, *, is_full: bool) -> None:
        """The server does not give a name on this link, which may be full."""

    def fail(self, cause: str) -> None:
        """End everything for good."""


class Link:
    """The names in `wanted`, over all connections.

    Attributes:
        wanted: the names, each with its rate, and where they are.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.wanted = Wanted()
        self._max_channels = feed.options.max_channels
        self._max_patterns = feed.options.max_patterns
        self._current: Connection | None = None
        self._leaving: Connection | None = None
        self._tries = 0
        self._attempts = 0
        self._retry_at = inf
        self._cause = ""

    # ---- what is wanted

    def has_room_for(self, name: str) -> bool:
        """Whether one more name fits."""
        rates = self.wanted.rates
        is_room = not is_pattern(name) or sum(map(is_pattern, rates)) < self._max_patterns
        return is_room and len(rates) < self._max_channels

    def want(self, name: str, rate: Rate) -> None:
        """Want `name` at `rate` from now on."""
        before = self.wanted.rates.get(name, rate)
        self.wanted.rates[name] = rate
        self._lower(name, before, rate)

    def begin_after(self, position: Position) -> None:
        """Begin what is wanted with what follows a position. To be called before it is open."""
        self.wanted.positions |= dict.fromkeys(self.wanted.rates.values(), position)
        self.wanted.owed |= self.wanted.rates.keys()

    def unwant(self, name: str) -> None:
        """Want `name` no longer."""
        rate = self.wanted.rates.pop(name)
        self.wanted.owed.discard(name)
        self.wanted.refused.discard(name)
        self._lower(name, rate, rate)
        self._feed.forget([name])

    def holds(self, channel: str) -> bool:
        """Whether the server sends a channel, by whatever name."""
        held = self._current.held if self._current else {}
        return not held.keys().isdisjoint(names_for(channel))

    def _lower(self, name: str, before: Rate, after: Rate) -> None:
        """Take the lower of two positions along with a name that changes its rate.

        An event of the slower rate may wait for its tick. A pattern may leave channels to names at
        any rate: then all go on from the lowest one. That is always safe: what comes twice is known
        by its offset.
        """
        for conn in self._conns():
            conn.is_settled = False
        positions, rates = self.wanted.positions, {before, after}
        if any(map(is_pattern, [name, *self.wanted.rates])):
            rates.update(rate for rate in positions if rate is not None)
        epoch = self._current.epoch if self._current else None

        def place(at: Position) -> tuple[bool, int]:
            return at.epoch == epoch, at.offset  # in another epoch it is further behind

        known = [positions[rate] for rate in rates if rate in positions]
        if known:
            positions |= dict.fromkeys(rates, min(known, key=place))

    def _refuse(self, name: str, code: str) -> None:
        """Note that the server does not give a name, and how many it does give."""
        wanted = self.wanted
        if name not in wanted.rates:
            return
        wanted.refused.add(name)
        taken = wanted.rates.keys() - wanted.refused
        # It may have room on another link, unless the server takes none at all.
        is_full = False
        if code == "TOO_MANY_CHANNELS":
            self._max_channels = len(taken)
            is_full = bool(taken)
        if code == "TOO_MANY_PATTERNS":
            self._max_patterns = sum(map(is_pattern, taken))
            is_full = self._max_patterns > 0
        if name in wanted.owed:  # wherever it goes, it begins anew there
            wanted.owed.discard(name)
            self._feed.declare([name], None, "resume")
        self._feed.refuse(self, name, code, is_full=is_full)

    # ---- connections

    def _conns(self) -> list[Connection]:
        return [conn for conn in (self._current, self._leaving) if conn is not None]

    def _conn(self, number: int) -> Connection | None:
        return next((conn for conn in self._conns() if conn.id == number), None)

    def dial(self, now: float) -> None:
        """Open a connection, once there is a token if one is needed."""
        self._retry_at = inf
        number = self._feed.dial(self._tries)
        if number is None:
            return
        self.wanted.refused.clear()
        self._current = Connection(
            number,
            self.wanted,
            self._feed,
            partial(self._counts, number),
            self._refuse,
            now + self._feed.options.dial_ms,
        )

    def _counts(self, number: int) -> bool:
        current = self._current
        return current is None or not current.is_open or current.id == number

    def _waits_for_token(self) -> bool:
        return self._current is None and self._retry_at == inf

    def take_token(self, now: float, token: str) -> None:
        """A token has come: dial with it, or send it on the open connection."""
        if self._waits_for_token():
            self.dial(now)
        elif self._current is not None and self._current.is_open:
            self._current.send({"type": "token", "token": token})

    def token_failed(self, now: float, cause: str) -> None:
        """There is no token: ask again later."""
        if self._waits_for_token():
            self._retry(now, cause)

    def opened(self, now: float, number: int) -> None:
        """The connection is open."""
        conn = self._conn(number)
        if conn is not None and not conn.is_open:
            conn.opened(now)

    def received(self, now: float, number: int, message: Message) -> None:
        """Take a message from the connection."""
        conn = self._conn(number)
        if conn is None or not conn.is_open:
            return
        # Not before: else a server that fails after its first answer is asked again without end.
        if conn is self._current and conn.is_steady(now):
            self._attempts = 0
        if why := conn.received(now, message):
            self._give_up(now, conn, why)

    def lost(self, now: float, number: int, code: int, cause: str) -> None:
        """The connection was not made, or has ended: with a close code, or a status of HTTP."""
        conn = self._conn(number)
        if conn is None:
            return
        was_current = conn is self._current
        self._end(conn)
        if not was_current:
            return
        if not conn.was_settled:
            self._tries += 1
        text = str(code)
        needs_token, says_when = _NEW_TOKEN.fullmatch(text), _SAY_WHEN.fullmatch(text)
        is_final = _NEVER_AGAIN.fullmatch(text) and not says_when
        if is_final or (needs_token and not self._feed.has_other_token()):
            self._feed.fail(cause)
            return
        seconds = _SECONDS.search(cause) if says_when and not self._feed.has_others else None
        wait_ms = min(int(seconds[1]) * 1000, _WAIT_MAX_MS) if seconds else 0
        self._retry(now, cause, wait_ms, is_soon=bool(needs_token) or code == _GOING_AWAY)

    def _end(self, conn: Connection, code: int | None = None) -> None:
        """A connection has ended, or ends now with a code. The next one owes what it had."""
        if code is not None:
            self._feed.drop(conn.id, code)
        if conn.jumped:
            self._feed.declare(conn.jumped, None, "resume")
        if conn is self._current:
            self._leave_current()
        else:
            self._leaving = None
        self._feed.forget([">"])

    def _leave_current(self) -> None:
        if self._current is None:
            return
        for name, its in self._current.held.items():
            if name in self.wanted.rates:
                self.wanted.owed.add(name)
                if its != self.wanted.rates[name]:  # it had not come so far
                    self._lower(name, its, self.wanted.rates[name])
        self._current = None

    def _retry(self, now: float, cause: str, wait_ms: float = 0, *, is_soon: bool = False) -> None:
        options = self._feed.options
        most = min(options.retry_max_ms, options.retry_min_ms * 2**self._attempts)
        if is_soon and self._attempts == 0:
            most = _SOON_MS
        self._attempts = min(self._attempts + 1, _DOUBLED_MAX)
        self._retry_at = now + wait_ms + self._feed.random() * most
        self._cause = cause

    def _give_up(self, now: float, conn: Connection, cause: str) -> None:
        """Drop a connection that does not answer."""
        self._feed.drop(conn.id, _LEFT)
        self.lost(now, conn.id, 1006, cause)

    def _hand_over(self, now: float) -> None:
        """Connect elsewhere first, and leave this connection when the new one has everything."""
        if self._leaving is not None:
            self._end(self._leaving, 1000)
        self._leaving = self._current
        self._leave_current()
        if self._leaving is not None:
            self._leaving.leave()
        self._tries += 1
        self._cause = "draining"
        self.dial(now)

    def thaw(self, now: float) -> None:
        """Drop what has piled up while the process did not run, and connect anew."""
        was_open = self._current is not None and self._current.is_open
        for conn in self._conns():
            if conn.is_open:
                self._end(conn, _LEFT)
        if was_open and self._attempts == 0:
            self._attempts = 1
            self._cause = "frozen"
            self.dial(now)
        elif was_open:  # again: a program that is too busy gets no more work by it
            self._retry(now, "frozen")

    def probe(self, now: float) -> None:
        """Find out at once whether the network is there."""
        if self._retry_at < inf:
            self._attempts = 0
            self._retry_at = now
        for conn in self._conns():
            conn.ask(now)
        self.tick(now)

    def close(self) -> None:
        """End everything."""
        for conn in self._conns():
            self._end(conn, 1000)

    # ---- time

    def deadline(self) -> float:
        """When `tick` has something to do."""
        return min([self._retry_at, *(conn.deadline() for conn in self._conns())])

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self._retry_at <= now:
            self.dial(now)
        if self._current is not None and self._current.leave_at <= now:
            self._hand_over(now)
        for conn in self._conns():
            if why := conn.tick(now):
                self._give_up(now, conn, why)

    def pump(self, now: float) -> None:
        """Go on towards what is wanted, and let the connection before go, once this one has it."""
        if self._current is not None:
            self._current.pump(now)
            if self._leaving is not None and self._current.is_settled:
                self._end(self._leaving, 1000)

    # ---- state

    def state(self) -> State:
        """How it is."""
        conn = self._current
        if self._leaving is not None and (conn is None or not conn.was_settled):
            conn = self._leaving
        if conn is None and self._retry_at < inf:
            return State(name="offline", cause=self._cause, retry_at=self._retry_at)
        if conn is None or not conn.was_settled:
            return State(name="connecting", cause=self._cause)
        if not conn.is_well:
            return State(name="stale", cause="NATS is away")
        return State(name="live")
