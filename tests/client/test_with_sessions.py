"""The client's core against the server's real sessions: what one promises, the other relies on.

Two servers follow one stream, each in its own time. Clients subscribe, change rates, are cut, read
late; servers drain, lag and see the stream made anew. Every event has to be handed out, counted as
skipped, or named by a gap; none twice, and none after a newer one.
"""

from __future__ import annotations

import random
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.client.nodes import Link, Node, Stream
from tests.oracle.libraries.verdict import Item, judge
from tests.oracle.truth import Evidence, Sent, Truth
from trio_odin.client.core import Core
from trio_odin.client.items import Deliver, Dial, Drop, Event, Gap, Options, Rate, Send
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.channels import ChannelSet

_CHANNELS = ["A.x", "A.y", "B.x"]
_NAMES = [*_CHANNELS * 3, "A.*", "*.x", ">"]
_RATES: list[Rate] = [0, 50, 250, 1000, None]
_NAME_SETS = st.lists(st.sampled_from(_NAMES), min_size=1, max_size=3, unique=True)
_CHANNEL_LISTS = st.lists(st.sampled_from(_CHANNELS), min_size=1, max_size=8)
_STEP_MS = 100.0
_OPTIONS = Options(retry_min_ms=100, retry_max_ms=400, freeze_ms=1e9, heartbeat_ms=2_000)


@attrs.define
class _Part:
    """A subscription: its names, and what it got. While it `is_over`, it is owed nothing."""

    channels: frozenset[str]
    every_ms: Rate
    items: list[Item] = attrs.field(factory=list)
    is_over: bool = False


class _Client:
    """A core, and its connections. It reads what they have sent when it is told to."""

    def __init__(self, world: CoresAndSessions, number: int) -> None:
        self.core = Core(
            ["0", "1"][number:] + ["0", "1"][:number],
            options=_OPTIONS,
            random=random.Random(number).random,
        )
        self.parts: dict[int, _Part] = {}
        self.links: dict[int, Link] = {}
        self._world = world
        self.core.start(world.now)
        self.carry_out()

    def carry_out(self) -> None:
        """Do what the core wants."""
        while outputs := self.core.take():
            for output in outputs:
                if isinstance(output, Dial):
                    self._dial(output)
                elif isinstance(output, Send):
                    link = self.links[output.conn]
                    if link.is_open:
                        link.receive(output.message, self._world.now)
                elif isinstance(output, Drop):
                    link = self.links.pop(output.conn)
                    if link.is_open:
                        link.node.close(link)
                elif isinstance(output, Deliver):
                    self._hand_out(output)

    def _dial(self, dial: Dial) -> None:
        node = self._world.nodes[int(dial.url)]
        if node.is_draining:
            self.core.lost(self._world.now, dial.conn, 503, "Server is shutting down")
        else:
            self.links[dial.conn] = node.accept()
            self.core.opened(self._world.now, dial.conn)

    def _hand_out(self, output: Deliver) -> None:
        for number in output.subscriptions:
            part, item = self.parts[number], output.item
            if isinstance(item, Event):
                part.items.append(
                    Item(
                        at_ms=self._world.now,
                        channels=frozenset([item.channel]),
                        number=item.data,
                        skipped=item.skipped,
                        is_snapshot=item.is_snapshot,
                    )
                )
            elif isinstance(item, Gap):
                names = ChannelSet(item.channels)
                told = frozenset(one for one in part.channels if one in names)
                part.items.append(Item(at_ms=self._world.now, channels=told))

    def read(self, count: int) -> None:
        """Read up to so many messages of each connection."""
        for conn, link in list(self.links.items()):
            for _ in range(min(count, len(link.sent))):
                if conn in self.links:
                    self.core.received(self._world.now, conn, link.sent.pop(0))
                    self.carry_out()
            if conn in self.links and not link.is_open and not link.sent:
                del self.links[conn]
                self.core.lost(self._world.now, conn, 1001, "Server is shutting down")
                self.carry_out()

    def cut(self) -> None:
        """Lose every connection, with what was not read yet."""
        for conn, link in list(self.links.items()):
            del self.links[conn]
            if link.is_open:
                link.node.close(link)
            self.core.lost(self._world.now, conn, 1006, "reset")
        self.carry_out()


class CoresAndSessions(RuleBasedStateMachine):
    """Two clients, two servers, one stream."""

    @initialize(
        first=st.lists(st.tuples(_NAME_SETS, st.sampled_from(_RATES)), min_size=2, max_size=4)
    )
    def start(self, first: list[tuple[list[str], Rate]]) -> None:
        self.now = 1_000.0
        self.epochs = 0
        self.number = 0
        self.evidence = Evidence()
        self.stream = Stream("e0")
        self.nodes = [Node(self.stream), Node(self.stream)]
        self.clients = [_Client(self, number) for number in range(2)]
        self.ids = 0
        for number, (names, every_ms) in enumerate(first):
            self.subscribe(number % 2, names, every_ms)

    # ---- clients

    @rule(who=st.integers(0, 1), names=_NAME_SETS, every_ms=st.sampled_from(_RATES))
    def subscribe(self, who: int, names: list[str], every_ms: Rate) -> None:
        client = self.clients[who]
        self.ids += 1
        channels = frozenset(one for one in _CHANNELS if one in ChannelSet(names))
        client.parts[self.ids] = _Part(channels, every_ms)
        client.core.subscribe(self.now, self.ids, names, every_ms)
        client.carry_out()

    @rule(who=st.integers(0, 1), which=st.integers(0, 9), every_ms=st.sampled_from(_RATES))
    def set_rate(self, who: int, which: int, every_ms: Rate) -> None:
        if (found := self._part(who, which)) is not None:
            number, part = found
            part.every_ms = every_ms
            self.clients[who].core.set_rate(self.now, number, every_ms)
            self.clients[who].carry_out()

    @rule(who=st.integers(0, 1), which=st.integers(0, 9))
    def unsubscribe(self, who: int, which: int) -> None:
        if (found := self._part(who, which)) is not None:
            number, part = found
            part.is_over = True
            self.clients[who].core.unsubscribe(self.now, number)
            self.clients[who].carry_out()

    def _part(self, who: int, which: int) -> tuple[int, _Part] | None:
        parts = [one for one in self.clients[who].parts.items() if not one[1].is_over]
        return parts[which % len(parts)] if parts else None

    @rule(who=st.integers(0, 1), count=st.sampled_from([1, 2, 1000]))
    def read(self, who: int, count: int) -> None:
        self.clients[who].read(count)

    @rule(who=st.integers(0, 1))
    def cut(self, who: int) -> None:
        self.clients[who].cut()

    @rule(who=st.integers(0, 1), is_busy=st.booleans())
    def socket(self, who: int, is_busy: bool) -> None:
        for link in self.clients[who].links.values():
            link.is_busy = is_busy

    # ---- servers

    @rule(channels=_CHANNEL_LISTS)
    def flow(self, channels: list[str]) -> None:
        """What is published arrives, without a tick."""
        self.publish(channels)
        self._arrive()

    @rule(channels=st.permutations(_CHANNELS), who=st.integers(0, 1))
    def flow_and_cut(self, channels: list[str], who: int) -> None:
        """A client loses its connection when events of some rates have come, and others wait."""
        self.flow(channels)
        self.cut(who)
        self.time_passes(1100, is_arriving=True)

    def _arrive(self) -> None:
        for node in self.nodes:
            node.follow(self.stream)
            node.take(1000)
        for client in self.clients:
            client.read(1000)

    @rule(channels=_CHANNEL_LISTS)
    def publish(self, channels: list[str]) -> None:
        for channel in channels:
            self.number += 1
            self.now += 1
            offset = len(self.stream.events) + 1
            payload = str(self.number).encode()
            subject, stored_ms = f"odin.token.{channel}", round(self.now)
            at = self.now / 1000
            self.stream.events.append(NatsMessage(subject, payload, offset, at, stored_ms))
            self.evidence.sent[self.number] = Sent(channel, "", self.now)
            self.evidence.saw(self.number, offset, stored_ms)
            self.evidence.epochs[self.stream.epoch].add(self.number)

    @rule(which=st.integers(0, 1), count=st.sampled_from([1, 3, 1000]))
    def take(self, which: int, count: int) -> None:
        self.nodes[which].take(count)

    @rule(which=st.integers(0, 1))
    def follow(self, which: int) -> None:
        self.nodes[which].follow(self.stream)

    @rule()
    def make_anew(self) -> None:
        if self.stream.events and self.epochs < 2:
            self.epochs += 1
            self.now += 10
            self.stream = Stream(f"e{self.epochs}")

    @rule(which=st.integers(0, 1))
    def drain(self, which: int) -> None:
        """Tell everybody to go elsewhere, if there is another server."""
        node, other = self.nodes[which], self.nodes[1 - which]
        if not node.is_draining and not other.is_draining:
            node.is_draining = True
            node.notice({"type": "server:draining", "reconnect_in_ms": 50})

    @rule(which=st.integers(0, 1))
    def end_of_drain(self, which: int) -> None:
        """Close those that are left; the server is a new one then, which has the stream."""
        if self.nodes[which].is_draining:
            for link in list(self.nodes[which].links):
                self.nodes[which].close(link)
            self._replace(which)

    @rule(which=st.integers(0, 1))
    def crash(self, which: int) -> None:
        node = self.nodes[which]
        for client in self.clients:
            if any(link.node is node for link in client.links.values()):
                client.cut()
        self._replace(which)

    def _replace(self, which: int) -> None:
        node = self.nodes[which] = Node(self.stream)
        node.backfill(len(self.stream.events))

    # ---- time

    @rule(ms=st.sampled_from([50, 100, 300, 1100, 4000]), is_arriving=st.booleans())
    def time_passes(self, ms: int, is_arriving: bool) -> None:
        until = self.now + ms
        while self.now < until:
            self._pass(min(_STEP_MS, until - self.now))
            if is_arriving:
                self._arrive()

    def _pass(self, ms: float) -> None:
        self.now += ms
        for node in self.nodes:
            node.pass_time(ms)
        for client in self.clients:
            client.core.tick(self.now)
            client.carry_out()

    # ---- the end

    def teardown(self) -> None:
        if not hasattr(self, "nodes"):
            return
        for which, node in enumerate(self.nodes):
            if node.is_draining:
                self.end_of_drain(which)
        for client in self.clients:
            for link in client.links.values():
                link.is_busy = False
        self._settle(seconds=8)
        self.publish(_CHANNELS)
        self._settle(seconds=8)
        last = {channel: self.number - 2 + at for at, channel in enumerate(_CHANNELS)}
        truth = Truth(self.evidence)
        for who, client in enumerate(self.clients):
            assert client.core.state.name == "live", client.core.state
            for number, part in client.parts.items():
                tally = judge(f"client{who}/{number}", part.channels, part.items, truth)
                assert tally.findings == []
                if part.is_over or part.every_ms is None:
                    continue
                for channel in part.channels:
                    came = [one.number for one in part.items if channel in one.channels]
                    assert last[channel] in came, f"the last event of {channel} is missing"

    def _settle(self, seconds: int) -> None:
        for _ in range(round(seconds * 1000 / _STEP_MS)):
            self._arrive()
            self._pass(_STEP_MS)


CoresAndSessions.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None
)
TestCoresAndSessions: Any = CoresAndSessions.TestCase
