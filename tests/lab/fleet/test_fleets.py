"""Fleets as processes, seen from the load."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress
from typing import Any

import attrs
import psutil
import pytest
import trio

from tests.e2e.nats import free_port
from trio_odin.lab.fleet import fleets as fleets_module
from trio_odin.lab.fleet.fleets import fleets
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.fleet.plan import FleetPlan
from trio_odin.lab.fleet.workload import Workload

CHANNELS = [f"T{number}.trade" for number in range(4)]
WORKLOAD = Workload(channels=CHANNELS, channels_per_connection=2)
PLAN = FleetPlan(host="127.0.0.1", port=1, connections=3, workload=WORKLOAD, reconnect_seconds=0.01)


def two_plans(**changes: Any) -> list[FleetPlan]:
    """Plans for three connections and for two."""
    plan = attrs.evolve(PLAN, **changes)
    return [plan, attrs.evolve(plan, first=3, connections=2)]


def processes_of_fleets() -> list[psutil.Process]:
    """The running fleet processes of this process."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "trio_odin.lab.fleet.client" in process.cmdline():
                found.append(process)
    return found


async def test_failures_of_all_processes_are_summed() -> None:
    async with fleets(two_plans(port=free_port(), reconnect_seconds=0.0)) as crowd:
        connects = await crowd.connect()
        assert (connects.connected, connects.failures) == (0, {"Connection refused": 5})
        assert (await crowd.summary()).first_lost == 0.0


async def test_a_fleet_that_dies_gives_a_sentence() -> None:
    async with fleets(two_plans()) as crowd:
        await crowd.progress()
        os.kill(processes_of_fleets()[1].pid, signal.SIGKILL)
        with pytest.raises(LoadImpossible, match=r"^a fleet of clients has ended unexpectedly$"):
            await crowd.progress()
    assert processes_of_fleets() == []


async def test_a_fleet_that_does_not_answer_is_killed_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleets_module, "_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(fleets_module, "_END_SECONDS", 0.1)
    async with fleets([PLAN]) as crowd:
        os.kill(processes_of_fleets()[0].pid, signal.SIGSTOP)
        with pytest.raises(LoadImpossible, match="has not answered for"):
            await crowd.progress()
    assert processes_of_fleets() == []


async def test_a_plan_for_too_many_sockets_gives_a_sentence() -> None:
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
