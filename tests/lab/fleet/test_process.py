"""A fleet as a process, and against a real server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter

import attrs
import msgspec
import pytest
import trio

from tests.e2e.conftest import StartServer, check_balance, start_server, wait_for_nats
from tests.e2e.nats import free_port, nats_client
from tests.lab.fleet.rig import BTC, ETH, SOL
from tests.waiting import wait_until
from trio_odin.lab.fleet.events import Event, payload_of
from trio_odin.lab.fleet.fleets import Fleets, fleets
from trio_odin.lab.fleet.plan import FleetPlan, Progress, Summary
from trio_odin.lab.fleet.workload import Workload

__all__ = ["start_server"]  # a fixture


CHANNELS = [BTC, ETH, SOL, "DOGE.trade"]


@pytest.mark.parametrize("last_words", [b"", b"quit\n", b"quit\nprogress\n"])
def test_a_process_answers_each_line_and_ends_with_its_input(last_words: bytes) -> None:
    plan = FleetPlan(
        host="127.0.0.1", port=free_port(), connections=2, workload=Workload(channels=CHANNELS)
    )
    ended = subprocess.run(
        [sys.executable, "-m", "trio_odin.lab.fleet.client", msgspec.json.encode(plan).decode()],
        input=b"connect\nprogress\nsummary\n" + last_words,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    first, second, summary = ended.stdout.splitlines()
    for line in (first, second):
        assert msgspec.json.decode(line, type=Progress).connections == 0
    assert msgspec.json.decode(summary, type=Summary).connected == 0


def published_payload(kind: str, number: int, channel: str) -> bytes:
    if kind == "bench":
        return payload_of(Event(number, time.monotonic_ns(), channel), 100 * number)
    return b'{"price":%d,"timestamp":%d}' % (number, time.time_ns() // 10**6)


async def until_connected(crowd: Fleets, connections: int) -> None:
    with trio.fail_after(20):
        while (await crowd.progress()).connections != connections:
            await trio.sleep(0.01)


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["bench", "market"])
async def test_two_fleets_count_exactly_the_deliveries_of_a_real_server(
    kind: str, start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    plan = FleetPlan(
        host="127.0.0.1",
        port=server.addresses[0].port,
        connections=12,
        kind=kind,
        workload=Workload(channels=CHANNELS, channels_per_connection=2),
        reconnect_seconds=0.01,
    )
    async with fleets([plan, attrs.evolve(plan, first=12, connections=8)]) as crowd:
        with trio.fail_after(20):
            connected = await crowd.connect()
        subscribers = Counter(channel for sample in plan.workload.of(0, 20) for channel in sample)
        assert (connected.connected, connected.failures, connected.rejections) == (20, {}, {})
        assert sum(connected.connect_buckets.values()) == 20
        assert connected.seconds > 0
        assert connected.subscribers == subscribers
        assert server.connections == 20

        published = [(number, CHANNELS[number % 4]) for number in range(1, 31)]
        async with nats_client(nats_url) as broker:
            for number, channel in published:
                payload = published_payload(kind, number, channel)
                await broker.publish(f"odin.token.{channel}", payload)
            await broker.flush()
        # The stream of a market starts with this test: its numbers are those of the publications.
        deliveries = {number: subscribers[channel] for number, channel in published}
        received = sum(deliveries.values())
        with trio.fail_after(20):
            while (await crowd.progress()).received < received:
                await trio.sleep(0.01)
        collected = await crowd.collect()
        books = collected.received
        assert books.received == received == server.ledger.deliveries.written
        times: Counter[int] = Counter()
        for entry in books.deliveries:
            times[entry.number] += entry.times
        assert times == deliveries
        assert {entry.number: entry.channel for entry in books.deliveries} == dict(published)
        assert (books.gaps, books.repeated, books.foreign) == (0, 0, 0)
        assert (collected.connections, collected.pending) == (20, 0)
        assert (collected.disconnects, collected.unreadable, collected.error_replies) == ({}, 0, 0)
        assert sum(books.buckets.values()) == received
        assert max(books.buckets) < 10_000 * 10  # ten seconds: by the same clock
        assert 1 <= collected.reads <= received
        assert 0 < crowd.busiest_cpu_seconds < collected.cpu_seconds
        assert (await crowd.collect()).received.received == 0

        at = await crowd.begin("cut")
        assert (at.connections, at.pending) == (0, 20)
        await until_connected(crowd, 20)
        await crowd.begin("close")
        await until_connected(crowd, 0)
        summary = await crowd.summary()
        assert (summary.lost, summary.back, sum(summary.back_buckets.values())) == (20, 20, 20)
        assert 0 < summary.first_lost < summary.last_back
        assert (summary.closed_cleanly, summary.silent) == (20, 20)
    await wait_until(lambda: server.connections == 0)
    check_balance(server)


@pytest.mark.e2e
async def test_a_server_that_confirms_too_few_channels_is_a_failure(
    start_server: StartServer,
) -> None:
    server = await start_server()
    workload = Workload(channels=["BTC.trade", "no channel"], channels_per_connection=2)
    port = server.addresses[0].port
    plan = FleetPlan(host="127.0.0.1", port=port, connections=3, workload=workload)
    async with fleets([plan]) as crowd:
        connects = await crowd.connect()
    assert connects.failures == {"subscribed to 1 of 2 channels": 3}
    assert connects.connected == 0
