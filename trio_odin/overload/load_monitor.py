"""The load monitor: samples the load every second. What follows from it is decided elsewhere.

run
├── sample     CPU, memory and lag → `Admission` (open or closed) and `LoadShedder` (share to shed)
└── lag        how late the scheduler is
"""

from __future__ import annotations

import itertools
import time

import structlog
import trio

from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.reasons import Rejection
from trio_odin.ledger.snapshot import LoadStats
from trio_odin.overload.admission import Admission
from trio_odin.overload.cgroup import cpu_group, memory_group
from trio_odin.overload.load import Load, OtherWorkers
from trio_odin.overload.load_shedder import LoadShedder
from trio_odin.overload.meters import CpuMeter, LoopMeter, MemoryMeter
from trio_odin.overload.turnover import THEN, TURNOVER
from trio_odin.settings.settings import Settings

_SAMPLE_SECONDS = 1.0
_TASKS_EVERY = 10  # samples
_LAG_SECONDS = 0.1

_log = structlog.get_logger("load_monitor")


class LoadMonitor:
    """Owns the state that depends on the load.

    It is made before any client is served, and runs while they are served.

    Attributes:
        admission: decides whether a new connection is admitted.
        shedder: decides which publications are shed.
        load: the last sample.
        loop: measures where the time of the loop goes, while `run` is running.
    """

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.admission = Admission()
        self.shedder = LoadShedder()
        self.reload(settings)
        self.load = Load()
        self._memory = MemoryMeter(settings.memory_limit_bytes, memory_group())
        self._tasks = 0
        self._closed_at: float | None = None
        self._paused_at: float | None = None
        self.loop = LoopMeter(TURNOVER, THEN)
        self._loop_before = (time.perf_counter(), 0.0, 0.0)
        self._cpu = CpuMeter(settings.cpu_limit_cores, cpu_group())
        self._others = OtherWorkers(connections=0)
        self._lag_histogram = ledger.lag
        self._worst_lag_seconds = 0.0

    def reload(self, settings: Settings) -> None:
        """Use the limits and thresholds of `settings` from now on."""
        self.admission.max_connections = settings.max_connections
        self.admission.cpu_reject_percent = settings.cpu_reject_percent
        self.admission.memory_reject_percent = settings.memory_reject_percent
        self.admission.lag_reject_seconds = settings.lag_reject_seconds
        self.admission.max_per_address = settings.max_connections_per_address
        self.shedder.cpu_pause_percent = settings.cpu_pause_percent
        self.shedder.memory_pause_percent = settings.memory_pause_percent

    def learn(self, others: OtherWorkers) -> None:
        """Take in what the other processes of the server hold and use."""
        self._others = others
        self.admission.connections_elsewhere = others.connections

    async def run(self) -> None:
        """Sample until cancelled."""
        trio.lowlevel.add_instrument(self.loop)
        try:
            await self._run()
        finally:
            trio.lowlevel.remove_instrument(self.loop)

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._feel_lag, name="lag")
            for second in itertools.count():
                if second % _TASKS_EVERY == 0:  # trio visits every socket: 4 ms at 10,000
                    self._tasks = trio.lowlevel.current_statistics().tasks_living
                await trio.sleep(_SAMPLE_SECONDS)
                try:
                    self._sample()
                except Exception:  # noqa: BLE001 - what cannot be measured must not end the server
                    _log.exception("load_monitor.failed")

    def _sample(self) -> None:
        cpu_percent, loop_busy_percent = self._cpu.read(self._others.cpu_cores)
        turnover_percent = loop_busy_percent * self._turnover_share()
        turnover_cores = turnover_percent / 100 + self._others.turnover_cores
        self.observe(
            Load(
                cpu_percent=cpu_percent,
                loop_busy_percent=loop_busy_percent,
                turnover_percent=turnover_percent,
                turnover_of_limit_percent=turnover_cores / self._cpu.cores * 100,
                memory_percent=self._memory.percent(self._others.memory_bytes),
                lag_seconds=self._worst_lag_seconds,
            )
        )
        self._worst_lag_seconds = 0.0

    def _turnover_share(self) -> float:
        """Return the share of turnover in the time that the loop was busy since the last sample."""
        now, idle = time.perf_counter(), self.loop.idle_seconds
        turnover = self.loop.seconds_in(TURNOVER)
        then, idle_then, turnover_then = self._loop_before
        self._loop_before = (now, idle, turnover)
        busy = now - then - (idle - idle_then)
        return min(1.0, (turnover - turnover_then) / max(busy, 1e-9))

    def observe(self, load: Load) -> None:
        """Act on a sample, and log what changes."""
        self.load = load
        closed_before, paused_before = self.admission.closed_by, self.shedder.percent
        self.admission.observe(load)
        self.shedder.observe(load)
        closed_by, paused = self.admission.closed_by, self.shedder.percent
        now = trio.current_time()
        self._closed_at = (self._closed_at or now) if closed_by else None
        self._paused_at = (self._paused_at or now) if paused else None
        if closed_by != closed_before:
            causes = [cause.label for cause in closed_by]
            _log.warning(
                "admission.closed" if causes else "admission.opened", by=causes, **_rounded(load)
            )
        if bool(paused) != bool(paused_before):
            _log.warning(
                "shedding.began" if paused else "shedding.ended", percent=paused, **_rounded(load)
            )

    def stats(self) -> LoadStats:
        """Return the load, and what follows from it."""
        load, closed_by, now = self.load, self.admission.closed_by, trio.current_time()
        return LoadStats(
            cpu_percent=load.cpu_percent,
            loop_busy_percent=load.loop_busy_percent,
            turnover_percent=load.turnover_percent,
            lag_seconds=load.lag_seconds,
            is_overloaded=Rejection.OVERLOADED in closed_by,
            is_memory_short=Rejection.MEMORY in closed_by,
            is_lagging=Rejection.LAG in closed_by,
            refusing_seconds=None if self._closed_at is None else now - self._closed_at,
            paused_percent=self.shedder.percent,
            paused_seconds=None if self._paused_at is None else now - self._paused_at,
            tasks=self._tasks,
            group_memory_bytes=self._memory.group_bytes(),
            memory_limit_bytes=self._memory.limit_bytes,
        )

    async def _feel_lag(self) -> None:
        """Measure how late the scheduler runs a task that is due."""
        due = trio.current_time()
        while True:
            due = max(due + _LAG_SECONDS, trio.current_time())
            await trio.sleep_until(due)
            late = trio.current_time() - due
            self._lag_histogram.add(late)
            self._worst_lag_seconds = max(self._worst_lag_seconds, late)


def _rounded(load: Load) -> dict[str, float]:
    return {
        "cpu_percent": round(load.cpu_percent, 1),
        "loop_busy_percent": round(load.loop_busy_percent, 1),
        "turnover_percent": round(load.turnover_percent, 1),
        "memory_percent": round(load.memory_percent, 1),
        "lag_seconds": round(load.lag_seconds, 3),
    }
