"""A small honest server of docs/protocol.md, and the stream that it reads: for the simulation.

It keeps what the page promises and no more: it may lag, forget, drop, shed, drain and die. Whatever
it does not send it counts as `skipped`, leaves out of `seq`, reports as incomplete or as a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs

from trio_odin.client.connection import names_for, speed
from trio_odin.client.items import Rate

Message = dict[str, Any]

_NOTICE_MS = 1_000
_REPLAY_MAX = 5


@attrs.frozen(eq=False)
class Published:
    """An event of the truth; `number` counts over all streams."""

    number: int
    channel: str
    epoch: str
    offset: int
    prev: int | None
    ts: int


@attrs.define(eq=False)
class Stream:
    epoch: str
    events: list[Published] = attrs.field(factory=list)

    def after(self, offset: int, to: int) -> list[Published]:
        return self.events[offset:to]


@attrs.define(eq=False)
class Pending:
    """What a channel at a rate is owed: the newest event, and all of them."""

    events: list[Published]
    arrived: int = 0


@attrs.define(eq=False)
class Session:
    """One connection on its server.

    Attributes:
        send: takes a message to the client.
        drops: how many of the next events find no room.
    """

    node: Node
    send: Callable[[Message], None]
    held: dict[str, Rate] = attrs.field(factory=dict)
    has_notices: bool = False
    seq: int = 0
    kept: dict[int, Message] = attrs.field(factory=dict)
    pending: dict[str, Pending] = attrs.field(factory=dict)
    floors: dict[str, int] = attrs.field(factory=dict)
    drops: int = 0
    _dropped: Published | None = None  # the first one since something was sent
    limited: int = 0

    def rate_of(self, channel: str) -> Rate | str:
        """The fastest rate of its names that match, or "none"."""
        rates = [self.held[name] for name in names_for(channel) if name in self.held]
        return min(rates, key=speed) if rates else "none"

    # ---- events

    def publish(self, event: Published) -> None:
        names = [name for name in names_for(event.channel) if name in self.held]
        for name in names:
            if self.floors.get(name, 0) < event.offset:
                self.floors.pop(name, None)
        if not names or all(name in self.floors for name in names):
            return
        if self.rate_of(event.channel) == 0:
            self.send_event(event)
        else:
            pending = self.pending.setdefault(event.channel, Pending([]))
            pending.events.append(event)
            pending.arrived = self.node.arrived

    def send_event(self, event: Published, **more: Any) -> None:
        self.seq += 1
        message = self.content(event) | {"type": "price:update", "seq": self.seq} | more
        self.kept[self.seq] = message
        self.kept.pop(self.seq - _REPLAY_MAX, None)
        if self.drops:
            self.drops -= 1
            self._dropped = self._dropped or event
        else:
            self._dropped = None
            self.send(message)

    def content(self, event: Published) -> Message:
        found: Message = {"channel": event.channel, "ts": event.ts, "data": event.number}
        if event.epoch == self.node.stream.epoch:
            found["offset"] = event.offset
            if event.prev:
                found["prev"] = event.prev
        return found

    def tick(self, rate: Rate) -> None:
        """Send what has changed at a rate."""
        self.send_batch([one for one in self.pending if self.rate_of(one) == rate])

    def send_batch(self, channels: Iterable[str]) -> None:
        due = sorted((self.pending.pop(one) for one in channels), key=lambda one: one.arrived)
        if not due:
            return
        self.seq += 1
        events = []
        for one in due:
            skipped = len(one.events) - 1
            part = self.content(one.events[-1])
            events.append(part | {"skipped": skipped} if skipped else part)
        self._dropped = None
        message = {"type": "price:batch", "seq": self.seq, "ts": 0, "events": events}
        self.send(message)

    def reached(self) -> int | None:
        """Everything up to it was sent, except for what is paused."""
        position = self.node.position
        if position is None:
            return None
        waiting = [
            one.events[0].offset - 1
            for channel, one in self.pending.items()
            if self.rate_of(channel) is not None and one.events[0].epoch == self.node.stream.epoch
        ]
        if self._dropped and self._dropped.epoch == self.node.stream.epoch:
            waiting.append(self._dropped.offset - 1)  # no number shows that it is missing yet
        return min([position, *waiting])

    # ---- commands

    def receive(self, message: Message) -> None:
        number = message.get("id")
        if self.limited:
            self.limited -= 1
            self.reply({"type": "error", "code": "RATE_LIMIT_EXCEEDED", "message": ""}, number)
            return
        self.node.tell_if_due()
        match message["type"]:
            case "subscribe":
                self.subscribe(message)
            case "unsubscribe":
                names = message["channels"]
                self.change(names, None, is_end=True)
                ack = {"type": "unsubscription_ack", "unsubscribed": names, "count": 0}
                self.reply(ack, number)
            case "replay":
                self.replay(message["data"]["from"], message["data"]["to"], number)
            case "heartbeat":
                nats = "connected" if self.node.has_nats else "disconnected"
                pong = {"type": "pong", "nats": nats, "age_ms": 0, "offset": self.reached()}
                self.reply(pong, number)

    def reply(self, message: Message, number: int | None) -> None:
        self.send(message if number is None else message | {"id": number})

    def replay(self, first: int, last: int, number: int | None) -> None:
        asked = range(first, last + 1)
        kept = [self.kept[one] for one in asked if one in self.kept]
        for message in kept:
            self.send(message)
        counts = {"sent": len(kept), "total": len(asked)}
        if len(kept) < len(asked):
            self.reply({"type": "replay_incomplete", "message": "", **counts}, number)
        self.reply({"type": "replay_done", **counts}, number)

    def change(self, names: list[str], rate: Rate, *, is_end: bool = False) -> None:
        """Have names at a rate, or not at all. What is due then is sent before anything else."""
        before = {channel: self.rate_of(channel) for channel in self.pending}
        for name in names:
            if is_end:
                self.held.pop(name, None)
                self.floors.pop(name, None)
            else:
                self.held[name] = rate
        due = []
        for channel, was in before.items():
            now = self.rate_of(channel)
            if now == "none":
                del self.pending[channel]
            elif now != was and (now == 0 or was is None):
                due.append(channel)
        self.send_batch(due)

    def subscribe(self, message: Message) -> None:
        node, number, rate = self.node, message["id"], message.get("every_ms", 0)
        is_resume = "after" in message
        if is_resume or "notices" in message:
            self.has_notices = True
        allowed, refused = self.judge(message["channels"])
        before = set(self.held)
        self.change(allowed, rate)
        ack: Message = {"type": "subscription_ack", "subscribed": allowed, "count": len(self.held)}
        if self.has_notices:
            ack["epoch"] = node.stream.epoch if node.is_settled else None
            if not is_resume:
                ack["offset"] = self.reached()
        if refused:
            ack["refused"] = [{"channel": name, "code": code} for name, code in refused]
        self.reply(ack, number)
        if self.has_notices and not node.has_nats:
            self.send({"type": "upstream", "nats": "disconnected"})
        added = [name for name in allowed if name not in before]
        if is_resume:
            self.resume(message, added, before)
        elif message.get("snapshot"):
            self.snapshots(self.newest_of(added, before))
            self.reply({"type": "snapshot_done", "sent": 0, "total": 0}, number)

    def judge(self, names: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
        allowed: list[str] = []
        refused: list[tuple[str, str]] = []
        for name in names:
            count = len({*self.held, *allowed})
            if name in self.node.forbidden:
                refused.append((name, "FORBIDDEN_CHANNEL"))
            elif name not in self.held and count >= self.node.channels_max:
                refused.append((name, "TOO_MANY_CHANNELS"))
            else:
                allowed.append(name)
        return allowed, refused

    def newest_of(self, added: list[str], before: set[str]) -> list[Published]:
        """The newest event of each channel that is added, oldest first."""
        found = [
            event
            for channel, event in self.node.newest.items()
            if not {*added}.isdisjoint(names_for(channel)) and before.isdisjoint(names_for(channel))
        ]
        return sorted(found, key=lambda event: event.offset)

    def snapshots(self, events: list[Published]) -> None:
        for event in events:
            self.send_event(event, snapshot=True)

    def resume(self, message: Message, added: list[str], before: set[str]) -> None:
        node, after, position = self.node, message["after"], self.node.position
        is_ours = message["epoch"] == node.stream.epoch
        incomplete: list[str] = []
        if position is not None and is_ours and position < after:
            for name in added:
                self.floors[name] = after
            self.reply({"type": "resumed", "sent": 0, "offset": after}, message["id"])
            return
        if position is None or not is_ours:
            self.snapshots(self.newest_of(added, before) if position is not None else [])
            incomplete = added
        else:
            incomplete = self.send_missed(after, position, added, before, message)
        if incomplete:
            report = {"type": "resume_incomplete", "after": after, "sent": 0, "message": ""}
            self.reply(report | {"channels": incomplete}, message["id"])
        self.reply({"type": "resumed", "sent": 0, "offset": self.reached()}, message["id"])

    def send_missed(
        self, after: int, position: int, added: list[str], before: set[str], message: Message
    ) -> list[str]:
        """Send what was missed of each channel, or its newest event; returns what is incomplete."""
        node = self.node
        missed: dict[str, list[Published]] = {}
        for event in node.stream.after(after, position):
            names = names_for(event.channel)
            if not {*added}.isdisjoint(names) and before.isdisjoint(names):
                missed.setdefault(event.channel, []).append(event)
        incomplete: list[str] = []
        sent: list[tuple[Published, dict[str, Any]]] = []
        for channel, events in missed.items():
            newest = node.newest.get(channel)
            known = [
                one
                for one in events
                if one.number not in node.lost
                and (one.offset > node.complete_after or one is newest)
            ]
            if known != events:
                incomplete.append(channel)
                if newest is not None and newest.offset > after:
                    sent.append((newest, {"snapshot": True}))
            elif message.get("every_ms", 0) != 0:
                skipped = {"skipped": len(events) - 1} if len(events) > 1 else {}
                sent.append((events[-1], skipped))
            else:
                sent += [(event, {}) for event in events]
        for event, more in sorted(sent, key=lambda one: one[0].offset):
            self.send_event(event, **more)
        return incomplete


@attrs.define(eq=False)
class Node:
    """A server.

    Attributes:
        clock: gives the time.
        position: up to where it has read the stream; None before it has reached NATS.
        keeps: how many events it keeps for clients that resume.
        complete_after: every event after this offset is kept.
        lost: the numbers of the events that it has shed.
        losing: how many of the next events it sheds.
    """

    clock: Callable[[], float]
    stream: Stream
    position: int | None = 0
    keeps: int = 1000
    channels_max: int = 256
    forbidden: set[str] = attrs.field(factory=set)
    has_nats: bool = True
    is_up: bool = True
    is_draining: bool = False
    sessions: list[Session] = attrs.field(factory=list)
    newest: dict[str, Published] = attrs.field(factory=dict)
    complete_after: int = 0
    lost: set[int] = attrs.field(factory=set)
    losing: int = 0
    arrived: int = 0
    _has_untold: bool = False
    _told_at: float = -_NOTICE_MS

    @property
    def is_settled(self) -> bool:
        return self.position is not None

    def read(self, stream: Stream, most: int = 1_000_000) -> None:
        """Read on in the stream, which may be another one."""
        if not self.has_nats or not self.is_up or self.position is None:
            return
        if stream is not self.stream:
            self.enter(stream)
        for event in stream.after(self.position, min(len(stream.events), self.position + most)):
            self.take(event)

    def enter(self, stream: Stream) -> None:
        self.stream, self.position, self.complete_after = stream, 0, 0
        self.newest.clear()
        for session in self.sessions:
            session.floors.clear()
        self.tell("stream")

    def take(self, event: Published) -> None:
        self.position = event.offset
        self.arrived += 1
        if self.losing:
            self.losing -= 1
            self.lost.add(event.number)
            self.complete_after = event.offset
            self.newest.pop(event.channel, None)
            self._has_untold = True
            return
        self.tell_if_due()
        self.newest[event.channel] = event
        self.complete_after = max(self.complete_after, event.offset - self.keeps)
        for session in list(self.sessions):
            session.publish(event)

    def start_up(self, stream: Stream, *, is_settled: bool = True) -> None:
        """Start anew: it reads again what the stream has."""
        self.is_up, self.is_draining, self.has_nats = True, False, True
        self.stream, self.position = stream, None
        self.losing, self._has_untold = 0, False
        self.newest.clear()
        if is_settled:
            self.settle()

    def settle(self) -> None:
        """Reach NATS, and tell those who were there before."""
        if self.position is not None:
            return
        self.position = len(self.stream.events)
        self.complete_after = max(0, self.position - self.keeps)
        self.lost.clear()
        self.newest = {event.channel: event for event in self.stream.events}
        if any(session.has_notices for session in self.sessions):
            self.tell("start", to=self.position)

    def tell_if_due(self) -> None:
        """Report what was shed, at most once a second."""
        if self._has_untold and self.clock() - self._told_at >= _NOTICE_MS:
            self._has_untold = False
            self._told_at = self.clock()
            self.tell("shed")

    def tell(self, reason: str, to: int | None = None) -> None:
        gap = {"type": "gap", "reason": reason, "missed": None, "from": None, "to": to}
        self._tell(gap | {"epoch": self.stream.epoch})

    def set_nats(self, *, is_there: bool) -> None:
        if is_there != self.has_nats:
            self.has_nats = is_there
            self._tell({"type": "upstream", "nats": "connected" if is_there else "disconnected"})

    def _tell(self, message: Message) -> None:
        for session in self.sessions:
            if session.has_notices:
                session.send(message)
