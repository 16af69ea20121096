"""One connection of a link: what it has, the command that waits for its answer, whether it lives.

It brings itself to what is wanted by one command after the other: first it ends what nobody wants,
then it resumes what an earlier connection had, the fastest rate first, then it asks for what is new
or has another rate. While anything is left to do it moves no position: see "Resume" and "Rates" in
docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, Final, NamedTuple, Protocol

import attrs

from trio_odin.client.items import Event, Options, Rate

Message = dict[str, Any]

# An error names the `id` of a command of at most 4,096 characters; its other keys take 200.
_COMMAND_CHARS: Final = 3_800
# The server takes 100 messages at once, then 10 a second.
_BURST: Final = 20
_COMMAND_EVERY_MS: Final = 200
_LIMITED_MS: Final = 2_000
# For a second after its start or a gap a server may keep further losses to itself.
_STEADY_MS: Final = 2_000
_STAY_MS: Final = 200


class Position(NamedTuple):
    """Everything up to `offset` of the stream `epoch` came."""

    epoch: str
    offset: int


def speed(rate: Rate) -> float:
    """How seldom: the order of rates, the fastest first."""
    return inf if rate is None else rate


def is_pattern(name: str) -> bool:
    """Whether `name` stands for more than one channel."""
    return "*" in name or ">" in name


def names_for(channel: str) -> tuple[str, ...]:
    """All names that `channel` may have been subscribed to by."""
    symbol, _, kind = channel.partition(".")
    return (channel, f"{symbol}.*", f"{symbol}.>", f"*.{kind}", "*.*", "*.>", ">")


@attrs.define(eq=False)
class Wanted:
    """What a link wants, over all its connections.

    Attributes:
        rates: the names, each with its rate.
        owed: those that an earlier connection had and this one has not: what came since is missed.
        refused: those that this connection's server does not give.
        positions: by rate.
    """

    rates: dict[str, Rate] = attrs.field(factory=dict)
    owed: set[str] = attrs.field(factory=set)
    refused: set[str] = attrs.field(factory=set)
    positions: dict[Rate, Position] = attrs.field(factory=dict)


class Recipient(Protocol):
    """What a connection needs of the core."""

    options: Options

    def send(self, conn: int, message: Message) -> None:
        """Have a message sent."""

    def deliver(self, event: Event, *, is_alone: bool) -> None:
        """Take an event, which may be an older one."""

    def declare(self, names: Iterable[str], missed: int | None, reason: str) -> None:
        """Take the report of a gap."""

    def follow(self, before: str | None, epoch: str | None) -> None:
        """The stream `epoch` has taken the place of another one."""

    def forget(self, names: Iterable[str]) -> None:
        """Forget what nobody wants of these names."""


@attrs.define(eq=False)
class _Command:
    """A command, and the type of the message that ends its answer."""

    id: int
    message: Message
    ends_with: str
    names: Sequence[str] = ()
    rate: Rate = 0


@attrs.define(eq=False)
class Connection:
    """One socket, from its dial on.

    Attributes:
        id: its number.
        counts: whether it moves positions: of two, the new one once it is open.
        refuse: called with a name that the server does not give, and the code of its reason.
        is_open: whether it takes commands.
        held: the names that it has, each with the rate that was asked for.
        is_settled: whether it has all that is wanted.
        was_settled: whether it ever had.
        is_well: whether the server has NATS, and that has said so lately.
        leave_at: when to connect elsewhere.
        epoch: the stream that its offsets count in.
        jumped: channels whose newest event has come in a resume, which has not said yet that events
            before it are missing.
    """

    id: int
    _wanted: Wanted
    _feed: Recipient
    counts: Callable[[], bool]
    refuse: Callable[[str, str], None]
    _answer_by: float
    is_open: bool = False
    held: dict[str, Rate] = attrs.field(factory=dict)
    is_settled: bool = False
    was_settled: bool = False
    is_well: bool = True
    leave_at: float = inf
    epoch: str | None = None
    jumped: set[str] = attrs.field(factory=set)
    _is_left: bool = False
    _is_noticed: bool = False
    _command: _Command | None = None
    _gone: list[str] = attrs.field(factory=list)  # their end has not been acknowledged
    _command_ids: int = 0
    _next_at: float = -inf
    _seq: int = 0
    _old_seq: int = -1  # up to this number its messages were of another stream
    _skipped_total: int = 0
    _hole: tuple[int, int] | None = None  # numbers of events that the server has dropped
    _ask_at: float = inf
    _pong_by: float = inf
    _steady_at: float = inf
    _opened_at: float = inf

    def opened(self, now: float) -> None:
        """Begin with the commands."""
        self.is_open = True
        self._answer_by = inf
        self._ask_at = now + self._feed.options.heartbeat_ms
        self._opened_at = now
        self._steady_at = now + _STEADY_MS

    def leave(self) -> None:
        """Go on with what it has, and send no more commands: the next connection takes over."""
        self._is_left = True
        self._command = None
        self._answer_by = self.leave_at = inf

    # ---- time

    def deadline(self) -> float:
        """When `tick` has something to do."""
        next_at = self._next_at if self._is_ready() else inf
        return min(self._answer_by, self._pong_by, self._ask_at, self.leave_at, next_at)

    def tick(self, now: float) -> str:
        """Do what is due. Returns why it is to be given up, if it is."""
        if self._answer_by <= now:
            return "no answer"
        if self._pong_by <= now:
            return "no sign of life"
        if self._ask_at <= now:
            self._ask_at = now + self._feed.options.heartbeat_ms
            self._pong_by = min(self._pong_by, now + self._feed.options.pong_ms)
            self.send({"type": "heartbeat", "data": {"nats": True}})
        return ""

    def ask(self, now: float) -> None:
        """Have the next tick ask for a sign of life."""
        if self.is_open:
            self._ask_at = now

    # ---- commands

    def send(self, message: Message) -> None:
        """Send a message as it is."""
        self._feed.send(self.id, message)

    def pump(self, now: float) -> None:
        """Send the next command, if one is due and none waits for its answer.

        To be called after each input.
        """
        if not self._is_ready() or self._next_at > now:
            return
        message = self._next_command()
        if message is None:
            self.is_settled = self.was_settled = True
            for rate in self._wanted.positions.keys() - self.held.values():
                del self._wanted.positions[rate]
            return
        earliest = now - (_BURST - 1) * _COMMAND_EVERY_MS
        self._next_at = max(self._next_at, earliest) + _COMMAND_EVERY_MS
        self._answer_by = now + self._feed.options.answer_ms
        self.send(message)

    def _is_ready(self) -> bool:
        return self.is_open and not (self._is_left or self._command or self.is_settled)

    def _next_command(self) -> Message | None:
        wanted = self._wanted
        if self._hole:
            first, last = self._hole
            self._hole = None
            message: Message = {"type": "replay", "data": {"from": first, "to": last}}
            return self._expect(message, "replay_done")
        if not self._gone:
            self._gone = _fitting([name for name in self.held if name not in wanted.rates])
        if self._gone:
            for name in self._gone:  # if it is wanted again, it begins anew
                self.held.pop(name, None)
            message = {"type": "unsubscribe", "channels": self._gone}
            return self._expect(message, "unsubscription_ack", self._gone)
        todo = {
            name: rate
            for name, rate in wanted.rates.items()
            if name not in wanted.refused and self.held.get(name, "none") != rate
        }
        owed = {
            name: rate
            for name, rate in todo.items()
            if name in wanted.owed and rate in wanted.positions
        }
        if not todo:
            return None if self._is_noticed else self._subscribe([], 0, None)
        # What is owed comes first, as a channel cannot be resumed that another name brings. And the
        # fastest first: a channel of several names belongs to the fastest one.
        rate = min((owed or todo).values(), key=speed)
        names = _fitting([name for name, its in (owed or todo).items() if its == rate])
        return self._subscribe(names, rate, wanted.positions[rate] if owed else None)

    def _subscribe(self, names: list[str], rate: Rate, after: Position | None) -> Message:
        ends_with = "resumed" if after else "snapshot_done" if names else "subscription_ack"
        message: Message = {"type": "subscribe", "channels": names}
        if names:
            message["snapshot"] = True
        if rate != 0 or any(name in self.held for name in names):
            message["every_ms"] = rate
        if after:
            message |= {"after": after.offset, "epoch": after.epoch}
        if not self._is_noticed:
            message["notices"] = True
        return self._expect(message, ends_with, names, rate)

    def _expect(
        self, message: Message, ends_with: str, names: Sequence[str] = (), rate: Rate = 0
    ) -> Message:
        self._command_ids += 1
        self._command = _Command(self._command_ids, message, ends_with, names, rate)
        return message | {"id": self._command_ids}

    # ---- messages

    def received(self, now: float, message: Message) -> str:
        """Take a message. Returns why the connection is to be given up, if it is."""
        self._pong_by = inf
        kind = message["type"]
        if kind == "subscription_ack" and "epoch" in message:  # also on one that is left
            self.epoch = message["epoch"]
            self._is_noticed = True
        if "seq" in message:
            self._take_events(now, message)
        elif self._command and message.get("id") == self._command.id:
            self._answer_by = inf
            self._take_answer(now, self._command, message)
        else:
            self._take_notice(now, kind, message)
        # The newest event of a channel may be among those that cannot be replayed. And what of a
        # hole came before the stream changed, and what after, is not known.
        is_torn = self._hole is not None and self._hole[0] == self._old_seq + 1
        return "too slow" if kind == "replay_incomplete" or is_torn else ""

    def _take_notice(self, now: float, kind: str, message: Message) -> None:
        if kind == "pong":
            self._take_pong(now, message)
        elif kind == "upstream":
            self.is_well = message["nats"] == "connected"
        elif kind == "server:draining" and not self._is_left:
            # Not at once, however often servers that leave follow each other.
            self.leave_at = max(now + message["reconnect_in_ms"], self._opened_at + _STAY_MS)
        elif kind == "gap":
            self._take_gap(now, message)
        elif kind == "token_ack":
            self._take_token_ack(message)

    def _take_events(self, now: float, message: Message) -> None:
        """Take an event, or several in a batch. What is not new is a replay, and may be older."""
        events = message.get("events", [message])
        is_new = self._count(message)
        # What is replayed has the offsets of its own stream.
        if not is_new and message["seq"] <= self._old_seq:
            return
        for event in events:
            # Without offsets what comes twice is not known: of two connections the new one counts.
            if "offset" in event or (is_new and self.counts()):
                self._take_event(event, is_alone="events" not in message)
        if is_new and self.is_steady(now):
            self._raise(events)

    def _count(self, message: Message) -> bool:
        """Note the number of a message; whether it is a new one. Report what was dropped before."""
        seq, total = message["seq"], message.get("skipped_total", self._skipped_total)
        if seq <= self._seq:
            return False
        lost = seq - self._seq - 1 - (total - self._skipped_total)
        if lost > 0:
            self._hole = (self._hole[0] if self._hole else self._seq + 1, seq - 1)
            self._declare(lost, "slow")
        self._seq, self._skipped_total = seq, total
        return True

    def _declare(self, missed: int | None, reason: str) -> None:
        """Report a loss on this connection, unless the next one resumes from before it."""
        self.is_settled = False
        if self.counts():
            self._feed.declare(self._wanted.rates, missed, reason)

    def _take_event(self, message: Message, *, is_alone: bool) -> None:
        event = Event(
            channel=message["channel"],
            data=message["data"],
            unix_ms=message["ts"],
            offset=message.get("offset"),
            prev=message.get("prev"),
            skipped=message.get("skipped", 0),
            is_snapshot=message.get("snapshot", False),
            epoch=self.epoch,
            trace=message.get("trace"),
        )
        if event.is_snapshot and self._command and self._command.ends_with == "resumed":
            self.jumped.add(event.channel)
        self._feed.deliver(event, is_alone=is_alone)

    def _raise(self, events: Iterable[Message]) -> None:
        """Move the positions of the rates of these events on."""
        for event in events:
            rates = [self.held[one] for one in names_for(event["channel"]) if one in self.held]
            if rates:
                self._move(min(rates, key=speed), event.get("offset"), max)

    def is_steady(self, now: float) -> bool:
        """Whether all that came until now is known to be complete, or reported."""
        return self.is_settled and now >= self._steady_at and self.counts()

    def _move(self, rate: Rate, offset: int | None, pick: Callable[[int, int], int]) -> None:
        """Move a position within this epoch to the one that `pick` takes, or into it."""
        if offset is None or self.epoch is None:
            return
        at = self._wanted.positions.get(rate)
        if at and at.epoch == self.epoch:
            offset = pick(at.offset, offset)
        self._wanted.positions[rate] = Position(self.epoch, offset)

    def _take_pong(self, now: float, message: Message) -> None:
        is_old = (message.get("age_ms") or 0) > self._feed.options.stale_ms
        self.is_well = message.get("nats") != "disconnected" and not is_old
        if self.is_steady(now):
            for rate in {*self.held.values()} - {None}:
                self._move(rate, message.get("offset"), max)

    def _take_gap(self, now: float, message: Message) -> None:
        epoch, reason, positions = message["epoch"], message["reason"], self._wanted.positions
        is_new = epoch != self.epoch
        if is_new:
            self._feed.follow(self.epoch, epoch)
            self._old_seq, self._hole = self._seq, None
        self.epoch = epoch
        self._steady_at = now + _STEADY_MS
        if is_new and self.counts():
            reached = message["to"] or 0 if reason in {"start", "core"} else 0
            rates = {*positions, *self._wanted.rates.values()}
            positions.clear()
            for rate in rates:
                self._move(rate, reached, max)
        self._declare(None, reason)

    def _take_token_ack(self, message: Message) -> None:
        """The token may allow what was refused, and not allow what there is."""
        self._wanted.refused.clear()
        self.is_settled = False
        self._reject(message["unsubscribed"], "FORBIDDEN_CHANNEL")

    def _reject(self, names: Iterable[str], code: str) -> None:
        for name in names:
            self.held.pop(name, None)
            self.refuse(name, code)

    def _take_answer(self, now: float, command: _Command, message: Message) -> None:
        kind = message["type"]
        if kind == "error":
            if message["code"] == "RATE_LIMIT_EXCEEDED":
                self._next_at = now + _LIMITED_MS
                if "data" in command.message:
                    self._hole = command.message["data"]["from"], self._seq
            else:
                self._gone = []
                self._reject(command.names, message["code"])
        elif kind == "subscription_ack":
            self._take_ack(now, command, message)
        elif kind == "unsubscription_ack":
            self._feed.forget(command.names)
            self._gone = []
        elif kind == "resume_incomplete":
            self._feed.declare(message["channels"], None, "resume")
        elif kind == "snapshot_done" and message["sent"] < message["total"]:
            self._feed.declare(command.names, message["total"] - message["sent"], "snapshot")
        elif kind == "resumed":
            self._end_resume(command.rate, message["offset"])
            self.jumped.clear()
        if kind in {"error", command.ends_with}:
            self._command = None

    def _take_ack(self, now: float, command: _Command, message: Message) -> None:
        names, owed = message["subscribed"], self._wanted.owed
        # It neither gives nor refuses any of them.
        if command.names and "refused" not in message and {*names}.isdisjoint(command.names):
            self._next_at = now + _LIMITED_MS
        if command.ends_with != "resumed":
            without = [name for name in names if name in owed]
            if without:  # there was no position to resume them from
                self._feed.declare(without, None, "resume")
            self._move(command.rate, message.get("offset"), min)
        for name in names:
            self.held[name] = command.rate
            owed.discard(name)
        for refusal in message.get("refused", ()):
            self.refuse(refusal["channel"], refusal["code"])

    def _end_resume(self, rate: Rate, offset: int | None) -> None:
        """Take the new position of a rate, once nothing of it is owed."""
        rates, owed = self._wanted.rates, self._wanted.owed
        if not any(rates.get(name, "none") == rate for name in owed):
            self._move(rate, offset, lambda _, reached: reached)


def _fitting(names: list[str]) -> list[str]:
    """As many of them as fit into one command."""
    chars = 0
    for count, name in enumerate(names):
        chars += len(name) + 3
        if chars > _COMMAND_CHARS:
            return names[:count]
    return names
