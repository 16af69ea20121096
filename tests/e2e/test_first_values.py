"""First values, chains and patterns, with a real NATS server and a client library of others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from websockets.trio.client import ClientConnection, connect

from tests.e2e.conftest import StartServer, receive, url_of, wait_for_nats
from tests.e2e.nats import nats_client, running_nats
from tests.waiting import wait_until
from trio_odin.server import Server
from trio_odin.wire.channels import ChannelSet, is_channel, is_pattern, patterns_for

pytestmark = pytest.mark.e2e

WINDOW = {"JS_STREAM_MAX_AGE": "1s"}


async def publish(url: str, *channels: str) -> None:
    async with nats_client(url) as publisher:
        for number, channel in enumerate(channels, start=1):
            await publisher.publish(f"odin.token.{channel}", b"%d" % number)
        await publisher.flush()


async def subscribe(client: ClientConnection, *channels: str, **more: Any) -> list[dict[str, Any]]:
    """The messages from the acknowledgement to the end of snapshot or resume, if there is one."""
    await client.send(json.dumps({"type": "subscribe", "channels": channels, **more}))
    messages = [await receive(client)]
    if "after" in more or "snapshot" in more:
        end = "resumed" if "after" in more else "snapshot_done"
        while messages[-1]["type"] != end:
            messages.append(await receive(client))
    return messages


@asynccontextmanager
async def connected(start_server: StartServer, **variables: str) -> AsyncIterator[Server]:
    server = await start_server(**variables)
    await wait_for_nats(server)
    yield server


@asynccontextmanager
async def client_at(start_server: StartServer, **variables: str) -> AsyncIterator[ClientConnection]:
    """A client of a server that is started for it."""
    async with connected(start_server, **variables) as server, connect(url_of(server)) as client:
        yield client


async def last_offset(url: str, stream: str) -> int:
    async with nats_client(url) as client:
        info = await client.request(f"$JS.API.STREAM.INFO.{stream}", None)
    state: Any = info["state"]
    return int(state["last_seq"])


async def aged_out(url: str) -> None:
    """Wait until the stream of the feed is empty."""
    with trio.fail_after(30):
        while True:
            async with nats_client(url) as client:
                info: Any = await client.request("$JS.API.STREAM.INFO.ODIN_TOKENS", None)
            if info["state"]["messages"] == 0:
                return
            await trio.sleep(0.1)


async def test_a_price_older_than_the_stream_is_known_to_a_server_that_never_saw_it(
    start_server: StartServer, nats_url: str
) -> None:
    async with connected(start_server, NATS_URL=nats_url, **WINDOW):
        await publish(nats_url, "BTC.trade", "ETH.trade", "BTC.trade")
        await aged_out(nats_url)
    async with (
        connected(start_server, NATS_URL=nats_url, **WINDOW) as second,
        connect(url_of(second)) as client,
    ):
        answers = await subscribe(client, "BTC.trade", "ETH.trade", "SOL.trade", snapshot=True)
        assert [
            (one["channel"], one["offset"], one["data"], one["snapshot"]) for one in answers[1:-1]
        ] == [("ETH.trade", 2, 2, True), ("BTC.trade", 3, 3, True)]
        assert answers[-1] == {"type": "snapshot_done", "sent": 2, "total": 2}
        await publish(nats_url, "BTC.trade", "SOL.trade", "BTC.trade")
        live = [await receive(client) for _ in range(3)]
        assert [(one["seq"], one["offset"], one.get("prev")) for one in live] == [
            (3, 4, None),  # what a mirror has proves nothing
            (4, 5, None),
            (5, 6, 4),
        ]
        assert not any("snapshot" in one for one in live)


async def test_the_time_of_a_snapshot_is_that_of_its_publication(
    start_server: StartServer, nats_url: str
) -> None:
    async with connected(start_server, NATS_URL=nats_url) as first, connect(url_of(first)) as live:
        await subscribe(live, "BTC.trade")
        await publish(nats_url, "BTC.trade")
        event = await receive(live)
        await trio.sleep(0.3)
        async with client_at(start_server, NATS_URL=nats_url) as client:
            _, snapshot, _ = await subscribe(client, "BTC.trade", snapshot=True)
    assert snapshot["ts"] == event["ts"]


async def test_a_client_away_for_longer_than_the_stream_knows_which_channels_are_whole(
    start_server: StartServer, nats_url: str
) -> None:
    async with connected(start_server, NATS_URL=nats_url, **WINDOW) as server:
        async with connect(url_of(server)) as client:
            ack, *_ = await subscribe(client, "A.trade", "B.trade", "C.trade", notices=True)
            await publish(nats_url, "A.trade", "B.trade", "C.trade")
            assert [(await receive(client))["offset"] for _ in range(3)] == [1, 2, 3]
        await publish(nats_url, "A.trade", "A.trade", "B.trade")
        await wait_until(lambda: server.ledger.publications.received == 6)
        await trio.sleep(1.5)
        await publish(nats_url, "D.trade")  # the buffer forgets when something comes
        await wait_until(lambda: server.ledger.publications.received == 7)
        for snapshot in (False, True):
            more = {"snapshot": True} if snapshot else {}
            async with connect(url_of(server)) as client:
                _, *events, incomplete, end = await subscribe(
                    client, "A.trade", "B.trade", "C.trade", after=3, epoch=ack["epoch"], **more
                )
            assert incomplete["channels"] == ["A.trade"]
            assert [(one["channel"], one["offset"], one["prev"]) for one in events] == [
                ("A.trade", 5, 4),
                ("B.trade", 6, 2),
            ]
            assert ["snapshot" in one for one in events] == [snapshot, False]
            assert end == {"type": "resumed", "sent": 2, "offset": 7}


async def test_a_stream_that_is_made_anew_takes_its_first_values_with_it(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        async with connected(start_server, NATS_URL=nats.url) as server:
            await publish(nats.url, *["BTC.trade"] * 5)
            await wait_until(lambda: server.ledger.publications.received == 5)
            nats.stop()
            nats.start()  # the memory of the stream, and of its mirror, is gone
            await wait_until(lambda: server.snapshot().nats.reconnects == 1)
            await publish(nats.url, "ETH.trade", "BTC.trade")
            async with connect(url_of(server)) as client:
                await wait_until(lambda: server.ledger.publications.received == 7)
                _, *events, _ = await subscribe(client, ">", snapshot=True)
                assert [(one["channel"], one["offset"]) for one in events] == [
                    ("ETH.trade", 1),
                    ("BTC.trade", 2),
                ]
            with trio.fail_after(10):
                while await last_offset(nats.url, "ODIN_TOKENS_NEWEST") != 2:
                    await trio.sleep(0.05)


async def test_without_jetstream_there_are_the_values_since_the_start(
    start_server: StartServer, nats_url: str
) -> None:
    async with connected(start_server, NATS_URL=nats_url, NATS_MODE="core") as server:
        await publish(nats_url, "BTC.trade", "ETH.trade", "BTC.trade")
        await wait_until(lambda: server.ledger.publications.received == 3)
        async with connect(url_of(server)) as client:
            _, *events, _ = await subscribe(client, "*.trade", snapshot=True)
            assert [(one["channel"], one["data"]) for one in events] == [
                ("ETH.trade", 2),
                ("BTC.trade", 3),
            ]
            assert not {"offset", "prev"} & events[0].keys()


async def test_without_the_mirror_there_are_the_values_of_the_stream(
    start_server: StartServer, nats_url: str
) -> None:
    off = {"WS_SNAPSHOT_STREAM": "false"}
    async with connected(start_server, NATS_URL=nats_url, **off):
        await publish(nats_url, "BTC.trade", "BTC.trade")
    async with (
        connected(start_server, NATS_URL=nats_url, **off) as second,
        connect(url_of(second)) as client,
    ):
        _, event, _ = await subscribe(client, "BTC.trade", snapshot=True)
        assert event["offset"] == 2
        await publish(nats_url, "BTC.trade")
        assert (await receive(client))["prev"] == 2
    async with nats_client(nats_url) as client:
        answer: Any = await client.request("$JS.API.STREAM.NAMES", None)
    assert answer["streams"] == ["ODIN_TOKENS"]


async def test_a_stream_of_others_in_the_place_of_the_mirror_is_left_alone(
    start_server: StartServer, nats_url: str
) -> None:
    config = {"name": "ODIN_TOKENS_NEWEST", "subjects": ["mine.>"]}
    async with nats_client(nats_url) as client:
        await client.request("$JS.API.STREAM.CREATE.ODIN_TOKENS_NEWEST", config)
    async with connected(start_server, NATS_URL=nats_url) as server:
        await publish(nats_url, "BTC.trade")
        await wait_until(lambda: server.ledger.publications.received == 1)
        async with connect(url_of(server)) as client:
            _, event, _ = await subscribe(client, "BTC.trade", snapshot=True)
            assert event["offset"] == 1
    async with nats_client(nats_url) as client:
        info: Any = await client.request("$JS.API.STREAM.INFO.ODIN_TOKENS_NEWEST", None)
    assert info["config"]["subjects"] == ["mine.>"]


async def test_an_event_that_no_client_can_read_is_in_no_chain(
    start_server: StartServer, nats_url: str
) -> None:
    async with (
        connected(start_server, NATS_URL=nats_url) as server,
        connect(url_of(server)) as client,
    ):
        await subscribe(client, "BTC.*")
        async with nats_client(nats_url) as publisher:
            for payload in (b"1", b"not JSON", b"3"):
                await publisher.publish("odin.token.BTC.trade", payload)
            await publisher.flush()
        first, second = await receive(client), await receive(client)
        assert (first["offset"], second["offset"], second["prev"]) == (1, 3, 1)


PARTS = ["A", "B", "BTC", "a-b", "_"]
NAMES = [
    *(f"{symbol}.{event_type}" for symbol in [*PARTS, "*"] for event_type in [*PARTS, "*", ">"]),
    ">",
]


async def test_patterns_match_what_they_match_in_nats(nats_url: str) -> None:
    """A real server delivers each channel to exactly the names that ours gives it to."""
    channels = [f"{symbol}.{event_type}" for symbol in PARTS for event_type in PARTS]
    theirs = await _delivered(nats_url, NAMES, channels)
    assert len(theirs) == 7 * len(channels)
    ours = {(name, one) for name in NAMES for one in channels if one in ChannelSet([name])}
    assert ours == theirs
    looked_up = {(name, one) for one in channels for name in (one, *patterns_for(one))}
    assert looked_up == theirs
    assert all(is_channel(name) != is_pattern(name) for name in NAMES)


async def _delivered(url: str, names: list[str], channels: list[str]) -> set[tuple[str, str]]:
    stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
    async with stream:
        lines = [b'CONNECT {"verbose":false}']
        lines += [f"SUB c.{name} {number}".encode() for number, name in enumerate(names)]
        for channel in channels:
            lines += [f"PUB c.{channel} 0".encode(), b""]
        lines.append(b"PING")
        await stream.send_all(b"\r\n".join(lines) + b"\r\n")
        received = b""
        with trio.fail_after(10):
            while b"PONG\r\n" not in received:
                received += await stream.receive_some(65536)
    found = set()
    for line in received.split(b"\r\n"):
        if line.startswith(b"MSG c."):
            _, subject, number, _ = line.decode().split()
            found.add((names[int(number)], subject.removeprefix("c.")))
    return found
