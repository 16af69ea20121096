"""One of two workers dies or hangs: the clients of the other one do not notice."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.faults.conftest import Record
from tests.faults.rig import Rig, rig, soon

pytestmark = pytest.mark.faults


async def _are_alive(it: Rig, alive: int, restarts: int) -> bool:
    workers = (await it.server.health()).get("workers", {})
    return bool(workers.get("alive") == alive and workers.get("restarts") == restarts)


async def test_a_killed_worker_takes_only_its_own_clients_along(
    tmp_path: Path, record: Record
) -> None:
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


async def test_a_worker_that_hangs_holds_up_nobody_else(tmp_path: Path, record: Record) -> None:
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
            # Who asks may meet the one that hangs, and waits 5 s for nothing.
            said = await soon(partial(_are_alive, it, 1, 0), 40)
            row.notes.append(f"said by /health after {said:.1f} s")
        finally:
            os.kill(stopped, signal.SIGCONT)
        row.recovery_seconds = await soon(partial(_are_alive, it, 2, 0), 20)
