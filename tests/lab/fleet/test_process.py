"""A fleet as a process, and against a real server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from typing import Any

import msgspec
import pytest
import trio

from tests.e2e.conftest import StartServer, check_balance, start_server, wait_for_nats
from tests.e2e.nats import free_port, nats_client
from tests.lab.fleet.rig import (
    BTC,
    ETH,
    SOL,
)
from tests.waiting import wait_until
from trio_odin.lab.fleet.events import Event, payload_of
from trio_odin.lab.fleet.plan import Collected, Connected, FleetPlan, Progress, Summary
from trio_odin.lab.fleet.workload import Workload

__all__ = ["start_server"]  # a fixture


CHANNELS = [BTC, ETH, SOL, "DOGE.trade"]


class Process:
    """A fleet, spoken to as the bench does."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._received = b""

    async def ask(self, command: str, kind: type[Any]) -> Any:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(f"{command}\n".encode())
        return await self.answer(kind)

    async def answer(self, kind: type[Any]) -> Any:
        with trio.fail_after(20):
            return msgspec.json.decode(await self._line(), type=kind)

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            chunk = await self._process.stdout.receive_some()
            assert chunk, "the fleet has ended"
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line

    async def end(self, last_words: bytes) -> int:
        """Say `last_words`, end the input, and wait for the end."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(last_words)
        await self._process.stdin.aclose()
        with trio.fail_after(20):
            return await self._process.wait()


async def start_fleet(plan: FleetPlan, nursery: trio.Nursery) -> Process:
    command = [sys.executable, "-m", "trio_odin.lab.fleet.client"]

    async def run(*, task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED) -> None:
        await trio.run_process(
            [*command, msgspec.json.encode(plan).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            check=False,
            task_status=task_status,
        )

    return Process(await nursery.start(run))


async def test_a_process_answers_each_line_and_ends_with_its_input(nursery: trio.Nursery) -> None:
    plan = FleetPlan(
        host="127.0.0.1", port=free_port(), connections=2, workload=Workload(channels=CHANNELS)
    )
    fleet = await start_fleet(plan, nursery)
    at: Progress = await fleet.ask("connect\nprogress", Progress)
    assert at.connections == 0
    at = await fleet.answer(Progress)
    while at.pending:
        at = await fleet.ask("progress", Progress)
    connects: Connected = await fleet.ask("connects", Connected)
    assert connects.failures == {"Connection refused": 2}
    assert await fleet.end(b"") == 0


def published_payload(kind: str, number: int, channel: str) -> bytes:
    if kind == "bench":
        return payload_of(Event(number, time.monotonic_ns(), channel), 100 * number)
    return b'{"price":%d,"timestamp":%d}' % (number, time.time_ns() // 10**6)


@pytest.mark.e2e
@pytest.mark.parametrize(("kind", "last_words"), [("bench", b""), ("market", b"quit\n")])
async def test_a_fleet_counts_exactly_what_a_real_server_delivers(
    kind: str, last_words: bytes, start_server: StartServer, nats_url: str, nursery: trio.Nursery
) -> None:
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    plan = FleetPlan(
        host="127.0.0.1",
        port=server.addresses[0].port,
        connections=20,
        kind=kind,
        workload=Workload(channels=CHANNELS, channels_per_connection=2),
    )
    fleet = await start_fleet(plan, nursery)
    at: Progress = await fleet.ask("connect", Progress)
    with trio.fail_after(20):
        while at.pending:
            await trio.sleep(0.01)
            at = await fleet.ask("progress", Progress)
    connected: Connected = await fleet.ask("connects", Connected)
    subscribers = Counter(channel for sample in plan.workload.of(0, 20) for channel in sample)
    assert (connected.connected, connected.failures, connected.rejections) == (20, {}, {})
    assert sum(connected.buckets.values()) == 20
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
        while (await fleet.ask("progress", Progress)).received < received:
            await trio.sleep(0.01)
    collected: Collected = await fleet.ask("collect", Collected)
    books = collected.received
    assert books.received == received == server.ledger.deliveries.written
    assert {entry.number: entry.times for entry in books.deliveries} == deliveries
    assert {entry.number: entry.channel for entry in books.deliveries} == dict(published)
    assert (books.gaps, books.repeated, books.foreign) == (0, 0, 0)
    assert (collected.disconnects, collected.unreadable, collected.error_replies) == ({}, 0, 0)
    assert sum(books.buckets.values()) == received
    assert max(books.buckets) < 10_000 * 10  # ten seconds: by the same clock
    assert 1 <= collected.reads <= received
    assert (await fleet.ask("collect", Collected)).received.received == 0

    await fleet.ask("close", Progress)
    with trio.fail_after(20):
        while (await fleet.ask("progress", Progress)).connections:
            await trio.sleep(0.01)
    summary: Summary = await fleet.ask("summary", Summary)
    assert (summary.closed_cleanly, summary.silent, summary.lost) == (20, 0, 0)
    assert await fleet.end(last_words) == 0
    await wait_until(lambda: server.connections == 0)
    check_balance(server)


@pytest.mark.e2e
async def test_a_server_that_takes_only_a_part_of_the_channels_is_a_failure(
    start_server: StartServer, nursery: trio.Nursery
) -> None:
    server = await start_server()
    workload = Workload(channels=["BTC.trade", "no channel"], channels_per_connection=2)
    port = server.addresses[0].port
    plan = FleetPlan(host="127.0.0.1", port=port, connections=3, workload=workload)
    fleet = await start_fleet(plan, nursery)
    at: Progress = await fleet.ask("connect", Progress)
    while at.pending:
        await trio.sleep(0.01)
        at = await fleet.ask("progress", Progress)
    connects: Connected = await fleet.ask("connects", Connected)
    assert connects.failures == {"subscribed to 1 of 2 channels": 3}
    assert connects.connected == 0
    assert await fleet.end(b"") == 0
