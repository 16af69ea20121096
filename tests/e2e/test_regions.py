"""Two regions of NATS, and a server in each: the same events, offsets and epoch."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from websockets.trio.client import ClientConnection

from tests.certificates import make_certificates
from tests.e2e.conftest import StartServer, client_of, receive, wait_for_nats
from tests.e2e.nats import nats_client
from tests.e2e.nats_regions import Regions, run_mirror, running_gateways, running_regions
from tests.e2e.test_nats_access import configured_nats
from trio_odin.lab.load.pages import get_object
from trio_odin.lab.model.regions import SUBSCRIPTIONS, nats_message_bytes
from trio_odin.ledger.reasons import GapReason
from trio_odin.server import Server
from trio_odin.settings.reading import read_settings

pytestmark = pytest.mark.e2e

_STREAM = {
    "name": "ODIN_TOKENS",
    "subjects": ["odin.token.>"],
    "storage": "file",
    "num_replicas": 3,
    "max_age": 3_600_000_000_000,
}
# Longer than any that was seen.
_ELECTION_SECONDS = 12.0


@asynccontextmanager
async def joined(folder: Path, *, has_mirror: bool = True) -> AsyncIterator[Regions]:
    """Two regions, with the stream in the first and its mirror in the other."""
    async with running_regions(folder) as regions:
        made = await regions.first.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", _STREAM)
        assert "error" not in made, made
        await regions.first.wait_replicated("ODIN_TOKENS")
        if has_mirror:
            code, said = await mirrored(regions)
            assert (code, said.split(",")[0]) == (0, "ODIN_TOKENS is a mirror now"), said
            await regions.other.wait_replicated("ODIN_TOKENS")
        yield regions


async def mirrored(regions: Regions) -> tuple[int, str]:
    return await run_mirror(
        "--stream-at", regions.first.nodes[0].url, "--mirror-at", regions.other.nodes[0].url
    )


async def publish(url: str, *numbers: int) -> None:
    async with nats_client(url) as publisher:
        for number in numbers:
            await publisher.publish("odin.token.BTC.trade", b"%d" % number)
        await publisher.flush()


async def events(
    client: ClientConnection, count: int, gaps: list[str] | None = None
) -> list[tuple[int, int]]:
    """Payload and offset of the next events; `gaps` gets the reasons of gaps before them."""
    found: list[tuple[int, int]] = []
    while len(found) < count:
        message = await receive(client)
        if message["type"] == "gap" and gaps is not None:
            gaps.append(message["reason"])
            continue
        assert message["type"] == "price:update", message
        found.append((message["data"], message["offset"]))
    return found


async def resume(client: ClientConnection, **more: Any) -> list[dict[str, Any]]:
    """What a client gets that comes with its position."""
    command = {"type": "subscribe", "channels": ["BTC.trade"], **more}
    await client.send(json.dumps(command))
    messages = [await receive(client)]
    while messages[-1]["type"] != "resumed":
        messages.append(await receive(client))
    return messages


async def start_both(start: StartServer, regions: Regions) -> tuple[Server, Server]:
    servers = (
        await start(NATS_URL=regions.first.url),
        await start(NATS_URL=regions.other.url),
    )
    for server in servers:
        await wait_for_nats(server)
    return servers


async def test_both_regions_have_the_same_events_with_the_same_offsets(
    start_server: StartServer, tmp_path: Path
) -> None:
    async with joined(tmp_path) as regions:
        here, there = await start_both(start_server, regions)
        async with client_of(here, "BTC.trade") as near, client_of(there, "BTC.trade") as far:
            await publish(regions.first.nodes[0].url, *range(50))
            first = await events(near, 50)
            assert first == await events(far, 50)
            assert [data for data, _ in first] == list(range(50))
            # What is published in the other region goes to the stream, and comes back from it.
            await publish(regions.other.nodes[1].url, *range(50, 70))
            more = await events(near, 20)
            assert more == await events(far, 20)
            assert [offset for _, offset in first + more] == list(range(1, 71))
        assert here.snapshot().nats.mode == there.snapshot().nats.mode == "jetstream"


async def test_a_client_resumes_in_the_other_region(
    start_server: StartServer, tmp_path: Path
) -> None:
    async with joined(tmp_path) as regions:
        here, there = await start_both(start_server, regions)
        async with client_of(here) as near, client_of(there, "BTC.trade") as far:
            ack, *_ = await resume(near, after=0)
            await publish(regions.first.nodes[0].url, *range(10))
            await events(near, 10)
            await events(far, 10)
        async with client_of(there) as moved:
            back, *missed, end = await resume(moved, after=4, epoch=ack["epoch"])
        assert back["epoch"] == ack["epoch"]
        assert [message["offset"] for message in missed] == [5, 6, 7, 8, 9, 10]
        assert (end["sent"], end["offset"]) == (6, 10)


@pytest.mark.ops
async def test_a_mirror_without_the_epoch_is_another_stream_to_a_client(
    start_server: StartServer, tmp_path: Path
) -> None:
    """The offsets agree, but no server can know: the client learns that it may miss something."""
    async with joined(tmp_path, has_mirror=False) as regions:
        mirror = {
            "name": "ODIN_TOKENS",
            "mirror": {"name": "ODIN_TOKENS", "external": {"api": "$JS.r1.API"}},
            "storage": "file",
            "num_replicas": 3,
        }
        made = await regions.other.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", mirror)
        assert "error" not in made, made
        await regions.other.wait_replicated("ODIN_TOKENS")
        here, there = await start_both(start_server, regions)
        async with client_of(here) as near, client_of(there, "BTC.trade") as far:
            ack, *_ = await resume(near, after=0)
            await publish(regions.first.nodes[0].url, *range(10))
            assert await events(near, 10) == await events(far, 10)
        async with client_of(there) as moved:
            back, *rest = await resume(moved, after=4, epoch=ack["epoch"])
        assert back["epoch"] != ack["epoch"]
        assert "resume_incomplete" in [message["type"] for message in rest]


@pytest.mark.ops
async def test_a_region_works_while_the_first_one_is_lost_and_can_take_its_place(
    start_server: StartServer, tmp_path: Path
) -> None:
    async with joined(tmp_path) as regions:
        here, there = await start_both(start_server, regions)
        async with client_of(here) as near, client_of(there, "BTC.trade") as far:
            ack, *_ = await resume(near, after=0)
            await publish(regions.first.nodes[0].url, *range(10))
            await events(far, 10)
            await events(near, 10)
            regions.first.stop()
            # A server that starts meanwhile has everything: the region's three nodes decide alone.
            late = await start_server(NATS_URL=regions.other.url)
            await wait_for_nats(late)
            async with client_of(late) as moved:
                back, *missed, _ = await resume(moved, after=4, epoch=ack["epoch"])
                assert back["epoch"] == ack["epoch"]
                assert [message["offset"] for message in missed] == [5, 6, 7, 8, 9, 10]
                code, said = await run_mirror(
                    "--promote", "--mirror-at", regions.other.nodes[0].url
                )
                assert code == 0, said
                start, _, rest = said.partition(", epoch ")
                assert (start, rest.partition(",")[2]) == (
                    "ODIN_TOKENS is the stream now",
                    " after offset 10",
                )
                await publish(regions.other.nodes[0].url, *range(10, 20))
                # With the next offsets, and what was there before does not come again.
                expected = [(number, number + 1) for number in range(10, 20)]
                assert await events(far, 10) == expected
                gaps: list[str] = []
                assert await events(moved, 10, gaps) == expected
                assert gaps[0] == "stream"
            # The lost region may have given the same offsets to events that nobody else has.
            async with client_of(late) as again:
                back, *missed, end = await resume(again, after=14, epoch=ack["epoch"])
                assert back["epoch"] == rest.partition(",")[0] != ack["epoch"]
                assert "resume_incomplete" in [message["type"] for message in missed]
                assert end["offset"] == 20
        assert there.ledger.publications.gaps[GapReason.STREAM] == 1
        code, said = await run_mirror("--promote", "--mirror-at", regions.other.nodes[0].url)
        assert (code, said) == (0, "ODIN_TOKENS is not a mirror: nothing was changed")


@pytest.mark.ops
async def test_the_first_region_is_back_and_the_other_one_misses_nothing(
    start_server: StartServer, tmp_path: Path
) -> None:
    async with joined(tmp_path) as regions:
        _, there = await start_both(start_server, regions)
        async with client_of(there, "BTC.trade") as far:
            await publish(regions.first.nodes[0].url, *range(5))
            await events(far, 5)
            regions.first.stop()
            await trio.sleep(1)
            regions.first.start()
            await regions.first.wait_ready()
            await regions.first.stream_leader("ODIN_TOKENS")
            await publish(regions.first.nodes[0].url, *range(5, 10))
            with trio.fail_after(60):
                found = await events(far, 5)
            assert found == [(number, number + 1) for number in range(5, 10)]
        assert there.ledger.publications.gaps == {}


async def test_mirror_py_logs_in_like_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = tmp_path / "password"
    password.write_text("s3 cret\n")
    users = 'authorization { users: [{ user: odin, password: "s3 cret" }] }'
    with configured_nats(tmp_path / "nats", users) as nats:
        async with nats_client(nats.url, **{"user": "odin", "pass": "s3 cret"}) as client:
            stream = {"name": "ODIN_TOKENS", "subjects": ["odin.token.>"]}
            await client.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", stream)
        code, said = await run_mirror("--promote", "--mirror-at", nats.url)
        assert (code, said.count("\n")) == (1, 0), said
        assert said.startswith(f"mirror.py: {nats.url.removeprefix('nats://')}: "), said
        monkeypatch.setenv("NATS_USER", "odin")
        monkeypatch.setenv("NATS_PASSWORD_FILE", "/nowhere")
        code, said = await run_mirror("--promote", "--mirror-at", nats.url)
        assert (code, "NATS_PASSWORD_FILE='/nowhere': No such file" in said) == (2, True), said
        monkeypatch.setenv("NATS_PASSWORD_FILE", str(password))
        code, said = await run_mirror("--promote", "--mirror-at", nats.url)
        assert (code, said) == (0, "ODIN_TOKENS is not a mirror: nothing was changed")
        monkeypatch.setenv(
            "NATS_TLS_CA", str(make_certificates(tmp_path / "tls", "localhost").authority)
        )
        code, said = await run_mirror("--promote", "--mirror-at", nats.url)
        assert (code, said.count("\n")) == (1, 0), said
        assert "requires TLS, which it does not offer" in said


async def test_mirror_py_takes_each_name_that_a_server_takes(tmp_path: Path) -> None:
    name = "Kurse+EU_börse"
    assert read_settings({"JS_STREAM_NAME": name}).stream_name == name
    with configured_nats(tmp_path / "nats", "") as nats:
        async with nats_client(nats.url) as client:
            stream = {"name": name, "subjects": ["odin.token.>"]}
            await client.request(f"$JS.API.STREAM.CREATE.{name}", stream)
        done = await run_mirror("--promote", "--mirror-at", nats.url, "--name", name)
    assert done == (0, f"{name} is not a mirror: nothing was changed")


@pytest.mark.ops
async def test_mirror_py_says_what_it_cannot_do(tmp_path: Path) -> None:
    async with joined(tmp_path) as regions:
        near, far = regions.first.nodes[0].url, regions.other.nodes[0].url
        code, said = await mirrored(regions)
        assert (code, said.split(",")[0]) == (0, "ODIN_TOKENS is a mirror already")
        code, said = await run_mirror("--stream-at", near, "--mirror-at", near)
        assert (code, said) == (1, "mirror.py: both are in the domain r1: allowed are two regions")
        code, said = await run_mirror("--stream-at", near, "--mirror-at", far, "--name", "NO")
        assert code == 1
        assert "there is no stream NO at" in said
        code, said = await run_mirror("--promote", "--mirror-at", f"{near},{far}", "--name", "NO")
        assert (code, said.count("\n")) == (1, 0), said
        assert "there is no stream NO at" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--mirror-at", "nats://a"], "allowed is one of --stream-at URL and --promote"),
        (["--promote", "--mirror-at", ""], "--mirror-at: allowed is the address of NATS"),
        (["--promote", "--mirror-at", "a:b:c"], "NATS_URL="),
        (
            ["--promote", "--mirror-at", "a", "--name", "a.b"],
            "--name: 'a.b': allowed is a name of at most 255 characters, without spaces, . * > / ",
        ),
        (["--promote", "--mirror-at", "a", "--name", 256 * "a"], "allowed is a name of at most"),
        (["--promote", "--mirror-at", "a", "--name", ""], "--name: '': allowed is a name of"),
    ],
)
async def test_wrong_arguments_of_mirror_py_get_a_sentence(
    options: list[str], sentence: str
) -> None:
    code, said = await run_mirror(*options)
    assert (code, "Traceback" in said) == (2, False), said
    assert sentence in said


@pytest.mark.ops
async def test_the_model_of_what_nats_carries_is_that_of_a_real_one(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Subscriptions of a process, and how often an event goes to another region."""
    count, size = 400, 200
    async with joined(tmp_path) as regions:
        server = await start_server(NATS_URL=regions.other.nodes[0].url)
        await wait_for_nats(server)
        before = await _to_leaves(regions)
        async with client_of(server, "BTC.trade") as client:
            async with nats_client(regions.first.nodes[0].url) as publisher:
                for _ in range(count):
                    await publisher.publish("odin.token.BTC.trade", b'"' + b"x" * (size - 2) + b'"')
                await publisher.flush()
            for _ in range(count):
                await receive(client)
        after = await _to_leaves(regions)
        page = await get_object(
            f"http://127.0.0.1:{regions.other.nodes[0].monitoring}/connz?subs=1"
        )
    ours = [one for one in (page or {})["connections"] if "trio-odin" in one.get("name", "")]
    assert [one["subscriptions"] for one in ours] == [SUBSCRIPTIONS]
    # Once, for all that read there; and a little that the nodes tell each other anyway. NATS counts
    # the bytes of payloads, so the model's, with all around them, are more.
    assert count <= after[0] - before[0] < 1.5 * count
    assert size <= (after[1] - before[1]) / count < nats_message_bytes(size)


async def _to_leaves(regions: Regions) -> tuple[int, int]:
    """Messages and bytes that the first region has sent to the other one."""
    messages = size = 0
    for node in regions.first.nodes:
        page = await get_object(f"http://127.0.0.1:{node.monitoring}/leafz")
        for leaf in (page or {}).get("leafs", []):
            messages += leaf["out_msgs"]
            size += leaf["out_bytes"]
    return messages, size


@pytest.mark.ops
async def test_with_gateways_a_lost_region_takes_the_consumers_of_the_other_one(
    tmp_path: Path,
) -> None:
    """All six nodes elect one leader. With a domain for each region, three do."""
    consumer = {
        "stream_name": "ODIN_TOKENS",
        "config": {"ack_policy": "none", "mem_storage": True, "num_replicas": 1},
    }
    make = "$JS.API.CONSUMER.CREATE.ODIN_TOKENS"
    async with running_gateways(tmp_path) as regions:
        config = {**_STREAM, "placement": {"cluster": "r2"}}
        made = await regions.other.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", config)
        assert "error" not in made, made
        await regions.other.wait_replicated("ODIN_TOKENS")
        assert "error" not in await regions.other.request(make, consumer)
        regions.first.stop()
        await trio.sleep(_ELECTION_SECONDS)
        answered = False
        with trio.move_on_after(_ELECTION_SECONDS):
            answer = await regions.other.request(make, consumer)
            answered = "error" not in answer
        assert not answered
    async with joined(tmp_path / "leaves") as regions:
        regions.first.stop()
        await trio.sleep(_ELECTION_SECONDS)
        assert "error" not in await regions.other.request(make, consumer)
