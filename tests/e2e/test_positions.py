"""A client's conclusions at the moments when a server could easily mislead it.

docs/decisions/0020-where-a-client-stands.md has the table of these tests.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from websockets.trio.client import ClientConnection, connect

from tests.e2e.conftest import StartServer, receive, url_of, wait_for_nats
from tests.e2e.nats import NatsServer, nats_client, running_nats, start_network
from tests.e2e.nats_cluster import running_cluster
from tests.waiting import wait_until
from trio_odin.server import Server

pytestmark = pytest.mark.e2e

FILE_STREAM = {"name": "ODIN_TOKENS", "subjects": ["odin.token.>"], "storage": "file"}


async def publish(url: str, count: int, channel: str = "BTC.trade") -> None:
    async with nats_client(url) as publisher:
        for number in range(count):
            await publisher.publish(f"odin.token.{channel}", b"%d" % number)
        await publisher.flush()


@attrs.define
class Talk:
    """A connection that uses offsets."""

    client: ClientConnection

    async def ask(self, **content: Any) -> dict[str, Any]:
        await self.client.send(json.dumps(content))
        return await receive(self.client)

    async def subscribe(self, *channels: str, **more: Any) -> dict[str, Any]:
        return await self.ask(type="subscribe", channels=channels or ["BTC.trade"], **more)

    async def resume(self, after: int, **more: Any) -> list[dict[str, Any]]:
        """The messages from the acknowledgement to the end of the resume."""
        messages = [await self.subscribe(after=after, **more)]
        while messages[-1]["type"] != "resumed":
            messages.append(await receive(self.client))
        return messages

    async def position(self) -> int | None:
        pong = await self.ask(type="heartbeat", nats=True)
        offset: int | None = pong["offset"]
        return offset

    async def events(self, count: int) -> list[int]:
        """The offsets of the next messages, which must be events."""
        messages = [await receive(self.client) for _ in range(count)]
        return [message["offset"] for message in messages if message["type"] == "price:update"]


@asynccontextmanager
async def talk_to(server: Server) -> AsyncIterator[Talk]:
    async with connect(url_of(server)) as client:
        yield Talk(client)


async def test_a_resume_right_after_a_restart_waits_for_the_backfill(
    start_server: StartServer, nats_url: str
) -> None:
    """Clients are back within a tenth of a second, long before NATS is reached."""
    first = await start_server(NATS_URL=nats_url)
    await wait_for_nats(first)
    async with talk_to(first) as talk:
        epoch = (await talk.subscribe(notices=True))["epoch"]
    await publish(nats_url, 60)
    await publish(nats_url, 60, "ETH.trade")
    second = await start_server(NATS_URL=nats_url)
    async with talk_to(second) as talk:
        assert not second.snapshot().nats.is_connected, "it is as early as can be"
        ack, *events, end = await talk.resume(0, epoch=epoch)
    assert ack["epoch"] == epoch
    assert [event["offset"] for event in events] == list(range(1, 61))
    assert end == {"type": "resumed", "sent": 60, "offset": 120}


async def test_a_server_without_nats_answers_after_a_while_without_claims(
    start_server: StartServer, tmp_path: Path
) -> None:
    nats = NatsServer(tmp_path)
    server = await start_server(NATS_URL=nats.url)
    async with talk_to(server) as talk:
        began = trio.current_time()
        ack, incomplete, end = await talk.resume(7, epoch="e")
        assert trio.current_time() - began < 8
        assert ack["epoch"] is None
        assert (incomplete["type"], end["offset"]) == ("resume_incomplete", None)
        assert await talk.position() is None


async def test_a_loss_before_nats_was_reached_is_declared_first(
    start_server: StartServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    with running_nats(tmp_path) as nats:
        network = await start_network(nursery, nats.port)
        network.is_down = True
        server = await start_server(NATS_URL=network.url)
        async with nats_client(nats.url) as publisher:
            await publisher.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", FILE_STREAM)
        async with talk_to(server) as talk:
            ack = await talk.subscribe(notices=True)
            assert (ack["epoch"], ack["offset"]) == (None, None)
            await publish(nats.url, 50)
            network.is_down = False
            await wait_for_nats(server)
            gap = await receive(talk.client)
            assert (gap["type"], gap["reason"], gap["missed"]) == ("gap", "start", None)
            assert (gap["from"], gap["to"]) == (None, 50)
            assert await talk.position() == 50
            await publish(nats.url, 2)
            assert await talk.events(2) == [51, 52]


async def test_offset_and_epoch_change_together_when_a_stream_is_remade(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        async with talk_to(server) as talk:
            before = await talk.subscribe(notices=True)
            await publish(nats.url, 100)
            assert len(await talk.events(100)) == 100
            nats.stop()  # the stream is in memory
            nats.start()
            gap = await receive(talk.client)
            assert gap["reason"] == "stream"
            assert await talk.position() == 0
            again = await talk.subscribe()
            assert (again["epoch"], again["offset"]) == (gap["epoch"], 0)
            assert gap["epoch"] != before["epoch"]
            await publish(nats.url, 60)
            assert await talk.events(60) == list(range(1, 61))
        await publish(nats.url, 80)
        await wait_until(lambda: server.ledger.publications.received == 240)
        async with talk_to(server) as talk:
            await trio.sleep(0.1)  # from the bridge to the hub
            _, *events, end = await talk.resume(60, epoch=gap["epoch"])
            assert [event["offset"] for event in events] == list(range(61, 141))
            assert end["offset"] == 140
        async with talk_to(server) as talk:
            _, *events, incomplete, _ = await talk.resume(0, epoch=before["epoch"])
            assert (events, incomplete["type"]) == ([], "resume_incomplete")


async def test_the_gap_comes_before_the_first_event_of_another_stream(
    start_server: StartServer, tmp_path: Path
) -> None:
    """This also holds for a client that has only sent `after`."""
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        async with talk_to(server) as talk:
            await talk.resume(0)
            await publish(nats.url, 5)
            assert len(await talk.events(5)) == 5
            nats.stop()
            nats.start()
            async with nats_client(nats.url) as publisher:
                await publisher.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", FILE_STREAM)
            await publish(nats.url, 10)
            gap = await receive(talk.client)
            assert (gap["type"], gap["reason"]) == ("gap", "stream")
            assert await talk.events(10) == list(range(1, 11))


async def test_a_cluster_stream_that_comes_back_empty_is_another_one(
    start_server: StartServer, tmp_path: Path
) -> None:
    """With one replica in memory it is emptied, and keeps the date of its creation."""
    stream = FILE_STREAM | {"storage": "memory", "num_replicas": 1}
    async with running_cluster(tmp_path) as cluster:
        made = await cluster.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", stream)
        assert "error" not in made
        home = await cluster.stream_leader("ODIN_TOKENS")
        other = next(node for node in cluster.nodes if node is not home)
        server = await start_server(NATS_URL=other.url)
        await wait_for_nats(server)
        async with talk_to(server) as held:
            ack = await held.subscribe(notices=True)
            # Where the stream is: another node may not know yet that somebody wants it.
            await publish(home.url, 20)
            assert len(await held.events(20)) == 20
            home.stop()
            home.start()
            await cluster.wait_ready()
            # Until the stream is there again, nothing is stored, and a question gets an error.
            assert await cluster.stream_leader("ODIN_TOKENS") is home
            # It grows past the old position before the server looks at it.
            created = await cluster.request("$JS.API.STREAM.INFO.ODIN_TOKENS")
            assert created["created"] == made["created"], "or this shows nothing"
            await publish(home.url, 50)
            gap = await receive(held.client)
            assert (gap["type"], gap["reason"]) == ("gap", "stream")
            assert gap["epoch"] != ack["epoch"]
            assert await held.events(50) == list(range(1, 51))
        async with talk_to(server) as away:
            _, incomplete, end = await away.resume(20, epoch=ack["epoch"])
            assert (incomplete["type"], end["offset"]) == ("resume_incomplete", 50)
        another = await start_server(NATS_URL=other.url)
        await wait_for_nats(another)
        async with talk_to(another) as talk:
            assert (await talk.subscribe(notices=True))["epoch"] == gap["epoch"]


async def test_a_resume_at_the_end_of_an_expired_stream_is_complete(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        first = await start_server(NATS_URL=nats.url, JS_STREAM_MAX_AGE="1s")
        await wait_for_nats(first)
        async with talk_to(first) as talk:
            _, end = await talk.resume(0)
            assert end == {"type": "resumed", "sent": 0, "offset": 0}, "an empty stream"
        await publish(nats.url, 5)
        async with nats_client(nats.url) as client:
            messages = 5
            while messages:
                await trio.sleep(0.1)
                info: Any = await client.request("$JS.API.STREAM.INFO.ODIN_TOKENS", None)
                messages = info["state"]["messages"]
        second = await start_server(NATS_URL=nats.url)
        await wait_for_nats(second)
        async with talk_to(second) as talk:
            assert (await talk.resume(5))[1:] == [{"type": "resumed", "sent": 0, "offset": 5}]


async def test_the_backfill_may_end_with_a_foreign_message(
    start_server: StartServer, tmp_path: Path
) -> None:
    shared = {"name": "ODIN_TOKENS", "subjects": ["odin.>"]}
    with running_nats(tmp_path) as nats:
        async with nats_client(nats.url) as publisher:
            await publisher.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", shared)
            await publisher.publish("odin.token.BTC.trade", b"1")
            await publisher.publish("odin.user.x", b"1")
            await publisher.flush()
        server = await start_server(NATS_URL=nats.url)
        async with talk_to(server) as talk:
            _, event, end = await talk.resume(0)
            assert (event["offset"], end["offset"]) == (1, 2)


async def test_a_client_that_is_ahead_of_a_server_gets_nothing_again(
    start_server: StartServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    with running_nats(tmp_path) as nats:
        network = await start_network(nursery, nats.port)
        ahead = await start_server(NATS_URL=nats.url)
        behind = await start_server(NATS_URL=network.url)
        await wait_for_nats(ahead)
        await wait_for_nats(behind)
        network.is_down = True
        network.cut()
        await wait_until(lambda: not behind.snapshot().nats.is_connected)
        await publish(nats.url, 20)
        async with talk_to(ahead) as talk:
            nothing = {"type": "subscribe", "channels": [], "notices": True}
            while (ack := await talk.ask(**nothing))["offset"] < 20:
                await trio.sleep(0.02)
        async with talk_to(behind) as talk:
            assert (await talk.resume(20, epoch=ack["epoch"]))[1:] == [
                {"type": "resumed", "sent": 0, "offset": 20}
            ]
            network.is_down = False
            await wait_for_nats(behind)
            await publish(nats.url, 3)
            assert await talk.events(3) == [21, 22, 23]


async def test_an_event_has_one_time_from_every_server_and_in_every_resend(
    start_server: StartServer, nats_url: str
) -> None:
    first = await start_server(NATS_URL=nats_url)
    await wait_for_nats(first)
    async with talk_to(first) as talk:
        await talk.subscribe()
        await publish(nats_url, 1)
        live = (await receive(talk.client))["ts"]
    second = await start_server(NATS_URL=nats_url)
    for server in (first, second):
        async with talk_to(server) as talk:
            _, event, _ = await talk.resume(0)
            assert event["ts"] == live


async def test_a_stream_remade_during_consumer_creation_is_noticed_at_once(
    start_server: StartServer, nats_url: str, nursery: trio.Nursery
) -> None:
    """It happens between the request for the stream and the one for its consumer."""
    network = await start_network(nursery, int(nats_url.rsplit(":", 1)[1]))
    async with nats_client(nats_url) as operator:
        await operator.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", FILE_STREAM)
        server = await start_server(NATS_URL=network.url)
        await wait_for_nats(server)
        async with talk_to(server) as talk:
            ack = await talk.subscribe(notices=True)
            await publish(nats_url, 3)
            assert await talk.events(3) == [1, 2, 3]
            made_anew = 0

            async def make_anew(chunk: bytes) -> None:
                nonlocal made_anew
                if b"$JS.API.CONSUMER.CREATE" in chunk and not made_anew:
                    made_anew += 1
                    await operator.request("$JS.API.STREAM.DELETE.ODIN_TOKENS", None)
                    await operator.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", FILE_STREAM)
                    await publish(nats_url, 5)

            network.before = make_anew
            network.cut()
            gap = await receive(talk.client)
            assert (gap["type"], gap.get("reason")) == ("gap", "stream")
            assert gap["epoch"] != ack["epoch"]
            assert made_anew
            assert await talk.events(5) == [1, 2, 3, 4, 5]


async def test_events_dropped_before_the_backfill_make_a_resume_incomplete(
    start_server: StartServer, nats_url: str, nursery: trio.Nursery
) -> None:
    """It drops them between the request for the stream and the one for its consumer."""
    network = await start_network(nursery, int(nats_url.rsplit(":", 1)[1]))
    async with nats_client(nats_url) as operator:
        await operator.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", FILE_STREAM)
        await publish(nats_url, 60)
        purged = 0

        async def purge(chunk: bytes) -> None:
            nonlocal purged
            if b"$JS.API.CONSUMER.CREATE" in chunk and not purged:
                answer: Any = await operator.request(
                    "$JS.API.STREAM.PURGE.ODIN_TOKENS", {"seq": 31}
                )
                purged = answer["purged"]

        network.before = purge
        server = await start_server(NATS_URL=network.url)
        await wait_for_nats(server)
        async with talk_to(server) as talk:
            _, *events, incomplete, end = await talk.resume(10)
        assert purged == 30
        assert [event["offset"] for event in events] == list(range(31, 61))
        assert (incomplete["type"], end["offset"]) == ("resume_incomplete", 60)
        async with talk_to(server) as talk:
            _, *events, end = await talk.resume(30)
            assert end == {"type": "resumed", "sent": 30, "offset": 60}
            assert [event["offset"] for event in events] == list(range(31, 61))
