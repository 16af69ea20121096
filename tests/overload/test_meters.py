from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import trio

from trio_odin.overload.cgroup import CpuGroup, MemoryGroup
from trio_odin.overload.meters import CpuMeter, LoopMeter, MemoryMeter
from trio_odin.overload.process import machine_bytes, resident_bytes

CORES = len(os.sched_getaffinity(0))


class Clocks:
    """Time, CPU of this process and of its group, set by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.wall, self.own = 100.0, 5.0
        self.usage = folder / "cpuacct.usage"
        monkeypatch.setattr(time, "monotonic", lambda: self.wall)
        monkeypatch.setattr(time, "process_time", lambda: self.own)
        self.group_has_used(0.0)

    def group_has_used(self, seconds: float) -> None:
        self.usage.write_text(f"{round(seconds * 1e9)}\n")

    def pass_second(self, own: float, group: float | None = None) -> None:
        self.wall += 1.0
        self.own += own
        if group is not None:
            self.group_has_used(group)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clocks:
    return Clocks(monkeypatch, tmp_path)


def test_without_a_quota_the_process_counts_against_the_limit(clocks: Clocks) -> None:
    meter = CpuMeter(2.0, None)
    clocks.pass_second(own=0.5)
    assert meter.read(0.0) == pytest.approx((25.0, 50.0))
    clocks.pass_second(own=1.0)
    assert meter.read(0.6) == pytest.approx((80.0, 100.0)), "with what other workers use"


def test_without_a_limit_it_counts_against_the_cores_it_may_use(clocks: Clocks) -> None:
    meter = CpuMeter(0.0, None)
    clocks.pass_second(own=0.5)
    assert meter.read(0.0) == pytest.approx((50.0 / CORES, 50.0))


def test_with_a_quota_everything_under_it_counts_once(clocks: Clocks) -> None:
    meter = CpuMeter(0.0, CpuGroup(0.5, clocks.usage))
    clocks.pass_second(own=0.1, group=0.4)
    assert meter.read(0.3) == pytest.approx((80.0, 10.0))
    clocks.pass_second(own=0.2, group=0.9)
    assert meter.read(0.3) == pytest.approx((100.0, 20.0))


def test_a_configured_limit_takes_precedence_over_the_quota(clocks: Clocks) -> None:
    meter = CpuMeter(2.0, CpuGroup(0.5, clocks.usage))
    clocks.pass_second(own=0.5, group=100.0)
    assert meter.read(0.0) == pytest.approx((25.0, 50.0))


def test_a_quota_above_the_cores_means_all_cores(clocks: Clocks) -> None:
    meter = CpuMeter(0.0, CpuGroup(1000.0, clocks.usage))
    clocks.pass_second(own=0.0, group=CORES / 2)
    assert meter.read(0.0)[0] == pytest.approx(50.0)


def test_with_an_unreadable_group_the_process_counts(clocks: Clocks) -> None:
    meter = CpuMeter(0.0, CpuGroup(0.5, clocks.usage))
    clocks.pass_second(own=0.25)
    clocks.usage.unlink()
    assert meter.read(0.0) == pytest.approx((50.0, 25.0))
    clocks.pass_second(own=0.25, group=7.0)
    assert meter.read(0.0) == pytest.approx((50.0, 25.0)), "two figures make a difference"
    clocks.pass_second(own=0.0, group=7.5)
    assert meter.read(0.0) == pytest.approx((100.0, 0.0))


def memory_of(folder: Path, *, limit: int, used: int) -> MemoryGroup:
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text("inactive_file 100\n")
    return MemoryGroup(limit, folder / "memory.current")


def test_with_a_limited_group_memory_is_that_of_the_group(tmp_path: Path) -> None:
    meter = MemoryMeter(0, memory_of(tmp_path, limit=1000, used=600))
    assert (meter.limit_bytes, meter.group_bytes()) == (1000, 500)
    assert meter.percent(10**9) == pytest.approx(50.0), "what is elsewhere is in it"


def test_with_a_configured_limit_memory_is_that_of_the_processes(tmp_path: Path) -> None:
    limit = resident_bytes() * 4
    meter = MemoryMeter(limit, memory_of(tmp_path, limit=1000, used=600))
    assert (meter.limit_bytes, meter.group_bytes()) == (limit, 0)
    assert meter.percent(limit // 2) == pytest.approx(75.0, abs=5)


@pytest.mark.parametrize("of_group", [None, 2**59])
def test_without_a_limit_memory_is_that_of_the_machine(
    tmp_path: Path, of_group: int | None
) -> None:
    group = memory_of(tmp_path, limit=of_group, used=600) if of_group else None
    meter = MemoryMeter(0, group)
    assert (meter.limit_bytes, meter.group_bytes()) == (machine_bytes(), 0)
    assert 0 < meter.percent(0) < 100


def test_with_an_unreadable_group_memory_is_that_of_the_processes(tmp_path: Path) -> None:
    limit = resident_bytes() * 2
    meter = MemoryMeter(0, memory_of(tmp_path, limit=limit, used=600))
    (tmp_path / "memory.stat").unlink()
    assert meter.group_bytes() == 0
    assert meter.percent(0) == pytest.approx(50.0, abs=5)


async def test_a_loop_is_idle_while_its_tasks_wait_and_busy_while_they_run() -> None:
    meter = LoopMeter({"worked", "rested"})
    began = time.perf_counter()
    trio.lowlevel.add_instrument(meter)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, 0.1, name="worked")
            nursery.start_soon(work, 0.1, name="not asked about")
            nursery.start_soon(trio.sleep, 0.5, name="rested")
    finally:
        trio.lowlevel.remove_instrument(meter)
    whole = time.perf_counter() - began
    assert 0.1 <= meter.task_seconds["worked"] <= whole - 0.1
    assert meter.task_seconds["rested"] < 0.3
    assert meter.idle_seconds + 0.2 <= whole
    assert set(meter.task_seconds) == {"worked", "rested"}
    assert meter.seconds_in(["worked", "rested"]) == sum(meter.task_seconds.values())


async def work(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


async def test_a_turn_lasts_from_one_wait_of_the_loop_to_the_next() -> None:
    meter = LoopMeter(())
    assert meter.turn_seconds() < 0, "none has begun"
    trio.lowlevel.add_instrument(meter)
    try:
        await trio.lowlevel.checkpoint()
        before = meter.turn_seconds()
        await work(0.5)
        assert meter.turn_seconds() >= before + 0.5
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        assert meter.turn_seconds() < before + 0.5
        await work(0.2)
        await trio.lowlevel.checkpoint()
        assert meter.last_turn_seconds >= 0.2
    finally:
        trio.lowlevel.remove_instrument(meter)


async def test_a_task_can_have_a_name_for_one_step() -> None:
    meter = LoopMeter({"first"}, then={"first": "later"})
    trio.lowlevel.add_instrument(meter)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two_steps, 0.05, name="first")
    finally:
        trio.lowlevel.remove_instrument(meter)
    assert meter.task_seconds["first"] >= 0.05
    assert set(meter.task_seconds) == {"first"}


async def two_steps(seconds: float) -> None:
    await work(seconds)
    assert trio.lowlevel.current_task().name == "first"
    await trio.lowlevel.checkpoint()
    assert trio.lowlevel.current_task().name == "later"
