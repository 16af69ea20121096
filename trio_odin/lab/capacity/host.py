"""The server's host, seen from outside: its cgroup each second, and the plan's bounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import trio

from trio_odin.lab.capacity.stages import SERVER_CORES, Stage
from trio_odin.lab.hosts.cgroup import Limits
from trio_odin.lab.load.criteria import Check
from trio_odin.lab.load.result import LoadResult
from trio_odin.lab.verdict import HostSample

_MIB = 1024 * 1024


async def watch_host(limits: Limits, samples: list[HostSample]) -> None:
    """Sample the cgroup each second, until cancelled."""
    started = before_at = trio.current_time()
    before = limits.usage()
    while before is not None:
        await trio.sleep(1.0)
        usage, now = limits.usage(), trio.current_time()
        if usage is None:
            return
        samples.append(
            HostSample(
                at=now - started,
                cores=round((usage.cpu_seconds - before.cpu_seconds) / (now - before_at), 3),
                memory_mib=round(usage.memory_bytes / _MIB, 1),
            )
        )
        before, before_at = usage, now


def host_checks(stage: Stage, host: Sequence[HostSample], load: LoadResult) -> Iterator[Check]:
    """Check the plan's bounds of CPU and memory by the cgroup, not by the server's own report."""
    ends = [sample.at for sample in load.series if sample.phase == "hold"]
    cores = [s.cores for s in host if ends and ends[0] <= s.at <= ends[-1]]
    bounds = {c.figure: c.bound for c in stage.criteria if c.source == "plan"}
    if "cpu" in bounds and cores:
        share, bound = statistics.fmean(cores) / SERVER_CORES, bounds["cpu"]
        yield Check(
            what="CPU of its host's limit, mean",
            wanted=f"at most {bound * 100:.4g} %",
            measured=f"{share * 100:.4g} %",
            is_met=share <= bound,
        )
    if "memory" in bounds and host:
        most, bound = max(sample.memory_mib for sample in host), bounds["memory"]
        yield Check(
            what="memory of its host, at most",
            wanted=f"at most {bound:,.0f} MiB",
            measured=f"{most:,.0f} MiB",
            is_met=most <= bound,
        )
