"""Everybody comes at once: all are let in, and connected clients do not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.faults.cohort import fleet_plan
from tests.faults.conftest import Record
from tests.faults.rig import Rig, rig, soon
from trio_odin.lab.fleet.fleets import fleets
from trio_odin.lab.fleet.latency import percentile_ms
from trio_odin.lab.fleet.plan import Summary
from trio_odin.lab.reliability import Row

pytestmark = pytest.mark.faults

_CROWD = 10_000
_RATE = 30
_P99_MAX_MS = 100
_LEAVING_P99_MAX_MS = 1000


@pytest.mark.parametrize("held", [100, 5000])
async def test_ten_thousand_clients_at_once_are_all_let_in_twice(
    tmp_path: Path, record: Record, held: int
) -> None:
    row = record(
        "fault",
        f"10,000 at once, {held:,} held",
        f"10,000 clients connect at the same moment, twice, while {held:,} clients have "
        f"{_RATE} events a second; all settings at their defaults but the limit of connections",
        f"10,000 of 10,000 come in, none is refused, and p99 of the others stays below "
        f"{_P99_MAX_MS} ms",
    )
    options: dict[str, Any] = {"WS_MAX_CONNECTIONS": str(_CROWD + held)}
    fleet = {"channels": 1, "in_flight": 500}
    async with rig(tmp_path, clients=held, rate=_RATE, fleet=fleet, **options) as it:
        row.clients = held
        it.publisher.is_paused = False
        await trio.sleep(3)
        row.notes.append(f"p99 before {await it.cohort.look():.0f} ms")
        bursts = []
        for _ in range(2):
            bursts.append(await _burst(it, row))
            await soon(lambda: _only_the_cohort(it), 30)
        await it.pause()
        await it.cohort.look()
        it.fill(row)
        for burst in bursts:
            _check_all_are_in(*burst)
        it.check_books(row)
        await it.check_balance()


async def _burst(it: Rig, row: Row) -> tuple[Summary, float]:
    """All come at once and leave again; p99 is of the others meanwhile, in milliseconds."""
    plan = fleet_plan(it.server.port, _CROWD, channels=1, in_flight=_CROWD)
    async with fleets([plan]) as crowd:
        await it.cohort.look()
        connected = await crowd.connect()
        p99 = await it.cohort.look()
        row.notes.append(_told(connected, p99))
        return connected, p99


def _check_all_are_in(connected: Summary, p99: float) -> None:
    assert not connected.rejections, connected.rejections
    assert not connected.failures, connected.failures
    assert connected.connected == _CROWD
    assert p99 <= _P99_MAX_MS


def _told(connected: Summary, p99: float) -> str:
    slowest = percentile_ms(connected.connect_buckets, 1.0) / 1000
    return (
        f"{connected.connected:,} in {connected.seconds:.1f} s, the slowest after {slowest:.1f} s, "
        f"{sum(connected.rejections.values())} refused, {sum(connected.failures.values())} failed, "
        f"p99 {p99:.0f} ms"
    )


async def _only_the_cohort(it: Rig) -> bool:
    return (await it.server.metrics())["ws_connections_current"] == it.cohort.size


async def test_ten_thousand_clients_that_vanish_delay_nobody(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "fault",
        "10,000 gone at once",
        "10,000 of 10,100 clients are killed at the same moment, under 30 events a second",
        f"the others have all events, p99 below {_LEAVING_P99_MAX_MS} ms; 10,000 come back at once "
        "and none is refused",
    )
    options: dict[str, Any] = {"WS_MAX_CONNECTIONS": str(_CROWD + 100)}
    fleet = {"channels": 1}
    async with rig(tmp_path, clients=100, rate=_RATE, fleet=fleet, **options) as it:
        row.clients = 100
        it.publisher.is_paused = False
        bursts = [await _burst(it, row)]
        p99 = await _p99_until_gone(it)
        row.notes.append(f"p99 {p99:.0f} ms while they go")
        bursts.append(await _burst(it, row))
        await it.pause()
        await it.cohort.look()
        it.fill(row)
        for burst in bursts:
            _check_all_are_in(*burst)
        it.check_books(row)
        assert p99 <= _LEAVING_P99_MAX_MS


async def _p99_until_gone(it: Rig) -> float:
    await soon(lambda: _only_the_cohort(it), 30)
    return await it.cohort.look()
