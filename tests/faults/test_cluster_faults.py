"""A cluster of three NATS servers loses one: our clients wait about as long as the cluster.

The server knows the address of one node and must learn the others from NATS.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from tests.e2e.nats import NatsServer
from tests.e2e.nats_cluster import NatsCluster, running_cluster
from tests.faults.attacker import Attackers
from tests.faults.cohort import cohort_of, fleet_plan
from tests.faults.conftest import Record
from tests.faults.publisher import Publisher
from tests.faults.rig import Rig
from tests.faults.server import serving
from trio_odin.lab.reliability import Row

pytestmark = pytest.mark.faults

_STREAM = "ODIN_TOKENS"
_CONFIG = {
    "name": _STREAM,
    "subjects": ["odin.token.>"],
    "storage": "file",
    "num_replicas": 3,
    "max_age": 60_000_000_000,
}
_NEW_CONSUMER = f"$JS.API.CONSUMER.CREATE.{_STREAM}"
_CONSUMER = {
    "stream_name": _STREAM,
    "config": {
        "ack_policy": "none",
        "deliver_policy": "new",
        "inactive_threshold": 1_000_000_000,
        "mem_storage": True,
        "num_replicas": 1,
    },
}
_RATE = 100.0
_CLIENTS = 100
_RECOVERY_SECONDS = 60.0
# The clients may take longer than NATS by a factor, as both wait for the same elections, and by
# the time of a connection.
_SHARE, _MORE_SECONDS = 1.5, 1.0
# In lame duck mode, from the notice to the first connection that is cut.
_GRACE_SECONDS = 10.0


@attrs.define
class Drill:
    """All running parts. `home` is the node to which the server is connected at first."""

    cluster: NatsCluster
    home: NatsServer
    it: Rig

    async def leader(self) -> NatsServer:
        return await self.cluster.stream_leader(_STREAM)

    async def lead_by(self, node: NatsServer, *, is_leader: bool) -> NatsServer:
        """Make this node, or another one, the leader of the stream; returns the leader."""
        while ((leader := await self.leader()) is node) is not is_leader:
            await self.cluster.step_down(_STREAM)
            await trio.sleep(0.2)
        await self.cluster.wait_ready()
        return leader

    async def recovery(self, row: Row, do: Callable[[], Awaitable[object]]) -> None:
        """Do it, and compare how long NATS and our clients are without service.

        Both times end with the first later event that was published and taken. A consumer can
        take longer than a publisher: it is made by the leader of JetStream, which may have died.
        """
        it, last = self.it, self.it.publisher.number
        served: dict[str, float] = {}
        await do()
        begun = trio.current_time()

        async def wait_consumer() -> None:
            while "error" in await self.cluster.request(_NEW_CONSUMER, _CONSUMER):
                await trio.sleep(0.05)
            served["consumers"] = trio.current_time() - begun

        with trio.fail_after(_RECOVERY_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_consumer)
                while not (taken := [one for one in it.publisher.taken if one > last]):
                    await trio.sleep(0.01)
                served["publisher"] = trio.current_time() - begun
                first = min(taken)
                while it.cohort.missing(first):
                    await trio.sleep(0.02)
                    await it.cohort.look()
                row.recovery_seconds = trio.current_time() - begun
        row.notes += [f"NATS: {name} again after {time:.1f} s" for name, time in served.items()]
        assert row.recovery_seconds <= _SHARE * max(served.values()) + _MORE_SECONDS


@asynccontextmanager
async def drill(folder: Path) -> AsyncIterator[Drill]:
    """A cluster, a server that is connected to one node of it, a publisher and clients."""
    async with (
        running_cluster(folder / "nats", grace_seconds=_GRACE_SECONDS) as cluster,
        trio.open_nursery() as nursery,
    ):
        made = await cluster.request(f"$JS.API.STREAM.CREATE.{_STREAM}", _CONFIG)
        assert "error" not in made, made
        home, *others = cluster.nodes
        async with serving(folder, home.url) as server:
            publisher = Publisher(home.port, _RATE, others=[node.port for node in others])
            nursery.start_soon(publisher.run)
            async with cohort_of(fleet_plan(server.port, _CLIENTS), publisher) as cohort:
                rig = Rig(home, server, publisher, cohort, Attackers(server.port), nursery)
                yield Drill(cluster, home, rig)
        nursery.cancel_scope.cancel(reason="the test is over")


@pytest.mark.parametrize(
    ("name", "what", "of_leader", "of_home"),
    [
        ("The stream's leader is killed", "that leads the stream", True, False),
        ("The connected node is killed", "that the server is connected to", False, True),
        ("A node that is both is killed", "that leads and is connected to", True, True),
    ],
)
async def test_a_killed_node_costs_no_more_than_the_failover_of_nats(
    tmp_path: Path, record: Record, name: str, what: str, *, of_leader: bool, of_home: bool
) -> None:
    row = record(
        "fault",
        name,
        f"of a cluster of three, SIGKILL of the node {what}, at {_RATE:.0f} events/s",
        "clients stay and have all events, once, within 1.5 times what NATS takes",
    )
    async with drill(tmp_path) as own, own.it.watch(row, p99_max_ms=60_000):
        leader = await own.lead_by(own.home, is_leader=of_leader and of_home)
        node = leader if of_leader else own.home

        async def kill() -> None:
            node.stop()

        await own.recovery(row, kill)
        node.start()
        await own.cluster.wait_ready()


async def test_a_rolling_restart_of_the_cluster_costs_nothing(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "fault",
        "A rolling restart of the cluster",
        f"SIGTERM and a new start of each of three nodes, one after the other, at {_RATE:.0f} "
        "events/s",
        "clients stay and have all events, once, within 1.5 times what NATS takes",
    )
    async with drill(tmp_path) as own, own.it.watch(row, p99_max_ms=60_000):
        worst = 0.0
        for node in own.cluster.nodes:

            async def restart(node: NatsServer = node) -> None:
                await trio.to_thread.run_sync(node.end, signal.SIGTERM)
                node.start()

            await own.recovery(row, restart)
            worst = max(worst, row.recovery_seconds or 0.0)
            await own.cluster.wait_ready()
        row.recovery_seconds = worst


async def test_a_node_in_lame_duck_mode_is_left_at_its_notice(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "fault",
        "Lame duck mode",
        f"of a cluster of three, the node that the server is connected to announces that it "
        f"leaves, and is gone later, at {_RATE:.0f} events/s",
        "the server goes to another node at once; clients stay and have all events, once",
    )
    async with drill(tmp_path) as own, own.it.watch(row, p99_max_ms=60_000):

        async def announce() -> None:
            own.home.enter_lame_duck_mode()

        await own.recovery(row, announce)
        begun = trio.current_time()
        with trio.fail_after(_GRACE_SECONDS / 2):
            while own.home in (nodes := await own.cluster.nodes_with("trio-odin")) or not nodes:
                await trio.sleep(0.05)
        row.notes.append(f"elsewhere after {trio.current_time() - begun:.1f} s")
        own.home.stop()
        await trio.sleep(1)
        own.home.start()
        await own.cluster.wait_ready()
