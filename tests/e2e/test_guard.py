"""Admission, shedding and the admin address of a whole server."""

from __future__ import annotations

import http.client
import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from websockets.exceptions import InvalidStatus
from websockets.trio.client import connect

from tests.e2e.conftest import (
    StartServer,
    check_balance,
    client_of,
    receive,
    url_of,
    wait_for_nats,
)
from tests.e2e.nats import free_port, nats_client, running_nats
from tests.e2e.test_cli import ended, start
from tests.waiting import wait_until
from trio_odin.lab.load.pages import parse_metrics
from trio_odin.net.listening import Address
from trio_odin.overload.load import Load
from trio_odin.server import Server

pytestmark = pytest.mark.e2e


async def page(address: Address | str, path: str) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        connection = http.client.HTTPConnection(str(address), timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    with trio.fail_after(15):
        return await trio.to_thread.run_sync(ask)


async def knock(server: Server) -> InvalidStatus | None:
    """The refusal of a client; None if it is let in."""
    try:
        async with connect(url_of(server)):
            return None
    except InvalidStatus as refused:
        return refused


async def test_a_storm_is_refused_with_a_retry_time_and_then_let_in(
    start_server: StartServer,
) -> None:
    # So low that the storm of this test exceeds it, and an idle server does not.
    server = await start_server(WS_CPU_REJECT_THRESHOLD="10")
    async with AsyncExitStack() as stack:
        early = await stack.enter_async_context(client_of(server))
        refused = None
        with trio.fail_after(30):
            while refused is None:
                refused = await knock(server)
        assert refused.response.status_code == 503
        assert refused.response.headers["Retry-After"] == "1"
        assert refused.response.body == b"Server overloaded\n"
        rejected = server.ledger.traffic.rejected
        assert rejected["overloaded"] == 1
        with trio.fail_after(30):
            while await knock(server) is not None:
                await trio.sleep(1.0)  # as the answer asks
        assert set(rejected) == {"overloaded"}
        await early.send('{"type":"heartbeat"}')
        assert (await receive(early))["type"] == "pong", "those who are in notice nothing"
    check_balance(server)


async def test_overload_sheds_a_share_reports_it_and_ends(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url, WS_CPU_PAUSE_THRESHOLD="100")
        await wait_for_nats(server)
        guard = server.load_monitor
        async with client_of(server, "BTC.trade") as client, nats_client(nats.url) as publisher:
            # Four seconds at once, so that no regular sample comes in between.
            for _ in range(4):
                guard.observe(Load(cpu_percent=100.0))
            assert server.snapshot().load.paused_percent == 40
            guard.shedder.cpu_pause_percent = 1e-9  # an idle process exceeds it
            for number in range(10):
                await publisher.publish("odin.token.BTC.trade", b"%d" % number)
            await publisher.flush()
            counters = server.ledger.publications
            await wait_until(lambda: counters.received == 10)
            shed = counters.shed.total()
            assert shed >= 4
            status, text = await page(server.addresses[0], "/health")
            health = json.loads(text)
            assert (status, health["healthy"]) == (200, True)
            assert health["checks"]["cpu"]["paused_percent"] >= 40
            assert any("of the events are shed" in line for line in health["warnings"])
            _, text = await page(server.addresses[0], "/metrics")
            figures = parse_metrics(text)
            assert figures["ws_paused_percent"] >= 40
            assert f'ws_nats_messages_shed_total{{reason="paused"}} {shed}.0' in text
            received = [await receive(client) for _ in range(10 - shed)]
            assert [event["seq"] for event in received] == list(range(1, 11 - shed))
            guard.shedder.cpu_pause_percent = 0
            await wait_until(lambda: server.snapshot().load.paused_percent == 0)
            await publisher.publish("odin.token.BTC.trade", b"99")
            assert (await receive(client))["data"] == 99
        check_balance(server)


async def test_metrics_can_have_their_own_address(start_server: StartServer) -> None:
    server = await start_server(WS_ADMIN_ADDR="127.0.0.1:0", WS_ACCEPT_RATE="0.001")
    (public,), (admin,) = server.addresses, server.admin_addresses
    assert public.port != admin.port
    assert (await page(public, "/metrics"))[0] == 404, "and the rate of accepts is used up"
    for _ in range(3):
        status, text = await page(admin, "/metrics")
        assert status == 200
        assert "ws_connections_current 0.0" in text
    assert (await page(admin, "/health"))[0] == 503, "there is no NATS"
    assert (await page(admin, "/ready"))[0] == 503
    with pytest.raises(InvalidStatus, match="404"):
        async with connect(f"ws://{admin}/ws"):
            pass


async def test_the_parent_of_workers_has_the_admin_address(tmp_path: Path) -> None:
    port, admin = free_port(), free_port()
    with running_nats(tmp_path) as nats:
        process = await start(
            "serve", "--workers", "2", "--addr", f"127.0.0.1:{port}", "--nats", nats.url,
            WS_ADMIN_ADDR=f"127.0.0.1:{admin}",
        )  # fmt: skip
        try:
            with trio.fail_after(20):
                while True:
                    try:
                        health = json.loads((await page(f"127.0.0.1:{admin}", "/health"))[1])
                        if health.get("workers", {}).get("alive") == 2:
                            break
                    except OSError:
                        pass
                    await trio.sleep(0.05)
            for _ in range(4):
                assert (await page(f"127.0.0.1:{port}", "/metrics"))[0] == 404
                status, text = await page(f"127.0.0.1:{admin}", "/metrics")
                assert (status, parse_metrics(text)["ws_workers"]) == (200, 2)
        finally:
            process.terminate()
        code, _, logged = await ended(process)
    assert code == 0
    listening = [
        line for line in map(json.loads, logged.splitlines()) if line["event"] == "server.listening"
    ]
    assert [line["admin"] for line in listening] == [[]] * 2
    starting = [line for line in map(json.loads, logged.splitlines()) if "workers" in line]
    assert starting[0]["admin"] == [f"127.0.0.1:{admin}"], "the parent has it"
