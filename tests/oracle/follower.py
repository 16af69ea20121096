"""A client's conclusions by the three rules of docs/protocol.md, and a journal.

It is written from that page alone and does not use sockets: it makes commands, and takes the
received texts.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import attrs

from tests.oracle import judge
from tests.oracle.judge import Entry

Message = dict[str, Any]
_DATA = re.compile(r'"data":(\{.*\}),"channel":"')

# What changes no conclusion.
_CHANGE_NOTHING = {"server:draining", "upstream", "snapshot_done"}


def now_ms() -> float:
    return time.time() * 1000


@attrs.frozen
class Position:
    epoch: str
    offset: int


@attrs.define
class _Command:
    """A command that is not answered yet."""

    channels: frozenset[str]
    is_resume: bool = False
    names: frozenset[str] = frozenset()


@attrs.define
class Follower:
    """A client over all its connections.

    Attributes:
        channels: its channels, which it requests when it reconnects.
        patterns: the names under which it requests some of them, with the channels of each.
        with_snapshot: whether it asks for the newest event of each channel.
        position: as the page defines it; None before the first one is known.
        journal: for the judge.
        numbers: numbers of the received events.
        errors: unexpected answers.
        heard: the time when each epoch was named first.
    """

    channels: set[str]
    position: Position | None = None
    patterns: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    with_snapshot: bool = False
    journal: list[Entry] = attrs.field(factory=list)
    numbers: set[int] = attrs.field(factory=set)
    errors: list[str] = attrs.field(factory=list)
    heard: dict[str, float] = attrs.field(factory=dict)
    _epoch: str | None = None  # that of this connection
    _largest: int | None = None  # of the offsets that count, within it
    _resume: _Command | None = None
    # The offset up to which events may come again, by epoch: events of a broken resume are after
    # the position.
    _again_to: dict[str, int] = attrs.field(factory=dict)
    # The last offset of each channel in each epoch; and the epochs left for an older one.
    _last: dict[tuple[str, str], int] = attrs.field(factory=dict)
    _was_left: set[str] = attrs.field(factory=set)
    _commands: dict[int, _Command] = attrs.field(factory=dict)
    _ids: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))

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

    def open(self) -> Message:
        """The first command of a new connection."""
        self._commands.clear()
        self._epoch = self._largest = None
        channels, position = frozenset(self.channels), self.position
        self.journal.append(
            judge.Opened(
                at_ms=now_ms(),
                channels=channels,
                epoch=position.epoch if position else None,
                offset=position.offset if position else None,
            )
        )
        if position is not None:
            self._epoch, self._largest = position.epoch, position.offset
        return self._subscribe(channels, is_resume=position is not None)

    def add(self, channels: Iterable[str], *, is_resume: bool) -> Message:
        """Subscribe to further channels, from now on or from the position on."""
        added = frozenset(channels)
        self.channels |= added
        if is_resume and self.position is not None:
            self.journal.append(
                judge.Resuming(
                    at_ms=now_ms(),
                    channels=added,
                    epoch=self.position.epoch,
                    offset=self.position.offset,
                )
            )
        return self._subscribe(added, is_resume=is_resume and self.position is not None)

    def drop(self, channels: Iterable[str]) -> Message:
        """Unsubscribe from channels."""
        dropped = frozenset(channels)
        self.channels -= dropped
        self.journal.append(judge.Left(at_ms=now_ms(), channels=dropped, is_acknowledged=False))
        return {
            "type": "unsubscribe",
            "data": {"channels": sorted(self._names_of(dropped))},
            "id": self._id_of(_Command(dropped)),
        }

    def ask(self) -> Message:
        """Make a heartbeat that asks for the position."""
        return {"type": "heartbeat", "data": {"nats": True}}

    def broke(self, why: str) -> None:
        """Note that the connection has ended, or is abandoned."""
        if self.is_resuming and self._epoch is not None:
            came_to = max(self._largest or 0, self._again_to.get(self._epoch, 0))
            self._again_to[self._epoch] = came_to
        self._resume = None
        self._commands.clear()
        self.journal.append(judge.Broke(at_ms=now_ms(), why=why))

    def receive(self, text: str) -> None:
        """Take one message."""
        message: Message = json.loads(text)
        match message["type"]:
            case "price:update":
                self._take_event(message, text)
            case "subscription_ack":
                self._take_ack(message)
            case "unsubscription_ack":
                command = self._commands.pop(message["id"])
                self._note(judge.Left, channels=command.channels, is_acknowledged=True)
            case "resume_incomplete":
                self._take_incomplete(message)
            case "resumed":
                self._end_resume(message)
            case "gap":
                self._take_gap(message)
            case "pong":
                self._take_position(message.get("offset"))
            case _:
                is_whole = message.get("sent") == message.get("total")
                if message["type"] not in _CHANGE_NOTHING or not is_whole:
                    self.errors.append(text)

    def _subscribe(self, channels: frozenset[str], *, is_resume: bool) -> Message:
        names = self._names_of(channels)
        command = _Command(channels, is_resume, names)
        message = {"type": "subscribe", "channels": sorted(names), "id": self._id_of(command)}
        if self.with_snapshot:
            message["snapshot"] = True
        if is_resume:
            assert self.position is not None
            self._resume = command
            return message | {"after": self.position.offset, "epoch": self.position.epoch}
        return message | {"notices": True}

    def _names_of(self, channels: frozenset[str]) -> frozenset[str]:
        """The names to request them by: patterns where it wants all that these match."""
        names = {name for name, matched in self.patterns.items() if matched <= channels}
        single = channels.difference(*(self.patterns[name] for name in names))
        return frozenset(names | single)

    def _stand_for(self, name: str) -> Collection[str]:
        return self.patterns.get(name, frozenset({name}))

    def _id_of(self, command: _Command) -> int:
        number = next(self._ids)
        self._commands[number] = command
        return number

    def _take_event(self, message: Message, text: str) -> None:
        channel, offset = message["channel"], message["offset"]
        found = _DATA.search(text)
        epoch = self._epoch or ""
        may_repeat = offset <= self._again_to.get(epoch, 0) or epoch in self._was_left
        is_ignored = may_repeat and self._had(channel, offset)
        event = judge.Event(
            at_ms=now_ms(),
            channel=channel,
            number=message["data"]["n"],
            offset=offset,
            stored_ms=message["ts"],
            payload=found[1] if found else text,
            seq=message["seq"],
            epoch=self._epoch,
            is_ignored=is_ignored,
            prev=message.get("prev"),
            is_snapshot=message.get("snapshot", False),
        )
        self.journal.append(event)
        if not is_ignored:
            self.numbers.add(event.number)
        if not is_ignored and self._epoch is not None:
            self._last[self._epoch, channel] = offset
        self._count(offset)

    def _had(self, channel: str, offset: int) -> bool:
        return self._epoch is not None and offset <= self._last.get((self._epoch, channel), 0)

    def _take_ack(self, message: Message) -> None:
        command = self._commands.pop(message["id"])
        epoch, offset = message.get("epoch"), message.get("offset")
        if sorted(command.names) != sorted(message["subscribed"]):
            self.errors.append(f"subscribed to {message['subscribed']} of {command.names}")
        if epoch is not None and epoch != self._epoch:
            self._enter(epoch)
        if command.is_resume:
            return
        self._take_position(offset)
        position = self.position if offset is not None else None
        self._note(
            judge.Began,
            channels=command.channels,
            epoch=position.epoch if position else None,
            offset=position.offset if position else None,
            is_behind=position is not None and (offset or 0) < position.offset,
        )

    def _enter(self, epoch: str) -> None:
        """The second rule: the position starts anew, but not while a resume is under way."""
        if self._epoch is not None and epoch != self._epoch:
            self._was_left.add(self._epoch)
        self._epoch, self._largest = epoch, None
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
            self._count(last or 0 if message["reason"] in {"start", "core"} else 0)

    def _take_position(self, offset: int | None) -> None:
        """Take a position that the server states. None is not a position: the third rule."""
        if offset is None or self._epoch is None:
            return
        if not self.is_resuming:
            self._note(judge.Stated, epoch=self._epoch, offset=offset)
        self._count(offset)

    def _take_incomplete(self, message: Message) -> None:
        channels = [one for name in message["channels"] for one in self._stand_for(name)]
        self._note(judge.Incomplete, channels=frozenset(channels))

    def _end_resume(self, message: Message) -> None:
        offset = message["offset"]
        self._note(judge.Resumed, epoch=self._epoch, offset=offset)
        self._resume = None
        if offset is not None:
            self._count(offset)

    def _count(self, offset: int) -> None:
        """The position is the largest offset of its epoch, and stays during a resume."""
        self._largest = max(offset, self._largest or 0)
        if self._epoch is not None and not self.is_resuming:
            self.position = Position(self._epoch, self._largest)

    def _note(self, kind: type[Entry], **content: Any) -> None:
        self.journal.append(kind(at_ms=now_ms(), **content))
