"""A client that stops reading, over real sockets with small buffers, beside one that reads."""

from __future__ import annotations

import json
import socket
from collections import Counter
from typing import Any

import pytest
import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

from tests.connection.client import LossRule
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
from trio_odin.lab.fleet.dialects import masked_frame
from trio_odin.server import Server

pytestmark = pytest.mark.e2e

CHANNELS = [f"{symbol}.trade" for symbol in ("BTC", "ETH", "ODIN", "SOL")]
EVENTS = 400
PAYLOAD_BYTES = 4000
BUFFER_BYTES = 4096


class SlowClient:
    """A client that reads only on request."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._wire = Connection(ConnectionType.CLIENT)
        self._text = ""

    async def messages(self) -> list[dict[str, Any]]:
        """The messages of one read; raises EndOfChannel at the end of the connection."""
        data = await self.stream.receive_some()
        self._wire.receive_data(data or None)
        messages = []
        for event in self._wire.events():
            if isinstance(event, CloseConnection):
                raise trio.EndOfChannel
            if isinstance(event, TextMessage):
                self._text += event.data
                if event.message_finished:
                    messages.append(json.loads(self._text))
                    self._text = ""
        return messages

    async def say(self, command: str) -> None:
        await self.stream.send_all(masked_frame(0x81, command.encode()))

    async def until(self, kind: str, seconds: float = 20) -> list[dict[str, Any]]:
        """Read up to a message of this type; returns it and the messages before it."""
        messages: list[dict[str, Any]] = []
        with trio.fail_after(seconds):
            while not (messages and messages[-1]["type"] == kind):
                messages += await self.messages()
        return messages

    async def until_reply(self, command: str) -> list[dict[str, Any]]:
        """Ask for a reply, and read up to it; returns the events before it."""
        await self.say(command)
        messages: list[dict[str, Any]] = []
        with trio.fail_after(20):
            while True:
                for message in await self.messages():
                    if message["type"] != "price:update":
                        return messages
                    messages.append(message)


def make_buffers_small(server: Server) -> None:
    """Make the server's buffers small for later connections."""
    server.port.queues[0][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)


async def connected_client(server: Server, *, receive_bytes: int = 0) -> SlowClient:
    """A client without a subscription; with 0 the kernel chooses its buffer."""
    ours = trio.socket.socket()
    if receive_bytes:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    await ours.connect(("127.0.0.1", server.addresses[0].port))
    client = SlowClient(trio.SocketStream(ours))
    await client.stream.send_all(UPGRADE + b"\r\n")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await client.stream.receive_some(1)
    return client


async def slow_client(server: Server) -> SlowClient:
    """A client subscribed to all channels, with the smallest buffers."""
    make_buffers_small(server)
    client = await connected_client(server, receive_bytes=BUFFER_BYTES)
    subscribe = json.dumps({"type": "subscribe", "channels": CHANNELS})
    assert await client.until_reply(subscribe) == []
    return client


async def publish_to_one_who_reads(server: Server, nats_url: str) -> None:
    """Publish to all channels in turn; a fast client gets every event."""
    async with client_of(server, *CHANNELS) as good, nats_client(nats_url) as nats:
        for number in range(EVENTS):
            payload = b'{"n":%d,"x":"%b"}' % (number, b"x" * PAYLOAD_BYTES)
            await nats.publish(f"odin.token.{CHANNELS[number % 4]}", payload)
            message = await receive(good)
            assert (message["seq"], message["data"]["n"]) == (number + 1, number)
            assert "skipped" not in message


async def start(
    start_server: StartServer, nats_url: str, policy: str, **variables: str
) -> tuple[Server, SlowClient]:
    server = await start_server(NATS_URL=nats_url, WS_SLOW_POLICY=policy, **variables)
    await wait_for_nats(server)
    return server, await slow_client(server)


def check_the_end(server: Server) -> None:
    check_balance(server)
    assert server.snapshot().fan_out.outbox_bytes == 0
    assert server.ledger.deliveries.queued == 0


async def test_a_client_that_does_not_read_is_evicted_at_a_full_outbox(
    start_server: StartServer, nats_url: str
) -> None:
    server, slow = await start(start_server, nats_url, "evict", WS_OUTBOX_CAPACITY="8")
    async with slow.stream:
        await publish_to_one_who_reads(server, nats_url)
        assert server.ledger.traffic.closed["outbox_full"] == 1
        await wait_until(lambda: server.connections == 0)
        check_the_end(server)


async def test_conflation_keeps_the_newest_event_of_each_channel(
    start_server: StartServer, nats_url: str
) -> None:
    server, slow = await start(
        start_server, nats_url, "conflate", WS_OUTBOX_CAPACITY="8", WS_WRITE_DEADLINE="30s"
    )
    async with slow.stream:
        await publish_to_one_who_reads(server, nats_url)
        assert 4 < server.ledger.deliveries.queued < 40
        messages = await slow.until_reply('{"type":"heartbeat"}')
        # First the events in flight, then the newest ones: the last event of each channel came.
        assert [e["data"]["n"] for e in messages[-4:]] == list(range(EVENTS - 4, EVENTS))
        came: Counter[str] = Counter()
        for message in messages:
            came[message["channel"]] += 1 + message.get("skipped", 0)
        assert came == dict.fromkeys(CHANNELS, EVENTS // 4)
        skipped = sum(e.get("skipped", 0) for e in messages)
        assert skipped == server.ledger.deliveries.conflated == EVENTS - len(messages) > 100
        rule = LossRule()
        assert {rule.lost(message) for message in messages} == {0}, "no gap is a loss"
        # The skipped events are kept for replay, unchanged.
        missed = min(set(range(EVENTS - 50, EVENTS + 1)) - {e["seq"] for e in messages})
        replay = f'{{"type":"replay","data":{{"from":{missed},"to":{missed}}}}}'
        await slow.stream.send_all(masked_frame(0x81, replay.encode()))
        (again,) = await slow.until_reply('{"type":"heartbeat"}')
        assert (again["seq"], again["data"]["n"]) == (missed, missed - 1)
        await wait_until(lambda: server.ledger.deliveries.queued == 0)
        check_the_end(server)


async def test_a_client_that_may_miss_events_stays_without_reading(
    start_server: StartServer, nats_url: str
) -> None:
    server, slow = await start(
        start_server, nats_url, "drop", WS_OUTBOX_CAPACITY="8", WS_WRITE_DEADLINE="30s"
    )
    async with slow.stream:
        await publish_to_one_who_reads(server, nats_url)
        messages = await slow.until_reply('{"type":"heartbeat"}')
        dropped = server.ledger.deliveries.dropped.total()
        assert dropped == EVENTS - len(messages) > 100
        assert [e["data"]["n"] for e in messages] == [e["seq"] - 1 for e in messages]
        assert server.ledger.traffic.closed["outbox_full"] == 0
        check_the_end(server)


@pytest.mark.parametrize("policy", ["evict", "conflate", "drop"])
async def test_a_write_past_its_deadline_evicts_under_every_policy(
    policy: str, start_server: StartServer, nats_url: str
) -> None:
    server, slow = await start(
        start_server, nats_url, policy, WS_WRITE_DEADLINE="300ms", WS_OUTBOX_BYTES="10000000"
    )
    async with slow.stream:
        await publish_to_one_who_reads(server, nats_url)
        await wait_until(lambda: server.ledger.traffic.closed["write_deadline"] == 1)
        await wait_until(lambda: server.connections == 0)
        check_the_end(server)


async def test_the_waiting_bytes_of_all_clients_are_bounded(
    start_server: StartServer, nats_url: str
) -> None:
    limit = 20 * PAYLOAD_BYTES
    server, slow = await start(
        start_server,
        nats_url,
        "drop",
        WS_TOTAL_OUTBOX_BYTES=str(limit),
        WS_WRITE_DEADLINE="30s",
    )
    async with slow.stream:
        await publish_to_one_who_reads(server, nats_url)
        snapshot = server.snapshot()
        assert (
            limit // 2
            < snapshot.fan_out.outbox_bytes
            <= snapshot.fan_out.outbox_bytes_limit
            == limit
        )
    await wait_until(lambda: server.connections == 0)
    check_the_end(server)
