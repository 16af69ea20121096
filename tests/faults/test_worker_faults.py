"""If one of two workers dies or hangs, the clients of the other do not notice."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.faults.conftest import Record
from tests.faults.prober import Prober
from tests.faults.rig import Rig, rig, soon

pytestmark = pytest.mark.faults


async def _are_alive(it: Rig, alive: int, restarts: int) -> bool:
    workers = (await it.server.health()).get("workers", {})
    return bool(workers.get("alive") == alive and workers.get("restarts") == restarts)


async def test_a_killed_worker_ends_only_its_own_clients(tmp_path: Path, record: Record) -> None:
    row = record(
        "fault",
        "A worker is killed",
        "SIGKILL of one of two workers under load; its clients come back within a second or so",
        "the other's clients stay and lose nothing; it is started again; all are back",
    )
    fleet: dict[str, Any] = {"reconnect_seconds": 1.0}
    async with rig(tmp_path, fleet=fleet, workers=2) as it:
        row.clients = it.cohort.size
        it.publisher.is_paused = False
        await trio.sleep(1)
        await it.cohort.look()
        begun = trio.current_time()
        os.kill(it.server.workers()[0], signal.SIGKILL)
        await soon(partial(_are_alive, it, 2, 1), 15)
        row.notes.append(f"two workers again after {trio.current_time() - begun:.1f} s")
        await soon(partial(_all_are_back, it), 15)
        await it.pause()
        await it.cohort.look()
        summary = await it.cohort.crowd.summary()
        row.recovery_seconds = summary.last_back - summary.first_lost
        row.held = it.cohort.size - summary.lost
        row.lost, row.repeated, row.foreign = (
            it.cohort.gaps,
            it.cohort.repeated,
            it.cohort.foreign,
        )
        row.notes.append(f"{summary.lost} were its clients, {summary.back} came back")
        assert 0 < summary.lost < it.cohort.size
        assert summary.back == summary.lost == it.cohort.disconnects.total()
        assert (row.lost, row.repeated, row.foreign) == (0, 0, 0)
        await it.check_balance()


async def _all_are_back(it: Rig) -> bool:
    return (await it.cohort.crowd.progress()).connections == it.cohort.size


async def test_a_hung_worker_delays_no_client_of_another(tmp_path: Path, record: Record) -> None:
    row = record(
        "fault",
        "A worker hangs",
        "SIGSTOP of one of two workers under load, until a page has said that it is missing",
        "the other serves on; afterwards all have all events, once",
    )
    async with rig(tmp_path, workers=2) as it, it.watch(row, p99_max_ms=60_000):
        stopped = it.server.workers()[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            flowing = await it.cohort.wait_flowing(2)
            row.notes.append(f"next event of the other after {flowing * 1000:.0f} ms")
            # A request may reach the hung worker, and then waits 5 s in vain.
            said = await soon(partial(_are_alive, it, 1, 0), 40)
            row.notes.append(f"said by /health after {said:.1f} s")
        finally:
            os.kill(stopped, signal.SIGCONT)
        row.recovery_seconds = await soon(partial(_are_alive, it, 2, 0), 20)


async def test_workers_killed_in_turn_refuse_no_client(tmp_path: Path, record: Record) -> None:
    row = record(
        "fault",
        "Workers are killed at random",
        "SIGKILL of one of three workers, by chance, every 2 s for half a minute; clients come "
        "all the time, 50 a second",
        "none is refused; those whose worker is killed between accept and answer are cut, at most "
        "two each time",
    )
    chance = random.Random(5)
    async with rig(tmp_path, clients=0, workers=3) as it:
        await soon(partial(_are_alive, it, 3, 0), 15)
        prober = Prober(it.server.port, 50)
        kills = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prober.run, 30)
            for _ in range(15):
                await trio.sleep(2)
                workers = it.server.workers()
                if workers:
                    os.kill(chance.choice(workers), signal.SIGKILL)
                    kills += 1
        row.notes.append(f"{dict(prober.outcomes)} after {kills} kills")
        row.notes.append(f"the slowest answer after {prober.slowest_seconds:.1f} s")
        assert kills > 10
        assert prober.outcomes["101"] > 1000
        assert set(prober.outcomes) <= {"101", "reset"}, prober.outcomes
        assert prober.outcomes["reset"] <= 2 * kills
        assert prober.slowest_seconds < 10


async def test_without_a_serving_worker_clients_wait_only_shortly(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "fault",
        "All workers are killed, again and again",
        "SIGKILL of both workers, eight times, as soon as they serve again; clients come "
        "meanwhile, 20 a second",
        "none is refused; the pause that grows for a worker that ends again and again is for "
        "others to serve meanwhile, so there is none",
    )
    async with rig(tmp_path, clients=0, workers=2) as it:
        await soon(partial(_are_alive, it, 2, 0), 15)
        prober = Prober(it.server.port, 20)
        waits = []
        for round_ in range(1, 9):
            for pid in it.server.workers():
                os.kill(pid, signal.SIGKILL)
            begun = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(prober.run, 1)
                await soon(partial(_gets_in, it), 30)
                waits.append(trio.current_time() - begun)
            await soon(partial(_are_alive, it, 2, 2 * round_), 30)
        row.notes.append(f"in again after {', '.join(f'{wait:.1f}' for wait in waits)} s")
        row.notes.append(f"{dict(prober.outcomes)}")
        assert set(prober.outcomes) == {"101"}, prober.outcomes
        assert max(waits) < 8


async def _gets_in(it: Rig) -> bool:
    one = await it.attackers.tcp()
    return await one.upgrade() == 101
