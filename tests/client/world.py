"""The core in a world of servers, sockets and faults, with a clock that is a number; and a judge.

All that is random is in the script, a list of actions, so that Hypothesis can make it shorter.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from itertools import count
from math import inf
from typing import Any

import attrs

from tests.client.model import Message, Node, Published, Session, Stream
from trio_odin.client.connection import names_for
from trio_odin.client.core import Core
from trio_odin.client.items import (
    Deliver,
    Dial,
    Drop,
    Event,
    Gap,
    Options,
    Rate,
    Refused,
    Send,
)

CHANNELS = ("A.t", "A.u", "B.t", "C.t")
NAMES = (*CHANNELS, "A.*", "*.t", ">")
TICKS_MS = (100, 1000, 5000)
_NEVER_HEALED = {"shed", "stream", "start"}
_QUIET_MS = 90_000


@attrs.define(eq=False)
class Socket:
    """A connection as the network sees it: messages arrive in order, after some time."""

    id: int
    node: Node
    session: Session | None = None
    is_open: bool = False
    is_cut: bool = False
    up_at: float = 0
    down_at: float = 0


@attrs.define(eq=False)
class Subscriber:
    """What a subscription got, and what it is owed.

    Attributes:
        last: the newest event of each channel that it got.
        begun: the first event that it is owed by each name: the one after the acknowledgement.
        explained: why, and when last, of the channels with a gap after the last event.
        paused: channels whose events may have been withheld since the last one.
        unexplained: channels with a first value that followed others, until a gap says so.
    """

    id: int
    names: frozenset[str]
    every_ms: Rate
    with_snapshot: bool
    last: dict[str, Published] = attrs.field(factory=dict)
    begun: dict[str, int] = attrs.field(factory=dict)
    explained: dict[str, dict[str, float]] = attrs.field(factory=dict)
    paused: set[str] = attrs.field(factory=set)
    unexplained: dict[str, str] = attrs.field(factory=dict)
    refused: set[str] = attrs.field(factory=set)

    def begin(self, channel: str) -> float:
        """The first event of a channel that it is owed."""
        begun = [float(self.begun[one]) for one in names_for(channel) if one in self.begun]
        return min(begun, default=inf)

    def has(self, channel: str) -> bool:
        return not self.names.isdisjoint(names_for(channel))


class World:
    """Runs a script of actions: each is the name of a method here, and its arguments."""

    def __init__(self, *, nodes: int, keeps: int, channels_max: int, max_channels: int) -> None:
        self.now = 0.0
        self.streams = [Stream("e1")]
        self.truth: list[Published] = []
        self.nodes = [
            Node(lambda: self.now, self.streams[0], keeps=keeps, channels_max=channels_max)
            for _ in range(nodes)
        ]
        self.core = Core(
            [f"ws://{number}" for number in range(nodes)],
            options=Options(max_channels=max_channels),
            random=lambda: 0.3,
        )
        self.sockets: dict[int, Socket] = {}
        self.subscribers: dict[int, Subscriber] = {}
        self.latency = 5.0
        self.has_dropped = False
        self.has_rates = False
        self.has_one_link = min(channels_max, max_channels) >= len(NAMES)
        self.lags = [0.0] * nodes
        self.is_frozen = False
        self.log: list[str] = []
        self._thawing: list[Callable[[], None]] = []
        self.gaps: list[Gap] = []
        self._ids = count(1)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._deferred: list[tuple[Node, Session, Message]] = []
        for every_ms in TICKS_MS:
            self._repeat(every_ms, partial(self._tick_all, every_ms))
        self._repeat(1000, self._tell_all)
        self.core.start(0)
        self.carry_out()

    # ---- time

    def later(self, delay: float, do: Callable[[], Any]) -> None:
        heapq.heappush(self._agenda, (self.now + delay, next(self._order), do))

    def _repeat(self, every_ms: float, do: Callable[[], Any]) -> None:
        def again() -> None:
            do()
            self.later(every_ms, again)

        self.later(every_ms, again)

    def pass_time(self, ms: float) -> None:
        """Let time pass, with all that happens meanwhile."""
        end = self.now + ms
        while True:
            wake = self.core.deadline() if not self.is_frozen else None
            due = [self._agenda[0][0]] if self._agenda else []
            at = min([end, *due, *([wake] if wake is not None else [])])
            self.now = max(self.now, at)
            if wake is not None and wake <= self.now:
                self.core.tick(self.now)
                self.carry_out()
            elif self._agenda and self._agenda[0][0] <= self.now:
                heapq.heappop(self._agenda)[2]()
            elif self.now >= end:
                return

    def _tick_all(self, every_ms: int) -> None:
        for node in self.nodes:
            for session in list(node.sessions):
                session.tick(every_ms)

    def _tell_all(self) -> None:
        for node in self.nodes:
            node.tell_if_due()

    # ---- the shell

    def carry_out(self) -> None:
        """Do what the core asks for, and judge what it hands out."""
        for output in self.core.take():
            self.log.append(f"{self.now:.0f} {output}")
            match output:
                case Dial(conn, url, _):
                    self._dial(conn, self.nodes[int(url.rpartition("/")[2])])
                case Send(conn, message) if conn in self.sockets:
                    self._send_up(self.sockets[conn], message)
                case Drop(conn, _) if conn in self.sockets:
                    self._drop(self.sockets.pop(conn))
                case Deliver(numbers, item):
                    for number in numbers:
                        self._take(self.subscribers[number], item)

    def _take(self, one: Subscriber, item: Event | Gap | Refused) -> None:
        if isinstance(item, Event):
            self._take_event(one, item)
        elif isinstance(item, Gap):
            self.gaps.append(item)
            self._take_gap(one, item)
        else:
            one.refused.add(item.channel)

    def _tell_core(self, do: Callable[[], None]) -> None:
        do()
        self.carry_out()

    def _dial(self, conn: int, node: Node) -> None:
        socket = self.sockets[conn] = Socket(conn, node)

        def answer() -> None:
            if self.sockets.get(conn) is not socket or socket.is_cut:
                return
            if self.is_frozen:
                self._thawing.append(answer)
            elif not node.is_up or node.is_draining:
                code, text = (503, "Server is shutting down") if node.is_up else (1006, "refused")
                del self.sockets[conn]
                self._tell_core(lambda: self.core.lost(self.now, conn, code, text))
            else:
                socket.is_open = True
                socket.session = Session(node, lambda message: self._send_down(socket, message))
                node.sessions.append(socket.session)
                self._tell_core(lambda: self.core.opened(self.now, conn))

        self.later(self.latency, answer)

    def _send_up(self, socket: Socket, message: Message) -> None:
        self.log.append(f"{self.now:.0f} > {socket.id} {message}")
        session, node = socket.session, socket.node

        def arrive() -> None:
            if session is None or socket.is_cut or session not in node.sessions:
                return
            if node.is_settled:
                session.receive(message)
            else:
                self._deferred.append((node, session, message))

        socket.up_at = max(socket.up_at, self.now + self.latency)
        self.later(socket.up_at - self.now, arrive)

    def _receive_deferred(self, node: Node) -> None:
        mine = [one for one in self._deferred if one[0] is node]
        self._deferred = [one for one in self._deferred if one[0] is not node]
        for _, session, message in mine:
            if session in node.sessions:
                session.receive(message)

    def _send_down(self, socket: Socket, message: Message | tuple[int, str]) -> None:
        def arrive() -> None:
            if self.sockets.get(socket.id) is not socket or socket.is_cut:
                return
            if self.is_frozen:
                self._thawing.append(arrive)
                return
            self.log.append(f"{self.now:.0f} < {socket.id} {message}")
            if isinstance(message, tuple):
                del self.sockets[socket.id]
                self._tell_core(lambda: self.core.lost(self.now, socket.id, *message))
            else:
                self._tell_core(lambda: self.core.received(self.now, socket.id, message))
                if message["type"] == "subscription_ack" and socket.id in self.sockets:
                    for one in self.subscribers.values():
                        for name in one.names.intersection(message["subscribed"]):
                            one.begun.setdefault(name, len(self.truth))

        socket.down_at = max(socket.down_at, self.now + self.latency)
        self.later(socket.down_at - self.now, arrive)

    def _drop(self, socket: Socket) -> None:
        if socket.session in socket.node.sessions:
            socket.node.sessions.remove(socket.session)
        socket.is_cut = True

    # ---- the judge

    def _take_event(self, one: Subscriber, event: Event) -> None:
        channel, found = event.channel, self.truth[event.data]
        assert found.channel == channel, event
        assert one.has(channel), f"{one} does not want {event}"
        assert one.every_ms is not None, f"{one} is paused: {event}"
        before = one.last.get(channel)
        if before is not None:
            assert found.number != before.number, f"twice: {event} to {one.id}"
            assert found.number > before.number, f"older after newer: {event} to {one.id}"
            self._check_hole(one, before, found, event)
        one.last[channel] = found
        self._forget_gaps(one, channel)
        one.paused.discard(channel)

    def _forget_gaps(self, one: Subscriber, channel: str) -> None:
        """Of a gap before this event. At a rate, the event may have waited from before the gap."""
        waited = max(TICKS_MS) + 1000 if self.has_rates else 0
        gaps = one.explained.pop(channel, {})
        late = {reason: at for reason, at in gaps.items() if at > self.now - waited}
        if late:
            one.explained[channel] = late

    def _check_hole(
        self, one: Subscriber, before: Published, found: Published, event: Event
    ) -> None:
        channel = found.channel
        begin = one.begin(channel)
        missing = [it for it in self._between(channel, before, found) if it.number >= begin]
        # A first value for a name on another link may come before what waits for its tick.
        is_strict = self.has_one_link and event.is_snapshot
        is_uncounted = event.skipped is None and not is_strict
        if is_uncounted or len(missing) <= (event.skipped or 0):
            return
        if channel in one.explained or channel in one.paused:
            return
        what = f"{one.id} lacks {[lost.number for lost in missing]} before {event}"
        if event.is_snapshot:
            one.unexplained[channel] = what
            return
        raise AssertionError(what)

    def _between(self, channel: str, before: Published, found: Published | None) -> list[Published]:
        end = len(self.truth) if found is None else found.number
        return [one for one in self.truth[before.number + 1 : end] if one.channel == channel]

    def _take_gap(self, one: Subscriber, gap: Gap) -> None:
        for channel in CHANNELS:
            if not {*gap.channels}.isdisjoint(names_for(channel)):
                one.explained.setdefault(channel, {})[gap.reason] = self.now
                if gap.reason == "resume":
                    one.unexplained.pop(channel, None)

    def settle(self) -> None:
        """Heal everything, let it be quiet, and see that nothing is owed."""
        for number, node in enumerate(self.nodes):
            node.losing = 0
            node.forbidden.clear()
            if not node.is_up:
                self.restart(number)
            self.reach(number)
            node.set_nats(is_there=True)
            self.lags[number] = 0
            for session in node.sessions:
                session.drops = session.limited = 0
        self._read_all()
        if self.has_dropped:  # only the number of the next event shows that one was dropped
            self.pass_time(_QUIET_MS)
            self.publish([*CHANNELS])
        self.pass_time(_QUIET_MS)
        assert self.core.state.name == "live", self.core.state
        for one in self.subscribers.values():
            assert not one.unexplained, one.unexplained
            for channel in CHANNELS:
                if one.has(channel) and one.every_ms is not None:
                    self._check_end(one, channel)

    def _check_end(self, one: Subscriber, channel: str) -> None:
        newest = next((it for it in reversed(self.truth) if it.channel == channel), None)
        before = one.last.get(channel)
        if newest is None or before is newest or not one.refused.isdisjoint(names_for(channel)):
            return
        if newest.number < one.begin(channel):  # of what was before, only a first value is owed
            is_known = all(newest in node.newest.values() for node in self.nodes)
            assert not is_known or not one.with_snapshot, f"{one.id} has no {newest}"
            return
        reasons = one.explained.get(channel, {}).keys()
        # A server does not have it.
        is_shed = any(newest.number in node.lost for node in self.nodes)
        has_gone = is_shed or newest.epoch != self.streams[-1].epoch
        assert (reasons and has_gone) or not reasons.isdisjoint(_NEVER_HEALED), (
            f"{one.id} has {before} and not {newest}; told: {reasons}"
        )

    # ---- actions of the user

    def subscribe(self, names: frozenset[str], every_ms: Rate, with_snapshot: bool) -> None:
        number = next(self._ids)
        self.has_rates |= every_ms != 0
        begun = {
            name: len(self.truth)
            for one in self.subscribers.values()
            for name in one.begun.keys() & names
        }
        one = Subscriber(number, names, every_ms, with_snapshot, begun=begun)
        self.subscribers[number] = one
        self.core.subscribe(self.now, number, sorted(names), every_ms, with_snapshot=with_snapshot)
        self.carry_out()

    def unsubscribe(self, choice: int) -> None:
        if self.subscribers:
            number = sorted(self.subscribers)[choice % len(self.subscribers)]
            self.core.unsubscribe(self.now, number)
            self.carry_out()
            del self.subscribers[number]

    def set_rate(self, choice: int, every_ms: Rate) -> None:
        if self.subscribers:
            one = self.subscribers[sorted(self.subscribers)[choice % len(self.subscribers)]]
            if one.every_ms is None or every_ms is None:
                one.paused.update(CHANNELS)
            one.every_ms = every_ms
            self.has_rates |= every_ms != 0
            self.core.set_rate(self.now, one.id, every_ms)
            self.carry_out()

    def hide(self, is_hidden: bool) -> None:
        self.core.hide(self.now, is_hidden=is_hidden)
        self.carry_out()

    def probe(self) -> None:
        self.core.probe(self.now)
        self.carry_out()

    def freeze(self, ms: float) -> None:
        self.is_frozen = True
        self.pass_time(ms)
        self.is_frozen = False
        waiting, self._thawing = self._thawing, []
        for do in waiting:
            do()

    # ---- actions of the publisher and of NATS

    def publish(self, channels: list[str]) -> None:
        for channel in channels:
            stream = self.streams[-1]
            offset = len(stream.events) + 1
            prev = next(
                (it.offset for it in reversed(stream.events) if it.channel == channel), None
            )
            number = len(self.truth)
            event = Published(number, channel, stream.epoch, offset, prev, int(self.now) + number)
            stream.events.append(event)
            self.truth.append(event)
        self._read_all()

    def recreate(self) -> None:
        self.pass_time(1)
        self.streams.append(Stream(f"e{len(self.streams) + 1}"))

    def _read_all(self) -> None:
        stream, length = self.streams[-1], len(self.streams[-1].events)
        for number, node in enumerate(self.nodes):

            def read(node: Node = node) -> None:
                if node.position is not None:
                    before = node.position if node.stream is stream else 0
                    node.read(stream, max(0, length - before))

            if self.lags[number]:
                self.later(self.lags[number], read)
            else:
                node.read(self.streams[-1])

    # ---- faults

    def _sockets_of(self, number: int) -> list[Socket]:
        node = self.nodes[number % len(self.nodes)]
        return [one for one in self.sockets.values() if one.node is node and one.is_open]

    def lag(self, number: int, ms: float) -> None:
        self.lags[number % len(self.nodes)] = ms

    def lose(self, number: int, events: int) -> None:
        self.nodes[number % len(self.nodes)].losing += events

    def drop_events(self, number: int, events: int) -> None:
        self.has_dropped = True
        for socket in self._sockets_of(number):
            if socket.session:
                socket.session.drops += events

    def limit(self, number: int, commands: int) -> None:
        for socket in self._sockets_of(number):
            if socket.session:
                socket.session.limited = commands

    def forbid(self, number: int, name: str) -> None:
        self.nodes[number % len(self.nodes)].forbidden ^= {name}

    def nats(self, number: int, is_there: bool) -> None:
        node = self.nodes[number % len(self.nodes)]
        node.set_nats(is_there=is_there)
        if is_there:
            node.read(self.streams[-1])

    def break_connections(self, number: int) -> None:
        """The network ends them, and both sides know."""
        for socket in self._sockets_of(number):
            self._drop(socket)
            self.sockets.pop(socket.id, None)
            self._tell_core(partial(self.core.lost, self.now, socket.id, 1006, "broken"))

    def cut(self, number: int) -> None:
        """The network loses everything from now on, and nobody knows."""
        for socket in self._sockets_of(number):
            self._drop(socket)

    def close(self, number: int, code: int) -> None:
        """The server closes its connections."""
        for socket in self._sockets_of(number):
            if socket.session in socket.node.sessions:
                socket.node.sessions.remove(socket.session)
                self._send_down(socket, (code, "closed"))

    def drain(self, number: int, ms: int) -> None:
        node = self.nodes[number % len(self.nodes)]
        if not node.is_up or node.is_draining:
            return
        node.is_draining = True
        for session in node.sessions:
            session.send({"type": "server:draining", "reconnect_in_ms": ms})

        def end() -> None:
            for session in node.sessions:
                session.send_batch(
                    [one for one in session.pending if session.rate_of(one) is not None]
                )
            self.close(number, 1001)
            node.is_up = False
            self.later(200, lambda: self.restart(number))

        self.later(ms + 300, end)

    def kill(self, number: int, ms: float) -> None:
        node = self.nodes[number % len(self.nodes)]
        if not node.is_up or node.is_draining:
            return
        node.is_up = False
        self.break_connections(number)
        node.sessions.clear()
        self.later(ms, lambda: self.restart(number))

    def restart(self, number: int) -> None:
        node = self.nodes[number % len(self.nodes)]
        if node.is_up and not node.is_draining:
            return
        node.start_up(self.streams[-1])

    def restart_without_nats(self, number: int, ms: float) -> None:
        """Killed, and at once there again, but it does not reach NATS for a while."""
        node = self.nodes[number % len(self.nodes)]
        if not node.is_up or node.is_draining:
            return
        node.is_up = False
        self.break_connections(number)
        node.sessions.clear()
        node.start_up(self.streams[-1], is_settled=False)
        node.has_nats = False
        self.later(min(ms, 5000), lambda: self._receive_deferred(node))
        self.later(ms, lambda: self.reach(number))

    def reach(self, number: int) -> None:
        node = self.nodes[number % len(self.nodes)]
        if node.is_up and not node.is_settled:
            node.stream = self.streams[-1]
            node.settle()
            node.set_nats(is_there=True)
            self._receive_deferred(node)
