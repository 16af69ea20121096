from __future__ import annotations

import time

import pytest
import structlog.testing
import trio
import trio.testing

from tests.logs_page import fields_of
from tests.waiting import wait_until
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.reasons import Rejection
from trio_odin.overload.load import Load, OtherWorkers
from trio_odin.overload.load_monitor import LoadMonitor
from trio_odin.overload.turnover import COMING
from trio_odin.settings.reading import read_settings


def guard(ledger: Ledger | None = None, **variables: str) -> LoadMonitor:
    return LoadMonitor(read_settings(variables), ledger or Ledger())


async def test_the_first_sample_comes_after_one_second(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    # A mock clock passes at once, so all of the CPU falls into it.
    watching = guard(WS_CPU_REJECT_THRESHOLD="100", WS_MEMORY_LIMIT="1")
    nursery.start_soon(watching.run)
    await trio.sleep(0.99)
    assert watching.admission.rejection(0) is None
    await trio.sleep(0.02)
    assert watching.admission.rejection(0) is Rejection.MEMORY
    assert watching.shedder.percent == 100
    assert watching.stats().tasks > 0


async def test_the_worst_lateness_of_a_second_is_in_its_sample_only(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    ledger = Ledger()
    watching = guard(ledger, WS_CPU_REJECT_THRESHOLD="0", WS_LAG_REJECT_MS="250")
    nursery.start_soon(watching.run)
    await trio.sleep(0.55)
    autojump_clock.jump(0.4)  # nothing runs in that time
    await trio.sleep(0.2)
    assert watching.load.lag_seconds == pytest.approx(0.35)
    assert watching.admission.closed_by == [Rejection.LAG]
    await trio.sleep(1.0)
    assert watching.load.lag_seconds == pytest.approx(0.0)
    assert watching.admission.closed_by == []
    assert ledger.lag.total_seconds == pytest.approx(0.35)


def test_the_current_settings_are_used() -> None:
    watching = guard(
        WS_MAX_CONNECTIONS="7",
        WS_CPU_REJECT_THRESHOLD="11",
        WS_MEMORY_REJECT_THRESHOLD="12",
        WS_LAG_REJECT_MS="13",
        WS_MAX_CONNECTIONS_PER_IP="14",
        WS_CPU_PAUSE_THRESHOLD="15",
        WS_MEMORY_PAUSE_THRESHOLD="16",
    )
    door, shedder = watching.admission, watching.shedder
    assert (door.max_connections, door.max_per_address) == (7, 14)
    assert (door.cpu_reject_percent, door.memory_reject_percent) == (11, 12)
    assert door.lag_reject_seconds == 0.013
    assert (shedder.cpu_pause_percent, shedder.memory_pause_percent) == (15, 16)


async def test_the_connections_and_cpu_of_other_workers_count() -> None:
    watching = guard(WS_MAX_CONNECTIONS="10", WS_CPU_LIMIT="2", WS_MEMORY_LIMIT=str(2**40))
    watching.learn(OtherWorkers(connections=9, cpu_cores=1.6, memory_bytes=2**39))
    assert watching.admission.rejection(0) is None
    assert watching.admission.rejection(1) is Rejection.AT_CAPACITY
    watching._sample()
    assert watching.load.cpu_percent >= 80.0
    assert watching.load.memory_percent == pytest.approx(50.0, abs=1)
    assert watching.admission.closed_by == [Rejection.OVERLOADED]
    assert watching.shedder.percent == 10


async def test_it_logs_only_changes_of_admission_and_shedding() -> None:
    watching = guard()
    with structlog.testing.capture_logs() as logged:
        for percent in (10, 90, 95, 96, 10, 10, 10, 10):
            watching.observe(Load(cpu_percent=percent))
    events = [(line["event"], line.get("by"), line.get("percent")) for line in logged]
    assert events == [
        ("admission.closed", ["overloaded"], None),
        ("shedding.began", None, 10),
        ("admission.opened", [], None),
        ("shedding.ended", None, 0),
    ]
    assert logged[0]["cpu_percent"] == 90.0
    for line in logged:
        assert line.keys() - {"event", "log_level"} == fields_of(line["event"])


def since(watching: LoadMonitor) -> tuple[float | None, float | None]:
    stats = watching.stats()
    return stats.refusing_seconds, stats.paused_seconds


async def test_it_knows_since_when_admission_is_closed_and_events_are_shed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    watching = guard()
    assert since(watching) == (None, None)
    await trio.sleep(5)
    for _ in range(3):
        watching.observe(Load(cpu_percent=90))
        await trio.sleep(1)
    assert since(watching) == (3.0, 3.0)
    for _ in range(3):
        watching.observe(Load(cpu_percent=10))
    assert since(watching) == (None, None)


async def test_arriving_clients_here_or_elsewhere_are_counted_separately() -> None:
    watching = guard(WS_CPU_LIMIT="2", WS_CPU_REJECT_THRESHOLD="75", WS_CPU_PAUSE_THRESHOLD="80")
    watching.learn(OtherWorkers(connections=0, cpu_cores=1.9, turnover_cores=1.5))
    await trio.sleep(0.5)  # this process is almost idle meanwhile
    watching._sample()
    assert watching.load.cpu_percent >= 95
    assert watching.load.turnover_of_limit_percent >= 75
    assert watching.admission.closed_by == []
    assert watching.shedder.percent == 0


async def test_the_time_for_arriving_clients_is_part_of_the_busy_time(
    nursery: trio.Nursery,
) -> None:
    watching = guard(WS_MEMORY_LIMIT=str(2**40))
    nursery.start_soon(watching.run)

    async def busy() -> None:
        while True:
            until = time.perf_counter() + 0.001
            while time.perf_counter() < until:
                pass
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as inner:
        inner.start_soon(busy, name=COMING)
        inner.start_soon(busy, name="hub")
        await wait_until(lambda: watching.load.loop_busy_percent > 0)
        load = watching.load
        inner.cancel_scope.cancel(reason="end of the test")
    assert 0.2 < load.turnover_percent / load.loop_busy_percent < 0.8
    assert load.busiest_percent < load.loop_busy_percent
