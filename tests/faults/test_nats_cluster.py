"""A node of a NATS cluster dies: events flow again about when publishers are served again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from tests.e2e.nats_cluster import running_cluster
from tests.faults.attacker import Attacker, Attackers
from tests.faults.conftest import Record
from tests.faults.publisher import CHANNELS, Publisher
from tests.faults.server import serving
from tests.waiting import wait_until
from trio_odin.lab.reliability import Row

pytestmark = pytest.mark.faults

_STREAM = {
    "name": "ODIN_TOKENS",
    "subjects": ["odin.token.>"],
    "storage": "memory",
    "num_replicas": 3,
}


class _Reader:
    """A client of all channels, which records its events."""

    def __init__(self, one: Attacker) -> None:
        self.offsets: list[int] = []
        self._one = one

    async def subscribe(self) -> None:
        await self._one.say(json.dumps({"type": "subscribe", "channels": CHANNELS}))
        assert json.loads(await self._one.reply())["type"] == "subscription_ack"

    async def run(self) -> None:
        while True:
            message = json.loads(await self._one.reply(seconds=60))
            if "offset" in message and "seq" in message:
                self.offsets.append(message["offset"])


async def test_the_leading_node_in_use_is_killed(tmp_path: Path, record: Record) -> None:
    row = record(
        "fault",
        "A node of a NATS cluster is killed",
        "SIGKILL of the nats-server in use, of three, the stream's leader; NATS_URL names it alone",
        "another node is found, nothing lost, nothing twice; events flow again not later than 1.5 "
        "times after what a publisher has to wait",
    )
    row.clients = row.held = 1
    attackers: list[Attackers] = []
    try:
        await _kill_and_measure(tmp_path, row, attackers)
    finally:
        for one in attackers:
            one.leave()


async def _kill_and_measure(tmp_path: Path, row: Row, attackers: list[Attackers]) -> None:
    async with running_cluster(tmp_path / "nats") as cluster, trio.open_nursery() as nursery:
        made = await cluster.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", _STREAM)
        assert "error" not in made, made
        leader = await cluster.stream_leader("ODIN_TOKENS")
        other = next(node for node in cluster.nodes if node is not leader)
        async with serving(tmp_path, leader.url) as server:
            attackers.append(Attackers(server.port))
            reader = _Reader(await attackers[0].websocket())
            await reader.subscribe()
            nursery.start_soon(reader.run)
            publisher = Publisher(other.port, 20)
            publisher.is_paused = False
            nursery.start_soon(publisher.run)
            await wait_until(lambda: len(reader.offsets) >= 20)

            leader.stop()
            begun = trio.current_time()
            await trio.sleep(0.5)  # events on their way have come
            taken, seen = len(publisher.taken), len(reader.offsets)
            await wait_until(lambda: len(publisher.taken) > taken, what="a publisher is served")
            published_seconds = trio.current_time() - begun
            await wait_until(lambda: len(reader.offsets) > seen, what="events flow")
            row.recovery_seconds = trio.current_time() - begun
            row.notes.append(f"a publisher waited {published_seconds:.1f} s")

            publisher.is_paused = True
            await wait_until(
                lambda: len(reader.offsets) >= len(publisher.taken), what="all have come"
            )
            await trio.sleep(0.5)
            row.repeated = len(reader.offsets) - len(set(reader.offsets))
            row.lost = reader.offsets[-1] - len(set(reader.offsets))
            assert (row.lost, row.repeated) == (0, 0)
            assert (await server.metrics())["ws_ledger_imbalance"] == 0
            assert row.recovery_seconds < 1.5 * published_seconds + 0.5
            nursery.cancel_scope.cancel(reason="the test is over")
