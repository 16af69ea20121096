"""The first stage: is the wire right? An outside client asks, and prints what it found.

    python -m trio_odin.lab.capacity.checks WS_URL NATS_URL [--seed N]

prints a JSON list of `Check` and exits with 0 if all are met, with 1 otherwise.

    run_checks            at most 60 s
    ├── publishing        one connection to NATS
    └── scenarios         one after the other, each with connections and channels of its own

What a server must not send is decided without waiting for it: the event that is foreign is
published, then one that is not; events come in order, so when the second one is there, the first
one is not on its way. A connection that cannot be had, and an answer that does not come, are
checks that are not met, and every other scenario is tried all the same.
"""

from __future__ import annotations

import logging
import random
import secrets
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial

import attrs
import click
import msgspec
import trio

from trio_odin.core.errors import first_error
from trio_odin.lab.capacity import judgement as judge
from trio_odin.lab.capacity.client import Client, Stopped, command, open_client
from trio_odin.lab.capacity.judgement import Event, Received
from trio_odin.lab.load.criteria import Check
from trio_odin.lab.publishing import Publish, publishing
from trio_odin.net.nats_link import describe, places_of

DEADLINE_SECONDS = 60.0
# An answer, or an event, takes milliseconds.
STEP_SECONDS = 5.0
_CROWD_STEPS = 4  # for all the events to come
_CROWD = 100
_CROWD_CONNECTING_MAX = 20
_CROWD_EVENTS = 200
_CROWD_SYMBOLS = 10
_CROWD_EVENT_TYPES = ("trade", "liquidity", "metadata", "comments")
_CROWD_CHANNELS_MAX = 20
_REPLAYED_EVENTS = 5
_BAD_COMMANDS = {
    "INVALID_JSON": "hello",
    "INVALID_COMMAND": '{"type":"subscribe","channels":"BTC.trade"}',
    "INVALID_CHANNEL": '{"type":"subscribe","channels":["BTC"]}',
}


async def run_checks(ws_url: str, nats_url: str, *, seed: int) -> list[Check]:
    """Check the server at `ws_url`, which has its events from the NATS server at `nats_url`.

    Args:
        ws_url: such as ws://10.0.0.1:3002/ws.
        nats_url: such as nats://10.0.0.2:4222.
        seed: which channels the crowd subscribes to, and which events it should get. Symbols
            have a suffix that is new each time, so other publishers do no harm.

    Returns:
        One for each of `judgement.QUESTIONS`, in that order, after 60 s at most. What goes wrong,
        with a connection for one, is in there.
    """
    found: dict[judge.Question, Check] = {}
    why = f"not reached within {DEADLINE_SECONDS:g} s"
    with trio.move_on_after(DEADLINE_SECONDS):
        try:
            async with AsyncExitStack() as stack:
                publish = await _publish_with(stack, nats_url)
                await check_wire(ws_url, publish, found, seed=seed)
        except Exception as error:  # noqa: BLE001 - a check that is not met, never a traceback
            why = _sentence(error)
    return [found.get(q) or q.answer(why, is_met=False) for q in judge.QUESTIONS]


async def check_wire(
    ws_url: str,
    publish: Publish,
    found: dict[judge.Question, Check],
    *,
    seed: int,
    step_seconds: float = STEP_SECONDS,
) -> None:
    """Go through all scenarios, and put the answers into `found` as they come.

    Cancellation: what was found until then is there.
    """
    wire = _Wire(ws_url, publish, secrets.token_hex(4), random.Random(seed), step_seconds)
    scenarios: list[tuple[_Scenario, Sequence[judge.Question]]] = [
        (_filtering, judge.QUESTIONS[:9]),
        (_crowd, [judge.CROWD]),
        (_replay, [judge.REPLAY]),
        (_bad_commands, [judge.BAD_COMMANDS, judge.UNDISTURBED]),
        (_heartbeat, [judge.HEARTBEAT]),
    ]
    for scenario, questions in scenarios:
        why = ""
        try:
            await scenario(wire, found)
        except Exception as error:  # noqa: BLE001 - the others are tried all the same
            why = _sentence(error)
        for question in questions:
            found.setdefault(question, question.answer(why, is_met=False))


async def _publish_with(stack: AsyncExitStack, nats_url: str) -> Publish:
    """What publishes; without NATS, it says so whenever it is called."""
    place = f"NATS at {', '.join(places_of([nats_url]))}"
    try:
        publish = await stack.enter_async_context(publishing(nats_url, name="trio-odin-checks"))
    except Exception as error:  # noqa: BLE001 - nats-py's are many
        return partial(_cannot_publish, f"cannot connect to {place}: {_sentence(error)}")

    async def or_stop(subject: str, payload: bytes) -> None:
        try:
            await publish(subject, payload)
        except Exception as error:
            raise Stopped(f"cannot publish to {place}: {_sentence(error)}") from error

    return or_stop


async def _cannot_publish(why: str, _subject: str, _payload: bytes) -> None:
    raise Stopped(why)


def _sentence(error: BaseException) -> str:
    first = first_error(error)
    return str(first) if isinstance(first, Stopped) else describe(first)[0]


@attrs.frozen
class _Wire:
    """What a scenario works with."""

    url: str
    publish: Publish
    suffix: str
    rng: random.Random
    step_seconds: float

    def channel(self, symbol: str, event_type: str = "trade") -> str:
        """A channel that nobody else publishes to."""
        return f"{symbol}-{self.suffix}.{event_type}"

    def event(self, channel: str, number: int) -> Event:
        """An event that is told from all others."""
        return Event(channel, f"{channel} {number}")

    async def send(self, event: Event) -> None:
        """Publish `event`."""
        await self.publish(event.subject, event.payload)

    def client(self) -> AbstractAsyncContextManager[Client]:
        """Connect; the connection is closed at the end."""
        return open_client(self.url, self.step_seconds)


_Scenario = Callable[[_Wire, dict[judge.Question, Check]], Awaitable[None]]


def _require(got: Received) -> None:
    """Stop where there is no use in going on: what was waited for did not come."""
    if got.failure:
        raise Stopped(got.failure)


async def _filtering(wire: _Wire, found: dict[judge.Question, Check]) -> None:
    """The plan's test 1: a client subscribes, and gets that and nothing else."""
    btc, eth = wire.channel("BTC"), wire.channel("ETH")
    sol, liquidity = wire.channel("SOL"), wire.channel("BTC", "liquidity")
    published: list[Event] = []

    async def publish_then_eth(channel: str, me: Client) -> tuple[Event, Event, Received]:
        event, marker = wire.event(channel, len(published)), wire.event(eth, len(published) + 1)
        published.extend((event, marker))
        await wire.send(event)
        await wire.send(marker)
        return event, marker, await me.until(marker)

    async with wire.client() as me:
        got = await me.subscribe([btc, eth])
        ack = {"type": "subscription_ack", "subscribed": [btc, eth], "count": 2}
        found[judge.SUBSCRIBE] = judge.acknowledged(judge.SUBSCRIBE, got, ack)
        _require(got)
        event, marker, got = await publish_then_eth(btc, me)
        found[judge.BTC_TRADE] = judge.arrived(judge.BTC_TRADE, got, event)
        found[judge.ETH_TRADE] = judge.arrived(judge.ETH_TRADE, got, marker)
        _require(got)
        for question, channel in ((judge.SOL_TRADE, sol), (judge.BTC_LIQUIDITY, liquidity)):
            event, marker, got = await publish_then_eth(channel, me)
            found[question] = judge.kept_away(question, got, event, marker)
            _require(got)
        got = await me.ask(command("unsubscribe", [btc]), "unsubscription_ack")
        ack = {"type": "unsubscription_ack", "unsubscribed": [btc], "count": 1}
        found[judge.UNSUBSCRIBE] = judge.acknowledged(judge.UNSUBSCRIBE, got, ack)
        event, marker, got = await publish_then_eth(btc, me)
        found[judge.AFTERWARDS] = judge.kept_away(judge.AFTERWARDS, got, event, marker)
        found[judge.NUMBERS] = judge.numbered(judge.NUMBERS, me.received)
        found[judge.ENVELOPES] = judge.well_formed(judge.ENVELOPES, me.received, published)


@attrs.define
class _Member:
    """One of the crowd."""

    channels: Sequence[str]
    due: list[Event]
    got: Received = attrs.field(factory=lambda: Received([], "not connected"))
    is_subscribed: trio.Event = attrs.field(factory=trio.Event)  # or has failed at that


async def _crowd(wire: _Wire, found: dict[judge.Question, Check]) -> None:
    """The plan's integration test: 100 clients with varying subscriptions."""
    channels = [
        wire.channel(f"C{number}", event_type)
        for number in range(_CROWD_SYMBOLS)
        for event_type in _CROWD_EVENT_TYPES
    ]
    end = wire.event(wire.channel("END"), 0)
    events = [wire.event(wire.rng.choice(channels), n) for n in range(_CROWD_EVENTS)] + [end]
    members = []
    for _ in range(_CROWD):
        count = wire.rng.randint(1, _CROWD_CHANNELS_MAX)
        chosen = [*wire.rng.sample(channels, count), end.channel]
        members.append(_Member(chosen, [event for event in events if event.channel in chosen]))
    connecting = trio.CapacityLimiter(_CROWD_CONNECTING_MAX)
    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(_attend, wire, member, end, connecting)
        for member in members:
            await member.is_subscribed.wait()
        for event in events:
            await wire.send(event)
    found[judge.CROWD] = judge.each_got_its_own(judge.CROWD, [(m.got, m.due) for m in members])


async def _attend(
    wire: _Wire, member: _Member, end: Event, connecting: trio.CapacityLimiter
) -> None:
    """Connect, subscribe, and receive all there is."""
    try:
        async with AsyncExitStack() as stack:
            async with connecting:
                client = await stack.enter_async_context(wire.client())
            member.got = await client.subscribe(member.channels)
            _require(member.got)
            member.is_subscribed.set()
            member.got = await client.until(end, _CROWD_STEPS * wire.step_seconds)
    except Exception as error:  # noqa: BLE001 - the others go on
        member.got = Received([], _sentence(error))
    finally:
        member.is_subscribed.set()


async def _replay(wire: _Wire, found: dict[judge.Question, Check]) -> None:
    channel = wire.channel("REPLAY")
    events = [wire.event(channel, number) for number in range(_REPLAYED_EVENTS)]
    first, last = 2, _REPLAYED_EVENTS - 1
    async with wire.client() as me:
        _require(await me.subscribe([channel]))
        for event in events:
            await wire.send(event)
        got = await me.until(events[-1])
        _require(got)
        await me.say(f'{{"type":"replay","data":{{"from":{first},"to":{last}}}}}')
        again = await me.ask('{"type":"heartbeat"}', "pong")
        found[judge.REPLAY] = judge.same_again(judge.REPLAY, got.messages, again, first, last)


async def _bad_commands(wire: _Wire, found: dict[judge.Question, Check]) -> None:
    channel = wire.channel("STEADY")
    events = [wire.event(channel, 1), wire.event(channel, 2)]
    async with wire.client() as me:
        _require(await me.subscribe([channel]))
        await wire.send(events[0])
        before = await me.until(events[0])
        answers = [await me.ask(command) for command in _BAD_COMMANDS.values()]
        complaint = judge.complained(judge.BAD_COMMANDS, answers, list(_BAD_COMMANDS))
        found[judge.BAD_COMMANDS] = complaint
        await wire.send(events[1])
        after = await me.until(events[1])
        found[judge.UNDISTURBED] = judge.went_on(judge.UNDISTURBED, before, after, events)


async def _heartbeat(wire: _Wire, found: dict[judge.Question, Check]) -> None:
    async with wire.client() as me:
        got = await me.ask('{"type":"heartbeat"}', "pong")
        found[judge.HEARTBEAT] = judge.beats(judge.HEARTBEAT, got)


@click.command()
@click.argument("ws_url")
@click.argument("nats_url")
@click.option("--seed", type=int, default=0, show_default=True, help="Who subscribes to what.")
def main(ws_url: str, nats_url: str, seed: int) -> None:
    """Check the server at WS_URL, which has its events from NATS_URL; print JSON."""
    # The libraries log what goes wrong, with its traceback; here it is in the checks.
    logging.getLogger().addHandler(logging.NullHandler())
    checks = trio.run(partial(run_checks, ws_url, nats_url, seed=seed))
    click.echo(msgspec.json.format(msgspec.json.encode(checks), indent=1))
    sys.exit(0 if all(check.is_met for check in checks) else 1)


if __name__ == "__main__":
    main()
