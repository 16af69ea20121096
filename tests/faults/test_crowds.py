"""Hostile crowds cost a bounded number of files, and nobody else waits."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.faults.attacker import Attacker, Attackers
from tests.faults.conftest import Record
from tests.faults.rig import rig, soon
from trio_odin.lab.fleet.dialects import upgrade_request

pytestmark = pytest.mark.faults

_REQUEST = upgrade_request("127.0.0.1", "/ws")


async def _dribble(one: Attacker) -> None:
    """Send a good request, a byte at a time, for a minute."""
    for number in range(len(_REQUEST)):
        if not await one.send(_REQUEST[number : number + 1]):
            return
        await trio.sleep(0.5)


async def test_slow_handshakes_and_silent_sockets_end_at_the_deadline(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "attack",
        "Slowloris",
        "250 handshakes of a byte every half second, and 250 sockets that say nothing",
        "closed at the deadline of 5 s; counted",
    )
    async with rig(tmp_path) as it, it.watch(row):
        slow = await it.attackers.many(250)
        silent = await it.attackers.many(250)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for one in slow:
                nursery.start_soon(_dribble, one)
            async with trio.open_nursery() as ends:
                for one in slow + silent:
                    ends.start_soon(one.answer, 15)
            row.notes.append(f"all ended after {trio.current_time() - begun:.1f} s")
            nursery.cancel_scope.cancel(reason="they are all closed")
        timeouts = await it.server.metric("ws_connections_rejected_total", 'reason="timeout"')
        assert timeouts == 500


async def test_too_many_pending_handshakes_keep_nobody_out(tmp_path: Path, record: Record) -> None:
    row = record(
        "attack",
        "Half-open crowd",
        "1,000 requests that only begin, at WS_MAX_HALF_OPEN=200; good clients come behind them",
        "at most 200 are held; good clients get in at once",
    )
    async with rig(tmp_path, WS_MAX_HALF_OPEN="200") as it, it.watch(row):
        files = it.server.footprint().files
        await _begin(it.attackers, 1000)
        waits = []
        for _ in range(20):
            begun = trio.current_time()
            await it.attackers.websocket()
            waits.append(trio.current_time() - begun)
        row.notes.append(f"the slowest good client got in after {max(waits) * 1000:.0f} ms")
        assert max(waits) < 2
        await trio.sleep(0.5)
        held = it.server.footprint().files - files - len(waits)
        row.notes.append(f"{held} half-open held")
        assert held <= 200 + 5


async def _begin(attackers: Attackers, count: int) -> None:
    """Begin requests, as the kernel hands a connection over only with its first byte."""
    for one in await attackers.many(count):
        await one.send(b"GET ")


async def _reset_soon(attackers: Attackers, *, is_upgraded: bool) -> None:
    one = await (attackers.websocket() if is_upgraded else attackers.tcp())
    one.reset()


async def test_a_storm_of_resets_leaves_nothing_behind(tmp_path: Path, record: Record) -> None:
    row = record(
        "attack",
        "RST storm",
        "3,000 connections reset at once after their connect, 1,000 after their upgrade",
        "memory and files flat; no flood in the log",
    )
    async with rig(tmp_path) as it, it.watch(row):
        lines = len(it.server.log_lines())
        for count, is_upgraded in ((3000, False), (1000, True)):
            for _ in range(count):
                await _reset_soon(it.attackers, is_upgraded=is_upgraded)
        logged = len(it.server.log_lines()) - lines
        row.notes.append(f"{logged} lines in the log")
        assert logged < 50


async def _come_and_go(attackers: Attackers, until: float, done: Counter[str]) -> None:
    while trio.current_time() < until:
        one = await attackers.tcp()
        done["times"] += 1
        done["refused"] += await one.upgrade() != 101
        one.stream.socket.close()
        attackers.all.remove(one)


async def test_churn_leaves_nothing_behind(tmp_path: Path, record: Record) -> None:
    row = record(
        "attack",
        "Churn",
        "clients that connect and leave as fast as the machine goes, for 5 s",
        "memory and files flat; no flood in the log",
    )
    done: Counter[str] = Counter()
    async with rig(tmp_path) as it, it.watch(row):
        lines, begun = len(it.server.log_lines()), time.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(_come_and_go, it.attackers, trio.current_time() + 5, done)
        per_second = done["times"] / (time.monotonic() - begun)
        logged = len(it.server.log_lines()) - lines
        row.notes.append(f"{per_second:,.0f} a second, {done['refused']} refused")
        row.notes.append(f"{logged} lines in the log")
        assert per_second > 100
        assert logged < 50


async def test_out_of_files_it_refuses_and_serves_on(tmp_path: Path, record: Record) -> None:
    row = record(
        "attack",
        "Files used up",
        "at a limit of 250 open files 300 clients come to 150, then 300 requests that only begin",
        "503 before the last file is gone; those who are in are served, NATS and /metrics go on, "
        "the log is throttled; it recovers",
    )
    async with rig(tmp_path, clients=150, files_max=250) as it, it.watch(row):
        lines = len(it.server.log_lines())
        statuses: Counter[int] = Counter()
        for _ in range(300):  # each asks at once: of sockets that are silent, the oldest are ended
            statuses[await (await it.attackers.tcp()).upgrade()] += 1
        row.notes.append(f"{statuses[101]} came in, {statuses[503]} got a 503")
        assert set(statuses) == {101, 503}
        assert (await it.server.metrics())["ws_nats_connected"] == 1
        await _begin(it.attackers, 300)
        flowing = await it.cohort.wait_flowing(5)
        row.notes.append(f"next event after {flowing * 1000:.0f} ms")
        await trio.sleep(1)
        it.attackers.leave()
        row.recovery_seconds = await soon(partial(_gets_in, it.attackers), 15)
        assert len(it.server.log_lines()) - lines < 10


async def _gets_in(attackers: Attackers) -> bool:
    one = await attackers.tcp()
    return await one.upgrade() == 101


async def test_scrapers_that_hang_have_no_effect(tmp_path: Path, record: Record) -> None:
    row = record(
        "fault",
        "Prometheus hangs, or is down",
        "50 requests for /metrics whose answers nobody reads; nobody else asks",
        "no effect on anybody; /metrics still answers",
    )
    async with rig(tmp_path) as it, it.watch(row):
        for one in await it.attackers.many(50, receive_bytes=2048):
            await one.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        begun = trio.current_time()
        assert await it.server.status("/metrics") == 200
        row.notes.append(f"/metrics answers in {(trio.current_time() - begun) * 1000:.0f} ms")
