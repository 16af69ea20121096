from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from websockets.trio.client import ClientConnection

from tests.e2e.conftest import (
    StartServer,
    check_balance,
    client_of,
    receive,
    wait_for_nats,
)
from tests.e2e.nats import NatsServer, nats_client, running_nats, start_network
from tests.waiting import wait_until
from trio_odin.server import Server
from trio_odin.upstream import bridge
from trio_odin.upstream.newest import newest_in_stream

pytestmark = pytest.mark.e2e


async def get(server: Server, path: str) -> tuple[int, dict[str, Any]]:
    def request() -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(str(server.addresses[0]), timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    return await trio.to_thread.run_sync(request)


async def test_it_starts_without_nats_reports_it_and_recovers(
    start_server: StartServer, tmp_path: Path
) -> None:
    nats = NatsServer(tmp_path)
    server = await start_server(NATS_URL=nats.url)
    async with client_of(server, "BTC.trade") as client:
        status, health = await get(server, "/health")
        assert (status, health["status"]) == (503, "unhealthy")
        assert health["checks"]["nats"].pop("since_ms") >= 0
        assert health["checks"]["nats"] == {
            "status": "disconnected",
            "healthy": False,
            "mode": "none",
            "age_ms": None,
            "gaps": 0,
            "trouble": f"127.0.0.1:{nats.port}: connection refused",
        }
        assert (await get(server, "/ready"))[0] == 503
        nats.start()
        try:
            await wait_for_nats(server)
            status, health = await get(server, "/health")
            assert (status, health["checks"]["nats"]["trouble"]) == (200, None)
            assert (await get(server, "/ready"))[0] == 200
            async with nats_client(nats.url) as publisher:
                await publisher.publish("odin.token.BTC.trade", b"1")
                assert (await receive(client))["data"] == 1
        finally:
            nats.stop()


async def test_clients_stay_over_a_restart_of_nats_and_events_flow_again(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as client:
            async with nats_client(nats.url) as publisher:
                await publisher.publish("odin.token.BTC.trade", b'"before"')
                assert (await receive(client))["data"] == "before"
            nats.stop()
            await wait_until(lambda: not server.snapshot().nats.is_connected)
            assert (await get(server, "/health"))[0] == 503
            assert (await get(server, "/ready"))[0] == 200
            nats.start()
            # Published into the new stream before the bridge is back: it must not be lost.
            async with nats_client(nats.url) as publisher:
                await wait_for_nats(server)
                await publisher.publish("odin.token.BTC.trade", b'"after"')
                message = await receive(client)
                assert (message["seq"], message["data"]) == (2, "after")
        assert server.snapshot().nats.reconnects == 1
        check_balance(server)


async def test_events_published_during_an_outage_come_once(
    start_server: StartServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """The stream survives and only our connection is cut: the position carries over."""
    with running_nats(tmp_path) as nats:
        network = await start_network(nursery, nats.port)
        server = await start_server(NATS_URL=network.url)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as client, nats_client(nats.url) as publisher:
            await publisher.publish("odin.token.BTC.trade", b"1")
            assert (await receive(client))["data"] == 1
            network.cut()
            await wait_until(lambda: not server.snapshot().nats.is_connected)
            for number in (2, 3, 4):
                await publisher.publish("odin.token.BTC.trade", b"%d" % number)
            messages = [await receive(client) for _ in range(3)]
            assert [e["data"] for e in messages] == [2, 3, 4]
            assert [e["offset"] for e in messages] == [2, 3, 4]
        check_balance(server)


async def test_a_stream_deleted_at_run_time_is_made_again(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as client, nats_client(nats.url) as publisher:
            await publisher.publish("odin.token.BTC.trade", b"1")
            assert (await receive(client))["data"] == 1
            answer = await publisher.request("$JS.API.STREAM.DELETE.ODIN_TOKENS", None)
            assert answer["success"]
            await wait_until(lambda: server.snapshot().nats.reconnects == 1)
            await publisher.publish("odin.token.BTC.trade", b"2")
            assert (await receive(client))["data"] == 2


async def test_a_gap_is_reported_even_if_its_connection_is_lost_at_once(
    start_server: StartServer,
    tmp_path: Path,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running_nats(tmp_path) as nats:
        network = await start_network(nursery, nats.port)
        server = await start_server(NATS_URL=network.url)
        await wait_for_nats(server)
        async with client_of(server) as client, nats_client(nats.url) as publisher:
            subscribe = {"type": "subscribe", "channels": ["BTC.trade"], "notices": True}
            await client.send(json.dumps(subscribe))
            before = await receive(client)
            network.is_down = True
            network.cut()
            await wait_until(lambda: not server.snapshot().nats.is_connected)
            stream = {"name": "ODIN_TOKENS", "subjects": ["odin.token.>"], "storage": "memory"}
            await publisher.request("$JS.API.STREAM.DELETE.ODIN_TOKENS", None)
            await publisher.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", stream)
            await publisher.publish("odin.token.BTC.trade", b"1")
            cuts: list[int] = []

            async def cut_meanwhile(*_: object) -> None:
                if not cuts:
                    network.cut()
                    cuts.append(server.snapshot().nats.reconnects)
                    await asyncio.sleep(30)

            monkeypatch.setattr("trio_odin.upstream.bridge.stored_at", cut_meanwhile)
            network.is_down = False
            gap, event = await receive(client), await receive(client)
        assert cuts == [0]
        assert (gap["type"], gap["reason"]) == ("gap", "stream")
        assert gap["epoch"] != before["epoch"]
        assert (event["data"], event["offset"]) == (1, 1)


async def test_without_jetstream_it_subscribes_to_core_nats(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path, jetstream=False) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        assert server.snapshot().nats.mode == "core"
        async with client_of(server, "BTC.trade") as client, nats_client(nats.url) as publisher:
            await publisher.publish("odin.token.BTC.trade", b"1")
            message = await receive(client)
            assert message["data"] == 1
            assert "offset" not in message


async def test_in_jetstream_mode_it_does_not_fall_back_to_core(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path, jetstream=False) as nats:
        server = await start_server(NATS_URL=nats.url, NATS_MODE="jetstream")
        async with nats_client(nats.url):
            await trio.sleep(0.5)
        assert not server.snapshot().nats.was_connected


async def test_in_core_mode_it_does_not_use_jetstream(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url, NATS_MODE="core")
        await wait_for_nats(server)
        async with nats_client(nats.url) as publisher:
            names = await publisher.request("$JS.API.STREAM.NAMES", {})
        assert not names["streams"]


async def stream_config(url: str, name: str) -> dict[str, Any]:
    async with nats_client(url) as client:
        answer: Any = await client.request(f"$JS.API.STREAM.INFO.{name}", None)
    config: dict[str, Any] = answer["config"]
    return config


async def test_the_stream_is_made_with_the_configured_limits(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        server = await start_server(
            NATS_URL=nats.url,
            JS_STREAM_NAME="MINE",
            JS_STREAM_MAX_AGE="7s",
            JS_STREAM_MAX_MSGS="77",
            JS_STREAM_MAX_BYTES="777777",
        )
        await wait_for_nats(server)
        config = await stream_config(nats.url, "MINE")
    assert config["subjects"] == ["odin.token.>"]
    assert (config["retention"], config["storage"]) == ("limits", "memory")
    assert (config["max_age"], config["max_msgs"], config["max_bytes"]) == (7e9, 77, 777777)


async def test_an_existing_stream_keeps_its_settings_and_gains_the_subject(
    start_server: StartServer, tmp_path: Path
) -> None:
    made = {
        "name": "ODIN_TOKENS",
        "subjects": ["odin.user.>", "odin.token.BTC.*"],
        "retention": "interest",
        "storage": "file",
        "max_msgs": 5,
    }
    with running_nats(tmp_path) as nats:
        async with nats_client(nats.url) as client:
            await client.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", made)
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        config = await stream_config(nats.url, "ODIN_TOKENS")
        assert config["subjects"] == ["odin.user.>", "odin.token.>"]
        assert (config["retention"], config["storage"], config["max_msgs"]) == (
            "interest",
            "file",
            5,
        )
        async with client_of(server, "SOL.trade") as subscriber, nats_client(nats.url) as client:
            await client.publish("odin.token.SOL.trade", b"1")
            assert (await receive(subscriber))["data"] == 1


async def test_a_stream_of_another_name_with_the_subject_is_used(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        async with nats_client(nats.url) as client:
            await client.request(
                "$JS.API.STREAM.CREATE.ALL", {"name": "ALL", "subjects": ["odin.>"]}
            )
        server = await start_server(NATS_URL=nats.url, WS_SNAPSHOT_STREAM="false")
        await wait_for_nats(server)
        async with client_of(server, "SOL.trade") as subscriber, nats_client(nats.url) as client:
            await client.publish("odin.token.SOL.trade", b"1")
            assert (await receive(subscriber))["data"] == 1
            names = await client.request("$JS.API.STREAM.NAMES", {})
        assert names["streams"] == ["ALL"]


async def test_more_than_the_allowed_rate_from_nats_is_shed_and_counted(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url, WS_MAX_NATS_RATE="5")
    await wait_for_nats(server)
    async with client_of(server, "BTC.trade"), nats_client(nats_url) as publisher:
        for _ in range(50):
            await publisher.publish("odin.token.BTC.trade", b"1")
        await wait_until(lambda: server.ledger.publications.received == 50)
    assert 5 <= server.ledger.publications.fanned_out < 50
    assert server.ledger.publications.shed.total() > 0
    check_balance(server)


async def test_old_events_of_a_stream_are_not_sent_as_new(
    start_server: StartServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Neither at start-up, nor after an early reconnect, nor when the consumer was deleted."""
    with running_nats(tmp_path) as nats:
        network = await start_network(nursery, nats.port)
        first = await start_server(NATS_URL=nats.url)
        await wait_for_nats(first)
        async with nats_client(nats.url) as publisher:
            for _ in range(50):
                await publisher.publish("odin.token.BTC.trade", b'"old"')
            await publisher.flush()
        server = await start_server(NATS_URL=network.url)
        await wait_until(lambda: server.ledger.publications.backfilled == 50)
        network.cut()
        await wait_until(lambda: server.snapshot().nats.reconnects == 1)
        async with client_of(server, "BTC.trade") as client, nats_client(nats.url) as publisher:
            names: Any = await publisher.request("$JS.API.CONSUMER.NAMES.ODIN_TOKENS", {})
            for name in names["consumers"]:
                await publisher.request(f"$JS.API.CONSUMER.DELETE.ODIN_TOKENS.{name}", None)
            await wait_until(lambda: server.snapshot().nats.reconnects == 2)
            await publisher.publish("odin.token.BTC.trade", b'"new"')
            assert (await receive(client))["data"] == "new"
        counters = server.ledger.publications
        assert (counters.received, counters.backfilled) == (51, 50)
        check_balance(server)


async def test_a_stream_with_a_part_of_the_subject_is_left_alone(
    start_server: StartServer, tmp_path: Path
) -> None:
    theirs = {"name": "THEIRS", "subjects": ["odin.token.BTC.trade"], "retention": "workqueue"}
    with running_nats(tmp_path) as nats:
        async with nats_client(nats.url) as client:
            await client.request("$JS.API.STREAM.CREATE.THEIRS", theirs)
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        assert server.snapshot().nats.mode == "core"
        config = await stream_config(nats.url, "THEIRS")
        assert config["subjects"] == ["odin.token.BTC.trade"]
        async with client_of(server, "SOL.trade") as subscriber, nats_client(nats.url) as client:
            await client.publish("odin.token.SOL.trade", b"1")
            assert (await receive(subscriber))["data"] == 1


async def test_after_jetstream_was_consumed_core_does_not_replace_it(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Otherwise events would come twice when JetStream is back, and others would be lost."""
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        nats.stop()
        nats.jetstream = False
        nats.start()
        async with nats_client(nats.url):
            await trio.sleep(0.5)
        assert not server.snapshot().nats.is_connected
        nats.stop()
        nats.jetstream = True
        nats.start()
        await wait_for_nats(server)
        assert server.snapshot().nats.mode == "jetstream"


async def test_a_stream_made_anew_under_a_live_connection_is_noticed(
    start_server: StartServer, tmp_path: Path
) -> None:
    """nats-py would wait at the old place forever, connected and silent."""
    stream = {"name": "ODIN_TOKENS", "subjects": ["odin.token.>"], "storage": "memory"}
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as client, nats_client(nats.url) as publisher:
            for number in range(20):
                await publisher.publish("odin.token.BTC.trade", b"%d" % number)
            assert [(await receive(client))["data"] for _ in range(20)] == list(range(20))
            await publisher.request("$JS.API.STREAM.DELETE.ODIN_TOKENS", None)
            await publisher.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", stream)
            for number in range(20, 25):
                await publisher.publish("odin.token.BTC.trade", b"%d" % number)
            assert [(await receive(client))["data"] for _ in range(5)] == list(range(20, 25))
        check_balance(server)


async def test_a_client_of_a_stopped_server_resumes_at_another_one(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        first = await start_server(NATS_URL=nats.url)
        await wait_for_nats(first)
        async with nats_client(nats.url) as publisher:
            async with client_of(first, "BTC.trade") as client:
                await publisher.publish("odin.token.BTC.trade", b'"seen"')
                seen = (await receive(client))["offset"]
            for payload in (b'"missed 1"', b'"missed 2"'):
                await publisher.publish("odin.token.BTC.trade", payload)
                await publisher.publish("odin.token.ETH.trade", b'"of others"')
            await publisher.flush()
            # It started after the events, and has them from the stream.
            second = await start_server(NATS_URL=nats.url)
            await wait_until(lambda: second.ledger.publications.backfilled == 5)
            async with client_of(second) as client:
                command = {"type": "subscribe", "channels": ["BTC.trade"], "after": seen}
                await client.send(json.dumps(command))
                assert (await receive(client))["type"] == "subscription_ack"
                await publisher.publish("odin.token.BTC.trade", b'"live"')
                messages = [await receive(client) for _ in range(4)]
    *missed, end, live = messages
    assert [one["data"] for one in (*missed, live)] == ["missed 1", "missed 2", "live"]
    assert [one["seq"] for one in (*missed, live)] == [1, 2, 3]
    assert end == {"type": "resumed", "sent": 2, "offset": 5}
    assert second.ledger.traffic.resumed == 2


# --- NATS stops, hangs, or is elsewhere


async def test_an_outage_is_noticed_in_2_s_and_a_recovery_in_1_s(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as client:
            nats.signal(signal.SIGTERM)
            await wait_until(lambda: not server.snapshot().nats.is_connected, seconds=2)
            await trio.sleep(1)  # by now its attempts are as rare as they get
            nats.stop()
            nats.start()
            async with nats_client(nats.url) as publisher:
                with trio.fail_after(1):
                    await wait_for_nats(server)
                    await publisher.publish("odin.token.BTC.trade", b"1")
                    assert (await receive(client))["data"] == 1


async def test_of_several_servers_the_one_that_answers_is_used(
    start_server: StartServer, tmp_path: Path
) -> None:
    """One of the others is down, and one accepts connections and sends nothing, as if hung."""
    with running_nats(tmp_path) as nats, socket.create_server(("127.0.0.1", 0)) as hung:
        async with nats_client(nats.url):
            pass  # it is up
        down = NatsServer(tmp_path)
        hung_url = f"nats://127.0.0.1:{hung.getsockname()[1]}"
        server = await start_server(NATS_URL=f"{down.url},{hung_url},{nats.url}")
        await wait_until(lambda: server.snapshot().nats.is_connected, seconds=5)
        async with client_of(server, "BTC.trade") as client, nats_client(nats.url) as publisher:
            await publisher.publish("odin.token.BTC.trade", b"1")
            assert (await receive(client))["data"] == 1


async def test_a_heartbeat_and_health_show_how_fresh_nats_is(
    start_server: StartServer, tmp_path: Path
) -> None:
    heartbeat = '{"type":"heartbeat","data":{"nats":true}}'
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as client:
            await trio.sleep(1.5)  # a quiet market: only signs of life
            await client.send(heartbeat)
            pong = await receive(client)
            assert (pong["nats"], pong["event_age_ms"]) == ("connected", None)
            assert pong["age_ms"] < 1300
            nats.signal(signal.SIGSTOP)  # an outage: not noticed yet, but already visible
            await trio.sleep(2)
            await client.send(heartbeat)
            assert (await receive(client))["age_ms"] > 1900
            assert (await get(server, "/health"))[1]["checks"]["nats"]["age_ms"] > 1900
            nats.stop()
            await wait_until(lambda: not server.snapshot().nats.is_connected)
            await client.send(heartbeat)
            assert (await receive(client))["nats"] == "disconnected"


# --- gaps


@asynccontextmanager
async def listener_of(server: Server) -> AsyncIterator[tuple[ClientConnection, str]]:
    """A client that has asked for notices of gaps, and the epoch that it got."""
    async with client_of(server) as client:
        command = {"type": "subscribe", "channels": ["BTC.trade"], "notices": True}
        await client.send(json.dumps(command))
        yield client, (await receive(client))["epoch"]


async def receive_gap(client: ClientConnection) -> dict[str, Any]:
    """The next notice; events may come before it."""
    while (message := await receive(client)).get("type") != "gap":
        assert "seq" in message
    assert message.pop("ts") > 10**12
    return message


async def test_events_dropped_by_the_stream_are_a_gap_with_their_count(
    start_server: StartServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    with running_nats(tmp_path) as nats:
        network = await start_network(nursery, nats.port)
        server = await start_server(NATS_URL=network.url, JS_STREAM_MAX_MSGS="3")
        await wait_for_nats(server)
        async with listener_of(server) as (client, epoch), nats_client(nats.url) as publisher:
            await publisher.publish("odin.token.BTC.trade", b"1")
            assert (await receive(client))["offset"] == 1
            network.is_down = True
            network.cut()
            await wait_until(lambda: not server.snapshot().nats.is_connected)
            for number in range(2, 12):
                await publisher.publish("odin.token.BTC.trade", b"%d" % number)
            await publisher.flush()
            network.is_down = False
            gap, *events = [await receive(client) for _ in range(4)]
            assert gap.pop("ts") > 10**12
            assert gap == {
                "type": "gap", "reason": "window", "missed": 7, "from": 2, "to": 8, "epoch": epoch,
            }  # fmt: skip
            assert [event["offset"] for event in events] == [9, 10, 11]
        assert server.ledger.publications.missed == 7
        assert (await get(server, "/health"))[1]["checks"]["nats"]["gaps"] == 1
        check_balance(server)


async def test_foreign_messages_in_the_stream_hide_the_size_of_a_gap(
    start_server: StartServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    shared = {"name": "ODIN_TOKENS", "subjects": ["odin.>"], "max_msgs": 20}
    with running_nats(tmp_path) as nats:
        network = await start_network(nursery, nats.port)
        async with nats_client(nats.url) as publisher:
            await publisher.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", shared)
            server = await start_server(NATS_URL=network.url)
            await wait_for_nats(server)
            async with listener_of(server) as (client, _):
                for subject in ["odin.token.BTC.trade", *["odin.user.x"] * 5] * 2:
                    await publisher.publish(subject, b"1")
                assert [(await receive(client))["offset"] for _ in range(2)] == [1, 7]
                await trio.sleep(1.2)
                assert not server.ledger.publications.gaps
                network.is_down = True
                network.cut()
                await wait_until(lambda: not server.snapshot().nats.is_connected)
                for _ in range(20):
                    await publisher.publish("odin.user.x", b"1")
                await publisher.flush()
                network.is_down = False
                gap = await receive_gap(client)
                assert (gap["reason"], gap["missed"]) == ("window", None)
                assert (gap["from"], gap["to"]) == (8, 12)


async def test_a_stream_made_anew_is_a_gap_with_another_epoch(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        async with listener_of(server) as (client, epoch):
            nats.stop()
            nats.start()
            gap = await receive_gap(client)
            assert (gap["reason"], gap["missed"], gap["from"]) == ("stream", None, None)
            assert gap["epoch"] != epoch
            async with listener_of(server) as (_, told):
                assert told == gap["epoch"]


async def test_in_core_mode_every_loss_of_the_connection_is_a_gap(
    start_server: StartServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    with running_nats(tmp_path, jetstream=False) as nats:
        network = await start_network(nursery, nats.port)
        server = await start_server(NATS_URL=network.url)
        await wait_for_nats(server)
        async with listener_of(server) as (client, epoch):
            assert epoch is None
            network.cut()
            gap = await receive_gap(client)
            assert (gap["reason"], gap["missed"], gap["epoch"]) == ("core", None, None)


async def test_events_published_before_nats_got_jetstream_are_a_gap(
    start_server: StartServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """It is older than the backfill of the stream, and core NATS has not kept it."""
    with running_nats(tmp_path, jetstream=False) as nats:
        network = await start_network(nursery, nats.port)
        server = await start_server(NATS_URL=network.url)
        await wait_for_nats(server)
        async with listener_of(server) as (client, _):
            network.is_down = True
            network.cut()
            nats.stop()
            nats.jetstream = True
            nats.start()
            stream = {"name": "ODIN_TOKENS", "subjects": ["odin.token.>"]}
            async with nats_client(nats.url) as publisher:
                await publisher.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", stream)
                for _ in range(3):
                    await publisher.publish("odin.token.BTC.trade", b"1")
                await publisher.flush()
                network.is_down = False
                await wait_until(lambda: server.snapshot().nats.mode == "jetstream")
                await publisher.publish("odin.token.BTC.trade", b"1")
            gap = await receive_gap(client)
            assert (gap["reason"], gap["from"], gap["to"]) == ("core", None, 3)
            assert gap["epoch"] is not None
            assert (await receive(client))["offset"] == 4


async def test_events_shed_by_the_server_are_a_gap(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url, WS_MAX_NATS_RATE="5")
    await wait_for_nats(server)
    async with listener_of(server) as (client, _), nats_client(nats_url) as publisher:
        for _ in range(50):
            await publisher.publish("odin.token.BTC.trade", b"1")
        await wait_until(lambda: server.ledger.publications.received == 50)
        missed = 0
        while missed < server.ledger.publications.shed.total():
            gap = await receive_gap(client)
            assert gap["reason"] == "shed"
            missed += gap["missed"]
    assert 0 < missed < 50
    assert server.ledger.publications.missed == missed
    check_balance(server)


async def test_while_all_events_are_shed_the_newest_ones_are_not_read_again_and_again(
    start_server: StartServer, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    read = newest_in_stream

    async def counted(*given: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(*given, **options)

    monkeypatch.setattr(bridge, "newest_in_stream", counted)
    little = {"WS_MEMORY_LIMIT": "1000000", "WS_MEMORY_PAUSE_THRESHOLD": "95"}
    server = await start_server(NATS_URL=nats_url, **little)
    await wait_for_nats(server)
    await wait_until(lambda: reads > 0, what="they were read once")
    shedder = server.load_monitor.shedder
    await wait_until(lambda: shedder.percent == 100, what="all events are shed")
    before = reads
    async with nats_client(nats_url) as publisher:
        for number in range(30):
            await publisher.publish("odin.token.BTC.trade", b"%d" % number)
            await trio.sleep(0.1)
        assert reads == before
        shedder.memory_pause_percent = 0
        await wait_until(lambda: shedder.percent == 0, what="no events are shed")
        await wait_until(lambda: reads > before, what="what was shed is made up for")
