"""The log cannot be written, or memory or CPU run out: it serves on and refuses politely."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.nats import nats_client
from tests.faults.attacker import Attackers
from tests.faults.cohort import fleet_plan
from tests.faults.conftest import Record
from tests.faults.rig import Rig, rig, soon
from trio_odin.lab.fleet.fleets import fleets

pytestmark = pytest.mark.faults

# The queue of the log, which may wait for a reader, holds 10,000 lines.
_CHATTY: dict[str, Any] = {"METRICS_INTERVAL": "1ms"}
_FULL_QUEUE_SECONDS = 90


@contextmanager
def _unread_pipe() -> Iterator[int]:
    """The end for writing of a pipe that is full."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


@contextmanager
def _full_disk() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("name", "what", "stderr"),
    [
        ("The log blocks", "standard error is a full pipe that nobody reads", _unread_pipe),
        ("The disk is full", "standard error is /dev/full", _full_disk),
    ],
)
async def test_a_log_that_cannot_be_written_stops_no_client(
    tmp_path: Path,
    record: Record,
    name: str,
    what: str,
    stderr: Callable[[], AbstractContextManager[int]],
) -> None:
    row = record(
        "fault",
        name,
        f"{what}, from the start on, with as many lines as the server can make",
        "serving is unaffected; lines that are dropped are counted",
    )
    with stderr() as descriptor:
        async with rig(tmp_path, stderr=descriptor, **_CHATTY) as it, it.watch(row):
            seconds = await soon(partial(_drops_lines, it), _FULL_QUEUE_SECONDS)
            row.notes.append(f"the first lines were dropped after {seconds:.0f} s")


async def _drops_lines(it: Rig) -> bool:
    return (await it.server.metrics())["ws_log_lines_dropped_total"] > 0


async def _refusal(attackers: Attackers) -> bytes:
    """The head of the answer to one more client; empty if it was let in."""
    one = await attackers.tcp()
    await one.send(_REQUEST)
    return b"" if await one.status() == 101 else one.received


_REQUEST = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def _refuses(attackers: Attackers) -> bool:
    return (await _refusal(attackers)).startswith(b"HTTP/1.1 503 ")


async def _admits(attackers: Attackers) -> bool:
    return not await _refusal(attackers)


async def _resident_mib(folder: Path) -> float:
    """The memory of a server with a cohort of this size."""
    async with rig(folder) as it:
        return it.server.footprint().mib


async def test_near_its_memory_limit_it_refuses_before_the_kernel_kills(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "fault",
        "Memory runs out",
        "WS_MEMORY_LIMIT little above what it holds; then 3,000 clients that want all channels",
        "503 with Retry-After from 85 % on, which /health says; never above the limit",
    )
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    limit_mib = (await _resident_mib(first) + 10) / 0.85
    limit = str(int(limit_mib * 1024 * 1024))
    async with (
        rig(second, WS_MEMORY_LIMIT=limit) as it,
        it.watch(row, growth_max_mib=limit_mib, may_shed=True),
    ):
        plan = fleet_plan(it.server.port, 3000, channels=10, ramp_per_second=600.0)
        async with fleets([plan]) as crowd:
            connected = await crowd.connect()
            refusal = await _refusal(it.attackers)
            assert b"\r\nRetry-After: " in refusal
            assert b" 503 " in refusal
            health = await it.server.health()
            row.notes.append(
                f"{connected.connected:,} came in, {sum(connected.rejections.values()):,} got "
                f"{', '.join(connected.rejections)}; {it.server.footprint().mib:.0f} of "
                f"{limit_mib:.0f} MiB"
            )
            assert any("emory" in warning for warning in health["warnings"] + health["errors"])
            assert it.server.footprint().mib < limit_mib


async def test_almost_out_of_memory_it_sheds_events_and_keeps_its_clients(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "fault",
        "Memory has run out",
        "WS_MEMORY_LIMIT so low that 95 % are reached by the clients that are there",
        "they stay, and are answered; events are shed, counted, and /health says so",
    )
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    limit = str(int(await _resident_mib(first) / 0.97 * 1024 * 1024))
    options: dict[str, Any] = {"WS_MEMORY_LIMIT": limit, "WS_MEMORY_REJECT_THRESHOLD": "0"}
    async with rig(second, **options) as it, it.watch(row, may_shed=True):
        await soon(partial(_is_shedding, it), 10)
        health = await it.server.health()
        assert health["status"] == "unhealthy"
        assert any("All events are shed" in error for error in health["errors"])
        one = await it.attackers.websocket()
        await one.say('{"type":"heartbeat"}')
        assert b'"pong"' in await one.reply()


async def _make_noise(it: Rig, scope: trio.CancelScope, per_second: int) -> None:
    """Keep the server busy with events without subscribers."""
    async with nats_client(it.nats.url) as client:
        with scope:
            while True:
                for _ in range(per_second // 50):
                    await client.publish("odin.token.NOISE.trade", b"1")
                await trio.sleep(0.02)


async def test_an_overloaded_server_refuses_sheds_and_recovers(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "fault",
        "CPU overload",
        "20,000 events a second that nobody wants, at WS_CPU_LIMIT=0.3; thresholds of 40 and 60 %",
        "503 with Retry-After; events are shed by rule, counted and shown; recovers by itself",
    )
    options: dict[str, Any] = {
        "WS_CPU_LIMIT": "0.3",
        "WS_CPU_REJECT_THRESHOLD": "40",
        "WS_CPU_PAUSE_THRESHOLD": "60",
    }
    async with (
        rig(tmp_path, clients=200, rate=10, **options) as it,
        it.watch(row, may_shed=True),
    ):
        scope = trio.CancelScope()
        it.nursery.start_soon(_make_noise, it, scope, 20_000)
        await soon(partial(_refuses, it.attackers), 20)
        assert b"\r\nRetry-After: " in await _refusal(it.attackers)
        await soon(partial(_is_shedding, it), 20)
        assert (await it.server.health())["status"] == "degraded"
        scope.cancel(reason="enough")
        row.recovery_seconds = await soon(partial(_admits, it.attackers), 20)
        await soon(partial(_is_healthy, it), 20)


async def _is_healthy(it: Rig) -> bool:
    return bool((await it.server.health())["status"] == "healthy")


async def _is_shedding(it: Rig) -> bool:
    return await it.server.metric("ws_nats_messages_shed_total", 'reason="paused"') > 0
