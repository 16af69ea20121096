"""NATS stops, hangs and comes back: the clients stay, and get every event once."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.nats import nats_client, start_network
from tests.faults.attacker import drop_everything
from tests.faults.conftest import Record
from tests.faults.rig import Rig, rig, soon

# On disk, so that it is still there when NATS is back.
_STREAM = {"name": "ODIN_TOKENS", "subjects": ["odin.token.>"], "storage": "file"}


async def _is_shown(it: Rig, is_connected: bool) -> bool:
    status = (await it.server.health())["checks"]["nats"]["status"]
    return bool((status == "connected") is is_connected)


@asynccontextmanager
async def _noticed(it: Rig, notes: list[str], within: float) -> AsyncIterator[None]:
    """Take NATS away in the block; the server must report it soon."""
    begun = trio.current_time()
    yield
    await soon(partial(_is_shown, it, False), within + 1)
    seconds = trio.current_time() - begun
    notes.append(f"shown after {seconds:.1f} s")
    assert seconds < within


@pytest.mark.parametrize(
    ("number", "name"),
    [
        pytest.param(signal.SIGTERM, "NATS restarts", marks=pytest.mark.faults),
        (signal.SIGKILL, "NATS is killed"),
    ],
)
async def test_clients_stay_over_a_restart_of_nats_and_miss_nothing(
    tmp_path: Path, record: Record, number: signal.Signals, name: str
) -> None:
    row = record(
        "fault",
        name,
        f"{number.name} under load, 2 s without it, then the same store again",
        "clients stay; shown within 2 s; events flow 1 s after it is back; nothing lost inside "
        "the stream's window, nothing twice",
    )
    async with rig(tmp_path, stream=_STREAM) as it, it.watch(row, p99_max_ms=10_000):
        async with _noticed(it, row.notes, 2):
            it.nats.end(number)
        await trio.sleep(2)
        it.nats.start()
        async with nats_client(it.nats.url):
            row.recovery_seconds = await it.cohort.wait_flowing(10)
        assert row.recovery_seconds < 1


@pytest.mark.faults
async def test_a_hanging_nats_is_noticed(tmp_path: Path, record: Record) -> None:
    row = record(
        "fault",
        "NATS hangs",
        "SIGSTOP of nats-server for 12 s under load, then SIGCONT",
        "noticed within 10 s; clients stay; flows again; nothing lost, nothing twice",
    )
    async with rig(tmp_path, stream=_STREAM) as it, it.watch(row, p99_max_ms=20_000):
        begun = trio.current_time()
        async with _noticed(it, row.notes, 10):
            it.nats.signal(signal.SIGSTOP)
        await trio.sleep_until(begun + 12)
        it.nats.signal(signal.SIGCONT)
        row.recovery_seconds = await it.cohort.wait_flowing(10)
        await soon(partial(_is_shown, it, True), 10)


@pytest.mark.faults
async def test_a_way_to_nats_that_drops_packets_is_noticed(tmp_path: Path, record: Record) -> None:
    row = record(
        "fault",
        "Packets to NATS are dropped",
        "the connection to NATS drops all that comes, without FIN or RST; a new one is possible",
        "noticed within 10 s; connected anew; nothing lost, nothing twice",
    )
    networks: list[Any] = []

    async def through(nursery: trio.Nursery, port: int) -> str:
        networks.append(await start_network(nursery, port))
        url: str = networks[0].url
        return url

    async with (
        rig(tmp_path, stream=_STREAM, through=through) as it,
        it.watch(row, p99_max_ms=20_000),
    ):
        begun = trio.current_time()
        networks[0].each(drop_everything)
        await soon(partial(_has_reconnected, it), 12)
        row.recovery_seconds = trio.current_time() - begun
        assert row.recovery_seconds < 11
        await it.cohort.wait_flowing(5)


async def _has_reconnected(it: Rig) -> bool:
    return (await it.server.metrics())["ws_nats_reconnects_total"] >= 1
