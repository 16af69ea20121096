"""Fleets as processes, seen from whoever runs a load."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import psutil
import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.server import Server, ServerConnection, serve

from tests.e2e.nats import free_port
from trio_odin.lab.fleet import fleets as fleets_module
from trio_odin.lab.fleet.events import Event, payload_of
from trio_odin.lab.fleet.fleets import Fleets, fleets
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.fleet.plan import FleetPlan
from trio_odin.lab.fleet.workload import Workload

CHANNELS = [f"T{number}.trade" for number in range(4)]
WORKLOAD = Workload(channels=CHANNELS, channels_per_connection=2)
PLAN = FleetPlan(host="127.0.0.1", port=1, connections=3, workload=WORKLOAD, reconnect_seconds=0.01)


class StandIn:
    """A server of the `websockets` library with the wire of trio-odin."""

    def __init__(self) -> None:
        self.clients: dict[ServerConnection, list[str]] = {}
        self._seqs: Counter[ServerConnection] = Counter()

    async def handle(self, client: ServerConnection) -> None:
        channels = json.loads(await client.recv())["channels"]
        ack = {"type": "subscription_ack", "subscribed": channels, "count": len(channels)}
        self.clients[client] = channels
        await client.send(json.dumps(ack))
        with suppress(ConnectionClosed):
            await client.recv()
        del self.clients[client]

    async def publish(self, event: Event) -> None:
        payload = payload_of(event, 60).decode()
        for client, channels in self.clients.items():
            if event.channel in channels:
                self._seqs[client] += 1
                head = f'{{"seq":{self._seqs[client]},"channel":"{event.channel}"'
                await client.send(f'{head},"data":{payload}}}')


async def start_stand_in(nursery: trio.Nursery) -> tuple[StandIn, int]:
    stand_in = StandIn()
    server: Server = await nursery.start(partial(serve, stand_in.handle, host="127.0.0.1", port=0))
    port: int = server.listeners[0].socket.getsockname()[1]
    return stand_in, port


def two_plans(**changes: Any) -> list[FleetPlan]:
    """Three connections and two."""
    plan = attrs.evolve(PLAN, **changes)
    return [plan, attrs.evolve(plan, first=3, connections=2)]


async def until_all_are(crowd: Fleets, connections: int) -> None:
    with trio.fail_after(10):
        while (await crowd.progress()).connections != connections:
            await trio.sleep(0.01)


def processes_of_fleets() -> list[psutil.Process]:
    """Those that this process has started and not yet ended."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "trio_odin.lab.fleet.client" in process.cmdline():
                found.append(process)
    return found


async def test_two_processes_are_one_crowd(nursery: trio.Nursery) -> None:
    stand_in, port = await start_stand_in(nursery)
    subscribers = Counter(channel for sample in WORKLOAD.of(0, 5) for channel in sample)
    async with fleets(two_plans(port=port)) as crowd:
        assert len(processes_of_fleets()) == 2
        connects = await crowd.connect()
        assert (connects.connected, connects.failures, connects.rejections) == (5, {}, {})
        assert connects.subscribers == subscribers
        assert sum(connects.connect_buckets.values()) == 5
        assert connects.seconds > 0

        events = [Event(n, time.monotonic_ns(), CHANNELS[n % 4]) for n in range(1, 9)]
        for event in events:
            await stand_in.publish(event)
        expected = sum(subscribers[event.channel] for event in events)
        with trio.fail_after(10):
            while (await crowd.progress()).received < expected:
                await trio.sleep(0.01)
        collected = await crowd.collect()
        times: Counter[int] = Counter()
        for entry in collected.received.deliveries:
            times[entry.number] += entry.times
        assert times == {event.number: subscribers[event.channel] for event in events}
        assert collected.received.received == sum(collected.received.buckets.values()) == expected
        assert (collected.connections, collected.pending, collected.disconnects) == (5, 0, {})
        assert 0 < crowd.busiest_cpu_seconds < collected.cpu_seconds

        at = await crowd.begin("cut")
        assert (at.connections, at.pending) == (0, 5)
        await until_all_are(crowd, 5)
        await crowd.begin("close")
        await until_all_are(crowd, 0)
        summary = await crowd.summary()
        assert (summary.lost, summary.back, sum(summary.back_buckets.values())) == (5, 5, 5)
        assert 0 < summary.first_lost < summary.last_back
        assert (summary.closed_cleanly, summary.silent) == (5, 5)
    assert processes_of_fleets() == []


async def test_failures_of_all_processes_are_summed() -> None:
    async with fleets(two_plans(port=free_port(), reconnect_seconds=0.0)) as crowd:
        connects = await crowd.connect()
        assert (connects.connected, connects.failures) == (0, {"Connection refused": 5})
        assert (await crowd.summary()).first_lost == 0.0


async def test_a_fleet_that_dies_is_a_sentence() -> None:
    async with fleets(two_plans()) as crowd:
        await crowd.progress()
        os.kill(processes_of_fleets()[1].pid, signal.SIGKILL)
        with pytest.raises(LoadImpossible, match=r"^a fleet of clients has ended unexpectedly$"):
            await crowd.progress()
    assert processes_of_fleets() == []


async def test_a_fleet_that_does_not_answer_is_a_sentence_and_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleets_module, "_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(fleets_module, "_END_SECONDS", 0.1)
    async with fleets([PLAN]) as crowd:
        os.kill(processes_of_fleets()[0].pid, signal.SIGSTOP)
        with pytest.raises(LoadImpossible, match="has not answered for"):
            await crowd.progress()
    assert processes_of_fleets() == []


async def test_a_plan_for_more_sockets_than_a_process_may_have_is_a_sentence() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("a process may have any number of files here")
    async with fleets([PLAN, attrs.evolve(PLAN, connections=hard)]) as crowd:
        with pytest.raises(LoadImpossible, match=r"connections need .* open files"):
            await crowd.progress()


async def test_a_cancelled_question_leaves_no_answer_for_the_next_one(
    nursery: trio.Nursery,
) -> None:
    async def resume_later(pid: int) -> None:
        await trio.sleep(0.2)
        os.kill(pid, signal.SIGCONT)

    async with fleets([PLAN]) as crowd:
        await crowd.progress()
        (process,) = processes_of_fleets()
        os.kill(process.pid, signal.SIGSTOP)
        nursery.start_soon(resume_later, process.pid)
        with trio.move_on_after(0.05) as scope:
            await crowd.collect()
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert (await crowd.summary()).lost == 0
        assert (await crowd.summary()).connected == 0


async def test_a_block_that_is_cancelled_ends_its_processes() -> None:
    with trio.move_on_after(0.3) as scope:
        async with fleets(two_plans()):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert processes_of_fleets() == []
