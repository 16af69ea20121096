"""Hostile names and JSON are refused by rule, and no part of them reaches NATS."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.nats import free_port
from tests.faults.attacker import Attacker
from tests.faults.conftest import Record
from tests.faults.publisher import CHANNELS
from tests.faults.rig import Rig, rig, soon
from trio_odin.lab.load.pages import get

pytestmark = pytest.mark.faults

_NAMES = [
    "EVIL\r\nPUB odin.token.T1.trade 1\r\nx",
    "EVIL.trade\r\nSUB > 9",
    "EVIL.*",
    "EVIL.>",
    "*.EVIL",
    ">",
    "EVIL. trade",
    "EVIL\0.trade",
    "EVIL\t.trade",
    "$JS.API.STREAM.DELETE.EVIL",
    "EVIL.trade.more",
    "..EVIL",
    "EVIL.é",
    "EVIL" * 100 + ".trade",
    "",
]


async def _wiretap(port: int, heard: bytearray) -> None:
    """Listen to everything that is published in NATS."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b'CONNECT {"verbose":false}\r\nSUB > 1\r\n')
        async for chunk in stream:
            heard += chunk


async def test_no_channel_name_reaches_nats(tmp_path: Path, record: Record) -> None:
    row = record(
        "attack",
        "Names as subjects of NATS",
        f"{len(_NAMES)} names with CRLF, spaces, *, >, $JS.API, NUL; a wiretap on all subjects and "
        "the list of all subscriptions",
        "refused by rule; NATS sees nothing of it",
    )
    heard = bytearray()
    async with rig(tmp_path, monitoring=free_port()) as it, it.watch(row):
        it.nursery.start_soon(_wiretap, it.nats.port, heard)
        one = await it.attackers.websocket()
        await one.say(json.dumps({"type": "subscribe", "channels": _NAMES}))
        ack, *errors = await _answers(one)
        # Patterns are names as others are: the server matches them itself.
        assert ack["subscribed"] == ["EVIL.*", "EVIL.>", "*.EVIL", ">"]
        assert {answer["type"] for answer in errors} == {"error"}
        await one.say(json.dumps({"type": "unsubscribe", "channels": ack["subscribed"]}))
        assert [answer["count"] for answer in await _answers(one)] == [0]
        await one.say('{"type":"subscribe","channels":["EVIL.trade"]}')
        assert [answer["count"] for answer in await _answers(one)] == [1]
        subscriptions = await get(f"http://127.0.0.1:{it.nats.monitoring}/connz?subs=1")
        await trio.sleep(1)
        assert subscriptions is not None
        assert b"odin.token.>" in subscriptions.body or b"_INBOX" in subscriptions.body
        assert b"EVIL" not in subscriptions.body
        assert b"odin.token.T1.trade" in heard
        assert b"EVIL" not in heard


async def test_a_hundred_thousand_names_take_bounded_memory(tmp_path: Path, record: Record) -> None:
    row = record(
        "attack",
        "100,000 distinct channels",
        "100 connections that ask for 1,000 channels each that nobody else has",
        "256 a connection, the rest refused; the memory of 25,600 names is bounded",
    )
    async with rig(tmp_path) as it, it.watch(row, growth_max_mib=40):
        many = await it.attackers.many(100, is_upgraded=True)
        for number, one in enumerate(many):
            for part in range(4):
                names = [f"A{number}-{part}-{n}.trade" for n in range(250)]
                await one.say(json.dumps({"type": "subscribe", "channels": names}))
        for one in many:
            codes = {answer.get("code") for answer in await _answers(one)}
            assert codes == {None, "TOO_MANY_CHANNELS"}
        held = (await it.server.metrics())["ws_channels_current"]
        row.notes.append(f"{held:,.0f} channels held")
        assert held == 25_600 + len(CHANNELS)
        it.attackers.leave()
        await soon(partial(_has_only_ours, it), 10)


async def _has_only_ours(it: Rig) -> bool:
    return (await it.server.metrics())["ws_channels_current"] == len(CHANNELS)


async def _answers(one: Attacker) -> list[dict[str, Any]]:
    """The answers to all commands."""
    await one.say('{"type":"heartbeat","id":"last"}')
    answers = []
    while (answer := json.loads(await one.reply())).get("id") != "last":
        answers.append(answer)
    return answers


_JSON = {
    "deep arrays": "[" * 16_000,
    "deep objects": '{"a":' * 3_000,
    "a deep command": '{"type":"subscribe","channels":' + "[" * 8_000 + "]" * 8_000 + "}",
    "a deep unknown key": '{"type":"heartbeat","x":' + "[" * 8_000 + "]" * 8_000 + "}",
    "a huge number": '{"type":"replay","data":{"since":1' + "0" * 5_000 + "}}",
    "a huge exponent": '{"type":"replay","data":{"since":1e999999}}',
    "a huge id": '{"type":"heartbeat","id":1' + "0" * 5_000 + "}",
    "NaN": '{"type":"replay","data":{"since":NaN}}',
    "Infinity": '{"type":"replay","data":{"from":-Infinity,"to":Infinity}}',
    "duplicate keys": '{"type":"subscribe","type":"replay","channels":["T1.trade"]}',
    "a lone surrogate": '{"type":"subscribe","channels":["\\ud800.trade"]}',
    "a lone surrogate as id": '{"type":"heartbeat","id":"\\udfff"}',
    "NUL": '{"type":"heart\\u0000beat"}',
    "nothing": "",
    "an array": "[]",
    "a number": "1",
    "null": "null",
    "no type": "{}",
    "a type that is none": '{"type":["subscribe"]}',
    "a byte order mark": '\ufeff{"type":"heartbeat"}',
}


async def test_hostile_json_gets_an_answer_and_the_connection_stays(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "attack",
        "JSON",
        f"{len(_JSON)} texts: deep nesting, huge numbers, NaN, duplicate keys, lone surrogates",
        "an error reply at most; the connection stays; no RecursionError",
    )
    async with rig(tmp_path) as it, it.watch(row):
        one = await it.attackers.websocket()
        for name, text in _JSON.items():
            await one.say(text)
            types = {answer["type"] for answer in await _answers(one)}
            assert types <= {"error", "subscription_ack", "pong"}, name
        log = it.server.log.read_text()
        assert "Traceback" not in log
        assert "Error" not in log
