"""One link: a set of names, and the connection that has them now.

A link opens a connection, brings it to what is wanted by one command after the other, watches it,
and replaces it when it is lost, or about to be. It makes no difference between a connection and the
next one: what a new one has to bring is what follows the positions of the one before.

Names are channels and patterns. Those of one rate have one position: everything up to it came. See
"Resume" and "Rates" in docs/protocol.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, Protocol

import attrs

from trio_odin.client.items import Dial, Drop, Event, Options, Output, Rate, Send, State

Message = dict[str, Any]

# The server takes 16 KiB in one message, and 100 messages at once, then 10 a second.
_COMMAND_CHARS: Final = 12_000
_BURST: Final = 20
_COMMAND_EVERY_MS: Final = 200
# "At once" for many clients: they are spread over this time.
_SOON_MS: Final = 1_000
_LIMITED_MS: Final = 2_000

_NEW_TOKEN: Final = {401, 4001, 4401}
_NEVER_AGAIN: Final = {403, 1002, 1003, 1007, 1009, 1010, 4403}
_NEVER_FROM: Final = 4500
_SAY_WHEN: Final = {429, 503, 4429, 4503}
_GOING_AWAY: Final = 1001
_MOVES_ON: Final = {"TOO_MANY_CHANNELS", "TOO_MANY_PATTERNS"}
_SECONDS = re.compile(r"(\d+) ?s")


class Position(NamedTuple):
    """Everything up to `offset` of the stream `epoch` came."""

    epoch: str
    offset: int


def speed(rate: Rate) -> float:
    """How seldom: the order of rates, the fastest first."""
    return float("inf") if rate is None else rate


def is_pattern(name: str) -> bool:
    return "*" in name or ">" in name


def names_for(channel: str) -> tuple[str, ...]:
    """All names that `channel` may have been subscribed to by."""
    symbol, _, kind = channel.partition(".")
    return (channel, f"{symbol}.*", f"{symbol}.>", f"*.{kind}", "*.*", "*.>", ">")


class Feed(Protocol):
    """What a link needs of the core that has it."""

    options: Options
    random: Callable[[], float]

    def put(self, output: Output) -> None: ...
    def next_conn(self) -> int: ...
    def url(self, number: int) -> str: ...
    def has_token(self, link: Link) -> bool: ...
    def forget_token(self) -> bool: ...
    def token_now(self) -> str | None: ...
    def deliver(self, event: Event, *, is_alone: bool) -> None: ...
    def declare(self, names: Iterable[str], missed: int | None, reason: str) -> None: ...
    def refuse(self, link: Link, name: str, code: str) -> None: ...
    def forget(self, names: Iterable[str]) -> None: ...
    def restart_offsets(self, epoch: str) -> None: ...
    def fail(self, cause: str) -> None: ...


@attrs.define(eq=False)
class _Command:
    """A command that waits for its answer, of the type `ends_with`."""

    id: int
    ends_with: str
    names: list[str]
    deadline: float
    rate: Rate = 0
    is_resume: bool = False
    is_acknowledged: bool = False


@attrs.define(eq=False)
class _Conn:
    """One connection.

    Attributes:
        held: the names that it has, each with the rate that was asked for.
        resumes: from where the names of each rate go on; and as far as they have got there.
        is_settled: whether it has all that is wanted. Only then do events move positions.
        was_settled: whether it ever had.
        holes: numbers of events that the server has dropped.
    """

    id: int
    deadline: float
    is_open: bool = False
    held: dict[str, Rate] = attrs.field(factory=dict)
    resumes: dict[Rate, Position] = attrs.field(factory=dict)
    resumed: dict[Rate, list[int | None]] = attrs.field(factory=dict)
    command: _Command | None = None
    is_settled: bool = False
    was_settled: bool = False
    epoch: str | None = None
    seq: int = 0
    skipped_total: int = 0
    holes: list[tuple[int, int]] = attrs.field(factory=list)
    heard_at: float = 0
    asked_at: float | None = None
    ask_at: float = 0
    nats_is_well: bool = True
    leave_at: float | None = None
    credit: float = _BURST
    credit_at: float = 0
    next_command_at: float = 0
    is_noticed: bool = False


class Link:
    """The names in `wants`, over all connections.

    Attributes:
        wants: the names, each with its rate.
        max_channels: how many names it takes.
        max_patterns: how many of these may be patterns.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._options = feed.options
        self.wants: dict[str, Rate] = {}
        self.max_channels = feed.options.max_channels
        self.max_patterns = feed.options.max_patterns
        self._current: _Conn | None = None
        self._leaving: _Conn | None = None
        self._positions: dict[Rate, Position] = {}
        self._known: set[str] = set()  # of an earlier acknowledgement: what came since is owed
        self._refused: set[str] = set()
        self._command_ids = 0
        self._url = 0
        self._attempts = 0
        self._retry_at: float | None = None
        self._cause = ""
        self._waits_for_token = False

    # ---- what is wanted

    def has_room_for(self, name: str) -> bool:
        """Whether one more name fits."""
        patterns = sum(map(is_pattern, self.wants))
        is_room = not is_pattern(name) or patterns < self.max_patterns
        return is_room and len(self.wants) < self.max_channels

    def want(self, name: str, rate: Rate) -> None:
        """Want `name` at `rate` from now on."""
        before = self.wants.get(name, rate)
        self.wants[name] = rate
        self._lower(name, before, rate)
        self._unsettle()

    def begin_after(self, position: Position) -> None:
        """Begin what is wanted with what follows a position. To be called before it is open."""
        self._positions = dict.fromkeys(self.wants.values(), position)

    def unwant(self, name: str) -> None:
        """Want `name` no longer."""
        rate = self.wants.pop(name)
        self._refused.discard(name)
        self._lower(name, rate, rate)
        if self._current is None or name not in self._current.held:
            self._known.discard(name)
            self._feed.forget([name])
        self._unsettle()

    def _unsettle(self) -> None:
        for conn in (self._current, self._leaving):
            if conn is not None:
                conn.is_settled = False

    def _lower(self, name: str, before: Rate, after: Rate) -> None:
        """Take the lower of two positions along with a name that changes its rate.

        An event of the slower rate may wait for its tick. A pattern may leave channels to names at
        any rate: then all go on from the lowest one.
        """
        rates = {before, after}
        if any(map(is_pattern, {name, *self.wants})):
            rates.update(rate for rate in self._positions if rate is not None)
        known = [self._positions[rate] for rate in rates if rate in self._positions]
        if not known:
            return
        epoch = self._current.epoch if self._current else None
        # One of another epoch is further behind, whatever its number.
        lowest = min(known, key=lambda one: (one.epoch == epoch, one.offset))
        self._positions |= dict.fromkeys(rates, lowest)

    # ---- connections

    def dial(self, now: float) -> None:
        """Open a connection, once there is a token if one is needed."""
        self._retry_at = None
        self._waits_for_token = not self._feed.has_token(self)
        if self._waits_for_token:
            return
        conn = _Conn(self._feed.next_conn(), now + self._options.dial_ms)
        self._current = conn
        self._feed.put(Dial(conn.id, self._feed.url(self._url), self._feed.token_now()))

    def take_token(self, now: float, token: str) -> None:
        """A token has come: dial with it, or send it on the open connection."""
        if self._waits_for_token:
            self.dial(now)
        elif self._current is not None and self._current.is_open:
            self._send(self._current, {"type": "token", "token": token})

    def token_failed(self, now: float, cause: str) -> None:
        """There is no token: ask again later."""
        if self._waits_for_token:
            self._waits_for_token = False
            self._retry(now, cause)

    def conns(self) -> list[int]:
        """The connections that it has."""
        return [conn.id for conn in (self._current, self._leaving) if conn is not None]

    def _conn(self, number: int) -> _Conn | None:
        for conn in (self._current, self._leaving):
            if conn is not None and conn.id == number:
                return conn
        return None

    def opened(self, now: float, number: int) -> None:
        """The connection is open."""
        conn = self._conn(number)
        if conn is None or conn.is_open:
            return
        conn.is_open = True
        conn.heard_at = conn.credit_at = now
        conn.ask_at = now + self._options.heartbeat_ms
        conn.resumes = dict(self._positions)
        self._known.intersection_update(self.wants)
        self._refused.clear()
        self.pump(now)

    def lost(self, now: float, number: int, code: int, cause: str) -> None:
        """The connection was not made, or has ended: with a close code, or a status of HTTP."""
        conn = self._conn(number)
        if conn is None:
            return
        if conn is self._leaving:
            self._leaving = None
            return
        if conn is self._current and not conn.is_open:
            self._url += 1
        self._current = None
        says_when = code in _SAY_WHEN
        is_final = code in _NEVER_AGAIN or (code >= _NEVER_FROM and not says_when)
        if is_final or (code in _NEW_TOKEN and not self._feed.forget_token()):
            self._feed.fail(cause)
        else:
            seconds = _SECONDS.search(cause) if says_when else None
            wait_ms = int(seconds[1]) * 1000 if seconds else 0
            self._retry(now, cause, wait_ms=wait_ms, is_soon=code in {_GOING_AWAY, *_NEW_TOKEN})

    def _retry(self, now: float, cause: str, *, wait_ms: float = 0, is_soon: bool = False) -> None:
        most = min(self._options.retry_max_ms, self._options.retry_min_ms * 2**self._attempts)
        if is_soon and self._attempts == 0:
            most = _SOON_MS
        self._attempts = min(self._attempts + 1, 16)
        self._retry_at = now + wait_ms + self._feed.random() * most
        self._cause = cause

    def _drop(self, conn: _Conn, code: int) -> None:
        self._feed.put(Drop(conn.id, code))

    def _give_up(self, now: float, conn: _Conn, cause: str) -> None:
        """Drop a connection that does not answer."""
        self._drop(conn, 4000)
        self.lost(now, conn.id, 1006, cause)

    def thaw(self, now: float) -> None:
        """Drop what has piled up while the process did not run, and connect anew."""
        opened = [one for one in (self._current, self._leaving) if one is not None and one.is_open]
        for conn in opened:
            self._drop(conn, 4000)
        if self._leaving in opened:
            self._leaving = None
        if self._current in opened:
            self._current = None
            self._cause = "frozen"
            self.dial(now)

    def probe(self, now: float) -> None:
        """Find out at once whether the network is there."""
        if self._retry_at is not None:
            self._attempts = 0
            self.dial(now)
        elif self._current is not None and self._current.is_open:
            self._current.ask_at = now

    def close(self) -> None:
        """End everything."""
        for conn in (self._current, self._leaving):
            if conn is not None:
                self._drop(conn, 1000)
        self._current = self._leaving = self._retry_at = None
        self._waits_for_token = False

    # ---- time

    def deadline(self) -> float | None:
        """When `tick` has something to do; None: not before something else happens."""
        times = [self._retry_at]
        for conn in (self._current, self._leaving):
            if conn is None:
                continue
            if not conn.is_open:
                times.append(conn.deadline)
                continue
            times.append(conn.leave_at)
            if conn is self._current:
                times.append(conn.ask_at)
                if conn.asked_at is not None:
                    times.append(max(conn.asked_at, conn.heard_at) + self._options.pong_ms)
                if conn.command is not None:
                    times.append(conn.command.deadline)
                elif not conn.is_settled:
                    times.append(conn.next_command_at)
        return min((time for time in times if time is not None), default=None)

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self._retry_at is not None and self._retry_at <= now:
            self.dial(now)
        conn = self._current
        if conn is None:
            return
        if not conn.is_open:
            if conn.deadline <= now:
                self._give_up(now, conn, "no answer")
            return
        if conn.leave_at is not None and conn.leave_at <= now:
            self._hand_over(now, conn)
            return
        self._watch(now, conn)
        if conn is self._current:
            self.pump(now)

    def _watch(self, now: float, conn: _Conn) -> None:
        command = conn.command
        if command is not None and command.deadline <= now:
            if not command.is_acknowledged:
                self._give_up(now, conn, f"no answer to {command.ends_with}")
                return
            conn.command = None
        asked_at = conn.asked_at
        if asked_at is not None and max(asked_at, conn.heard_at) + self._options.pong_ms <= now:
            self._give_up(now, conn, "no sign of life")
            return
        if conn.ask_at <= now:
            conn.ask_at = now + self._options.heartbeat_ms
            conn.asked_at = now if conn.asked_at is None else conn.asked_at
            self._send(conn, {"type": "heartbeat", "data": {"nats": True}})

    def _hand_over(self, now: float, conn: _Conn) -> None:
        """Connect elsewhere first, and leave this connection when the new one has everything."""
        conn.leave_at = None
        if self._leaving is not None:
            self._drop(self._leaving, 1000)
        self._leaving = conn
        self._current = None
        self._url += 1
        self._cause = "draining"
        self.dial(now)

    # ---- commands

    def pump(self, now: float) -> None:
        """Send the next command, if one is due and none waits for its answer."""
        conn = self._current
        if conn is None or not conn.is_open or conn.command is not None or conn.is_settled:
            return
        conn.credit = min(_BURST, conn.credit + (now - conn.credit_at) / _COMMAND_EVERY_MS)
        conn.credit_at = now
        if conn.next_command_at > now:
            return
        if conn.credit < 1:
            conn.next_command_at = now + _COMMAND_EVERY_MS
            return
        message = self._next_command(now, conn)
        if message is None:
            self._settle(conn)
        else:
            conn.credit -= 1
            self._send(conn, message)

    def _settle(self, conn: _Conn) -> None:
        conn.is_settled = conn.was_settled = True
        if self._leaving is not None:
            self._drop(self._leaving, 1000)
            self._leaving = None

    def _next_command(self, now: float, conn: _Conn) -> Message | None:
        if conn.holes:
            first, last = conn.holes.pop(0)
            self._expect(now, conn, "replay_done", [])
            return {"type": "replay", "data": {"from": first, "to": last}, "id": self._command_ids}
        gone = [name for name in conn.held if name not in self.wants]
        if gone:
            names = _fitting(gone)
            self._expect(now, conn, "unsubscription_ack", names)
            return {"type": "unsubscribe", "channels": names, "id": self._command_ids}
        missing = object()
        todo = {
            name: rate
            for name, rate in self.wants.items()
            if conn.held.get(name, missing) != rate and name not in self._refused
        }
        if not todo:
            return None if conn.is_noticed else self._subscribe(now, conn, [], 0, None)
        # The fastest first: a channel of several names belongs to the fastest one.
        rate = min(todo.values(), key=speed)
        names = [name for name, its in todo.items() if its == rate]
        again = [name for name in names if name not in conn.held]
        after = conn.resumes.get(rate) if again else None
        return self._subscribe(now, conn, _fitting(again if after else names), rate, after)

    def _subscribe(
        self, now: float, conn: _Conn, names: list[str], rate: Rate, after: Position | None
    ) -> Message:
        command = self._expect(now, conn, "snapshot_done", names)
        command.rate = rate
        message: Message = {"type": "subscribe", "channels": names, "id": command.id}
        if not names:
            command.ends_with = "subscription_ack"
        else:
            message["snapshot"] = True
        if rate != 0 or any(name in conn.held for name in names):
            message["every_ms"] = rate
        if after is not None:
            command.ends_with, command.is_resume = "resumed", True
            message |= {"after": after.offset, "epoch": after.epoch}
        if not conn.is_noticed:
            conn.is_noticed = True
            message["notices"] = True
        return message

    def _expect(self, now: float, conn: _Conn, ends_with: str, names: list[str]) -> _Command:
        self._command_ids += 1
        deadline = now + self._options.answer_ms
        conn.command = _Command(self._command_ids, ends_with, names, deadline)
        return conn.command

    def _send(self, conn: _Conn, message: Message) -> None:
        self._feed.put(Send(conn.id, message))

    # ---- messages

    def received(self, now: float, number: int, message: Message) -> None:
        """Take a message from the connection."""
        conn = self._conn(number)
        if conn is None or not conn.is_open:
            return
        conn.heard_at = now
        if conn is self._current:
            self._attempts = 0
        kind = message.get("type")
        if kind == "price:update":
            if self._count(conn, message):
                self._take_event(conn, message, is_alone=True)
                self._raise(conn, [message])
            else:  # a replay
                self._take_event(conn, message, is_alone=False)
        elif kind == "price:batch":
            self._count(conn, message)
            for event in message["events"]:
                self._take_event(conn, event, is_alone=False)
            self._raise(conn, message["events"])
        elif kind == "pong":
            self._take_pong(conn, message)
        elif kind == "upstream":
            conn.nats_is_well = message["nats"] == "connected"
        elif kind == "server:draining":
            conn.leave_at = now + message["reconnect_in_ms"]
        elif kind == "gap":
            self._take_gap(conn, message)
        elif kind == "token_ack":
            for name in message.get("unsubscribed", ()):
                conn.held.pop(name, None)
                self._refuse(name, "FORBIDDEN_CHANNEL")
        elif conn.command is not None and message.get("id") == conn.command.id:
            self._take_answer(now, conn, conn.command, message)
        self.pump(now)

    def _count(self, conn: _Conn, message: Message) -> bool:
        """Note the number of a message; whether it is a new one. Report what was dropped before."""
        seq, total = message["seq"], message.get("skipped_total", conn.skipped_total)
        if seq <= conn.seq:
            return False
        hole = seq - conn.seq - 1
        lost = hole - (total - conn.skipped_total)
        if lost > 0 and self._counts(conn):
            conn.holes.append((conn.seq + 1, seq - 1))
            conn.is_settled = False
            self._feed.declare(self.wants, lost, "slow")
        conn.seq, conn.skipped_total = seq, total
        return True

    def _counts(self, conn: _Conn) -> bool:
        """Whether this connection moves positions: the new one, once it can."""
        current = self._current
        return conn is current or current is None or not current.is_open

    def _take_event(self, conn: _Conn, message: Message, *, is_alone: bool) -> None:
        event = Event(
            channel=message["channel"],
            data=message["data"],
            unix_ms=message["ts"],
            offset=message.get("offset"),
            prev=message.get("prev"),
            skipped=message.get("skipped", 0),
            is_snapshot=message.get("snapshot", False),
            epoch=conn.epoch,
        )
        self._feed.deliver(event, is_alone=is_alone and not event.is_snapshot)

    def _raise(self, conn: _Conn, events: list[Message]) -> None:
        """Move the positions of the rates of these events on."""
        if conn.epoch is None or not conn.is_settled or not self._counts(conn):
            return
        for event in events:
            if (offset := event.get("offset")) is not None:
                rates = [conn.held[one] for one in names_for(event["channel"]) if one in conn.held]
                if rates:
                    self._raise_to(conn.epoch, min(rates, key=speed), offset)

    def _raise_to(self, epoch: str, rate: Rate, offset: int) -> None:
        at = self._positions.get(rate)
        if at is None or at.epoch != epoch or at.offset < offset:
            self._positions[rate] = Position(epoch, offset)

    def _take_pong(self, conn: _Conn, message: Message) -> None:
        conn.asked_at = None
        age_ms = message.get("age_ms")
        is_old = age_ms is not None and age_ms > self._options.stale_ms
        conn.nats_is_well = message.get("nats") != "disconnected" and not is_old
        offset = message.get("offset")
        if offset is None or conn.epoch is None:
            return
        if conn.is_settled and self._counts(conn):
            for rate in {*conn.held.values()} - {None}:
                self._raise_to(conn.epoch, rate, offset)

    def _take_gap(self, conn: _Conn, message: Message) -> None:
        if not self._counts(conn):
            return
        epoch, reason = message.get("epoch"), message["reason"]
        if epoch is not None and epoch == conn.epoch and message.get("from") == 1:
            self._feed.restart_offsets(epoch)
        elif epoch is not None and epoch != conn.epoch:
            conn.epoch = epoch
            start = message.get("to") or 0 if reason in {"start", "core"} else 0
            rates = {*self._positions, *conn.held.values()}
            self._positions = dict.fromkeys(rates, Position(epoch, start))
        self._feed.declare(self.wants, None, reason)

    def _take_answer(self, now: float, conn: _Conn, command: _Command, message: Message) -> None:
        kind = message["type"]
        if kind == "error":
            self._take_error(now, conn, command, message["code"])
            return
        if kind == "subscription_ack":
            self._take_ack(conn, command, message)
        elif kind == "unsubscription_ack":
            for name in command.names:
                conn.held.pop(name, None)
                self._known.discard(name)
            self._feed.forget(name for name in command.names if name not in self.wants)
        elif kind == "resume_incomplete":
            self._feed.declare(message["channels"], None, "resume")
        elif kind == "resumed":
            self._end_resume(conn, command, message["offset"])
        if kind == command.ends_with:
            conn.command = None

    def _take_error(self, now: float, conn: _Conn, command: _Command, code: str) -> None:
        if code == "RATE_LIMIT_EXCEEDED":
            conn.next_command_at = now + _LIMITED_MS
        elif command.ends_with != "replay_done":
            for name in command.names:
                self._refuse(name, code)
        conn.command = None

    def _take_ack(self, conn: _Conn, command: _Command, message: Message) -> None:
        command.is_acknowledged = True
        if message.get("epoch") is not None:
            conn.epoch = message["epoch"]
        names = message["subscribed"]
        if not command.is_resume:
            lost = [name for name in names if name in self._known and name not in conn.held]
            if lost:  # without a position
                self._feed.declare(lost, None, "resume")
            self._begin(conn, command.rate, message.get("offset"))
        conn.held |= dict.fromkeys(names, command.rate)
        self._known.update(name for name in names if name in self.wants)
        for refusal in message.get("refused", ()):
            self._refuse(refusal["channel"], refusal["code"])

    def _begin(self, conn: _Conn, rate: Rate, offset: int | None) -> None:
        """Take the position from which new names of a rate are complete."""
        if offset is None or conn.epoch is None:
            return
        at = self._positions.get(rate)
        if at is None or at.epoch != conn.epoch or offset < at.offset:
            self._positions[rate] = Position(conn.epoch, offset)

    def _end_resume(self, conn: _Conn, command: _Command, offset: int | None) -> None:
        """Take the new position of a rate, once all its names are there."""
        rate = command.rate
        conn.resumed.setdefault(rate, []).append(offset)
        asked = (name for name, its in self.wants.items() if its == rate)
        if all(name in conn.held or name in self._refused for name in asked):
            conn.resumes.pop(rate, None)
            reached = [one for one in conn.resumed[rate] if one is not None]
            if len(reached) == len(conn.resumed[rate]) and conn.epoch is not None:
                self._positions[rate] = Position(conn.epoch, min(reached))

    def _refuse(self, name: str, code: str) -> None:
        if name in self.wants:
            self._refused.add(name)
            if code in _MOVES_ON:
                self._shrink(code)
            self._feed.refuse(self, name, code)

    def _shrink(self, code: str) -> None:
        taken = [name for name in self.wants if name not in self._refused]
        if code == "TOO_MANY_CHANNELS":
            self.max_channels = len(taken)
        else:
            self.max_patterns = sum(map(is_pattern, taken))

    # ---- state

    def state(self) -> State:
        """How it is."""
        conn = self._current
        if self._leaving is not None and (conn is None or not conn.was_settled):
            conn = self._leaving
        if conn is None and self._retry_at is not None:
            return State(name="offline", cause=self._cause, retry_at=self._retry_at)
        if conn is None or not conn.was_settled:
            return State(name="connecting", cause=self._cause)
        if not conn.nats_is_well:
            return State(name="stale", cause="the server has no connection to NATS")
        return State(name="live")


def _fitting(names: list[str]) -> list[str]:
    """As many of them as fit into one command."""
    chars = 0
    for count, name in enumerate(names):
        chars += len(name) + 3
        if chars > _COMMAND_CHARS:
            return names[:count]
    return names
