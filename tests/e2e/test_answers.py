"""Clients that request large replays and do not read, beside one without a request."""

from __future__ import annotations

import pytest
import trio

from tests.e2e.conftest import StartServer, client_of, receive, wait_for_nats
from tests.e2e.nats import nats_client
from tests.e2e.test_slow_clients import SlowClient, connected_client, make_buffers_small
from tests.waiting import wait_until
from trio_odin.server import Server

pytestmark = pytest.mark.e2e

KEPT = 100
PAYLOAD_BYTES = 250_000
TOTAL_BYTES = 50_000_000
HOSTILE = 12
ROUNDS = 20
BURST = 5

SUBSCRIBE = '{"type":"subscribe","channels":["BIG.trade"]}'
RESUME = '{"type":"subscribe","channels":["BIG.trade"],"after":0}'
REPLAY = '{"type":"replay","data":{"since":0}}'


async def publish_large(server: Server, nats_url: str) -> None:
    """Publish at the pace of the subscribed clients."""
    counters = server.ledger
    async with nats_client(nats_url) as nats:
        for number in range(1, KEPT + 1):
            payload = b'{"n":%d,"x":"%b"}' % (number, b"x" * PAYLOAD_BYTES)
            await nats.publish("odin.token.BIG.trade", payload)
            await wait_until(lambda: counters.publications.received == number)  # noqa: B023
            await wait_until(lambda: counters.deliveries.queued == 0)


async def read_all(client: SlowClient) -> None:
    seqs: list[int] = []
    with trio.fail_after(60):
        while len(seqs) < KEPT:
            seqs += [message["seq"] for message in await client.messages()]
    assert seqs == list(range(1, KEPT + 1))


async def hostile_clients(server: Server, nats_url: str, command: str) -> list[SlowClient]:
    """Clients that could get a hundred large events with `command`, which is not sent yet."""
    clients = [await connected_client(server) for _ in range(HOSTILE)]
    async with trio.open_nursery() as nursery:
        if command == REPLAY:
            for client in clients:
                await client.until_reply(SUBSCRIBE)
                nursery.start_soon(read_all, client)
        await publish_large(server, nats_url)
    return clients


@pytest.mark.parametrize(("command", "end"), [(REPLAY, "replay_incomplete"), (RESUME, "resumed")])
async def test_hostile_replay_requests_cost_the_others_nothing(
    command: str, end: str, start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(
        NATS_URL=nats_url, WS_TOTAL_OUTBOX_BYTES=str(TOTAL_BYTES), WS_WRITE_DEADLINE="60s"
    )
    await wait_for_nats(server)
    hostile = await hostile_clients(server, nats_url, command)
    make_buffers_small(server)
    most_waited = 0
    async with client_of(server, "SMALL.trade") as innocent, nats_client(nats_url) as nats:
        for client in hostile:
            await client.say(command)
        await wait_until(lambda: server.snapshot().fan_out.outbox_bytes > 1_000_000)
        for first in range(0, ROUNDS * BURST, BURST):
            for number in range(first, first + BURST):  # more than its socket takes at once
                payload = b'{"n":%d,"x":"%b"}' % (number, b"x" * 100_000)
                await nats.publish("odin.token.SMALL.trade", payload)
            for number in range(first, first + BURST):
                event = await receive(innocent)
                assert (event["seq"], event["data"]["n"]) == (number + 1, number)
                most_waited = max(most_waited, server.snapshot().fan_out.outbox_bytes)
    assert 1_000_000 < most_waited < (HOSTILE + 1) * 2**20 < TOTAL_BYTES
    assert not server.ledger.deliveries.dropped
    for client in hostile:
        *messages, last = await client.until(end)
        seqs = [message["seq"] for message in messages if "seq" in message]
        assert seqs == list(range(1, last["sent"] + 1))
        assert len(seqs) < KEPT
        await client.stream.aclose()
    await wait_until(lambda: server.connections == 0)


async def test_the_buffers_for_clients_that_read_everything_are_bounded(
    start_server: StartServer, nats_url: str
) -> None:
    limit = 20 * PAYLOAD_BYTES
    server = await start_server(
        NATS_URL=nats_url, WS_REPLAY_BYTES=str(limit), WS_OUTBOX_BYTES="100000000"
    )
    await wait_for_nats(server)
    clients = [await connected_client(server) for _ in range(2)]
    async with trio.open_nursery() as nursery:
        for client in clients:
            await client.until_reply(SUBSCRIBE)
            nursery.start_soon(read_all, client)
        await publish_large(server, nats_url)
    snapshot = server.snapshot()
    assert (
        limit - PAYLOAD_BYTES
        < snapshot.fan_out.replay_bytes
        <= snapshot.fan_out.replay_bytes_limit
        == limit
    )
    for client in clients:
        await client.say('{"type":"replay","data":{"from":95,"to":100}}')
        await client.say('{"type":"replay","data":{"from":60,"to":85}}')
        *messages, last = await client.until("replay_incomplete")
        seqs = [message["seq"] for message in messages]
        assert seqs == [*range(95, 101), *range(82, 86)]
        assert (last["sent"], last["total"]) == (4, 26)
    for client in clients:
        await client.stream.aclose()
    await wait_until(lambda: server.connections == 0)
