"""The policy acts on clients that do not read, and on nobody else."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.nats import nats_client
from tests.faults.cohort import fleet_plan
from tests.faults.conftest import Record
from tests.faults.rig import Rig, rig, soon
from tests.faults.server import MIB
from trio_odin.lab.fleet.fleets import fleets

pytestmark = pytest.mark.faults

_STALLED = 1000
_ALL_CHANNELS = 10
_GREEDY = 38
_LARGE = '{"type":"subscribe","channels":["LARGE.trade"]}'
_COUNTS = {"conflate": "ws_deliveries_conflated_total", "drop": "ws_deliveries_dropped_total"}


async def _grown(it: Rig, name: str, before: float) -> bool:
    return (await it.server.metrics())[name] > before


async def _none_but_ours(it: Rig) -> bool:
    return (await it.server.metrics())["ws_connections_current"] <= it.cohort.size


@pytest.mark.parametrize(
    ("policy", "acts"),
    [
        ("evict", "they are closed, for a full outbox or a write past its deadline"),
        ("conflate", "they keep the newest event of each channel"),
        ("drop", "they miss events, counted"),
    ],
)
async def test_a_thousand_clients_that_never_read_hurt_no_other(
    tmp_path: Path, record: Record, policy: str, acts: str
) -> None:
    row = record(
        "attack",
        f"Zero window, WS_SLOW_POLICY={policy}",
        f"{_STALLED:,} clients with small buffers that subscribe to all channels and never read, "
        "twice; memory is that of the second time",
        f"{acts}; the others' latency and the memory stay",
    )
    options: dict[str, Any] = {"WS_SLOW_POLICY": policy, "WS_OUTBOX_CAPACITY": "32"}
    async with rig(tmp_path, **options) as it:
        it.publisher.is_paused = False
        await _stall(it, policy)  # the memory of a thousand connections is not released
        async with it.watch(row):
            row.recovery_seconds = await _stall(it, policy)


async def _stall(it: Rig, policy: str) -> float:
    """Connect a thousand clients that do not read; returns the time until the policy acted."""
    it.publisher.payload_bytes = 2000
    stalled = fleet_plan(it.server.port, _STALLED, channels=_ALL_CHANNELS, is_reading=False)
    async with fleets([stalled]) as crowd:
        connected = await crowd.connect()
        assert connected.connected == _STALLED
        before = await it.server.metrics()
        if policy == "evict":
            seconds = await soon(partial(_none_but_ours, it), 30)
        else:
            count = _COUNTS[policy]
            seconds = await soon(partial(_grown, it, count, before[count]), 30)
            await trio.sleep(2)
    it.publisher.payload_bytes = 200
    await soon(partial(_none_but_ours, it), 15)
    return seconds


async def test_large_replays_to_clients_that_do_not_read_hurt_no_other(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "attack",
        "Resumes and replays that nobody reads",
        "100 kept events of 250 KB; 38 clients that ask for all of them in one command of 60 bytes "
        "and do not read, and 38 that have had them and ask again; WS_MEMORY_LIMIT=256 MiB",
        "what is sent again waits under the limits of all events: the memory stays below its limit",
    )
    limit_mib = 256
    async with rig(tmp_path, WS_MEMORY_LIMIT=str(limit_mib * MIB), WS_SLOW_POLICY="drop") as it:
        had = [await it.attackers.websocket() for _ in range(_GREEDY)]
        for one in had:
            await one.say(_LARGE)
        async with nats_client(it.nats.url) as nats:
            for _ in range(100):
                await nats.publish("odin.token.LARGE.trade", b'"%b"' % (b"x" * 250_000))
        new = [await it.attackers.websocket() for _ in range(_GREEDY)]
        most = 0.0
        async with it.watch(row, growth_max_mib=100):
            for one in had:
                await one.say('{"type":"replay","data":{"since":0}}')
            for one in new:
                await one.say(_LARGE.replace("}", ',"after":0}'))
            for _ in range(40):
                await trio.sleep(0.1)
                most = max(most, it.server.footprint().mib)
        row.notes.append(f"at most {most:.0f} MiB")
        assert most < limit_mib


async def test_peers_that_vanish_are_gone_within_the_keepalive_deadline(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "attack",
        "Half-open TCP",
        "100 clients whose kernel drops all that comes: no ACK, no FIN, no RST; "
        "WS_PING_INTERVAL=2s, WS_KEEPALIVE_TIMEOUT=4s",
        "gone within two intervals and the deadline of a write",
    )
    options: dict[str, Any] = {"WS_PING_INTERVAL": "2s", "WS_KEEPALIVE_TIMEOUT": "4s"}
    async with rig(tmp_path, **options) as it, it.watch(row):
        for one in await it.attackers.many(100, is_upgraded=True):
            one.vanish()
        row.recovery_seconds = await soon(partial(_none_but_ours, it), 20)
        assert row.recovery_seconds < 4 + 2 + 2
