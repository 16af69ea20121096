"""The machine of a measurement, without which a figure means little."""

from __future__ import annotations

import os
import platform
import sysconfig
from pathlib import Path

import attrs


@attrs.frozen
class Machine:
    """The parts of a machine that explain a figure.

    `is_python_optimised`: Python was configured with PGO. Debian's has it without that.
    """

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    is_python_optimised: bool

    def sentence(self) -> str:
        """The machine in one line, without a full stop."""
        build = "with" if self.is_python_optimised else "without"
        return (
            f"{self.cpu}, {self.cores} cores, {self.memory_gib} GiB, {self.kernel}, "
            f"{self.python} configured {build} PGO"
        )


def this_machine() -> Machine:
    """Describe this machine."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        kernel=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        is_python_optimised="--enable-optimizations"
        in (sysconfig.get_config_var("CONFIG_ARGS") or ""),
    )


def busy_core_seconds() -> float:
    """CPU that all programs of the machine have used since its start."""
    # proc_stat(5): user nice system idle iowait irq softirq steal …
    ticks = _proc_stat_cpu()[:8]
    busy = sum(ticks) - sum(ticks[3:5])
    return busy / os.sysconf("SC_CLK_TCK")


def _proc_stat_cpu() -> list[int]:
    """The ticks of /proc/stat (proc_stat(5)) for all cores together."""
    first, _, _ = Path("/proc/stat").read_text().partition("\n")
    return [int(ticks) for ticks in first.split()[1:]]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
