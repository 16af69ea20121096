"""The server is stopped, asked to leave, or gets all its clients back at once."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.faults.attacker import Attacker
from tests.faults.cohort import fleet_plan
from tests.faults.conftest import Record
from tests.faults.rig import Rig, rig, soon
from trio_odin.lab.fleet.fleets import fleets
from trio_odin.lab.reliability import Row

pytestmark = pytest.mark.faults

_MANY = 10_000
_RAMP = 1500.0


async def test_a_stopped_process_continues(tmp_path: Path, record: Record) -> None:
    row = record(
        "fault",
        "Our process stops for 15 s",
        "SIGSTOP under load, SIGCONT 15 s later",
        "clients stay, and get all that the stream has kept, once",
    )
    async with rig(tmp_path) as it, it.watch(row, p99_max_ms=30_000):
        it.server.signal(signal.SIGSTOP)
        await trio.sleep(15)
        it.server.signal(signal.SIGCONT)
        row.recovery_seconds = await it.cohort.wait_flowing(10)
        await soon(partial(_is_healthy, it), 10)


async def _is_healthy(it: Rig) -> bool:
    return await it.server.status("/health") == 200


async def _follow(one: Attacker, ends: list[tuple[bool, int]]) -> None:
    """Record whether a connection got a notice of the drain, and how it was closed."""
    await one.say('{"type":"heartbeat"}')
    was_told, code = False, 1006
    while True:
        for head, payload in one.frames():
            if head == 0x88:
                code = int.from_bytes(payload[:2], "big")
            elif b'"server:draining"' in payload:
                was_told = json.loads(payload)["reconnect_in_ms"] >= 0
        if not await one.read_more():
            break
    ends.append((was_told, code))


async def test_it_leaves_in_order_under_load(tmp_path: Path, record: Record) -> None:
    row = record(
        "fault",
        "SIGTERM under load",
        f"SIGTERM with {_MANY:,} connections subscribed and events flowing",
        "/ready is 503 first; a notice, then 1001; exit 0 within 30 s; the books balance",
    )
    ends: list[tuple[bool, int]] = []
    balances: list[bool] = []
    fleet: dict[str, Any] = {"ramp_per_second": _RAMP}
    async with rig(tmp_path, clients=_MANY - 50, rate=10, fleet=fleet) as it:
        row.clients = it.cohort.size
        followed = await it.attackers.many(50, is_upgraded=True)
        async with trio.open_nursery() as nursery:
            for one in followed:
                nursery.start_soon(_follow, one, ends)
            it.publisher.is_paused = False
            await trio.sleep(2)
            begun = trio.current_time()
            it.server.signal(signal.SIGTERM)
            await soon(partial(_is_leaving, it), 5)
            assert not ends, "somebody was closed before /ready said 503"
            nursery.start_soon(_watch_the_books, it, balances)
            assert await it.server.ended(35) == 0
            row.recovery_seconds = trio.current_time() - begun
        await it.pause()
        _check_drain(row, it, ends, await it.cohort.look())
        assert row.recovery_seconds < 30
        assert set(balances) == {True}


async def _is_leaving(it: Rig) -> bool:
    return await it.server.status("/ready") != 200


async def _watch_the_books(it: Rig, balances: list[bool]) -> None:
    """Ask whether the counters balance, until the server has ended."""
    while it.server.process.poll() is None:
        status, page = await it.server.page("/metrics")
        if status == 200:
            balances.append("\nws_ledger_imbalance 0.0\n" in page)
        await trio.sleep(0.2)


def _check_drain(row: Row, it: Rig, ends: list[tuple[bool, int]], p99: float) -> None:
    cohort = it.cohort
    in_order = sum(n for how, n in cohort.disconnects.items() if how.startswith("1001 "))
    row.held = in_order
    row.repeated, row.foreign, row.lost = cohort.repeated, cohort.foreign, cohort.gaps
    row.notes.append(f"{in_order:,} closed with 1001, p99 {p99:.0f} ms")
    assert in_order == row.clients, dict(cohort.disconnects)
    assert (row.lost, row.repeated, row.foreign) == (0, 0, 0)
    assert set(ends) == {(True, 1001)}
    log = it.server.log.read_text()
    assert '"imbalance": 0, "event": "drain.finished"' in log
    assert "Traceback" not in log


async def test_ten_thousand_come_back_at_once(tmp_path: Path, record: Record) -> None:
    row = record(
        "fault",
        "Reconnect storm",
        f"{_MANY - 500:,} of {_MANY:,} clients are cut at once and come back within a second",
        "all are back within 60 s; the 500 who stayed lose nothing uncounted, p99 below 2 s",
    )
    async with rig(tmp_path, clients=500, rate=10) as it:
        plan = fleet_plan(
            it.server.port,
            _MANY - 500,
            channels=1,
            ramp_per_second=_RAMP,
            in_flight=2000,
            reconnect_seconds=1.0,
        )
        async with fleets([plan]) as crowd:
            await crowd.connect()
            # The memory of 9,500 connections is legitimate and is not released at once.
            async with it.watch(row, growth_max_mib=100, may_shed=True):
                await crowd.begin("cut")
                with trio.fail_after(60):
                    while (await crowd.progress()).pending:
                        await trio.sleep(0.1)
                summary = await crowd.summary()
                assert summary.back == summary.lost == _MANY - 500
                row.recovery_seconds = summary.last_back - summary.first_lost
