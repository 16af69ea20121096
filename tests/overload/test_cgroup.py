"""The two versions of cgroups, as folders that imitate the kernel's."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from trio_odin.overload.cgroup import cpu_group, memory_group

MIB = 1024 * 1024
NO_LIMIT = str(2**63 - 4096)


@attrs.frozen
class Machine:
    """A made-up /proc/self and its mounts."""

    root: Path

    @property
    def proc(self) -> Path:
        return self.root / "proc"

    def process(self, *groups: str) -> None:
        """Set its groups: lines of /proc/self/cgroup."""
        self.proc.mkdir(exist_ok=True)
        (self.proc / "cgroup").write_text("".join(f"{line}\n" for line in groups))
        (self.proc / "mountinfo").write_text("22 27 0:21 / /proc rw - proc proc rw\n")

    def mount(self, point: str, kind: str, options: str = "rw", *, top: str = "/") -> Path:
        folder = self.root / point
        folder.mkdir(parents=True, exist_ok=True)
        place = str(folder).replace(" ", "\\040")
        with (self.proc / "mountinfo").open("a") as mounts:
            mounts.write(f"31 23 0:28 {top} {place} rw,relatime shared:9 - {kind} x {options}\n")
        return folder


def put(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made_up = Machine(tmp_path / "with a space")
    made_up.root.mkdir()
    made_up.process("0::/")
    return made_up


def v2_group(folder: Path, *, cores: str = "max 100000", memory: object = "max") -> Path:
    return put(
        folder,
        cpu__max=cores,
        cpu__stat="usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000",
        memory__max=memory,
        memory__current=700 * MIB,
        memory__stat=f"anon {400 * MIB}\ninactive_file {300 * MIB}\nactive_file 5",
    )


def v1_group(folder: Path, *, quota: int = -1, memory: object = NO_LIMIT) -> Path:
    """All controllers in one folder, as on systems with one mount."""
    return put(
        folder,
        cpu__cfs_quota_us=quota,
        cpu__cfs_period_us=50_000,
        cpuacct__usage=2_500_000_000,
        memory__limit_in_bytes=memory,
        memory__usage_in_bytes=700 * MIB,
        memory__stat=f"inactive_file 1\ntotal_inactive_file {300 * MIB}",
    )


def check_limits(machine: Machine) -> None:
    cpu, memory = cpu_group(machine.proc), memory_group(machine.proc)
    assert cpu is not None
    assert memory is not None
    assert (cpu.cores, cpu.used_seconds()) == (1.5, 2.5)
    assert (memory.limit_bytes, memory.used_bytes()) == (1024 * MIB, 400 * MIB)


@pytest.mark.parametrize("path", ["/", "/kube/pod/container"])
def test_version_2_with_and_without_a_namespace(machine: Machine, path: str) -> None:
    machine.process(f"0::{path}")
    top = machine.mount("fs", "cgroup2")
    v2_group(top / path.strip("/"), cores="150000 100000", memory=1024 * MIB)
    check_limits(machine)


@pytest.mark.parametrize("path", ["/", "/docker/abc"])
def test_version_1_with_and_without_a_namespace(machine: Machine, path: str) -> None:
    machine.process(f"4:memory:{path}", f"2:cpu,cpuacct:{path}", "1:name=systemd:/", "0::/")
    machine.mount("fs/unified", "cgroup2")
    machine.mount("fs/systemd", "cgroup", "rw,name=systemd")
    cpu = machine.mount("fs/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
    memory = machine.mount("fs/memory", "cgroup", "rw,memory")
    v1_group(cpu / path.strip("/"), quota=75_000)
    v1_group(memory / path.strip("/"), memory=1024 * MIB)
    check_limits(machine)


def test_version_1_with_a_tree_for_each_controller(machine: Machine) -> None:
    machine.process("3:memory:/a", "2:cpuacct:/a", "1:cpu:/a")
    for name in ("cpu", "cpuacct", "memory"):
        machine.mount(f"fs/{name}", "cgroup", f"rw,{name}")
    put(machine.root / "fs/cpu/a", cpu__cfs_quota_us=75_000, cpu__cfs_period_us=50_000)
    put(machine.root / "fs/cpuacct/a", cpuacct__usage=2_500_000_000)
    v1_group(machine.root / "fs/memory/a", memory=1024 * MIB)
    check_limits(machine)


def test_a_container_that_sees_only_its_own_part_of_the_tree(machine: Machine) -> None:
    machine.process("4:memory:/docker/abc", "2:cpu,cpuacct:/docker/abc")
    cpu = machine.mount("fs/cpu", "cgroup", "rw,cpu,cpuacct", top="/docker/abc")
    memory = machine.mount("fs/memory", "cgroup", "rw,memory", top="/docker/abc")
    v1_group(cpu, quota=75_000)
    v1_group(memory, memory=1024 * MIB)
    check_limits(machine)


@pytest.mark.parametrize("path", ["/../../system.slice", "/elsewhere", "/docker/abcdef"])
def test_a_group_that_cannot_be_seen_is_taken_for_the_top(machine: Machine, path: str) -> None:
    machine.process(f"0::{path}")
    top = machine.mount("fs", "cgroup2", top="/docker/abc")
    v2_group(top, cores="150000 100000", memory=1024 * MIB)
    check_limits(machine)


@pytest.mark.parametrize("outer_is_lower", [True, False])
def test_the_lowest_limit_on_the_way_up_counts(machine: Machine, outer_is_lower: bool) -> None:
    machine.process("0::/slice/service")
    top = machine.mount("fs", "cgroup2")
    low, high = top / "slice", top / "slice/service"
    if not outer_is_lower:
        low, high = high, low
    v2_group(low, cores="150000 100000", memory=1024 * MIB)
    v2_group(high, cores="160000 100000", memory=1025 * MIB)
    put(high, cpu__stat="usage_usec 1", memory__current=1, memory__stat="inactive_file 0")
    check_limits(machine)


def test_without_a_limit_there_is_no_group_to_judge_by(machine: Machine) -> None:
    v2_group(machine.mount("fs", "cgroup2"))
    assert cpu_group(machine.proc) is None
    assert memory_group(machine.proc) is None
    machine.process("2:memory:/", "1:cpu,cpuacct:/")
    v1_group(machine.mount("one", "cgroup", "rw,cpu,cpuacct"))
    v1_group(machine.mount("two", "cgroup", "rw,memory"))
    assert cpu_group(machine.proc) is None
    assert memory_group(machine.proc) is None


def test_a_system_without_cgroups_has_no_group(tmp_path: Path, machine: Machine) -> None:
    assert cpu_group(tmp_path / "nowhere") is None
    assert memory_group(tmp_path / "nowhere") is None
    assert cpu_group(machine.proc) is None, "nothing is mounted"


def test_unreadable_files_are_left_out(machine: Machine) -> None:
    top = machine.mount("fs", "cgroup2")
    put(top, cpu__max="nonsense", memory__max="much")
    assert cpu_group(machine.proc) is None
    assert memory_group(machine.proc) is None


def test_more_inactive_files_than_memory_is_nothing_used(machine: Machine) -> None:
    top = v2_group(machine.mount("fs", "cgroup2"), memory=1024 * MIB)
    put(top, memory__current=5)
    group = memory_group(machine.proc)
    assert group is not None
    assert group.used_bytes() == 0


def test_the_groups_of_the_current_process_are_read_if_it_has_any() -> None:
    cpu, memory = cpu_group(), memory_group()
    assert cpu is None or (cpu.cores > 0 and cpu.used_seconds() > 0)
    assert memory is None or 0 < memory.used_bytes() <= memory.limit_bytes
