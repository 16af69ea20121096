"""The admin API of one process, over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect

from tests.e2e.admin_client import AdminClient
from tests.e2e.conftest import (
    StartServer,
    client_of,
    ending_of,
    receive,
    url_of,
    wait_for_nats,
)
from tests.e2e.nats import NatsClient, nats_client, running_nats
from tests.e2e.test_slow_clients import publish_to_one_who_reads, start
from tests.signing import ec_signer, write_key_set
from tests.waiting import wait_until
from trio_odin.server import Server

pytestmark = pytest.mark.e2e

NOWHERE = "nats://127.0.0.1:9"
TOKEN = "the-token-of-this-test-0123"


def admin_of(server: Server, token: str = "") -> AdminClient:
    return AdminClient(server.admin_addresses[0], token)


async def subscribe(client: ClientConnection, **command: Any) -> None:
    await client.send(json.dumps({"type": "subscribe", **command}))
    assert (await receive(client))["type"] == "subscription_ack"


class Served(NamedTuple):
    """A server without NATS."""

    server: Server
    admin: AdminClient


@pytest.fixture
async def served(start_server: StartServer, nats_url: str) -> Served:
    server = await start_server(NATS_URL=nats_url)
    return Served(server, admin_of(server))


class Live(NamedTuple):
    """A server that gets what `publisher` publishes."""

    server: Server
    admin: AdminClient
    publisher: NatsClient


@pytest.fixture
def jetstream() -> bool:
    return True


@pytest.fixture
async def live(
    start_server: StartServer, tmp_path: Path, *, jetstream: bool
) -> AsyncIterator[Live]:
    with running_nats(tmp_path, jetstream=jetstream) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        async with nats_client(nats.url) as publisher:
            yield Live(server, admin_of(server), publisher)


async def test_the_api_is_on_loopback_by_default_and_the_metrics_stay(
    start_server: StartServer,
    nats_url: str,
) -> None:
    one = await start_server(NATS_URL=nats_url)
    other = await start_server(NATS_URL=nats_url)
    for server in (one, other):
        (address,) = server.admin_addresses
        assert address.host == "127.0.0.1"
        overview = await admin_of(server).get("/overview")
        assert overview["connections"] == 0
        assert overview["nats"]["is_connected"] is False
        assert (await AdminClient(server.addresses[0]).ask("/metrics")).status == 200
        assert (await AdminClient(server.addresses[0]).ask("/connections")).status == 404
        assert (await admin_of(server).ask("/metrics")).status == 200
    assert one.admin_addresses != other.admin_addresses


async def test_it_can_be_switched_off(start_server: StartServer, nats_url: str) -> None:
    server = await start_server(NATS_URL=nats_url, WS_ADMIN_ADDR="off")
    assert server.admin_addresses == []
    assert (await AdminClient(server.addresses[0]).ask("/metrics")).status == 200


async def test_connections_are_listed_sorted_filtered_and_paged(served: Served) -> None:
    server, admin = served
    async with AsyncExitStack() as stack:
        for number in range(7):
            names = [f"T{name}.trade" for name in range(number + 1)]
            await stack.enter_async_context(client_of(server, *names))
        page = await admin.get("/connections?sort=channels&limit=3")
        assert (page["total"], page["matching"], page["silent_workers"]) == (7, 7, [])
        assert [one["channels"] for one in page["connections"]] == [7, 6, 5]
        rest = await admin.get(f"/connections?sort=channels&limit=9&after={page['next']}")
        assert [one["channels"] for one in rest["connections"]] == [4, 3, 2, 1]
        assert rest["next"] is None
        found = await admin.get("/connections?channel=T5.trade&sort=connection")
        assert [one["channels"] for one in found["connections"]] == [6, 7]
        assert (found["matching"], found["total"]) == (2, 7)
        for filtered, expected in [
            ("address=127.0.0.0/8", 7),
            ("address=127.0.0.1", 7),
            ("address=::1", 0),
            ("lagging=false", 7),
            ("lagging=true", 0),
            ("subject=ann", 0),
        ]:
            assert (await admin.get(f"/connections?{filtered}"))["matching"] == expected
        for sort in ("seq", "bytes", "age_seconds", "silent_seconds", "address", "subject"):
            listed = await admin.get(f"/connections?sort={sort}")
            assert len(listed["connections"]) == 7
            by_bytes = [one["bytes"] for one in listed["connections"]]
            assert min(by_bytes) > 100
            assert by_bytes == sorted(by_bytes, reverse=True) or sort != "bytes"
    one = page["connections"][0]
    assert one["address"] == "127.0.0.1"
    assert one["user_agent"].startswith("Python")
    assert one["encoding"] == "plain"
    assert one["bytes"] > 100, "the kernel has counted them"
    await wait_until(lambda: server.connections == 0)


async def test_a_connection_is_shown_with_its_channels_outbox_and_last_events(
    served: Served,
) -> None:
    server, admin = served
    async with connect(url_of(server)) as client:
        await subscribe(client, channels=["BTC.trade"], notices=True)
        await subscribe(client, channels=["ETH.trade", "SOL.*"], every_ms=1000)
        (row,) = (await admin.get("/connections"))["connections"]
        shown = await admin.get(f"/connections/{row['id']}")
        assert {one["name"]: one["every_ms"] for one in shown["subscriptions"]} == {
            "BTC.trade": 0,
            "ETH.trade": 1000,
            "SOL.*": 1000,
        }
        assert shown["outbox"]["policy"] == "evict"
        assert (shown["outbox"]["messages"], shown["outbox"]["messages_limit"]) == (0, 512)
        assert shown["transport"]["bytes_acknowledged"] > 0
        assert shown["transport"]["bytes_received"] > 0
        assert shown["has_notices"] is True
        assert shown["token_expires_at"] is None
        assert any("subscribe x2" in line for line in shown["last_events"])
        assert shown["channels"] == 3


@pytest.mark.parametrize(
    ("target", "status", "complaint"),
    [
        ("/connections/99999", 404, "There is no such connection"),
        ("/connections/2-1", 404, "There is no worker 2"),
        ("/connections/x", 400, "allowed is an id such as"),
        ("/connections/1/2/3", 404, "There is no such path"),
        ("/connections?sort=x", 400, "allowed is queued_bytes"),
        ("/connections/1?x=1", 400, "it takes none"),
        ("/overview?x=1", 400, "it takes none"),
        ("/overview/x", 404, "There is no such path"),
        ("/trace", 400, "exactly one of"),
        ("/trace?connection=99999", 404, "There is no such connection"),
        ("/channels?seconds=9", 400, "up to 5"),
        ("/connections/1/close", 405, "Use POST"),
    ],
)
async def test_what_cannot_be_answered_is_refused_in_a_sentence(
    start_server: StartServer, nats_url: str, target: str, status: int, complaint: str
) -> None:
    server = await start_server(NATS_URL=nats_url)
    answer = await admin_of(server).ask(target)
    assert answer.status == status
    assert complaint in answer.content["error"]


async def test_an_operator_closes_a_connection(served: Served) -> None:
    server, admin = served
    async with client_of(server, "BTC.trade") as client, client_of(server) as other:
        page = await admin.get("/connections?channel=BTC.trade")
        (row,) = page["connections"]
        assert (await admin.ask(f"/connections/{row['id']}", "POST")).status == 405
        answer = await admin.ask(f"/connections/{row['id']}/close", "POST")
        assert (answer.status, answer.content) == (200, {"id": row["id"], "closed": True})
        ending = await ending_of(client)
        assert (ending.code, ending.text) == (4002, "Closed by the operator: you may come back")
        await wait_until(lambda: server.connections == 1)
        assert (await admin.ask(f"/connections/{row['id']}/close", "POST")).status == 404
        await other.send('{"type":"heartbeat"}')
        assert (await receive(other))["type"] == "pong"
    assert server.ledger.traffic.closed["operator"] == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Host": "evil.example:3008"},
        {"Sec_Fetch_Site": "cross-site"},
    ],
)
async def test_a_web_page_can_neither_read_nor_close(
    served: Served, headers: dict[str, str]
) -> None:
    server, admin = served
    async with client_of(server) as client:
        (row,) = (await admin.get("/connections"))["connections"]
        for method, target in [
            ("POST", f"/connections/{row['id']}/close"),
            ("GET", "/connections"),
            ("GET", "/overview"),
            ("GET", f"/trace?connection={row['id']}"),
            ("OPTIONS", f"/connections/{row['id']}/close"),
        ]:
            answer = await admin.ask(target, method, **headers)
            assert answer.status == 403
            assert "access-control-allow-origin" not in answer.headers
        await client.send('{"type":"heartbeat"}')
        assert (await receive(client))["type"] == "pong"
    for path in ("/metrics", "/health", "/ready"):
        assert (await admin.ask(path, **headers)).status == 403
    allowed = await admin.ask("/overview")
    assert allowed.headers["cache-control"] == "no-store"


async def test_no_answer_of_the_admin_port_can_be_read_by_a_web_page(served: Served) -> None:
    server, admin = served
    for method, target in [
        ("GET", "/overview"),
        ("GET", "/metrics"),
        ("GET", "/health"),
        ("GET", "/nowhere"),
        ("POST", "/metrics"),
        ("OPTIONS", "/metrics"),
        ("GET", "http://["),
    ]:
        answer = await admin.ask(target, method)
        assert not [name for name in answer.headers if name.startswith("access-control")], target
    assert (await AdminClient(server.addresses[0]).ask("/health", "OPTIONS")).headers[
        "access-control-allow-methods"
    ]


async def test_elsewhere_than_on_loopback_a_token_is_asked_for(
    start_server: StartServer, nats_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "admin-token"
    file.write_text(TOKEN)
    without = await start_server(NATS_URL=nats_url, WS_ADMIN_ADDR="0.0.0.0:0")
    answer = await AdminClient(f"127.0.0.1:{without.admin_addresses[0].port}").ask("/overview")
    assert answer.status == 403
    assert "WS_ADMIN_TOKEN_FILE" in answer.content["error"]
    variables = {
        "NATS_URL": NOWHERE,
        "WS_ADMIN_ADDR": "0.0.0.0:0",
        "WS_ADMIN_TOKEN_FILE": str(file),
    }
    server = await start_server(**variables)
    address = f"127.0.0.1:{server.admin_addresses[0].port}"
    refused = await AdminClient(address).ask("/overview")
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert (await AdminClient(address, "another-token-0123").ask("/overview")).status == 401
    assert (await AdminClient(address).ask("/metrics")).status == 200, "for Prometheus"
    assert (await AdminClient(address, TOKEN).ask("/overview")).status == 200
    file.write_text(TOKEN + "-new")
    server.reload(lambda: variables)
    assert (await AdminClient(address, TOKEN).ask("/overview")).status == 401
    assert (await AdminClient(address, TOKEN + "-new").ask("/overview")).status == 200
    file.write_text("x")
    server.reload(lambda: variables)
    assert (await AdminClient(address, TOKEN + "-new").ask("/overview")).status == 200
    assert server.ledger.traffic.reloads == {"ok": 1, "failed": 1}


async def test_no_secret_of_a_client_is_shown(
    start_server: StartServer, nats_url: str, tmp_path: Path
) -> None:
    signer = ec_signer()
    keys = write_key_set(tmp_path / "keys.json", signer)
    server = await start_server(NATS_URL=nats_url, WS_JWT_KEYS=str(keys))
    admin = admin_of(server)
    token = signer.token(sub="ann")
    uri = f"{url_of(server)}?access_token={token}&other=SECRET1"
    async with connect(uri, additional_headers={"Cookie": "session=SECRET2"}) as client:
        await subscribe(client, channels=["BTC.trade"])
        (row,) = (await admin.get("/connections?subject=ann"))["connections"]
        assert row["subject"] == "ann"
        async with admin.trace("/trace?user=ann&seconds=2") as lines:
            assert (await anext(lines))["connections"] == 1
            await client.send(json.dumps({"type": "token", "token": token}))
            assert (await receive(client))["type"] == "token_ack"
            async for _ in lines:
                pass
        shown = await admin.get(f"/connections/{row['id']}")
        assert shown["token_expires_at"] > 0
        await admin.get("/channels?seconds=0.1")
        await admin.get("/overview")
    assert "token_ack" in admin.everything
    for secret in (token, token.split(".")[2], "SECRET", "access_token", "session="):
        assert secret not in admin.everything


async def read(client: ClientConnection) -> None:
    async for _ in client:
        pass


@pytest.mark.parametrize("jetstream", [True, False])
async def test_channels_have_subscribers_rates_and_the_newest_event(
    live: Live, *, jetstream: bool
) -> None:
    server, admin, publisher = live
    async with (
        client_of(server, "BTC.trade", "*.trade") as one,
        client_of(server, "BTC.trade") as two,
    ):
        await subscribe(two, channels=["ETH.trade"], every_ms=1000)

        async def publish() -> None:
            while True:
                await publisher.publish("odin.token.BTC.trade", b'{"price":1}')
                await publisher.publish("odin.token.XRP.trade", b"1")
                await publisher.flush()
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            for client in (one, two):
                nursery.start_soon(read, client)
            nursery.start_soon(publish)
            listed = await admin.get("/channels?seconds=0.5")
            nursery.cancel_scope.cancel()
        by_name = {one["name"]: one for one in listed["channels"]}
        assert set(by_name) == {"BTC.trade", "*.trade", "ETH.trade", "XRP.trade"}
        trades, every = by_name["BTC.trade"], by_name["*.trade"]
        assert trades["subscribers"] == 2
        assert trades["events_per_second"] > 2
        assert trades["bytes_per_second"] == pytest.approx(
            11 * trades["events_per_second"], rel=0.05
        )
        assert trades["deliveries_per_second"] == pytest.approx(
            2 * trades["events_per_second"], rel=0.1
        )
        assert every["events_per_second"] > trades["events_per_second"]
        assert (trades["last_offset"] is not None) == jetstream
        assert trades["last_age_seconds"] < 30
        assert by_name["XRP.trade"]["subscribers"] == 0
        assert by_name["ETH.trade"]["at_a_rate"] == 1
        assert by_name["ETH.trade"]["subscribers"] == 1
        (row,) = (await admin.get("/connections?channel=*.trade"))["connections"]
        shown = await admin.get(f"/connections/{row['id']}")
        rates = {one["name"]: one["events_per_second"] for one in shown["subscriptions"]}
        assert rates["BTC.trade"] > 0, "somebody looks at channels"


async def frames_until_the_end(lines: Any) -> tuple[list[Any], Any]:
    """The lines of frames, and the last one."""
    frames: list[Any] = []
    async for line in lines:
        if line["type"] == "ended":
            return frames, line
        frames.append(line)
    raise AssertionError("the trace was cut off")


async def test_a_trace_shows_the_frames_of_a_connection_as_they_go_out(live: Live) -> None:
    server, admin, publisher = live
    async with (
        client_of(server, "BTC.trade") as client,
        client_of(server, "BTC.trade"),
    ):
        rows = (await admin.get("/connections?sort=connection"))["connections"]
        async with admin.trace(f"/trace?connection={rows[0]['id']}&frames=3") as lines:
            assert await anext(lines) == {"type": "started", "connections": 1}
            await client.send('{"type":"heartbeat"}')
            assert json.loads(await client.recv())["type"] == "pong"
            for price in (b"1", b"2", b"3"):
                await publisher.publish("odin.token.BTC.trade", price)
            await publisher.flush()
            frames, end = await frames_until_the_end(lines)
        assert end == {"type": "ended", "reason": "frames", "frames": 3, "dropped": 0}
        contents = [json.loads(one["content"]) for one in frames]
        assert contents[0]["type"] == "pong"
        assert [one["data"] for one in contents[1:]] == [1, 2]
        assert {one["connection"] for one in frames} == {rows[0]["id"]}
        assert frames[0]["opcode"] == "text"
        taps = [one.outbound.socket.tap for one in server.hub.members]
        assert taps == [None, None], "nothing is followed any longer"


async def test_a_trace_of_a_channel_shows_only_its_events_on_all_connections(live: Live) -> None:
    server, admin, publisher = live
    async with (
        client_of(server, "BTC.trade", "ETH.trade"),
        client_of(server, "BTC.*"),
        connect(url_of(server)) as third,
        client_of(server, "ETH.trade"),
    ):
        await subscribe(third, channels=["BTC.trade"], every_ms=100)
        async with admin.trace("/trace?channel=BTC.trade&frames=3") as lines:
            assert (await anext(lines))["connections"] == 3
            await publisher.publish("odin.token.ETH.trade", b"1")
            await publisher.publish("odin.token.BTC.trade", b"2")
            await publisher.flush()
            frames, _ = await frames_until_the_end(lines)
        assert len({one["connection"] for one in frames}) == 3
        assert all("BTC.trade" in one["content"] for one in frames)


async def test_a_trace_ends_by_itself_and_with_its_connection(served: Served) -> None:
    server, admin = served
    async with client_of(server, "BTC.trade") as client:
        (row,) = (await admin.get("/connections"))["connections"]
        async with admin.trace(f"/trace?connection={row['id']}&seconds=0.3") as lines:
            assert (await anext(lines))["type"] == "started"
            _, end = await frames_until_the_end(lines)
            assert end["reason"] == "time"
        async with admin.trace(f"/trace?connection={row['id']}") as lines:
            assert (await anext(lines))["type"] == "started"
            assert (await admin.ask(f"/connections/{row['id']}/close", "POST")).status == 200
            frames, end = await frames_until_the_end(lines)
            assert end["reason"] == "gone"
            assert frames[-1]["content"].startswith("4002 Closed by the operator")
        with pytest.raises(ConnectionClosed):
            await client.recv()


async def test_a_trace_ends_when_nobody_reads_it_any_longer(served: Served) -> None:
    server, admin = served
    async with client_of(server, "BTC.trade"):
        (connection,) = server.hub.members
        for _ in range(5):
            async with admin.trace("/trace?channel=BTC.trade") as lines:
                assert (await anext(lines))["connections"] == 1
                assert connection.outbound.socket.tap is not None
            await wait_until(lambda: connection.outbound.socket.tap is None)


async def test_only_some_traces_run_at_once(served: Served) -> None:
    server, admin = served
    async with client_of(server, "BTC.trade"), AsyncExitStack() as stack:
        for _ in range(4):
            lines = await stack.enter_async_context(admin.trace("/trace?channel=BTC.trade"))
            await anext(lines)
        answer = await admin.ask("/trace?channel=BTC.trade")
        assert answer.status == 429
        assert "end one first" in answer.content["error"]


async def test_a_slow_client_comes_first_and_its_trace_begins_with_a_whole_frame(
    start_server: StartServer, nats_url: str
) -> None:
    server, slow = await start(
        start_server, nats_url, "conflate", WS_OUTBOX_CAPACITY="8", WS_WRITE_DEADLINE="30s"
    )
    admin = admin_of(server)
    async with slow.stream, client_of(server, "BTC.social"):
        await publish_to_one_who_reads(server, nats_url)
        assert (await admin.get("/connections?lagging=true"))["matching"] == 1
        first, second = (await admin.get("/connections"))["connections"]
        assert first["is_lagging"]
        assert first["queued_bytes"] > 0
        assert first["skipped"] > 0
        assert first["state"] == "waiting"
        assert not second["is_lagging"]
        shown = await admin.get(f"/connections/{first['id']}")
        assert any("outbox began to fill" in line for line in shown["last_events"])
        assert shown["outbox"]["bytes"] > 0
        assert shown["outbox"]["policy"] == "conflate"
        assert shown["transport"]["unsent_bytes"] > 0
        async with admin.trace(f"/trace?connection={first['id']}&seconds=5") as lines:
            assert (await anext(lines))["connections"] == 1
            await slow.until_reply('{"type":"heartbeat"}')
            await slow.until_reply('{"type":"heartbeat"}')
            async for line in lines:
                assert line["opcode"] == "text"
                assert line["is_cut"] or json.loads(line["content"])
                if '"pong"' in line["content"]:
                    break
