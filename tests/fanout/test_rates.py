"""Clients with rates, patterns and pauses against a plain model: a list of what each still lacks.

Each event that concerns a client is delivered, or counted as skipped by a newer one of its channel,
once and in order, whatever changes meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import attrs
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from trio.testing import MockClock

from tests.connection.client import objects_of
from trio_odin.fanout.batch import Batch
from trio_odin.fanout.notices import Notices
from trio_odin.fanout.registry import Registry
from trio_odin.fanout.ticks import Ticks
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.rates import EVERY_EVENT, RATES_MS, Rate

CHANNELS = ["A.x", "A.y", "B.x", "B.y"]
NAMES = [*CHANNELS, "A.*", "*.x", ">"]
RATES: list[Rate] = [EVERY_EVENT, 50, 250, 1000, None]
NAME_SETS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)
WHO = st.integers(0, 2)


def speed(rate: Rate) -> float:
    return float("inf") if rate is None else rate


def matches(name: str, channel: str) -> bool:
    symbol, kind = channel.split(".")
    return name in {channel, f"{symbol}.*", f"*.{kind}", ">"}


@attrs.define(eq=False)
class Client:
    """A client of the model, which is the connection of the server as well.

    `lacking` has the events by channel that it was not sent yet, and `at` when a tick last sent it
    one of a channel.
    """

    on_batch: Callable[[Client, Batch], None]
    names: dict[str, Rate] = attrs.field(factory=dict)
    lacking: dict[str, list[int]] = attrs.field(factory=dict)
    at: dict[str, float] = attrs.field(factory=dict)
    is_busy: bool = False
    knows_it: bool = False
    owes_notice: bool = False

    def may_take(self) -> bool:
        """As `Outbound` does, which may find out only when it tries."""
        return not (self.is_busy and self.knows_it)

    def take_batch(self, batch: Batch, _: dict[Any, bytes]) -> bool:
        """As `Outbound` does."""
        self.knows_it = self.is_busy
        if not self.is_busy:
            self.on_batch(self, batch)
        return not self.is_busy

    def rate_of(self, channel: str) -> tuple[bool, Rate]:
        """Whether it has the channel, and at which rate."""
        rates = [rate for name, rate in self.names.items() if matches(name, channel)]
        return bool(rates), min(rates, key=speed, default=None)

    def __hash__(self) -> int:
        return id(self)


class _Told:
    def has_told(self, client: Client) -> bool:
        return not client.owes_notice


class _BetweenSteps(trio.abc.Instrument):
    """Does one thing before a step of the ticks, when other tasks have had their turn."""

    def __init__(self, step: int, what: Callable[[], None]) -> None:
        self._left, self._what = step, what
        self.error: BaseException | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name == "ticks":
            self._left -= 1
            if self._left == 0:
                try:
                    self._what()
                except BaseException as error:  # noqa: BLE001 - trio would only log it
                    self.error = error


class RatesMachine(RuleBasedStateMachine):
    """Three clients; time passes by a clock that jumps."""

    @initialize(events_of_a_batch=st.sampled_from([1, 2, 1000]))
    def start(self, events_of_a_batch: int = 1000) -> None:
        self.events_of_a_batch = events_of_a_batch
        self.elapsed = 0.0
        self.counts = dict.fromkeys(CHANNELS, 0)
        self.total = self.left_at = 0
        self.delivered = self.skipped = 0
        # A payload of this model has two bytes.
        self.ticks = Ticks(max_batch_bytes=2 * events_of_a_batch, slice_seconds=0.0)
        self.registry: Registry[Client] = Registry(cast("Any", self.ticks.rates))
        self.clients = [Client(self.tick_came) for _ in range(3)]

    # ---- what a client gets

    def events_of(self, batch: Batch) -> list[dict[str, Any]]:
        (content,) = objects_of([batch.frame(1)])
        assert content["type"] == "price:batch"
        events: list[dict[str, Any]] = content["events"]
        assert events, "no empty batch is sent"
        assert len(events) <= self.events_of_a_batch
        assert len(events) == batch.events
        assert sum(event.get("skipped", 0) for event in events) == batch.skipped
        assert content["ts"] == max(event["ts"] for event in events)
        # In this model an event's `ts` is its number.
        numbers = [event["ts"] for event in events]
        assert numbers == sorted(set(numbers)), "the oldest is first"
        for event in events:
            assert event.get("offset") == (event["ts"] if event["ts"] > self.left_at else None)
        return events

    def took(self, client: Client, events: list[dict[str, Any]]) -> None:
        for event in events:
            lacking = client.lacking[event["channel"]]
            number = json.loads(json.dumps(event["data"]))
            assert number in lacking, f"{event} came twice, late or to the wrong client"
            assert event.get("skipped", 0) == lacking.index(number)
            del lacking[: lacking.index(number) + 1]
        self.delivered += len(events)

    def tick_came(self, client: Client, batch: Batch) -> None:
        now = trio.current_time()
        events = self.events_of(batch)
        for event in events:
            is_held, rate = client.rate_of(event["channel"])
            assert is_held
            assert rate not in {EVERY_EVENT, None}
            assert now - client.at.get(event["channel"], -1e9) >= speed(rate) / 1000 - 1e-9
            client.at[event["channel"]] = now
        self.took(client, events)

    # ---- what happens

    @rule(channel=st.sampled_from(CHANNELS))
    def publish(self, channel: str) -> None:
        self.total += 1
        self.counts[channel] += 1
        number = self.counts[channel]
        message = NatsMessage(f"odin.token.{channel}", b"%2d" % number, self.total, 0.0, self.total)
        rates = self.registry.rates
        is_wanted = any(
            held and rate != EVERY_EVENT
            for held, rate in (client.rate_of(channel) for client in self.clients)
        )
        assert rates.wants(channel) or not is_wanted
        if rates.wants(channel):
            rates.add(channel, message, None)
        at_once = self.registry.subscribers_from(channel, self.total)
        for client in self.clients:
            is_held, rate = client.rate_of(channel)
            assert (client in at_once) == (is_held and rate == EVERY_EVENT)
            if is_held and rate != EVERY_EVENT:
                client.lacking.setdefault(channel, []).append(number)

    @rule(who=WHO, names=NAME_SETS, rate=st.sampled_from(RATES))
    def subscribe(self, who: int, names: list[str], rate: Rate) -> None:
        client = self.clients[who]
        before = {channel: client.rate_of(channel) for channel in CHANNELS}
        due = self.registry.set_rate(client, names, rate)
        if rate == EVERY_EVENT:
            count = self.registry.subscribe(client, names)
        else:
            count = self.registry.count(client)
        client.names |= dict.fromkeys(names, rate)
        assert count == len(client.names)
        events = [event for batch in due for event in self.events_of(batch)]
        expected = set()
        for channel in CHANNELS:
            _, now_rate = client.rate_of(channel)
            was_held, was_rate = before[channel]
            if was_held and was_rate != now_rate:
                client.at.pop(channel, None)
                if was_rate is None or now_rate == EVERY_EVENT:
                    expected |= {channel} if client.lacking.get(channel) else set()
        assert {event["channel"] for event in events} == expected
        self.took(client, events)
        for channel in expected:
            assert not client.lacking[channel], "the newest comes"

    @rule(who=WHO, names=NAME_SETS)
    def unsubscribe(self, who: int, names: list[str]) -> None:
        client = self.clients[who]
        before = {channel: client.rate_of(channel) for channel in CHANNELS}
        count = self.registry.unsubscribe(client, names)
        client.names = {name: rate for name, rate in client.names.items() if name not in names}
        assert count == len(client.names)
        for channel in CHANNELS:
            is_held, rate = client.rate_of(channel)
            if (is_held, rate) != before[channel]:
                client.at.pop(channel, None)
            if not is_held:
                client.lacking.pop(channel, None)

    @rule(who=WHO)
    def leave(self, who: int) -> None:
        self.registry.remove(self.clients[who])
        self.clients[who] = Client(self.tick_came)

    @rule(who=WHO, is_busy=st.booleans(), owes_notice=st.booleans())
    def socket(self, who: int, is_busy: bool, owes_notice: bool) -> None:
        self.clients[who].is_busy = is_busy
        self.clients[who].owes_notice = owes_notice

    @rule(ms=st.sampled_from([10, 50, 250, 999, 1000, 2500]))
    def time_passes(self, ms: int) -> None:
        since = {client: dict(client.names) for client in self.clients}
        self.run_ticks(ms)
        for client in self.clients:
            if client.is_busy or client.owes_notice or since[client] != client.names:
                continue
            for channel, lacking in client.lacking.items():
                _, rate = client.rate_of(channel)
                ticks = -(-len(CHANNELS) // self.events_of_a_batch)
                if rate is not None and speed(rate) * ticks <= ms:
                    assert not lacking, "a tick brings what has changed"

    @rule(
        ms=st.sampled_from([250, 1000]),
        step=st.integers(2, 6),
        who=WHO,
        names=NAME_SETS,
        rate=st.sampled_from(RATES),
        channel=st.sampled_from(CHANNELS),
        what=st.sampled_from(["subscribe", "unsubscribe", "leave", "publish"]),
    )
    def something_happens_within_a_tick(
        self,
        ms: int,
        step: int,
        who: int,
        names: list[str],
        rate: Rate,
        channel: str,
        what: str,
    ) -> None:
        happens: dict[str, Callable[[], None]] = {
            "subscribe": lambda: self.subscribe(who, names, rate),
            "unsubscribe": lambda: self.unsubscribe(who, names),
            "leave": lambda: self.leave(who),
            "publish": lambda: self.publish(channel),
        }
        between = _BetweenSteps(step, happens[what])
        self.run_ticks(ms, between)
        if between.error is not None:
            raise between.error

    def run_ticks(self, ms: int, *instruments: trio.abc.Instrument) -> None:
        clock = MockClock(autojump_threshold=0)
        clock.jump(self.elapsed)
        seconds = ms / 1000 + 0.001  # so that a tick at its end is within it
        self.elapsed += seconds

        async def main() -> None:
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.ticks.run, cast("Notices", _Told()), name="ticks")

        trio.run(main, clock=clock, instruments=instruments)

    @precondition(lambda self: self.total % 5 == 4)
    @rule()
    def offsets_begin_anew(self) -> None:
        """What was not sent yet is sent all the same, without its offset."""
        self.registry.rates.updates.leave_stream()
        self.left_at = self.total

    @rule()
    def what_nobody_lacks_is_forgotten(self) -> None:
        self.registry.rates.forget_needless()
        lacking = {
            channel
            for client in self.clients
            for channel, events in client.lacking.items()
            if events
        }
        assert lacking <= self.registry.rates.updates.after(0).updates.keys()

    # ---- what always holds

    @invariant()
    def nothing_is_left_behind(self) -> None:
        rates = self.registry.rates
        at_a_rate = {
            name
            for client in self.clients
            for name, rate in client.names.items()
            if rate != EVERY_EVENT
        }
        assert set(rates.all_names()) == at_a_rate
        assert len(rates.updates) <= len(CHANNELS)
        members = [
            (client, rate)
            for client in self.clients
            for rate in set(client.names.values())
            if rate not in {EVERY_EVENT, None}
        ]
        found = [
            (member.subscriber, slot.every_ms)
            for slot in rates.slots.values()
            for cohort in slot.cohorts.values()
            for member in cohort.members
        ]
        assert set(found) == set(members)
        assert len(found) == len(members)
        for client in self.clients:
            assert set(self.registry.channels(client)) == client.names.keys()
        if not at_a_rate:
            assert not len(rates.updates)


RatesMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestRates = RatesMachine.TestCase


def test_the_rates_are_multiples_of_a_tick() -> None:
    assert RATES_MS
    assert all(rate % 50 == 0 for rate in RATES_MS)
