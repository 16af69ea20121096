"""The rig itself: a cluster of three nats-servers behaves as the fault tests expect."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio

from tests.e2e.nats import nats_client
from tests.e2e.nats_cluster import running_cluster
from tests.waiting import until_answer

pytestmark = pytest.mark.e2e

# Usually some seconds; much longer on a busy machine.
_ELECTION_SECONDS = 90.0
_STREAM = {"name": "S", "subjects": ["s.>"], "num_replicas": 3, "storage": "memory"}


async def test_a_cluster_replaces_a_leader_that_dies_hangs_or_steps_down(tmp_path: Path) -> None:
    async with running_cluster(tmp_path) as cluster:
        made = await cluster.request("$JS.API.STREAM.CREATE.S", _STREAM)
        assert "error" not in made, made

        async def is_replaced() -> bool:
            return await cluster.stream_leader("S") is not leader

        async def is_meta_replaced() -> bool:
            return await cluster.meta_leader() is not meta

        leader = await cluster.stream_leader("S")
        leader.stop()
        await until_answer(
            is_replaced,
            what="another leader than the one that was killed",
            seconds=_ELECTION_SECONDS,
        )
        leader.start()
        await cluster.wait_ready()
        await cluster.wait_replicated("S")

        leader = await cluster.stream_leader("S")
        leader.signal(signal.SIGSTOP)
        await until_answer(
            is_replaced, what="another leader than the one that hangs", seconds=_ELECTION_SECONDS
        )
        leader.signal(signal.SIGCONT)
        await cluster.wait_ready()
        await cluster.wait_replicated("S")

        leader, meta = await cluster.stream_leader("S"), await cluster.meta_leader()
        await cluster.step_down("S")
        await cluster.step_down_meta()
        await until_answer(
            is_replaced, what="another leader of the stream", seconds=_ELECTION_SECONDS
        )
        await until_answer(
            is_meta_replaced, what="another leader of JetStream", seconds=_ELECTION_SECONDS
        )


async def test_a_node_in_lame_duck_mode_notifies_its_clients_and_cuts_them(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, grace_seconds=0.2) as cluster:
        node = cluster.nodes[1]
        async with nats_client(node.url, name="listener", protocol=1) as client:
            assert await cluster.nodes_with("listener") == [node]
            node.enter_lame_duck_mode()
            with trio.fail_after(60):
                while b'"ldm":true' not in await client.receive_line(b"INFO "):
                    pass
                await client.wait_cut()
