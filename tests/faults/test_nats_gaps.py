"""Events lost before the server are declared: to listeners, in the log, in a metric."""

from __future__ import annotations

import json
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.nats import NatsServer, Network, start_network
from tests.faults.attacker import Attacker
from tests.faults.conftest import Record
from tests.faults.publisher import Publisher
from tests.faults.rig import Rig, rig, soon
from trio_odin.lab.reliability import Row

pytestmark = pytest.mark.faults

_WINDOW = 20


async def _curious(it: Rig) -> Attacker:
    """A client that asks for notices of gaps, and for one channel."""
    one = await it.attackers.websocket()
    await one.say('{"type":"subscribe","channels":["T0.trade"],"notices":true}')
    assert json.loads(await one.reply())["type"] == "subscription_ack"
    return one


async def _gap(one: Attacker, seconds: float) -> dict[str, Any]:
    """The next notice of a gap that a client gets."""
    with trio.fail_after(seconds):
        while True:
            content: dict[str, Any] = json.loads(await one.reply(seconds))
            if content["type"] == "gap":
                return content


async def _begin(it: Rig, row: Row) -> Attacker:
    row.clients = it.cohort.size
    one = await _curious(it)
    it.publisher.is_paused = False
    await trio.sleep(1)
    return one


async def _end(it: Rig, row: Row) -> None:
    """Check that nobody has left, nothing came twice, and the counters balance."""
    await it.pause()
    await it.cohort.look()
    it.fill(row)
    it.check_books(row, lost=row.lost)
    await it.check_balance()


def _by(networks: list[Network]) -> Callable[[trio.Nursery, int], Awaitable[str]]:
    """A way to NATS that can be cut."""

    async def through(nursery: trio.Nursery, port: int) -> str:
        networks.append(await start_network(nursery, port))
        url: str = networks[0].url
        return url

    return through


async def _has_reconnected(it: Rig) -> bool:
    return (await it.server.metrics())["ws_nats_reconnects_total"] >= 1


async def test_events_that_left_the_stream_are_declared_as_a_gap(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "fault",
        "An outage longer than the stream's window",
        f"the way to NATS is cut for 5 s; its stream keeps {_WINDOW} events, 100 are published",
        "exactly those that are gone are missing, and are declared in a notice, in the log and in "
        "a metric; the others come, none twice",
    )
    networks: list[Network] = []
    stream = {"name": "ODIN_TOKENS", "subjects": ["odin.token.>"], "max_msgs": _WINDOW}
    async with rig(tmp_path, stream=stream, through=_by(networks)) as it:
        one = await _begin(it, row)
        await it.pause()
        networks[0].is_down = True
        networks[0].cut()
        it.publisher.is_paused = False
        await trio.sleep(5)
        await it.pause()
        networks[0].is_down = False
        row.recovery_seconds = await soon(partial(_has_reconnected, it), 10)
        gap = await _gap(one, 5)
        await _end(it, row)
        assert gap["reason"] == "window"
        assert gap["missed"] == gap["to"] - gap["from"] + 1 > 50
        assert (await it.server.metrics())["ws_nats_messages_missed_total"] == gap["missed"]
        assert '"nats.gap"' in it.server.log.read_text()
        assert row.lost is not None
        shares = row.lost / it.cohort.size / gap["missed"]
        assert 0.28 < shares < 0.32, "each client has three channels of ten"
        row.notes.append(f"{gap['missed']} events were gone, and said to be")


async def test_a_hanging_nats_without_a_stream_is_declared_as_a_loss(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "fault",
        "NATS hangs, NATS_MODE=core",
        "SIGSTOP of nats-server until it is noticed, without a stream that keeps anything",
        "noticed within 10 s; clients stay; flows again; that something may be missing is said",
    )
    async with rig(tmp_path, NATS_MODE="core") as it:
        one = await _begin(it, row)
        it.nats.signal(signal.SIGSTOP)
        noticed = await soon(partial(_is_lost, it), 12)
        it.nats.signal(signal.SIGCONT)
        row.recovery_seconds = await it.cohort.wait_flowing(5)
        row.notes.append(f"shown after {noticed:.1f} s")
        assert (await _gap(one, 5))["reason"] == "core"
        await _end(it, row)
        assert noticed < 10


async def _is_lost(it: Rig) -> bool:
    return bool((await it.server.health())["checks"]["nats"]["status"] != "connected")


async def test_another_nats_takes_over_and_that_is_declared(tmp_path: Path, record: Record) -> None:
    row = record(
        "fault",
        "One of two NATS servers hangs",
        "SIGSTOP of the nats-server in use, for good; another one has a stream of its own",
        "clients stay; events of the other one flow within 14 s; the change is declared",
    )
    other = NatsServer(tmp_path / "other")

    async def both(nursery: trio.Nursery, port: int) -> str:
        del nursery
        return f"nats://127.0.0.1:{port},{other.url}"

    try:
        async with rig(tmp_path, through=both) as it:
            one = await _begin(it, row)
            other.start()
            second = Publisher(other.port, 20, first=1_000_000)
            it.nursery.start_soon(second.run)
            it.nats.signal(signal.SIGSTOP)
            begun = trio.current_time()
            await soon(partial(_is_lost, it), 12)
            second.is_paused = False
            await it.cohort.wait_flowing(10)
            row.recovery_seconds = trio.current_time() - begun
            assert (await _gap(one, 5))["reason"] == "stream"
            second.is_paused = True
            await _end(it, row)
            assert row.recovery_seconds < 14
    finally:
        other.stop()
