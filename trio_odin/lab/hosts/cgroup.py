"""The server's machine: a cgroup that limits CPU and memory, or pinned CPUs where that fails."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs

from trio_odin.lab.hosts import enter
from trio_odin.lab.hosts.controllers import (
    CGROUP_ROOT,
    MEBIBYTE,
    Cgroup,
    NoCgroup,
    Usage,
    create_cgroup,
    group_folders,
    is_inside,
    remove_folders,
)
from trio_odin.lab.hosts.hosts import HostsUnavailable
from trio_odin.lab.hosts.processes import end_processes, members
from trio_odin.lab.hosts.run import run
from trio_odin.lab.hosts.teardown import to_the_end

_TEARDOWN_SECONDS = 20.0
_NAME = re.compile(r"[a-z][a-z0-9]*-[a-z0-9]+")


@attrs.frozen(kw_only=True)
class Limits:
    """The limits of the server's machine.

    Args:
        description: for a report: {"CPU": "1.9 cores (cgroup v2)", "memory": …, "open files": …}.
        sentences: differences from the request; empty if there are none.
        open_files: per process: the requested number, or as many as are allowed.
        cgroup: None if it could not be made, and the CPUs are pinned.
        cpus: CPUs to which its processes are pinned; empty: the cgroup limits them.
    """

    description: Mapping[str, str]
    sentences: list[str]
    open_files: int
    cgroup: Cgroup | None = None
    cpus: list[int] = attrs.field(factory=list)

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` within the limits, under the same process id.

        Child processes inherit the limits. If the limits cannot be set, the program does not start:
        exit code 1.
        """
        folders = [] if self.cgroup is None else self.cgroup.distinct_folders()
        limits = {
            "cgroups": [str(folder) for folder in folders],
            "open_files": self.open_files,
            "cpus": self.cpus,
        }
        # -I -S: it needs no packages, and starts faster without a search for them.
        return [sys.executable, "-I", "-S", enter.__file__, json.dumps(limits), *argv]

    def usage(self) -> Usage | None:
        """The use of the server and its child processes so far; None without a cgroup.

        Raises:
            OSError: the block that made the limits has been left.
        """
        return None if self.cgroup is None else self.cgroup.usage()


@attrs.frozen
class _Wish:
    cpu_cores: float
    memory_mib: int
    open_files: int


@asynccontextmanager
async def server_limits(
    name: str,
    *,
    cpu_cores: float,
    memory_mib: int,
    open_files: int = 200_000,
    root: Path = CGROUP_ROOT,
) -> AsyncIterator[Limits]:
    """A cgroup with these limits, or pinned CPUs where cgroups cannot be written.

    However the block ends, processes that are still in the cgroup are ended (SIGTERM, then
    SIGKILL) and it is removed, within 20 seconds. In a v2 tree the controllers cpu and memory stay
    enabled.

    Args:
        name: PREFIX-WHAT such as "odin-ws": `down(PREFIX)` finds it.
        cpu_cores: CPU seconds per second; pinning takes the next whole number of CPUs.
        memory_mib: above it the kernel ends a process of the group.
        open_files: per process; if that is not allowed, as many as are.
        root: the folder where cgroups are mounted.

    Raises:
        HostsUnavailable: there are processes in a cgroup of that name, no program can be started
            within any limits, or the cgroup could not be removed.
        ValueError: `name` is not allowed.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a cgroup of ours: it takes PREFIX-WHAT")
    group = f"trio-odin-{name}"
    if inside := members(is_inside({group})):
        raise HostsUnavailable(
            f"processes in the cgroup {group}: {len(inside)}; another lab is running, "
            "or `trio-odin lab down` removes them"
        )
    try:
        # A killed lab may have left one; the counters must start at zero.
        await remove_folders(group_folders(group, root))
        yield await _limits(group, _Wish(cpu_cores, memory_mib, open_files), root)
    finally:
        await to_the_end(partial(_tear_down, group, root), _TEARDOWN_SECONDS)


async def _limits(group: str, wish: _Wish, root: Path) -> Limits:
    """Make the limits and try them once; pin the CPUs if a cgroup fails."""
    try:
        return await _tried(_grouped(group, wish, root))
    except NoCgroup as reason:
        pinned = _pinned(wish, str(reason))
    try:
        return await _tried(pinned)
    except NoCgroup as reason:
        raise HostsUnavailable(f"no program starts within the limits: {reason}") from reason


async def _tried(limits: Limits) -> Limits:
    """Start a program within the limits, and read how many files it may open."""
    done = await run(limits.command(["sh", "-c", "ulimit -n"]))
    if not done.is_fine:
        raise NoCgroup(done.complaint)
    files, wanted = int(done.output), limits.open_files
    fewer = [f"open files: {files:,} per process, {wanted:,} are not allowed"]
    return attrs.evolve(
        limits,
        open_files=files,
        description={**limits.description, "open files": f"{files:,}"},
        sentences=limits.sentences + (fewer if files < wanted else []),
    )


def _grouped(group: str, wish: _Wish, root: Path) -> Limits:
    cgroup = create_cgroup(group, wish.cpu_cores, wish.memory_mib, root)
    return Limits(
        description={
            "CPU": f"{wish.cpu_cores:g} cores (cgroup v{cgroup.version})",
            "memory": f"{wish.memory_mib:,} MiB (cgroup v{cgroup.version})",
        },
        sentences=_what_the_machine_lacks(wish),
        open_files=wish.open_files,
        cgroup=cgroup,
    )


def _pinned(wish: _Wish, reason: str) -> Limits:
    cpus = sorted(os.sched_getaffinity(0))[: math.ceil(wish.cpu_cores)]
    listed = ", ".join(map(str, cpus))
    sentence = (
        f"cgroups cannot be used: {reason}; the server is pinned to CPU {listed} instead, "
        "and its memory is not limited"
    )
    return Limits(
        description={"CPU": f"pinned to CPU {listed}", "memory": "not limited"},
        sentences=[sentence, *_what_the_machine_lacks(wish)],
        open_files=wish.open_files,
        cpus=cpus,
    )


def _what_the_machine_lacks(wish: _Wish) -> list[str]:
    cpus = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MEBIBYTE
    sentences = []
    if cpus < wish.cpu_cores:
        sentences.append(f"CPU: {wish.cpu_cores:g} cores are more than this machine has ({cpus})")
    if memory < wish.memory_mib:
        sentences.append(f"memory: {wish.memory_mib:,} MiB are more than it has ({memory:,} MiB)")
    return sentences


async def _tear_down(group: str, root: Path) -> None:
    await end_processes(is_inside({group}))
    await remove_folders(group_folders(group, root))
