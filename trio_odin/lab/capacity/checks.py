"""The first stage: an outside client checks the wire protocol and prints its findings.

    python -m trio_odin.lab.capacity.checks WS_URL NATS_URL [--seed N]

prints a JSON list of `Check` and exits with 0 if all of them are met, otherwise with 1.

    run_checks            at most 60 s
    ├── publishing        one connection to NATS
    └── scenarios         one after the other, each with its own connections and channels

Events that a server must not send are checked without a wait: the foreign event is published
first, then one that is due. Events come in order, so when the second one has arrived, the first
one is not on its way. A connection that fails, or an answer that does not come, is a check that is
not met; the other checks are tried all the same.
"""

from __future__ import annotations

import logging
import random
import secrets
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any

import attrs
import click
import msgspec
import trio

from trio_odin.demo.publishing import Publish, publishing
from trio_odin.lab.capacity.client import (
    Client,
    Message,
    Unmet,
    envelopes_of,
    event_name,
    expect,
    open_client,
)
from trio_odin.lab.load.criteria import Check
from trio_odin.upstream.nats_link import describe, places_of
from trio_odin.wire.errors import first_error

DEADLINE_SECONDS = 60.0
STEP_SECONDS = 5.0  # to wait for an answer or an event, which take milliseconds
_CROWD = 100
_CROWD_EVENTS = 200
_CROWD_SYMBOLS = 10
_CROWD_EVENT_TYPES = ("trade", "liquidity", "metadata", "comments")
_CROWD_CHANNELS_MAX = 20
_BAD_COMMANDS = {
    "INVALID_JSON": "hello",
    "INVALID_COMMAND": '{"type":"subscribe","channels":"BTC.trade"}',
    "INVALID_CHANNEL": '{"type":"subscribe","channels":["BTC"]}',
}
_KEPT_AWAY = "not received; an event published after it was"
_HEARTBEAT = '{"type":"heartbeat"}'
_SHOWN_CHARS = 120
_UNIX_MS_MIN = 10**12  # 2001; a time in seconds would be far less


def _question(what: str, wanted: str, source: str = "plan") -> Check:
    return Check(what=what, wanted=wanted, measured="", is_met=False, source=source)


SUBSCRIBE = _question("subscribe to BTC.trade and ETH.trade", "acknowledged, count 2")
BTC_TRADE = _question("odin.token.BTC.trade is published", "received")
ETH_TRADE = _question("odin.token.ETH.trade is published", "received")
SOL_TRADE = _question("odin.token.SOL.trade is published", "not received")
LIQUIDITY = _question("odin.token.BTC.liquidity is published", "not received: another event type")
UNSUBSCRIBE = _question("unsubscribe from BTC.trade", "acknowledged, count 1", "ours")
AFTERWARDS = _question("odin.token.BTC.trade, then ETH.trade are published", "only ETH.trade")
NUMBERS = _question("seq of all these events", "1, 2, 3 … without a gap", "ours")
ENVELOPES = _question(
    "envelopes of all these events", "seq, ts, type, priority, and data as published", "ours"
)
CROWD = _question("100 clients, each with channels of its own; 200 events", "each gets its own")
REPLAY = _question("replay of a range of seq", "the same envelopes again", "ours")
BAD_COMMANDS = _question("three bad commands", "an error with its code for each", "ours")
UNDISTURBED = _question("events before and after these commands", "received, seq 1 and 2", "ours")
HEARTBEAT = _question("heartbeat", "pong with the time", "ours")
FILTERING = (SUBSCRIBE, BTC_TRADE, ETH_TRADE, SOL_TRADE, LIQUIDITY, UNSUBSCRIBE, AFTERWARDS)
QUESTIONS = (
    *FILTERING, NUMBERS, ENVELOPES, CROWD, REPLAY, BAD_COMMANDS, UNDISTURBED, HEARTBEAT,
)  # fmt: skip


async def run_checks(ws_url: str, nats_url: str, *, seed: int) -> list[Check]:
    """Check the server at `ws_url`, which gets its events from the NATS server at `nats_url`.

    Args:
        ws_url: such as ws://10.0.0.1:3002/ws.
        nats_url: such as nats://10.0.0.2:4222.
        seed: of the crowd's subscriptions and events. Symbols have a suffix that is new each
            time, so other publishers do no harm.

    Returns:
        One check for each of `QUESTIONS`, in that order, after 60 s at most. Problems, with a
        connection for instance, are in the checks.
    """
    found: dict[Check, Check] = {}
    why = f"not reached within {DEADLINE_SECONDS:g} s"
    with trio.move_on_after(DEADLINE_SECONDS):
        try:
            async with AsyncExitStack() as stack:
                publish = await _publish_with(stack, nats_url)
                await check_wire(ws_url, publish, found, seed=seed)
        except Exception as error:  # noqa: BLE001 - a check that is not met, never a traceback
            why = _sentence(error)
    return [found.get(question) or attrs.evolve(question, measured=why) for question in QUESTIONS]


async def check_wire(
    ws_url: str,
    publish: Publish,
    found: dict[Check, Check],
    *,
    seed: int,
    step_seconds: float = STEP_SECONDS,
) -> None:
    """Go through all scenarios, and put each answer into `found` when it is known.

    Cancellation: `found` keeps the answers until then.
    """
    wire = _Wire(ws_url, publish, found, random.Random(seed), step_seconds)
    scenarios: list[tuple[Callable[[_Wire], Awaitable[None]], Sequence[Check]]] = [
        (_filtering, (*FILTERING, NUMBERS, ENVELOPES)),
        (_crowd, [CROWD]),
        (_replay, [REPLAY]),
        (_bad_commands, [BAD_COMMANDS, UNDISTURBED]),
        (_heartbeat, [HEARTBEAT]),
    ]
    for scenario, questions in scenarios:
        why = ""
        try:
            await scenario(wire)
        except Exception as error:  # noqa: BLE001 - the others are tried all the same
            why = _sentence(error)
        for question in questions:
            found.setdefault(question, attrs.evolve(question, measured=why))


async def _publish_with(stack: AsyncExitStack, nats_url: str) -> Publish:
    """Make the function that publishes; without NATS, it reports that at every call."""
    try:
        return await stack.enter_async_context(publishing(nats_url, name="trio-odin-checks"))
    except Exception as error:  # noqa: BLE001 - nats-py's are many
        place = f"NATS at {', '.join(places_of([nats_url]))}"
        return partial(_cannot_publish, f"cannot connect to {place}: {_sentence(error)}")


async def _cannot_publish(why: str, _subject: str, _payload: bytes) -> None:
    raise Unmet(why)


def _sentence(error: BaseException) -> str:
    first = first_error(error)
    return str(first) if isinstance(first, Unmet) else describe(first)[0]


def data_of(name: str) -> dict[str, Any]:
    """The data of the event `name`; the rest of it shows whether the server changes anything."""
    return {"event": name, "price": 64123.5, "of": ["Zürich", None, True, {"n": -1}]}


def _shown(message: Message) -> str:
    return msgspec.json.encode(message).decode()[:_SHOWN_CHARS]


@attrs.frozen
class _Wire:
    """The tools of a scenario, and the place for its answers."""

    url: str
    publish: Publish
    found: dict[Check, Check]
    rng: random.Random
    step_seconds: float
    suffix: str = attrs.field(factory=partial(secrets.token_hex, 4))
    _numbers: Iterator[int] = attrs.field(factory=count)

    @contextmanager
    def check(self, question: Check, measured: str) -> Iterator[None]:
        """Answer the question with `measured` if everything in the block was as expected."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a check that is not met, never a traceback
            self.found[question] = attrs.evolve(question, measured=_sentence(error))
        else:
            self.found[question] = attrs.evolve(question, measured=measured, is_met=True)

    def channel(self, symbol: str, event_type: str = "trade") -> str:
        """A channel to which nobody else publishes."""
        return f"{symbol}-{self.suffix}.{event_type}"

    async def send(self, channel: str) -> str:
        """Publish an event with a unique name; returns the name."""
        name = f"{channel} {next(self._numbers)}"
        await self.publish(f"odin.token.{channel}", msgspec.json.encode(data_of(name)))
        return name


async def _filtering(wire: _Wire) -> None:
    """The plan's test 1: a client gets the events that it subscribed to, and no others."""
    btc, eth = wire.channel("BTC"), wire.channel("ETH")
    async with open_client(wire.url, wire.step_seconds) as me:
        with wire.check(SUBSCRIBE, "count 2"):
            ack = await me.tell("subscribe", btc, eth)
            expect((ack.get("subscribed"), ack.get("count")) == ([btc, eth], 2), _shown(ack))
        sent = [await wire.send(channel) for channel in (btc, eth)]
        with wire.check(ETH_TRADE, "received"):
            await me.events_until(sent[1])
        with wire.check(BTC_TRADE, "received"):
            times = [event_name(message) for message in me.received].count(sent[0])
            expect(times == 1, f"received {times} times")
        foreign = ((SOL_TRADE, wire.channel("SOL")), (LIQUIDITY, wire.channel("BTC", "liquidity")))
        for question, channel in foreign:
            with wire.check(question, _KEPT_AWAY):
                await _check_kept_away(wire, me, channel, eth)
        with wire.check(UNSUBSCRIBE, "count 1"):
            ack = await me.tell("unsubscribe", btc)
            expect((ack.get("unsubscribed"), ack.get("count")) == ([btc], 1), _shown(ack))
        with wire.check(AFTERWARDS, _KEPT_AWAY):
            await _check_kept_away(wire, me, btc, eth)
        envelopes = envelopes_of(me.received)
        with wire.check(NUMBERS, f"1 to {len(envelopes)}"):
            check_numbers(envelopes)
        with wire.check(ENVELOPES, f"{len(envelopes)} envelopes"):
            expect(bool(envelopes), "no envelope")
            for envelope in envelopes:
                check_envelope(envelope)


async def _check_kept_away(wire: _Wire, me: Client, foreign: str, own: str) -> None:
    first, second = await wire.send(foreign), await wire.send(own)
    names = await me.events_until(second)
    expect(first not in names, "received")
    expect(names == [second], "not received, but something else was")


def check_numbers(envelopes: Sequence[Message]) -> None:
    """Check that they are numbered from 1 on, without a gap.

    Raises:
        Unmet: they are not.
    """
    numbers = [envelope.get("seq") for envelope in envelopes]
    shown = ", ".join(map(str, numbers))[:_SHOWN_CHARS]
    expect(bool(numbers) and numbers == [*range(1, len(numbers) + 1)], f"seq {shown or 'nothing'}")


def check_envelope(envelope: Message) -> None:
    """Check that it has all its keys, and the data of an event as it was published.

    Raises:
        Unmet: the message names the one that is wrong.
    """
    ts = envelope.get("ts")
    is_right = {
        "seq": type(envelope.get("seq")) is int,
        "ts": type(ts) is int and ts > _UNIX_MS_MIN,
        "type": envelope.get("type") == "price:update",
        "priority": envelope.get("priority") == 1,
        "data": envelope.get("data") == data_of(event_name(envelope) or ""),
    }
    wrong = ", ".join(key for key, right in is_right.items() if not right)
    expect(not wrong, f"{wrong} of {_shown(envelope)}")


async def _crowd(wire: _Wire) -> None:
    """The plan's integration test: 100 clients with varying subscriptions."""
    channels = [
        wire.channel(f"C{number}", event_type)
        for number in range(_CROWD_SYMBOLS)
        for event_type in _CROWD_EVENT_TYPES
    ]
    last = wire.channel("END")
    async with AsyncExitStack() as stack:
        crowd: list[tuple[Client, list[str]]] = []
        for _ in range(_CROWD):
            chosen = wire.rng.sample(channels, wire.rng.randint(1, _CROWD_CHANNELS_MAX))
            client = await stack.enter_async_context(open_client(wire.url, wire.step_seconds))
            await client.tell("subscribe", *chosen, last)
            crowd.append((client, [*chosen, last]))
        sent = [wire.rng.choice(channels) for _ in range(_CROWD_EVENTS)] + [last]
        names = [(channel, await wire.send(channel)) for channel in sent]
        wrong, envelopes = [], 0
        for number, (client, chosen) in enumerate(crowd):
            await client.events_until(names[-1][1])
            due = [name for channel, name in names if channel in chosen]
            envelopes += len(due)
            try:
                check_own(envelopes_of(client.received), due)
            except Unmet as why:
                wrong.append(f"client {number}: {why}")
    with wire.check(CROWD, f"{_CROWD} of {_CROWD}, {envelopes:,} envelopes"):
        expect(not wrong, f"{_CROWD - len(wrong)} of {_CROWD}; {''.join(wrong[:1])}")


def check_own(envelopes: Sequence[Message], due: list[str]) -> None:
    """Check that they are all the events due to a client, once, in order, and numbered.

    Raises:
        Unmet: they are not.
    """
    names = [event_name(envelope) for envelope in envelopes]
    had, wanted = Counter(names), Counter[str | None](due)
    lost, more = (wanted - had).total(), (had - wanted).total()
    expect(not lost and not more, f"{lost} lost, {more} foreign or doubled")
    expect(names == due, "not in order")
    check_numbers(envelopes)


async def _replay(wire: _Wire) -> None:
    channel = wire.channel("REPLAY")
    async with open_client(wire.url, wire.step_seconds) as me:
        await me.tell("subscribe", channel)
        names = [await wire.send(channel) for _ in range(5)]
        await me.events_until(names[-1])
        await me.say('{"type":"replay","data":{"from":2,"to":4}}')
        await me.ask(_HEARTBEAT, "pong")  # its answer comes after the event
    envelopes = envelopes_of(me.received)
    wanted = [envelope for envelope in envelopes[:5] if envelope.get("seq") in {2, 3, 4}]
    again = envelopes[5:]
    with wire.check(REPLAY, "seq 2 to 4, the same"):
        expect(len(again) == len(wanted) == 3, f"{len(again)} of {len(wanted)} envelopes")
        expect(again == wanted, "other ones than before")


async def _bad_commands(wire: _Wire) -> None:
    channel = wire.channel("STEADY")
    async with open_client(wire.url, wire.step_seconds) as me:
        await me.tell("subscribe", channel)
        names = [await wire.send(channel)]
        await me.events_until(names[0])
        with wire.check(BAD_COMMANDS, ", ".join(_BAD_COMMANDS)):
            for code, command in _BAD_COMMANDS.items():
                answer = await me.ask(command)
                expect(answer.get("code") == code, f"{code} wanted, {_shown(answer)}")
        with wire.check(UNDISTURBED, "received, seq 1 and 2"):
            names.append(await wire.send(channel))
            await me.events_until(names[1])
            envelopes = envelopes_of(me.received)
            expect([event_name(envelope) for envelope in envelopes] == names, "other events")
            check_numbers(envelopes)


async def _heartbeat(wire: _Wire) -> None:
    async with open_client(wire.url, wire.step_seconds) as me:
        with wire.check(HEARTBEAT, "pong with the time"):
            pong = await me.ask(_HEARTBEAT, "pong")
            ts = pong.get("ts")
            is_time = type(ts) is int and ts > _UNIX_MS_MIN
            expect(pong.get("type") == "pong" and is_time, _shown(pong))


@click.command()
@click.argument("ws_url")
@click.argument("nats_url")
@click.option("--seed", type=int, default=0, show_default=True, help="Who subscribes to what.")
def main(ws_url: str, nats_url: str, seed: int) -> None:
    """Check the server at WS_URL, which gets its events from NATS_URL; print JSON."""
    # The libraries log problems with their traceback; here the checks report them.
    logging.getLogger().addHandler(logging.NullHandler())
    checks = trio.run(partial(run_checks, ws_url, nats_url, seed=seed))
    click.echo(msgspec.json.format(msgspec.json.encode(checks), indent=1))
    sys.exit(0 if all(check.is_met for check in checks) else 1)


if __name__ == "__main__":
    main()
