"""The control group that this process runs in: what a container may use, and what it uses.

A limit may be set on the group itself or on any group above it, and the lowest one counts.
Everything that runs in the group with that limit counts against it. Version 2 is one tree of
folders, version 1 has a tree for each controller. In a container the visible tree often begins at
the container's own group (cgroup_namespaces(7)), so the path of a group is looked up below the
mount point.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import attrs

_PROC = Path("/proc/self")
_V2 = ""  # its line in /proc/self/cgroup names no controller
# Version 1 writes "no limit" as the largest multiple of a page below 2**63.
_NO_LIMIT_BYTES = 2**60


@attrs.frozen
class CpuGroup:
    """The group whose CPU quota applies to this process.

    Attributes:
        cores: quota, in cores.
    """

    cores: float
    _usage: Path

    def used_seconds(self) -> float:
        """Return the CPU seconds that all processes of the group have used.

        Raises:
            OSError: they cannot be read.
        """
        if self._usage.name == "cpu.stat":
            return _fields(self._usage)["usage_usec"] / 1e6
        return int(self._usage.read_text()) / 1e9


@attrs.frozen
class MemoryGroup:
    """The group whose memory limit applies to this process.

    Attributes:
        limit_bytes: limit at which the kernel kills processes.
    """

    limit_bytes: int
    _usage: Path

    def used_bytes(self) -> int:
        """Return the memory of all processes of the group, without the inactive file cache.

        The kernel drops that cache before it kills a process.

        Raises:
            OSError: it cannot be read.
        """
        stat = _fields(self._usage.parent / "memory.stat")
        inactive = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        return max(int(self._usage.read_text()) - inactive, 0)


def cpu_group(proc: Path = _PROC) -> CpuGroup | None:
    """Return the group that limits the CPU of the process at `proc`; None if no group does."""
    return min(_cpu_groups(proc), key=lambda group: group.cores, default=None)


def memory_group(proc: Path = _PROC) -> MemoryGroup | None:
    """Return the group that limits its memory; None if no group does."""
    return min(_memory_groups(proc), key=lambda group: group.limit_bytes, default=None)


def _cpu_groups(proc: Path) -> Iterator[CpuGroup]:
    for folder in _folders(proc, _V2):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                yield CpuGroup(int(quota) / int(period), folder / "cpu.stat")
    folders, accounts = _folders(proc, "cpu"), _folders(proc, "cpuacct")
    if len(accounts) != len(folders):  # grouped differently: count at least our own group
        accounts = accounts[:1] * len(folders)
    for folder, account in zip(folders, accounts, strict=False):
        with suppress(OSError, ValueError):
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            period_us = int((folder / "cpu.cfs_period_us").read_text())
            if quota_us > 0:
                yield CpuGroup(quota_us / period_us, account / "cpuacct.usage")


def _memory_groups(proc: Path) -> Iterator[MemoryGroup]:
    for controller, limit, usage in (
        (_V2, "memory.max", "memory.current"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        for folder in _folders(proc, controller):
            with suppress(OSError, ValueError):
                limit_bytes = int((folder / limit).read_text())  # "max" is a ValueError
                if limit_bytes < _NO_LIMIT_BYTES:
                    yield MemoryGroup(limit_bytes, folder / usage)


def _folders(proc: Path, controller: str) -> list[Path]:
    """Return our group's folder in the tree of `controller`, and the visible folders above it."""
    try:
        path = _path_of_group(proc, controller)
        root, top = _mount(proc, controller)
    except (OSError, LookupError):
        return []
    base = root.rstrip("/")
    inside = path.removeprefix(base) if f"{path}/".startswith(f"{base}/") else "/"
    own = top / inside.strip("/")
    if ".." in own.parts or not own.is_dir():  # outside the visible tree: the top is the nearest
        own = top
    return [own, *(folder for folder in own.parents if folder.is_relative_to(top))]


def _path_of_group(proc: Path, controller: str) -> str:
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    raise LookupError(controller)


def _mount(proc: Path, controller: str) -> tuple[str, Path]:
    """Return the group at the top of the mounted tree, and its path (proc_pid_mountinfo(5))."""
    for line in (proc / "mountinfo").read_text().splitlines():
        place, _, kind = line.partition(" - ")
        file_system, _, options = kind.split(" ", 2)
        is_it = (
            file_system == "cgroup2"
            if controller == _V2
            else file_system == "cgroup" and controller in options.split(",")
        )
        if is_it:
            _, _, _, root, point, *_ = place.split(" ")
            return _unescaped(root), Path(_unescaped(point))
    raise LookupError(controller)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)


def _fields(path: Path) -> dict[str, int]:
    """Parse a file of which each line is a name and a number."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return {name: int(number) for name, number in pairs}
