"""The stream of the server: fed by others, changed, stalled, deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.conftest import (
    StartServer,
    check_balance,
    client_of,
    receive,
    wait_for_nats,
)
from tests.e2e.nats import NatsClient, nats_client, running_nats
from tests.waiting import wait_until
from trio_odin.ledger.reasons import GapReason
from trio_odin.server import Server

pytestmark = pytest.mark.e2e

OURS = "ODIN_TOKENS"

# Without the mirror, there are no streams but those of the operator and of the feed.
_ALONE = {"WS_SNAPSHOT_STREAM": "false"}


def trouble_of(server: Server) -> str:
    trouble = server.snapshot().nats.trouble
    return trouble.sentence if trouble else ""


@asynccontextmanager
async def operator(folder: Path) -> AsyncIterator[tuple[str, NatsClient]]:
    """A nats-server, and a client with all rights there."""
    with running_nats(folder) as nats:
        async with nats_client(nats.url) as client:
            yield nats.url, client


async def ask(client: NatsClient, question: str, content: object = None) -> dict[str, Any]:
    answer = await client.request(f"$JS.API.{question}", content)
    assert "error" not in answer, answer
    return answer


async def make(client: NatsClient, name: str, **config: Any) -> None:
    await ask(client, f"STREAM.CREATE.{name}", {"name": name, "storage": "memory", **config})


async def config_of(client: NatsClient, name: str) -> dict[str, Any]:
    config: dict[str, Any] = (await ask(client, f"STREAM.INFO.{name}"))["config"]
    return config


# --- fed by another stream


@pytest.mark.parametrize("feed", ["sources", "mirror"])
async def test_a_stream_fed_by_others_is_consumed_unchanged(
    start_server: StartServer, tmp_path: Path, feed: str
) -> None:
    """With our subject in it, too, every event would come twice."""
    async with operator(tmp_path) as (url, client):
        await make(client, "EDGE", subjects=["odin.token.>"])
        await make(
            client, "HUB", **{feed: {"name": "EDGE"} if feed == "mirror" else [{"name": "EDGE"}]}
        )
        before = await config_of(client, "HUB")
        server = await start_server(NATS_URL=url, JS_STREAM_NAME="HUB", NATS_MODE="jetstream")
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as subscriber:
            for number in range(20):
                await client.publish("odin.token.BTC.trade", b"%d" % number)
            assert [(await receive(subscriber))["data"] for _ in range(20)] == list(range(20))
            await trio.sleep(0.5)
        assert server.ledger.publications.received == 20
        assert await config_of(client, "HUB") == before
        check_balance(server)


async def test_a_stream_that_maps_other_subjects_to_ours_is_consumed(
    start_server: StartServer, tmp_path: Path
) -> None:
    async with operator(tmp_path) as (url, client):
        transform = {"src": "market.>", "dest": "odin.token.>"}
        await make(client, OURS, subjects=["market.>"], subject_transform=transform)
        before = await config_of(client, OURS)
        server = await start_server(NATS_URL=url, NATS_MODE="jetstream")
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as subscriber:
            await client.publish("market.BTC.trade", b"1")
            assert (await receive(subscriber))["data"] == 1
        assert await config_of(client, OURS) == before


# --- changed at run time


async def test_our_subject_removed_from_our_stream_is_put_back(
    start_server: StartServer, tmp_path: Path
) -> None:
    async with operator(tmp_path) as (url, client):
        server = await start_server(NATS_URL=url)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as subscriber:
            config = await config_of(client, OURS)
            await ask(client, f"STREAM.UPDATE.{OURS}", {**config, "subjects": ["odin.user.>"]})
            await wait_until(lambda: server.snapshot().nats.reconnects == 1, seconds=10)
            changed = await config_of(client, OURS)
            assert changed["subjects"] == ["odin.user.>", "odin.token.>"]
            assert {**changed, "subjects": 0} == {**config, "subjects": 0}
            await client.publish("odin.token.BTC.trade", b"1")
            assert (await receive(subscriber))["data"] == 1


async def test_a_foreign_stream_without_our_subject_is_reported_and_awaited(
    start_server: StartServer, tmp_path: Path
) -> None:
    async with operator(tmp_path) as (url, client):
        await make(client, "ALL", subjects=["odin.>"])
        server = await start_server(NATS_URL=url, **_ALONE)
        await wait_for_nats(server)
        config = await config_of(client, "ALL")
        await ask(client, "STREAM.UPDATE.ALL", {**config, "subjects": ["odin.user.>"]})
        await wait_until(lambda: not server.snapshot().nats.is_connected, seconds=10)
        await wait_until(lambda: "has not made, is gone" in trouble_of(server))
        assert "make it again, or restart this server" in trouble_of(server)
        assert (await ask(client, "STREAM.NAMES", {}))["streams"] == ["ALL"]
        await ask(client, "STREAM.UPDATE.ALL", config)
        await wait_for_nats(server)


async def test_a_stream_that_stores_our_events_elsewhere_is_reported(
    start_server: StartServer, tmp_path: Path
) -> None:
    transform = {"src": "odin.token.>", "dest": "elsewhere.>"}
    async with operator(tmp_path) as (url, client):
        await make(client, OURS, subjects=["odin.token.>"], subject_transform=transform)
        server = await start_server(NATS_URL=url, NATS_MODE="jetstream")
        await wait_until(lambda: "under other subjects" in trouble_of(server))
        config = await config_of(client, OURS)
        assert config.pop("subject_transform") == transform
        await ask(client, f"STREAM.UPDATE.{OURS}", config)
        await wait_for_nats(server)
        await ask(client, f"STREAM.UPDATE.{OURS}", {**config, "subject_transform": transform})
        await wait_until(lambda: not server.snapshot().nats.is_connected, seconds=10)
        await wait_until(lambda: "under other subjects" in trouble_of(server))


async def test_a_sealed_stream_is_reported_and_left_alone(
    start_server: StartServer, tmp_path: Path
) -> None:
    async with operator(tmp_path) as (url, client):
        server = await start_server(NATS_URL=url, NATS_MODE="jetstream")
        await wait_for_nats(server)
        config = await config_of(client, OURS)
        await ask(client, f"STREAM.UPDATE.{OURS}", {**config, "sealed": True})
        await wait_until(lambda: not server.snapshot().nats.is_connected, seconds=10)
        await wait_until(lambda: "is sealed: it takes no further" in trouble_of(server))
        await ask(client, f"STREAM.DELETE.{OURS}")
        await wait_for_nats(server)


# --- it delivers nothing


async def test_a_consumer_that_delivers_nothing_is_abandoned(
    start_server: StartServer, tmp_path: Path
) -> None:
    """An operator pauses it, for instance: its heartbeats continue."""
    async with operator(tmp_path) as (url, client):
        server = await start_server(NATS_URL=url, WS_SNAPSHOT_CHANNELS="0")
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as subscriber:
            (name,) = (await ask(client, f"CONSUMER.NAMES.{OURS}", {}))["consumers"]
            until = {"pause_until": "2999-01-01T00:00:00Z"}
            await ask(client, f"CONSUMER.PAUSE.{OURS}.{name}", until)
            for number in range(3):
                await client.publish("odin.token.BTC.trade", b"%d" % number)
            with trio.fail_after(20):
                assert [(await receive(subscriber))["data"] for _ in range(3)] == [0, 1, 2]
        assert not server.ledger.publications.gaps
        check_balance(server)


async def test_a_deleted_message_is_not_waited_for(
    start_server: StartServer, tmp_path: Path
) -> None:
    """The stream still counts it as its last one."""
    async with operator(tmp_path) as (url, client):
        await make(client, OURS, subjects=["odin.>"])
        server = await start_server(NATS_URL=url, WS_SNAPSHOT_CHANNELS="0")
        await wait_for_nats(server)
        for _ in range(3):
            await client.publish("odin.user.x", b"1")
        (name,) = (await ask(client, f"CONSUMER.NAMES.{OURS}", {}))["consumers"]
        await ask(client, f"CONSUMER.PAUSE.{OURS}.{name}", {"pause_until": "2999-01-01T00:00:00Z"})
        await client.publish("odin.token.BTC.trade", b"1")
        with trio.fail_after(10):
            while (await ask(client, f"STREAM.INFO.{OURS}"))["state"]["last_seq"] < 4:
                await trio.sleep(0.02)
        await ask(client, f"STREAM.MSG.DELETE.{OURS}", {"seq": 4})
        await trio.sleep(7)
        assert server.snapshot().nats.reconnects == 0


# --- made and deleted


async def test_storage_and_replicas_of_a_new_stream_are_settings(
    start_server: StartServer, tmp_path: Path
) -> None:
    async with operator(tmp_path) as (url, client):
        server = await start_server(NATS_URL=url, JS_STREAM_STORAGE="file", JS_STREAM_REPLICAS="1")
        await wait_for_nats(server)
        config = await config_of(client, OURS)
        assert (config["storage"], config["num_replicas"]) == ("file", 1)
        assert config["metadata"]["trio_odin_made"] == "yes"


async def test_more_replicas_than_servers_are_refused_in_nats_own_words(
    start_server: StartServer, tmp_path: Path
) -> None:
    async with operator(tmp_path) as (url, _):
        server = await start_server(NATS_URL=url, JS_STREAM_REPLICAS="3")
        await wait_until(lambda: "replicas > 1 not supported" in trouble_of(server))
        assert not server.snapshot().nats.was_connected


async def test_a_deleted_foreign_stream_is_awaited_and_not_made_again(
    start_server: StartServer, tmp_path: Path
) -> None:
    async with operator(tmp_path) as (url, client):
        await make(client, OURS, subjects=["odin.token.>"], max_msgs=7)
        server = await start_server(NATS_URL=url, **_ALONE)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as subscriber:
            await ask(client, f"STREAM.DELETE.{OURS}")
            await wait_until(lambda: "has not made, is gone" in trouble_of(server), seconds=15)
            await trio.sleep(1)
            assert not (await ask(client, "STREAM.NAMES", {}))["streams"]
            await make(client, OURS, subjects=["odin.token.>"], max_msgs=8)
            await client.publish("odin.token.BTC.trade", b"1")
            assert (await receive(subscriber))["data"] == 1
        await wait_until(lambda: GapReason.STREAM in server.ledger.publications.gaps)
        check_balance(server)


async def test_a_stream_made_by_an_earlier_version_counts_as_our_own(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Those had no mark, and such a stream in memory is lost when NATS restarts."""
    async with operator(tmp_path) as (url, client):
        seconds = 10**9
        limits = {"max_age": 30 * seconds, "max_msgs": 100_000, "max_bytes": 52_428_800}
        await make(client, OURS, subjects=["odin.token.>"], retention="limits", **limits)
        server = await start_server(NATS_URL=url, **_ALONE)
        await wait_for_nats(server)
        await ask(client, f"STREAM.DELETE.{OURS}")
        await wait_until(lambda: server.snapshot().nats.reconnects == 1, seconds=15)
        assert (await ask(client, "STREAM.NAMES", {}))["streams"] == [OURS]
