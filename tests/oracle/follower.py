"""A client's conclusions by the rules of docs/protocol.md, and a journal.

It is written from that page alone and does not use sockets: it makes commands, and takes the
received texts.

What it wants are names, channels or patterns, each at a rate. It resumes the names of each rate by
a command of their own, from the newest offset that it has at this rate: at another rate it may be
further, while an event of these still waits on the server for its tick. A position that the server
states is one for all rates, but not for what is paused.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import attrs

from tests.oracle import judge
from tests.oracle.judge import Entry

Message = dict[str, Any]
# Milliseconds; 0 is every event, None a pause.
Rate: TypeAlias = int | None
_DATA = re.compile(r'"data":(\{.*\}),"channel":"')
_DATA_IN_BATCH = re.compile(r'"data":(\{[^{}]*\})\}')

# One more tick than a rate allows when the stream changes, or the server drains.
_EXTRA_TICKS = 1
# What changes no conclusion.
_CHANGE_NOTHING = {"server:draining", "upstream", "snapshot_done"}


def now_ms() -> float:
    return time.time() * 1000


def _speed(rate: Rate) -> float:
    return float("inf") if rate is None else rate


@attrs.frozen
class Position:
    epoch: str
    offset: int


@attrs.define
class _Command:
    """A command that is not answered yet, about names at a rate, or no longer wanted."""

    names: frozenset[str]
    rate: Rate = 0
    is_resume: bool = False
    left: frozenset[str] = frozenset()


@attrs.define
class Follower:
    """A client over all its connections.

    Attributes:
        names: its channels and patterns, each with its rate. It requests them when it reconnects.
        positions: as the page defines them, by name; none before the first one is known.
        patterns: the channels of each pattern.
        with_snapshot: whether it asks for the newest event of each channel.
        journal: for the judge.
        numbers: numbers of the received events.
        errors: unexpected answers.
        heard: the time when each epoch was named first.
    """

    names: dict[str, Rate]
    positions: dict[str, Position] = attrs.field(factory=dict)
    patterns: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    with_snapshot: bool = False
    journal: list[Entry] = attrs.field(factory=list)
    numbers: set[int] = attrs.field(factory=set)
    errors: list[str] = attrs.field(factory=list)
    heard: dict[str, float] = attrs.field(factory=dict)
    _epoch: str | None = None  # that of this connection
    _largest: dict[str, int] = attrs.field(factory=dict)  # by name, the offset within it
    _held: dict[str, Rate] = attrs.field(factory=dict)  # acknowledged on this connection
    _resume: _Command | None = None
    # By rate: when this connection asked for it first, and how many ticks came.
    _asked_ms: dict[int, float] = attrs.field(factory=dict)
    _ticks: Counter[int] = attrs.field(factory=Counter)
    # By epoch and channel: the offset up to which events may come again, as it resumes from a
    # position before it; and the last offset. Then the epochs left for an older one.
    _again_to: dict[tuple[str, str], int] = attrs.field(factory=dict)
    _last: dict[tuple[str, str], int] = attrs.field(factory=dict)
    _was_left: set[str] = attrs.field(factory=set)
    _commands: dict[int, _Command] = attrs.field(factory=dict)
    _ids: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))

    @property
    def channels(self) -> frozenset[str]:
        """All that it wants."""
        return self._matched(self.names)

    @property
    def is_resuming(self) -> bool:
        return self._resume is not None

    @property
    def is_waiting(self) -> bool:
        """Whether a command is not answered yet."""
        return bool(self._commands) or self.is_resuming

    def events(self) -> Iterator[judge.Event]:
        """All received events."""
        return (entry for entry in self.journal if isinstance(entry, judge.Event))

    # ---- commands

    def open(self) -> Message:
        """The first command of a new connection; `next_command` has the others."""
        self._commands.clear()
        self._held.clear()
        self._asked_ms.clear()
        self._ticks.clear()
        self._epoch = None
        (names, rate, position), *others = self._groups()
        self._note(
            judge.Opened,
            channels=self._matched(names),
            epoch=position.epoch if position else None,
            offset=position.offset if position else None,
            at_a_rate=rate != 0,
            later=self._matched(name for group, _, at in others if at for name in group),
        )
        if position is not None:
            self._epoch = position.epoch
        known = self.positions.items()
        self._largest = {name: at.offset for name, at in known if at.epoch == self._epoch}
        return self._subscribe(names, rate, position)

    def next_command(self) -> Message | None:
        """The next one that a connection begins with; None if it has to wait, or has sent all."""
        groups = [] if self.is_waiting else self._groups()
        return self._resume_at(*groups[0]) if groups else None

    def add(self, names: Iterable[str], rate: Rate = 0, *, is_resume: bool) -> Message:
        """Subscribe to further names, from now on or from the position of their rate on.

        What it has already, by another name, cannot be resumed.
        """
        added = frozenset(names)
        is_new = not self._alike(added, self.names)
        position = self._position_at(rate) if is_resume and is_new else None
        self._level(added)
        self.names |= dict.fromkeys(added, rate)
        if position is not None:  # that of the first rule, however far the others get meanwhile
            self.positions |= dict.fromkeys(added, position)
        return self._resume_at(added, rate, position)

    def change_rate(self, names: Iterable[str], rate: Rate) -> Message:
        """Get names that it has at another rate."""
        changed = frozenset(names)
        self._level(changed)
        self.names |= dict.fromkeys(changed, rate)
        if rate is not None:
            self._note(judge.Paused, channels=self._matched(changed), is_over=True)
        return self._subscribe(changed, rate, None)

    def drop(self, names: Iterable[str]) -> Message:
        """Unsubscribe from names."""
        dropped = frozenset(names)
        self._level(dropped)
        for name in dropped:
            del self.names[name]
            self.positions.pop(name, None)
        left = self._matched(dropped) - self.channels
        self._note(judge.Left, channels=left, is_acknowledged=False)
        number = self._id_of(_Command(dropped, left=left))
        return {"type": "unsubscribe", "data": {"channels": sorted(dropped)}, "id": number}

    def ask(self) -> Message:
        """Make a heartbeat that asks for the position."""
        return {"type": "heartbeat", "data": {"nats": True}}

    def broke(self, why: str) -> None:
        """Note that the connection has ended, or is abandoned."""
        self._resume = None
        self._commands.clear()
        self._note(judge.Broke, why=why)

    def _level(self, names: Iterable[str]) -> None:
        """Bring these and all names with the same channels to the lowest of their positions.

        A command about them may move a channel with an event that still waits for its tick.
        """
        alike = self._alike(names, self.names)
        lowest = self._lowest(map(self.positions.get, alike))
        if lowest is None:
            return
        for name in {*alike, *names}:
            self.positions[name] = lowest
            self._largest.pop(name, None)
            if lowest.epoch == self._epoch:
                self._largest[name] = lowest.offset

    def _alike(self, names: Iterable[str], among: Iterable[str]) -> list[str]:
        """The names with a channel of these names, themselves included."""
        channels = self._matched(names)
        return [one for one in among if not channels.isdisjoint(self._stand_for(one))]

    def _groups(self) -> list[tuple[frozenset[str], Rate, Position | None]]:
        """What it wants and has not requested yet: by rate, the fastest first, and by epoch.

        A channel belongs to the fastest of its names, so the slower ones must not resume it.
        """
        groups: dict[tuple[float, str], dict[str, Position | None]] = {}
        for name in self.names.keys() - self._held.keys():
            position = self.positions.get(name) or self._position_at(self.names[name])
            key = _speed(self.names[name]), position.epoch if position else ""
            groups.setdefault(key, {})[name] = position
        return [
            (frozenset(group), self.names[next(iter(group))], self._lowest(group.values()))
            for _, group in sorted(groups.items(), key=lambda one: one[0])
        ]

    def _position_at(self, rate: Rate) -> Position | None:
        of_rate = [name for name, own in self.names.items() if own == rate]
        return self._lowest(map(self.positions.get, of_rate))

    def _lowest(self, positions: Iterable[Position | None]) -> Position | None:
        """The lowest position; if they are of several epochs, of this connection's."""
        known = [position for position in positions if position is not None]
        epochs = {position.epoch for position in known}
        epoch = self._epoch if self._epoch in epochs else min(epochs, default=None)
        of_it = [position for position in known if position.epoch == epoch]
        return min(of_it, key=lambda position: position.offset, default=None)

    def _resume_at(self, names: frozenset[str], rate: Rate, position: Position | None) -> Message:
        if position is not None:
            self._note(
                judge.Resuming,
                channels=self._matched(names) - self._matched(self._held),
                epoch=position.epoch,
                offset=position.offset,
                at_a_rate=rate != 0,
            )
        return self._subscribe(names, rate, position)

    def _subscribe(self, names: frozenset[str], rate: Rate, after: Position | None) -> Message:
        command = _Command(names, rate, is_resume=after is not None)
        message: Message = {"type": "subscribe", "channels": sorted(names)}
        message["id"] = self._id_of(command)
        if rate != 0 or self._held:
            message["every_ms"] = rate
        if rate:
            self._asked_ms.setdefault(rate, now_ms())
        if self.with_snapshot:
            message["snapshot"] = True
        if after is None:
            return message | {"notices": True}
        self._resume = command
        for channel in self._matched(names):
            key = after.epoch, channel
            if self._last.get(key, 0) > after.offset:
                self._again_to[key] = self._last[key]
        return message | {"after": after.offset, "epoch": after.epoch}

    def _matched(self, names: Iterable[str]) -> frozenset[str]:
        """The channels that these names stand for."""
        return frozenset(one for name in names for one in self._stand_for(name))

    def _stand_for(self, name: str) -> Collection[str]:
        return self.patterns.get(name, (name,))

    def _id_of(self, command: _Command) -> int:
        number = next(self._ids)
        self._commands[number] = command
        return number

    # ---- messages

    def receive(self, text: str) -> None:
        """Take one message."""
        message: Message = json.loads(text)
        takes: dict[str, Callable[[Message], None]] = {
            "subscription_ack": self._take_ack,
            "unsubscription_ack": self._end_subscriptions,
            "resume_incomplete": self._take_incomplete,
            "resumed": self._end_resume,
            "gap": self._take_gap,
            "pong": lambda pong: self._take_position(pong.get("offset")),
        }
        match message["type"]:
            case "price:update":
                self._take_update(message, text)
            case "price:batch":
                self._take_batch(message, text)
            case kind if kind in takes:
                takes[kind](message)
            case kind:
                is_whole = message.get("sent") == message.get("total")
                if kind not in _CHANGE_NOTHING or not is_whole:
                    self.errors.append(text)

    def _end_subscriptions(self, message: Message) -> None:
        command = self._commands.pop(message["id"])
        for name in command.names:
            self._held.pop(name, None)
        self._note(judge.Left, channels=command.left, is_acknowledged=True)

    def _take_incomplete(self, message: Message) -> None:
        self._note(judge.Incomplete, channels=self._matched(message["channels"]))

    def _take_update(self, message: Message, text: str) -> None:
        found = _DATA.search(text)
        is_sent_again = self.is_resuming or message.get("snapshot", False)
        if not is_sent_again and not self._commands and self._rate_of(message["channel"]):
            self.errors.append(f"not in a batch: {text}")
        self._take_event(message, found[1] if found else text, message["seq"])

    def _take_batch(self, message: Message, text: str) -> None:
        """Take a batch: it is of one rate, or has all that was due before the connection ends."""
        every, payloads = message["events"], _DATA_IN_BATCH.findall(text)
        if len(payloads) != len(every):
            self.errors.append(f"unreadable: {text}")
            return
        # Those without an offset are of a stream that has gone.
        placed = [one for one in zip(every, payloads, strict=True) if "offset" in one[0]]
        if not placed:
            self._note(judge.OfGoneStream, seq=message["seq"])
            return
        events = [event for event, _ in placed]
        channels = [event["channel"] for event in events]
        if not self._commands and any(self._rate_of(channel) == 0 for channel in channels):
            self.errors.append(f"in a batch: {text}")
        to = max(event["offset"] for event in events)
        # What is due before an acknowledgement is of the names of this command only.
        is_tick = self._matched(self._moving()).isdisjoint(channels)
        if is_tick:
            self._count_tick(self._rate_of(channels[0]), text)
        for event, payload in placed:
            self._take_event(event, payload, message["seq"], batch_to=to, is_position=is_tick)

    def _count_tick(self, rate: Rate, text: str) -> None:
        """Count a tick. The first one is not before it was asked for, and each takes its time."""
        if rate:
            self._ticks[rate] += 1
            least_ms = (self._ticks[rate] - 1 - _EXTRA_TICKS) * rate
            if now_ms() - self._asked_ms[rate] < least_ms:
                self.errors.append(f"{self._ticks[rate]} times, more than every {rate} ms: {text}")

    def _take_event(
        self,
        event: Message,
        payload: str,
        seq: int,
        *,
        batch_to: int | None = None,
        is_position: bool = True,
    ) -> None:
        channel, offset = event["channel"], event["offset"]
        key = self._epoch or "", channel
        may_repeat = offset <= self._again_to.get(key, 0) or key[0] in self._was_left
        is_ignored = may_repeat and offset <= self._last.get(key, 0)
        self._note(
            judge.Event,
            channel=channel,
            number=event["data"]["n"],
            offset=offset,
            stored_ms=event["ts"],
            payload=payload,
            seq=seq,
            epoch=self._epoch,
            is_ignored=is_ignored,
            prev=event.get("prev"),
            is_snapshot=event.get("snapshot", False),
            skipped=event.get("skipped", 0),
            batch_to=batch_to,
        )
        if not is_ignored:
            self.numbers.add(event["data"]["n"])
            if self._epoch is not None:
                self._last[key] = offset
        if is_position:
            self._count(channel, offset)

    def _count(self, channel: str, offset: int) -> None:
        """The position of each name is the largest offset at its rate, and stays in a resume."""
        if self._resume is not None and channel in self._matched(self._resume.names):
            self._raise(self._resume.names, offset)
        elif channel not in self._matched(self._moving()):
            rate = self._rate_of(channel)
            if rate is not None:
                self._raise(self._at(rate), offset)

    def _rate_of(self, channel: str) -> Rate:
        """The rate at which it has a channel: that of the fastest of its names."""
        rates = [rate for name, rate in self._held.items() if channel in self._stand_for(name)]
        return min(rates, key=_speed, default=None)

    def _at(self, rate: Rate) -> list[str]:
        """The names that it has at a rate, except those whose rate is about to change."""
        moving = self._moving()
        return [one for one, own in self._held.items() if own == rate and one not in moving]

    def _running(self) -> list[str]:
        """The names that are not paused and keep their rate, to which positions apply."""
        return [one for rate in {*self._held.values()} - {None} for one in self._at(rate)]

    def _running_channels(self) -> frozenset[str]:
        return self._matched(self._running()) - self._matched(self._moving())

    def _has_rate_besides(self, names: Collection[str]) -> bool:
        """Whether an event of other names may wait for its tick."""
        return any(rate for name, rate in self._held.items() if name not in names)

    def _moving(self) -> frozenset[str]:
        """The names that commands are about which are not answered yet; see `_level`."""
        names = [name for one in self._commands.values() for name in one.names]
        return frozenset([*names, *self._alike(names, self._held)])

    def _raise(self, names: Iterable[str], offset: int) -> None:
        resumed = self._resume.names if self._resume else frozenset[str]()
        for name in names:
            largest = self._largest[name] = max(offset, self._largest.get(name, 0))
            if self._epoch is not None and name not in resumed and name in self.names:
                self.positions[name] = Position(self._epoch, largest)

    def _take_ack(self, message: Message) -> None:
        command = self._commands.pop(message["id"])
        epoch, offset, names = message.get("epoch"), message.get("offset"), command.names
        if sorted(names) != sorted(message["subscribed"]):
            self.errors.append(f"subscribed to {message['subscribed']} of {names}")
        if message.get("every_ms", 0) != command.rate:
            self.errors.append(f"{names} every {message['every_ms']} ms, not {command.rate}")
        if epoch is not None and epoch != self._epoch:
            self._enter(epoch)
        before = {channel: self._rate_of(channel) for channel in self._matched(self._held)}
        self._held |= dict.fromkeys(names, command.rate)
        if not command.is_resume:
            self._take_position(offset)
            if offset is not None:
                self._begin(command, before, offset)
                self._note_due(before, offset)
            self._note_began(names, before, offset)
        paused = frozenset(one for one in self._matched(names) if self._rate_of(one) is None)
        if paused:
            self._note(judge.Paused, channels=paused)

    def _begin(self, command: _Command, before: Mapping[str, Rate], offset: int) -> None:
        """Take the position of names that have just been acknowledged.

        From one rate to another, what is due comes at a tick, and not before the acknowledgement.
        """
        is_between = command.rate is None or command.rate > 0
        same_rate = [self._largest.get(name, 0) for name in self._at(command.rate)]
        for name in command.names:
            if not is_between or not any(before.get(one) for one in self._stand_for(name)):
                self._raise([name], max(offset, *same_rate))
            elif name not in self.positions:
                alike = self._alike([name], self.positions)
                lowest = self._lowest(map(self.positions.get, alike))
                self._raise([name], lowest.offset if lowest else 0)

    def _note_due(self, before: Mapping[str, Rate], offset: int) -> None:
        """All was sent of a channel that has left or reached every event, or ended a pause."""
        now = {channel: self._rate_of(channel) for channel in before}
        changed = [one for one in before if now[one] != before[one]]
        sent = frozenset(one for one in changed if not before[one] or now[one] == 0)
        if sent:
            self._note(judge.Stated, epoch=self._epoch, offset=offset, channels=sent)

    def _note_began(
        self, names: Collection[str], before: Mapping[str, Rate], offset: int | None
    ) -> None:
        channels = self._matched(names) - before.keys()
        position = self.positions.get(next(iter(names)))
        reached = None
        if offset is not None:
            reached = max(offset, position.offset) if position else offset
        if channels:
            self._note(
                judge.Began,
                channels=channels,
                epoch=None if reached is None else self._epoch,
                offset=reached,
                behind_at=None if offset == reached else offset,
                is_at_least=self._has_rate_besides(names),
            )

    def _enter(self, epoch: str) -> None:
        """The second rule: the position starts anew, but not while a resume is under way."""
        if self._epoch is not None and epoch != self._epoch:
            self._was_left.add(self._epoch)
        self._epoch = epoch
        self._largest.clear()
        self.heard.setdefault(epoch, now_ms())

    def _take_gap(self, message: Message) -> None:
        epoch, last = message["epoch"], message["to"]
        self._note(
            judge.Gap,
            reason=message["reason"],
            epoch=epoch,
            first=message["from"],
            last=last,
        )
        if epoch is not None and epoch != self._epoch:
            self._enter(epoch)
            self._ticks -= Counter(dict.fromkeys(self._ticks, _EXTRA_TICKS))
            self._raise(self._held, last or 0 if message["reason"] in {"start", "core"} else 0)

    def _take_position(self, offset: int | None) -> None:
        """Take a position that the server states. None is not a position: the third rule."""
        if offset is None or self._epoch is None:
            return
        if not self.is_resuming:
            channels = self._running_channels()
            self._note(judge.Stated, epoch=self._epoch, offset=offset, channels=channels)
        self._raise(self._running(), offset)
        if self._resume is not None and self._resume.rate == 0:
            self._raise(self._resume.names, offset)

    def _end_resume(self, message: Message) -> None:
        offset, resume = message["offset"], self._resume
        if resume is None:
            self.errors.append(f"no resume: {message}")
            return
        resumed = [one for one in self._matched(resume.names) if self._rate_of(one) is None]
        self._note(
            judge.Resumed,
            epoch=self._epoch,
            offset=offset,
            channels=self._running_channels().union(resumed),
            is_at_least=self._has_rate_besides(resume.names),
        )
        self._resume = None
        if offset is not None:
            self._raise({*self._running(), *resume.names}, offset)

    def _note(self, kind: type[Entry], **content: Any) -> None:
        self.journal.append(kind(at_ms=now_ms(), **content))
