"""cgroups as files and folders of the kernel, version 2 or 1.

Version 2 is one tree with a folder for each group; version 1 has a tree for each controller, and a
group is a folder in each of them. Both are under the system's mount point, /sys/fs/cgroup.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs
import trio

from trio_odin.lab.hosts.hosts import HostsUnavailable
from trio_odin.lab.hosts.processes import Belongs, end_processes

CGROUP_ROOT = Path("/sys/fs/cgroup")
_PERIOD_MICROSECONDS = 100_000
_REMOVE_SECONDS = 5.0
_POLL_SECONDS = 0.02
_V1_CONTROLLERS = ("cpu", "cpuacct", "memory")
_V2_CONTROLLERS = ("cpu", "memory")
MEBIBYTE = 2**20


class NoCgroup(Exception):
    """There can be no cgroup; the message completes "cgroups cannot be used: …"."""


@attrs.frozen
class Usage:
    """The resources that the processes of a cgroup have used.

    Args:
        cpu_seconds: since the cgroup was made, the kernel's part included.
        memory_bytes: now, the kernel's part (sockets) and cached files included.
        throttled_seconds: time with work but no CPU left; None if the kernel does not count it.
    """

    cpu_seconds: float
    memory_bytes: int
    throttled_seconds: float | None = None


@attrs.frozen
class Cgroup:
    """A group: the folder of each controller; with v2 one folder for all."""

    version: int
    folders: Mapping[str, Path]

    def distinct_folders(self) -> list[Path]:
        """Each folder once."""
        return sorted(set(self.folders.values()))

    def usage(self) -> Usage:
        """Read the kernel's counters; raises OSError if the group does not exist."""
        stat = dict(line.split() for line in self._text("cpu", "cpu.stat").splitlines())
        if self.version == 2:
            return Usage(
                cpu_seconds=int(stat["usage_usec"]) / 1e6,
                memory_bytes=int(self._text("memory", "memory.current")),
                throttled_seconds=_scaled(stat.get("throttled_usec"), 1e6),
            )
        return Usage(
            cpu_seconds=int(self._text("cpuacct", "cpuacct.usage")) / 1e9,
            memory_bytes=int(self._text("memory", "memory.usage_in_bytes")),
            throttled_seconds=_scaled(stat.get("throttled_time"), 1e9),
        )

    def _text(self, controller: str, name: str) -> str:
        return (self.folders[controller] / name).read_text()


def _scaled(count: str | None, per_second: float) -> float | None:
    return None if count is None else int(count) / per_second


def create_cgroup(folder: str, cpu_cores: float, memory_mib: int, root: Path) -> Cgroup:
    """Make the group and set its limits.

    Raises:
        NoCgroup: it cannot be done; a part of it may have been done.
    """
    try:
        version, trees = _trees(root)
        if version == 2:
            _enable_controllers(root)
        cgroup = Cgroup(version, {name: tree / folder for name, tree in trees.items()})
        for path in cgroup.distinct_folders():
            path.mkdir(exist_ok=True)
        _write_limits(cgroup, cpu_cores, memory_mib)
    except OSError as refusal:
        raise NoCgroup(str(refusal)) from refusal
    return cgroup


def _trees(root: Path) -> tuple[int, dict[str, Path]]:
    """The version that has the controllers here, and the top of each one's tree."""
    with suppress(OSError):
        if set(_V2_CONTROLLERS) <= set((root / "cgroup.controllers").read_text().split()):
            return 2, dict.fromkeys(_V2_CONTROLLERS, root)
    if all((root / name / "cgroup.procs").exists() for name in _V1_CONTROLLERS):
        # If two controllers share a tree, one is a link to the other; the group is one folder then.
        return 1, {name: (root / name).resolve() for name in _V1_CONTROLLERS}
    raise NoCgroup(f"{root} has no controllers for CPU and memory")


def _enable_controllers(root: Path) -> None:
    control = root / "cgroup.subtree_control"
    missing = set(_V2_CONTROLLERS) - set(control.read_text().split())
    if missing:
        control.write_text(" ".join(f"+{name}" for name in sorted(missing)))


def _write_limits(cgroup: Cgroup, cpu_cores: float, memory_mib: int) -> None:
    quota, memory = round(cpu_cores * _PERIOD_MICROSECONDS), str(memory_mib * MEBIBYTE)
    cpu_folder, memory_folder = cgroup.folders["cpu"], cgroup.folders["memory"]
    if cgroup.version == 2:
        (cpu_folder / "cpu.max").write_text(f"{quota} {_PERIOD_MICROSECONDS}")
        (memory_folder / "memory.max").write_text(memory)
        without_swap = memory_folder / "memory.swap.max", "0"
    else:
        (cpu_folder / "cpu.cfs_period_us").write_text(str(_PERIOD_MICROSECONDS))
        (cpu_folder / "cpu.cfs_quota_us").write_text(str(quota))
        (memory_folder / "memory.limit_in_bytes").write_text(memory)
        without_swap = memory_folder / "memory.memsw.limit_in_bytes", memory
    # A server that swaps, where its machine would have killed it, measures something else. Not
    # every kernel counts swap.
    path, value = without_swap
    if path.exists():
        path.write_text(value)


async def remove_cgroups(prefix: str, *, root: Path = CGROUP_ROOT) -> list[str]:
    """End the processes in cgroups of that prefix and remove these; returns a sentence for each.

    Raises:
        HostsUnavailable: one could not be removed.
    """
    removed: list[str] = []
    folders = group_folders(f"trio-odin-{prefix}-*", root)
    if ended := await end_processes(is_inside({folder.name for folder in folders})):
        removed.append(f"ended {ended} {'process' if ended == 1 else 'processes'} in cgroups")
    await remove_folders(folders)
    return removed + [f"removed the cgroup {folder}" for folder in folders]


def group_folders(pattern: str, root: Path) -> list[Path]:
    """The folders of groups that match `pattern`, at the top of a v2 tree or of our v1 trees.

    Each is listed once. Lower folders are not searched: a system service may have a similar name.
    """
    tops = (root, *(root / name for name in _V1_CONTROLLERS))
    return sorted({folder.resolve() for top in tops for folder in top.glob(pattern)})


async def remove_folders(folders: list[Path]) -> None:
    """Remove empty groups; that is possible a moment after their last process has ended.

    Raises:
        HostsUnavailable: one is still there after 5 seconds.
    """
    deadline = trio.current_time() + _REMOVE_SECONDS
    while left := [str(folder) for folder in folders if not _is_removed(folder)]:
        if trio.current_time() > deadline:
            raise HostsUnavailable(
                f"cgroups cannot be removed: {', '.join(left)}; are they in use?"
            )
        await trio.sleep(_POLL_SECONDS)


def _is_removed(folder: Path) -> bool:
    """Remove a folder if possible; its files belong to the kernel and vanish with it."""
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def is_inside(groups: set[str]) -> Belongs:
    """A test whether a process is in a group of one of these names, at the top of its tree."""
    return partial(_is_in, groups)


def _is_in(groups: set[str], pid: int) -> bool:
    """Ask the kernel, not the group's list of ids: an id may belong to another process by now."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return False
    return any(line.split(":", 2)[2].removeprefix("/") in groups for line in lines)
