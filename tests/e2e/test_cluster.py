"""A cluster of NATS servers that loses one of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.e2e.conftest import (
    StartServer,
    check_balance,
    client_of,
    receive,
    wait_for_nats,
)
from tests.e2e.nats import NatsClient, nats_client
from tests.e2e.nats_cluster import NatsCluster, running_cluster
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

_REPLICATED = {
    "name": "ODIN_TOKENS",
    "subjects": ["odin.token.>"],
    "storage": "memory",
    "num_replicas": 3,
}


async def make_stream(cluster: NatsCluster) -> None:
    answer = await cluster.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", _REPLICATED)
    assert "error" not in answer, answer


async def is_at_another(cluster: NatsCluster) -> bool:
    return cluster.nodes[0] not in await cluster.nodes_with("trio-odin")


async def test_an_announced_server_takes_the_place_of_the_configured_one(
    start_server: StartServer, tmp_path: Path
) -> None:
    async with running_cluster(tmp_path) as cluster:
        await make_stream(cluster)
        server = await start_server(NATS_URL=cluster.nodes[0].url)
        await wait_for_nats(server)
        async with (
            client_of(server, "BTC.trade") as client,
            nats_client(cluster.nodes[1].url) as publisher,
        ):
            await publisher.publish("odin.token.BTC.trade", b"1")
            assert (await receive(client))["data"] == 1
            cluster.nodes[0].stop()
            await wait_until(lambda: server.snapshot().nats.reconnects == 1)
            await publisher.publish("odin.token.BTC.trade", b"2")
            assert (await receive(client))["data"] == 2
        check_balance(server)


async def test_a_server_in_lame_duck_mode_is_left_at_its_notice(
    start_server: StartServer, tmp_path: Path
) -> None:
    async with running_cluster(tmp_path, grace_seconds=25) as cluster:
        await make_stream(cluster)
        server = await start_server(NATS_URL=cluster.nodes[0].url)
        await wait_for_nats(server)
        async with (
            client_of(server, "BTC.trade") as client,
            nats_client(cluster.nodes[1].url) as publisher,
        ):
            offsets = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish_on, publisher)
                offsets.append((await receive(client))["offset"])
                cluster.nodes[0].enter_lame_duck_mode()
                with trio.fail_after(15):
                    while not server.snapshot().nats.reconnects or not await is_at_another(cluster):
                        await trio.sleep(0.05)
                assert cluster.nodes[0].is_running, "it was left before it cut anybody"
                while len(offsets) < 50:
                    offsets.append((await receive(client))["offset"])
                nursery.cancel_scope.cancel(reason="enough has come")
            await publisher.flush()
            while len(offsets) < server.ledger.publications.fanned_out:
                offsets.append((await receive(client))["offset"])
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
        assert not server.ledger.publications.gaps
        check_balance(server)


async def publish_on(publisher: NatsClient) -> None:
    while True:
        await publisher.publish("odin.token.BTC.trade", b"1")
        await trio.sleep(0.02)
