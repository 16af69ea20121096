from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import pytest
import trio
from nats.js.api import StreamInfo

from tests.e2e.conftest import (
    StartServer,
    check_balance,
    client_of,
    receive,
    wait_for_nats,
    wait_until,
)
from tests.e2e.nats import NatsServer, nats_client, running_nats, start_network
from trio_odin.server.tree import Server

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


async def test_it_starts_without_nats_says_so_and_recovers(
    start_server: StartServer, tmp_path: Path
) -> None:
    nats = NatsServer(tmp_path)
    server = await start_server(NATS_URL=nats.url)
    async with client_of(server, "BTC.trade") as client:
        status, health = await get(server, "/health")
        assert (status, health["status"]) == (503, "unhealthy")
        assert health["checks"]["nats"] == {"status": "disconnected", "healthy": False}
        assert (await get(server, "/ready"))[0] == 503
        nats.start()
        try:
            await wait_for_nats(server)
            assert (await get(server, "/health"))[0] == 200
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
            await wait_until(lambda: not server.snapshot().is_nats_connected)
            assert (await get(server, "/health"))[0] == 503
            assert (await get(server, "/ready"))[0] == 200
            nats.start()
            # Published into the new stream before the bridge is back: not to be lost.
            async with nats_client(nats.url) as publisher:
                await wait_for_nats(server)
                await publisher.publish("odin.token.BTC.trade", b'"after"')
                envelope = await receive(client)
                assert (envelope["seq"], envelope["data"]) == (2, "after")
        assert server.snapshot().nats_reconnects == 1
        check_balance(server)


async def test_what_was_published_while_the_connection_was_lost_comes_once(
    start_server: StartServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """The stream survives, only our connection is cut: the position carries over."""
    with running_nats(tmp_path) as nats:
        network = await start_network(nursery, nats.port)
        server = await start_server(NATS_URL=network.url)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as client, nats_client(nats.url) as publisher:
            await publisher.publish("odin.token.BTC.trade", b"1")
            assert (await receive(client))["data"] == 1
            network.cut()
            await wait_until(lambda: not server.snapshot().is_nats_connected)
            for number in (2, 3, 4):
                await publisher.publish("odin.token.BTC.trade", b"%d" % number)
            envelopes = [await receive(client) for _ in range(3)]
            assert [e["data"] for e in envelopes] == [2, 3, 4]
            assert [e["offset"] for e in envelopes] == [2, 3, 4]
        check_balance(server)


async def test_a_stream_deleted_under_us_is_made_again(
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
            await wait_until(lambda: server.snapshot().nats_reconnects == 1)
            await publisher.publish("odin.token.BTC.trade", b"2")
            assert (await receive(client))["data"] == 2


async def test_without_jetstream_it_subscribes_to_core_nats(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path, jetstream=False) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        assert server.snapshot().nats_mode == "core"
        async with client_of(server, "BTC.trade") as client, nats_client(nats.url) as publisher:
            await publisher.publish("odin.token.BTC.trade", b"1")
            envelope = await receive(client)
            assert envelope["data"] == 1
            assert "offset" not in envelope


async def test_jetstream_alone_does_not_settle_for_core(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path, jetstream=False) as nats:
        server = await start_server(NATS_URL=nats.url, NATS_MODE="jetstream")
        async with nats_client(nats.url):
            await trio.sleep(0.5)
        assert not server.snapshot().was_nats_connected


async def test_core_leaves_jetstream_alone(start_server: StartServer, tmp_path: Path) -> None:
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


async def test_the_stream_is_made_with_the_limits_that_were_set(
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


async def test_a_stream_that_exists_keeps_its_settings_and_gains_our_subject(
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


async def test_a_stream_of_another_name_that_has_our_subject_is_used(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        async with nats_client(nats.url) as client:
            await client.request(
                "$JS.API.STREAM.CREATE.ALL", {"name": "ALL", "subjects": ["odin.>"]}
            )
        server = await start_server(NATS_URL=nats.url)
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


async def test_the_past_of_a_stream_is_not_news(
    start_server: StartServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Not at start-up, nor after an early reconnect, nor when nats-py starts over."""
    with running_nats(tmp_path) as nats:
        network = await start_network(nursery, nats.port)
        first = await start_server(NATS_URL=nats.url)
        await wait_for_nats(first)
        async with nats_client(nats.url) as publisher:
            for _ in range(50):
                await publisher.publish("odin.token.BTC.trade", b'"old"')
            await publisher.flush()
        server = await start_server(NATS_URL=network.url)
        await wait_for_nats(server)
        network.cut()
        await wait_until(lambda: server.snapshot().nats_reconnects == 1)
        async with client_of(server, "BTC.trade") as client, nats_client(nats.url) as publisher:
            names: Any = await publisher.request("$JS.API.CONSUMER.NAMES.ODIN_TOKENS", {})
            for name in names["consumers"]:
                await publisher.request(f"$JS.API.CONSUMER.DELETE.ODIN_TOKENS.{name}", None)
            await wait_until(lambda: server.ledger.publications.repeated == 50)
            await publisher.publish("odin.token.BTC.trade", b'"new"')
            assert (await receive(client))["data"] == "new"
        assert server.ledger.publications.received == 1
        check_balance(server)


async def test_a_stream_that_came_back_shorter_is_read_from_its_beginning(
    start_server: StartServer, nats_url: str
) -> None:
    """In a cluster a stream in memory comes back empty, yet with the date of its creation."""
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    bridge = server._bridge
    bridge._position.offset = 1000
    async with nats_client(nats_url) as publisher:
        info: Any = await publisher.request("$JS.API.STREAM.INFO.ODIN_TOKENS", None)
    assert bridge._find_place(StreamInfo.from_response(info)) == 0


async def test_a_stream_with_a_part_of_our_subject_is_left_alone(
    start_server: StartServer, tmp_path: Path
) -> None:
    theirs = {"name": "THEIRS", "subjects": ["odin.token.BTC.trade"], "retention": "workqueue"}
    with running_nats(tmp_path) as nats:
        async with nats_client(nats.url) as client:
            await client.request("$JS.API.STREAM.CREATE.THEIRS", theirs)
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        assert server.snapshot().nats_mode == "core"
        config = await stream_config(nats.url, "THEIRS")
        assert config["subjects"] == ["odin.token.BTC.trade"]
        async with client_of(server, "SOL.trade") as subscriber, nats_client(nats.url) as client:
            await client.publish("odin.token.SOL.trade", b"1")
            assert (await receive(subscriber))["data"] == 1


async def test_once_jetstream_was_consumed_core_is_no_substitute(
    start_server: StartServer, tmp_path: Path
) -> None:
    """It would have events twice when JetStream is back, and lose those in between."""
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        nats.stop()
        nats.jetstream = False
        nats.start()
        async with nats_client(nats.url):
            await trio.sleep(0.5)
        assert not server.snapshot().is_nats_connected
        nats.stop()
        nats.jetstream = True
        nats.start()
        await wait_for_nats(server)
        assert server.snapshot().nats_mode == "jetstream"


async def test_a_stream_made_anew_under_a_live_connection_is_found_out(
    start_server: StartServer, tmp_path: Path
) -> None:
    """nats-py would wait at the old place for ever, connected and silent."""
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
