"""The admin API of a server with workers: the parent answers for all of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import attrs
import pytest
import trio
from websockets.trio.client import ClientConnection, connect

from tests.e2e.admin_client import AdminClient
from tests.e2e.conftest import ending_of, receive
from tests.e2e.nats import free_port, nats_client, running_nats
from tests.e2e.test_cli import children_of, ended, start

pytestmark = pytest.mark.e2e

# By chance all of these connections go to one of two workers once in 2**23 runs.
CLIENTS = 24


@attrs.frozen
class Running:
    process: trio.Process
    admin: AdminClient
    nats_url: str
    clients: list[ClientConnection]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    """Two workers, and clients that are subscribed."""
    port, admin_port = free_port(), free_port()
    with running_nats(tmp_path) as nats:
        process = await start(
            "serve", "--workers", "2", "--addr", f"127.0.0.1:{port}", "--nats", nats.url,
            WS_ADMIN_ADDR=f"127.0.0.1:{admin_port}", WS_CPU_REJECT_THRESHOLD="0",
            WS_CPU_PAUSE_THRESHOLD="0", WS_LAG_REJECT_MS="0", WS_DRAIN_SECONDS="1s",
        )  # fmt: skip
        admin = AdminClient(f"127.0.0.1:{admin_port}")
        try:
            await wait_for_workers(admin)
            async with AsyncExitStack() as stack:
                clients = []
                for _ in range(CLIENTS):
                    one = await stack.enter_async_context(connect(f"ws://127.0.0.1:{port}/ws"))
                    await one.send('{"type":"subscribe","channels":["BTC.trade"]}')
                    assert (await receive(one))["type"] == "subscription_ack"
                    clients.append(one)
                yield Running(process, admin, nats.url, clients)
        finally:
            process.terminate()
            await ended(process)


async def wait_for_workers(admin: AdminClient) -> None:
    """Wait until both workers take clients."""
    with trio.fail_after(60):
        while True:
            try:
                answer = await admin.ask("/overview")
                if answer.status == 200 and answer.content["workers"]["alive"] == 2:
                    return
            except OSError:
                pass
            await trio.sleep(0.05)


async def test_the_parent_lists_shows_and_closes_the_connections_of_all_workers(
    server: Running,
) -> None:
    admin = server.admin
    overview = await admin.get("/overview")
    assert overview["connections"] == CLIENTS
    assert overview["workers"]["configured"] == 2
    ids, cursor = [], ""
    while cursor is not None:
        page = await admin.get(f"/connections?sort=age_seconds&limit=5&after={cursor}")
        assert (page["total"], page["silent_workers"]) == (CLIENTS, [])
        ids += [one["id"] for one in page["connections"]]
        cursor = page["next"]
    assert len(set(ids)) == len(ids) == CLIENTS
    assert {one.partition("-")[0] for one in ids} == {"1", "2"}
    for number in (1, 2):
        one = next(one for one in ids if one.startswith(f"{number}-"))
        shown = await admin.get(f"/connections/{one}")
        assert (shown["id"], shown["worker"]) == (one, number)
        assert shown["subscriptions"][0]["name"] == "BTC.trade"
    without_worker = await admin.ask("/connections/1")
    assert without_worker.status == 404
    assert "WORKER-NUMBER" in without_worker.content["error"]
    # The connections are listed by their age, so the first one is that of the first client.
    assert (await admin.ask(f"/connections/{ids[0]}/close", "POST")).status == 200
    assert (await ending_of(server.clients[0])).code == 4002
    assert (await admin.ask(f"/connections/{ids[0]}/close", "POST")).status == 404


async def test_channels_and_traces_are_those_of_all_workers(server: Running) -> None:
    admin = server.admin
    async with nats_client(server.nats_url) as publisher:
        async with admin.trace(f"/trace?channel=BTC.trade&frames={CLIENTS}") as lines:
            assert (await anext(lines))["connections"] == CLIENTS
            await publisher.publish("odin.token.BTC.trade", b"1")
            await publisher.flush()
            frames = []
            async for line in lines:
                if line["type"] == "ended":
                    assert (line["reason"], line["frames"]) == ("frames", CLIENTS)
                    break
                frames.append(line)
        assert len({one["connection"] for one in frames}) == CLIENTS
        assert {json.loads(one["content"])["data"] for one in frames} == {1}
        (channel,) = (await admin.get("/channels?seconds=0.2"))["channels"]
        assert (channel["name"], channel["subscribers"]) == ("BTC.trade", CLIENTS)


async def test_a_worker_that_hangs_is_named_and_one_that_is_gone_is_left_out(
    server: Running,
) -> None:
    admin = server.admin
    one, _ = children_of(server.process.pid)
    os.kill(one, signal.SIGSTOP)
    try:
        page = await admin.get("/connections")
        assert len(page["silent_workers"]) == 1
        assert 0 < page["total"] < CLIENTS
    finally:
        os.kill(one, signal.SIGCONT)
    os.kill(one, signal.SIGKILL)
    with trio.fail_after(60):
        while True:
            page = await admin.get("/connections")
            if page["total"] < CLIENTS and page["silent_workers"] == []:
                break
            await trio.sleep(0.05)
