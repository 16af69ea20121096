from __future__ import annotations

import random
from collections import Counter

import pytest
import trio
import trio.testing

from tests.e2e.conftest import (
    StartServer,
    check_balance,
    client_of,
    receive,
    wait_for_nats,
)
from tests.e2e.nats import nats_client
from tests.listener.test_listener import UPGRADE
from tests.waiting import wait_until
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.frames import close_frame

pytestmark = pytest.mark.e2e

CHANNELS = [
    f"{symbol}.{event}"
    for symbol in ("BTC", "ETH", "ODIN", "SOL", "DOGE")
    for event in ("trade", "liquidity", "metadata", "social")
]


async def test_a_hundred_clients_get_exactly_their_subscriptions(
    start_server: StartServer, nats_url: str
) -> None:
    """The plan's integration test."""
    choose = random.Random(1)
    wanted = [choose.sample(CHANNELS, choose.randint(1, len(CHANNELS))) for _ in range(100)]
    published = Counter({channel: choose.randint(0, 6) for channel in CHANNELS})
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    everyone_is_subscribed = trio.Event()
    subscribed = 0

    async def be_a_client(channels: list[str]) -> None:
        nonlocal subscribed
        async with client_of(server, *channels) as client:
            subscribed += 1
            if subscribed == len(wanted):
                everyone_is_subscribed.set()
            expected = sum(published[channel] for channel in channels)
            messages = [await receive(client) for _ in range(expected)]
            got = Counter((e["channel"], e["data"]["n"]) for e in messages)
            assert got == {(c, n): 1 for c in channels for n in range(published[c])}
            assert [e["seq"] for e in messages] == list(range(1, expected + 1))
            assert [e["offset"] for e in messages] == sorted(e["offset"] for e in messages)
            # Nothing else comes: the next answer is the heartbeat's.
            await client.send('{"type":"heartbeat"}')
            assert (await receive(client))["type"] == "pong"

    async with trio.open_nursery() as clients, nats_client(nats_url) as nats:
        for channels in wanted:
            clients.start_soon(be_a_client, channels)
        with trio.fail_after(20):
            await everyone_is_subscribed.wait()
        everything = [(c, n) for c in CHANNELS for n in range(published[c])]
        choose.shuffle(everything)
        for channel, number in everything:
            await nats.publish(f"odin.token.{channel}", b'{"n":%d}' % number)
        await nats.flush()
    matched = sum(published[channel] for channels in wanted for channel in channels)
    assert server.ledger.deliveries.written == server.ledger.deliveries.matched == matched
    assert server.ledger.publications.received == published.total()
    check_balance(server)


async def test_without_filtering_every_connection_gets_everything(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url, ENABLE_SUBSCRIPTION_FILTERING="false")
    await wait_for_nats(server)
    async with client_of(server) as client, nats_client(nats_url) as nats:
        await wait_until(lambda: server.connections == 1)
        await nats.publish("odin.token.SOL.social", b"{}")
        assert (await receive(client))["channel"] == "SOL.social"


async def test_order_holds_across_commands_events_and_replay(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    async with client_of(server, "BTC.trade") as client, nats_client(nats_url) as nats:
        for number in range(150):
            await nats.publish("odin.token.BTC.trade", b'{"n":%d}' % number)
        originals = [await receive(client) for _ in range(150)]
        await client.send('{"type":"replay","data":{"since":140},"id":"r"}')
        assert [await receive(client) for _ in range(10)] == originals[140:]
        assert await receive(client) == {"type": "replay_done", "sent": 10, "total": 10, "id": "r"}
        await client.send('{"type":"replay","data":{"from":41,"to":60},"id":"r"}')
        assert [await receive(client) for _ in range(10)] == originals[50:60]
        incomplete = await receive(client)
        assert (incomplete["type"], incomplete["sent"], incomplete["total"]) == (
            "replay_incomplete",
            10,
            20,
        )
        assert (await receive(client))["type"] == "replay_done"
        assert incomplete["id"] == "r"


async def test_a_payload_that_is_not_json_is_counted_and_not_sent(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    async with client_of(server, "BTC.trade") as client, nats_client(nats_url) as nats:
        for payload in (b"nonsense", b'"\xff"', b"", b'{"good":1}'):
            await nats.publish("odin.token.BTC.trade", payload)
        message = await receive(client)
        assert (message["seq"], message["data"]) == (1, {"good": 1})
    assert server.ledger.publications.invalid.total() == 3
    check_balance(server)


async def test_the_shape_of_an_envelope_is_the_compatible_one(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    async with client_of(server, "BTC.trade") as client, nats_client(nats_url) as nats:
        await nats.publish("odin.token.BTC.trade.more.parts", b'{"price": 1.50}')
        with trio.fail_after(5):
            text = str(await client.recv())
    ts = text.split('"ts":')[1].split(",", maxsplit=1)[0]
    assert len(ts) == 13
    assert text == (
        f'{{"seq":1,"ts":{ts},"type":"price:update","priority":1,'
        '"data":{"price": 1.50},"channel":"BTC.trade","offset":1}'
    )


async def test_nothing_is_sent_before_the_handshake_is_complete(start_server: StartServer) -> None:
    """Neither an event for everyone nor a ping: the first bytes are the answer to the upgrade."""
    server = await start_server(WS_PING_INTERVAL="1ms", ENABLE_SUBSCRIPTION_FILTERING="false")

    async def connect_and_leave() -> None:
        async with client_of(server) as client:
            await client.send('{"type":"heartbeat"}')
            while (await receive(client))["type"] != "pong":
                pass

    async with trio.open_nursery() as clients:
        for _ in range(100):
            clients.start_soon(connect_and_leave)
            server.ledger.publications.received += 1  # as the bridge counts it
            server.hub.publish(NatsMessage("odin.token.BTC.trade", b"1", None, trio.current_time()))
    assert server.ledger.traffic.accepted == 100


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x81\x01x", 1002),  # not masked
        (b"\x83\x80\x00\x00\x00\x00", 1002),  # reserved opcode
        (b"\xc1\x80\x00\x00\x00\x00", 1002),  # reserved bit
        (b"\x88\x81\x00\x00\x00\x00a", 1002),  # close with one byte
        (b"\x89\xfe\x00\x7e\x00\x00\x00\x00", 1002),  # ping of 126 bytes
        (b"\x81\x81\x00\x00\x00\x00\xff", 1007),  # not UTF-8
    ],
)
async def test_frames_that_break_the_rules_are_closed_with_their_code(
    frame: bytes, code: int, start_server: StartServer
) -> None:
    server = await start_server()
    stream = await trio.open_tcp_stream("127.0.0.1", server.addresses[0].port)
    async with stream:
        await stream.send_all(UPGRADE + b"\r\n")
        assert b" 101 " in await stream.receive_some()
        await stream.send_all(frame)
        with trio.fail_after(5):
            assert await stream.receive_some() == close_frame(code, "")
            assert await stream.receive_some() == b""
    await wait_until(lambda: server.ledger.traffic.closed == {"protocol_error": 1})
