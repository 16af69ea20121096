from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.hosts.rig import (
    PREFIX,
    ended,
    first_line,
    leftovers,
    needs_namespaces,
    python,
    start,
)
from trio_odin.lab.hosts import controllers
from trio_odin.lab.hosts.cgroup import Limits, server_limits
from trio_odin.lab.hosts.controllers import Usage, remove_cgroups
from trio_odin.lab.hosts.hosts import HostsUnavailable
from trio_odin.lab.hosts.namespaces import down
from trio_odin.lab.hosts.run import run

NAME = f"{PREFIX}-ws"
GROUP = f"trio-odin-{NAME}"


@pytest.fixture
def remove_like_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove folders with their files, as the kernel does with a cgroup's folder."""

    def is_removed(folder: Path) -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return True

    monkeypatch.setattr(controllers, "_is_removed", is_removed)


@pytest.fixture
def v2_root(tmp_path: Path, remove_like_the_kernel: None) -> Path:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory pids\n")
    return tmp_path


@pytest.fixture
def v1_root(tmp_path: Path, remove_like_the_kernel: None) -> Path:
    """A v1 root as most systems mount it: cpu and cpuacct are links to one shared tree."""
    for tree in ("cpu,cpuacct", "memory"):
        (tmp_path / tree).mkdir()
        (tmp_path / tree / "cgroup.procs").write_text("")
    for link in ("cpu", "cpuacct"):
        (tmp_path / link).symlink_to("cpu,cpuacct")
    return tmp_path


async def test_v2_limits_are_written_and_usage_is_read(v2_root: Path) -> None:
    group = v2_root / GROUP
    async with server_limits(NAME, cpu_cores=1.9, memory_mib=7168, root=v2_root) as limits:
        assert (v2_root / "cgroup.subtree_control").read_text() == "+cpu"
        assert (group / "cpu.max").read_text() == "190000 100000"
        assert (group / "memory.max").read_text() == str(7168 * 2**20)
        assert limits.description["CPU"] == "1.9 cores (cgroup v2)"
        assert limits.description["memory"] == "7,168 MiB (cgroup v2)"
        assert not any("pinned" in sentence for sentence in limits.sentences)

        here = await run(limits.command(["sh", "-c", "echo $$"]))
        assert (group / "cgroup.procs").read_text() == here.output.strip()

        (group / "cpu.stat").write_text("usage_usec 2500000\nnr_periods 3\nthrottled_usec 40000\n")
        (group / "memory.current").write_text("4096\n")
        assert limits.usage() == Usage(2.5, 4096, 0.04)
    assert not group.exists()


async def test_v1_limits_are_written_and_usage_is_read(v1_root: Path) -> None:
    cpu, memory = v1_root / "cpu,cpuacct" / GROUP, v1_root / "memory" / GROUP
    async with server_limits(NAME, cpu_cores=0.5, memory_mib=1, root=v1_root) as limits:
        assert (cpu / "cpu.cfs_period_us").read_text() == "100000"
        assert (cpu / "cpu.cfs_quota_us").read_text() == "50000"
        assert (memory / "memory.limit_in_bytes").read_text() == "1048576"
        assert limits.description["CPU"] == "0.5 cores (cgroup v1)"

        here = (await run(limits.command(["sh", "-c", "echo $$"]))).output.strip()
        assert [(folder / "cgroup.procs").read_text() for folder in (cpu, memory)] == [here, here]

        (cpu / "cpuacct.usage").write_text("1500000000\n")
        (cpu / "cpu.stat").write_text("nr_periods 0\n")
        (memory / "memory.usage_in_bytes").write_text("8192\n")
        assert limits.usage() == Usage(1.5, 8192, None)
    assert not cpu.exists()
    assert not memory.exists()


async def test_swap_is_limited_with_the_memory_if_the_kernel_counts_it(v2_root: Path) -> None:
    swap = v2_root / GROUP / "memory.swap.max"
    cgroup = controllers.create_cgroup(GROUP, 1, 64, v2_root)
    assert not swap.exists()
    swap.write_text("max")
    controllers._write_limits(cgroup, 1, 64)
    assert swap.read_text() == "0"


async def test_a_cgroup_left_by_a_killed_lab_is_made_anew(v2_root: Path) -> None:
    (v2_root / GROUP).mkdir()
    (v2_root / GROUP / "cpu.stat").write_text("of another time")
    async with server_limits(NAME, cpu_cores=1, memory_mib=64, root=v2_root):
        assert not (v2_root / GROUP / "cpu.stat").exists()


async def test_without_cgroups_the_cpus_are_pinned_and_it_is_reported(tmp_path: Path) -> None:
    async with server_limits(NAME, cpu_cores=0.9, memory_mib=64, root=tmp_path) as limits:
        first = min(os.sched_getaffinity(0))
        assert limits.description["CPU"] == f"pinned to CPU {first}"
        assert limits.description["memory"] == "not limited"
        assert "has no controllers for CPU and memory" in limits.sentences[0]
        assert f"pinned to CPU {first} instead" in limits.sentences[0]
        assert limits.usage() is None

        show = "import os; print(sorted(os.sched_getaffinity(0)))"
        assert (await run(limits.command(python(show)))).output == f"[{first}]\n"


async def test_a_tree_that_accepts_no_process_is_not_used(v2_root: Path) -> None:
    blocked = v2_root / GROUP / "cgroup.procs"

    real = controllers._write_limits

    def write_and_block(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        blocked.mkdir()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controllers, "_write_limits", write_and_block)
        async with server_limits(NAME, cpu_cores=1, memory_mib=64, root=v2_root) as limits:
            assert "cannot be started within its limits" in limits.sentences[0]
            assert limits.cpus != []
    assert not (v2_root / GROUP).exists()


async def test_a_machine_smaller_than_the_limits_is_reported(tmp_path: Path) -> None:
    wanted = {"cpu_cores": 4096.0, "memory_mib": 2**40}
    async with server_limits(NAME, root=tmp_path, **wanted) as limits:  # type: ignore[arg-type]
        assert any(s.startswith("CPU: 4096 cores are more than") for s in limits.sentences)
        assert any(s.startswith("memory: ") for s in limits.sentences)


async def test_a_lower_limit_of_open_files_is_reported(tmp_path: Path) -> None:
    async def files(wanted: int) -> Limits:
        arguments = {"cpu_cores": 1.0, "memory_mib": 64, "open_files": wanted, "root": tmp_path}
        async with server_limits(NAME, **arguments) as limits:  # type: ignore[arg-type]
            return limits

    few, many = await files(100), await files(2**40)
    assert few.description["open files"] == "100"
    assert not any("open files" in sentence for sentence in few.sentences)
    assert many.open_files >= 100
    assert f"open files: {many.open_files:,} per process" in many.sentences[-1]


async def test_a_missing_program_is_reported(tmp_path: Path) -> None:
    async with server_limits(NAME, cpu_cores=1, memory_mib=64, root=tmp_path) as limits:
        done = await run(limits.command(["no-such-program"]))
    assert done.code == 1
    assert done.complaint.startswith("no-such-program cannot be started within its limits")


@pytest.mark.parametrize("name", ["ws", "odin-", "odin-a-b", "../odin-ws", "Odin-ws"])
async def test_a_name_that_down_would_not_find_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it takes PREFIX-WHAT"):
        await server_limits(name, cpu_cores=1, memory_mib=64, root=tmp_path).__aenter__()


async def test_a_cgroup_that_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controllers, "_REMOVE_SECONDS", 0.05)
    stuck, free = tmp_path / "trio-odin-odin-a", tmp_path / "trio-odin-odin-b"
    (stuck / "child").mkdir(parents=True)
    free.mkdir()
    with pytest.raises(HostsUnavailable, match=r"cannot be removed: .*-a; are they in use"):
        await remove_cgroups("odin", root=tmp_path)
    assert not free.exists()


_BURN = """
import os, sys, time
if os.fork() == 0: pass
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end: pass
"""


@needs_namespaces
async def test_the_kernel_limits_the_cpu_of_the_processes() -> None:
    async with server_limits(NAME, cpu_cores=0.2, memory_mib=256) as limits:
        if limits.cgroup is None:
            pytest.skip(limits.sentences[0])
        before, start = limits.usage(), time.monotonic()
        await run(limits.command(python(_BURN, "1")))
        after, seconds = limits.usage(), time.monotonic() - start

        assert before is not None
        assert after is not None
        assert 0.1 < (after.cpu_seconds - before.cpu_seconds) / seconds < 0.35
        assert after.throttled_seconds is None or after.throttled_seconds > 0
    assert leftovers() == []


@needs_namespaces
async def test_the_kernel_limits_the_memory_of_the_processes() -> None:
    async with server_limits(NAME, cpu_cores=1, memory_mib=64) as limits:
        if limits.cgroup is None:
            pytest.skip(limits.sentences[0])
        assert (await run(limits.command(python("bytearray(32 * 2**20)")))).code == 0
        assert (await run(limits.command(python("bytearray(256 * 2**20)")))).code == -9


@needs_namespaces
async def test_processes_in_the_cgroup_are_ended_and_it_is_removed() -> None:
    with start(["sleep", "60"]) as outside:
        async with server_limits(NAME, cpu_cores=1, memory_mib=64) as limits:
            if limits.cgroup is None:
                pytest.skip(limits.sentences[0])
            inside = start(limits.command(["sh", "-c", "echo there; exec sleep 60"]))
            await first_line(inside)
            with pytest.raises(HostsUnavailable, match=r"processes in the cgroup .*: 1;"):
                await server_limits(NAME, cpu_cores=1, memory_mib=64).__aenter__()
        assert ended(inside) == -15
        assert outside.poll() is None
        outside.kill()
    assert leftovers() == []


@needs_namespaces
async def test_down_removes_a_lone_cgroup() -> None:
    cgroup = controllers.create_cgroup(GROUP, 1, 64, controllers.CGROUP_ROOT)
    removed = await down(PREFIX)
    assert removed == [f"removed the cgroup {folder}" for folder in cgroup.distinct_folders()]
    assert leftovers() == []


def test_the_launcher_needs_nothing_from_this_package(tmp_path: Path) -> None:
    limits = Limits(description={}, sentences=[], open_files=64)
    command = limits.command([sys.executable, "-I", "-S", "-c", "print('there')"])
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, check=True)
    assert done.stdout == b"there\n"
