"""Meters for CPU, loop and memory, against the limits of the container if it has any."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

import trio

from trio_odin.overload.cgroup import CpuGroup, MemoryGroup
from trio_odin.overload.process import machine_bytes, resident_bytes


class CpuMeter:
    """Measures CPU between two readings, in percent of what the server may use.

    The limit is `limit_cores` if that is not 0, else the quota of `group`, but never more than the
    cores that this process may run on. Against a quota, everything that runs in the group counts.
    Otherwise this process counts, and what the server's other processes report.

    Attributes:
        cores: number of cores that the server may use.
    """

    def __init__(self, limit_cores: float, group: CpuGroup | None) -> None:
        self._group = None if limit_cores else group
        # Affinity, not cpu_count: a container may be pinned to fewer cores than the host has.
        own_cores = float(len(os.sched_getaffinity(0)))
        self.cores = limit_cores or min(group.cores if group else own_cores, own_cores)
        self._wall = time.monotonic()
        self._own = time.process_time()
        self._of_group = self._group_seconds()

    def read(self, cores_elsewhere: float) -> tuple[float, float]:
        """Return CPU since the last reading; `cores_elsewhere` is that of the other processes.

        Returns:
            Percent of the limit, and for this process alone percent of one core.
        """
        wall, own, of_group = time.monotonic(), time.process_time(), self._group_seconds()
        seconds = max(wall - self._wall, 1e-9)
        own_cores = (own - self._own) / seconds
        cores = own_cores + cores_elsewhere
        if of_group is not None and self._of_group is not None:
            cores = (of_group - self._of_group) / seconds
        self._wall, self._own, self._of_group = wall, own, of_group
        return cores / self.cores * 100, own_cores * 100

    def _group_seconds(self) -> float | None:
        """None without a group, or if it cannot be read: then the processes are counted instead."""
        with suppress(OSError):
            return None if self._group is None else self._group.used_seconds()
        return None


class LoopMeter(trio.abc.Instrument):
    """Measures where the time of a loop goes. `trio.lowlevel.add_instrument` starts it.

    It goes by the wall clock: time in which the loop could run, but the machine or the container's
    quota does not let it, is not idle time.

    Attributes:
        idle_seconds: total time without anything to do.
        task_seconds: total time in the tasks of each name that is asked about.
        last_turn_seconds: time that all ready tasks took between the last two waits.
    """

    def __init__(self, names: Iterable[str], then: Mapping[str, str] | None = None) -> None:
        """Ask about tasks of these names; `then` maps names to those that follow after a step."""
        self._then = then or {}
        self.idle_seconds = self.last_turn_seconds = 0.0
        self.task_seconds = dict.fromkeys(names, 0.0)
        self._since = 0.0
        self._turn_began = math.inf

    def before_io_wait(self, timeout: float) -> None:
        """The loop is about to wait."""
        self._since = time.perf_counter()
        self.last_turn_seconds = max(0.0, self._since - self._turn_began)

    def after_io_wait(self, timeout: float) -> None:
        """The loop has waited."""
        self._turn_began = time.perf_counter()
        self.idle_seconds += self._turn_began - self._since

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task is about to run."""
        self._since = time.perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task has run, until it waits or ends."""
        name = task.name
        if name in self.task_seconds:
            self.task_seconds[name] += time.perf_counter() - self._since
            task.name = self._then.get(name, name)

    def turn_seconds(self) -> float:
        """Return how long the tasks of this turn have been running."""
        return time.perf_counter() - self._turn_began

    def seconds_in(self, names: Iterable[str]) -> float:
        """Return the total time in the tasks of those names."""
        return sum(self.task_seconds[name] for name in names)


class MemoryMeter:
    """Measures the memory of the server against what it may use.

    Attributes:
        limit_bytes: given limit if that is not 0, else that of `group` if it is below the memory of
            the machine, else the latter.
    """

    def __init__(self, limit_bytes: int, group: MemoryGroup | None) -> None:
        machine = machine_bytes()
        is_group_limited = not limit_bytes and group is not None and group.limit_bytes < machine
        self._group = group if is_group_limited else None
        self.limit_bytes = self._group.limit_bytes if self._group else limit_bytes or machine

    def group_bytes(self) -> int:
        """Return the memory of the group; 0 if its limit does not apply, or it cannot be read."""
        with suppress(OSError):
            return 0 if self._group is None else self._group.used_bytes()
        return 0

    def percent(self, bytes_elsewhere: int) -> float:
        """Return the percentage in use. `bytes_elsewhere` is what the other processes use."""
        used = self.group_bytes() or resident_bytes() + bytes_elsewhere
        return used / self.limit_bytes * 100
