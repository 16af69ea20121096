"""Runs a lab, from its first namespace to its last page.

run_lab()               SIGINT, SIGTERM, SIGHUP: cancel and tear down
├── hosts            ws, backend, runner: namespaces, or loopback
├── backend          nats-server with JetStream, the publisher, Prometheus
└── for each stage
    ├── limits       the plan's machine
    │   └── server   fresh, with the stage's settings
    ├── watch        a sample of the server's cgroup each second
    └── load         `trio-odin load` on the runner's host, or the checks of stage 1
"""

from __future__ import annotations

import datetime as dt
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import msgspec
import trio

from trio_odin.demo.nats_server import NatsServer, run_nats_server
from trio_odin.lab.capacity.components import components
from trio_odin.lab.capacity.host import host_checks, watch_host
from trio_odin.lab.capacity.rig import (
    ProgramFailed,
    Prometheus,
    Rig,
    Running,
    last_words,
    stop,
)
from trio_odin.lab.capacity.stages import (
    HOME_SHARE,
    SERVER_CORES,
    SERVER_FILES,
    SERVER_MIB,
    SERVER_SETTINGS,
    STAGES,
    TOKENS,
    Stage,
)
from trio_odin.lab.hosts.cgroup import Limits, server_limits
from trio_odin.lab.hosts.hosts import Hosts, HostsUnavailable
from trio_odin.lab.hosts.loopback import loopback_hosts
from trio_odin.lab.hosts.namespaces import isolated_hosts
from trio_odin.lab.load.criteria import Check, checks
from trio_odin.lab.load.result import LoadResult
from trio_odin.lab.model.fit import predictions
from trio_odin.lab.provenance import Provenance, provenance
from trio_odin.lab.verdict import HostSample, LabResult, StageResult
from trio_odin.wire.errors import first_error

_OVERHEAD_SECONDS = 15.0
_LOAD_SPARE_SECONDS = 600.0
_CHECKS_SECONDS = 90.0
_PROCESSES_FROM = 50_000.0  # frames a second above which one process of clients is not enough


@attrs.frozen(kw_only=True)
class LabPlan:
    """The plan of a lab.

    Args:
        stages: the stages, in this order.
        folder: an existing folder for all results.
        hold_seconds: hold of every stage; None: each stage's own, or its short one.
        is_short: take the short hold of each stage.
        idle_seconds: time without events between the connects and the hold.
        is_isolated: in namespaces; False: on loopback.
        prefix: of the names of namespaces and cgroups.
        seed: of subscriptions and checks.
        command: the user's command line, for the report.
    """

    stages: Sequence[Stage]
    folder: Path
    hold_seconds: float | None = None
    is_short: bool = False
    idle_seconds: float = 10.0
    is_isolated: bool = True
    prefix: str = "odin"
    seed: int = 0
    command: str = ""

    def hold_of(self, stage: Stage) -> float:
        """The length of a stage's hold."""
        if self.hold_seconds is not None:
            return self.hold_seconds
        return stage.short_seconds if self.is_short else stage.hold_seconds

    def seconds_of(self, stage: Stage) -> float:
        """The approximate length of a stage."""
        held = self.idle_seconds + self.hold_of(stage) if stage.connections else 0.0
        return _OVERHEAD_SECONDS + held


class Told:
    """The listener to a lab while it runs. This one does nothing."""

    def stage_begins(self, stage: Stage, seconds_left: float) -> None:
        """A stage begins; `seconds_left` is about the time for it and all later stages."""

    def note(self, sentence: str) -> None:
        """A sentence about the isolation of the hosts, and about the parts that failed."""

    def line(self, text: str) -> None:
        """A line about the progress."""

    def stage_ended(self, result: StageResult, so_far: LabResult) -> None:
        """A stage has ended; `so_far` may be kept in case the lab does not get any further."""


async def run_lab(plan: LabPlan, told: Told) -> LabResult | None:
    """Run all stages, one after the other, and tear down what was built.

    A problem in a stage is in its result; the next one runs all the same. SIGINT, SIGTERM and
    SIGHUP end the lab: it then returns None, and `told` has received the results so far.

    Raises:
        HostsUnavailable: the hosts cannot be built or torn down; the message gives a remedy.
        BrokerUnavailable: there is no nats-server.

    Cancellation: everything is torn down.
    """
    result = None
    with trio.open_signal_receiver(*_end_signals()) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
            result = await _run(plan, told)
            nursery.cancel_scope.cancel(reason="the lab has ended")
    return result


def _end_signals() -> list[signal.Signals]:
    """The signals that end a lab; SIGHUP is not among them under nohup."""
    ends = [signal.SIGINT, signal.SIGTERM]
    survives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return ends if survives else [*ends, signal.SIGHUP]


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:  # a second one changes nothing: the teardown has begun
        scope.cancel(reason="signal")


async def _run(plan: LabPlan, told: Told) -> LabResult:
    # Before any part of the lab is a load on the machine.
    began = await trio.to_thread.run_sync(provenance, SERVER_SETTINGS)
    async with AsyncExitStack() as stack:
        make_hosts = isolated_hosts if plan.is_isolated else loopback_hosts
        hosts = await stack.enter_async_context(make_hosts(plan.prefix))
        rig = Rig(hosts, plan.folder)
        nats = await stack.enter_async_context(_nats_server(hosts))
        publisher = await stack.enter_async_context(rig.publisher(nats.url))
        prometheus = await stack.enter_async_context(rig.prometheus())
        lab = _Lab(plan, rig, _Backend(nats, publisher, prometheus), told, began)
        await lab.run()
        return lab.result()


@asynccontextmanager
async def _nats_server(hosts: Hosts) -> AsyncIterator[NatsServer]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(run_nats_server, hosts.backend.address, hosts.backend.command)
        nursery.cancel_scope.cancel(reason="the lab has ended")


@attrs.frozen
class _Backend:
    """The programs on the back-end host."""

    nats: NatsServer
    publisher: Running
    prometheus: Prometheus | None


class _Lab:
    """One run."""

    def __init__(
        self,
        plan: LabPlan,
        rig: Rig,
        backend: _Backend,
        told: Told,
        began: Provenance,
    ) -> None:
        self._plan = plan
        self._rig = rig
        self._backend = backend
        self._told = told
        self._stages: list[StageResult] = []
        self._notes: list[str] = []
        self._note(rig.hosts.isolation)
        self._limits: Mapping[str, str] = {}
        self._components = components(has_prometheus=backend.prometheus is not None)
        self._began = began
        self._started = time.monotonic()

    async def run(self) -> None:
        """Run all stages."""
        plan = self._plan
        for place, stage in enumerate(plan.stages):
            left = sum(plan.seconds_of(later) for later in plan.stages[place:])
            self._told.stage_begins(stage, left)
            result = await self._stage(stage)
            self._stages.append(result)
            self._told.stage_ended(result, self.result(is_whole=False))

    def result(self, *, is_whole: bool = True) -> LabResult:
        """The results so far."""
        found_numbers = {stage.number for stage in self._stages}
        found = LabResult(
            provenance=self._began,
            isolation=self._notes,
            limits=self._limits,
            components=self._components,
            settings=SERVER_SETTINGS,
            command=self._plan.command,
            stages=self._stages,
            seconds=time.monotonic() - self._started,
            interrupted=not is_whole and len(self._stages) < len(self._plan.stages),
            not_run=[stage.number for stage in STAGES if stage.number not in found_numbers],
        )
        predicted = predictions(found)
        return attrs.evolve(
            found,
            stages=[
                attrs.evolve(stage, predictions=predicted.get(stage.number, []))
                for stage in self._stages
            ],
        )

    async def _stage(self, stage: Stage) -> StageResult:
        started = time.monotonic()
        result = StageResult(
            number=stage.number,
            title=stage.title,
            plan=stage.plan,
            wanted_seconds=stage.hold_seconds,
            settings=stage.settings,
            note=stage.note,
        )
        try:
            result = await self._run_stage(stage, result)
        except* (ProgramFailed, HostsUnavailable, OSError) as group:
            result = attrs.evolve(result, failure=str(first_error(group)))
        return attrs.evolve(result, seconds=time.monotonic() - started)

    async def _run_stage(self, stage: Stage, result: StageResult) -> StageResult:
        """Run one stage with its own server.

        Raises:
            ProgramFailed: one of its programs failed.
        """
        async with server_limits(
            f"{self._plan.prefix}-ws",
            cpu_cores=SERVER_CORES,
            memory_mib=SERVER_MIB,
            open_files=SERVER_FILES,
        ) as limits:
            self._note_limits(limits)
            async with self._rig.server(stage, limits, self._backend.nats.url) as server:
                if stage.connections:
                    result = await self._loaded(stage, result, limits, server)
                else:
                    found = await self._checks(stage, server)
                    result = attrs.evolve(result, checks=found)
                exit_code = await stop(server.process)
        drained = Check(
            what="the server's end upon SIGTERM",
            wanted="exit code 0",
            measured="killed" if exit_code is None else f"exit code {exit_code}",
            is_met=exit_code == 0,
            source="ours",
        )
        return attrs.evolve(result, checks=[*result.checks, drained])

    def _note_limits(self, limits: Limits) -> None:
        self._limits = limits.description
        self._note(limits.sentences)

    def _note(self, sentences: Iterable[str]) -> None:
        """Show each sentence once in the terminal, and keep it for the report."""
        for sentence in sentences:
            if sentence not in self._notes:
                self._notes.append(sentence)
                self._told.note(sentence)

    # ---- stage 1

    async def _checks(self, stage: Stage, server: Running) -> list[Check]:
        argv = [
            *(sys.executable, "-m", "trio_odin.lab.capacity.checks"),
            *(f"ws://{server.address}/ws", self._backend.nats.url),
            *("--seed", str(self._plan.seed)),
        ]
        log = self._rig.log(f"checks-{stage.number:02}")
        output = await self._on_runner(argv, log, _CHECKS_SECONDS, self._told.line)
        try:
            return msgspec.json.decode(output, type=list[Check])
        except msgspec.DecodeError as error:
            raise ProgramFailed(f"the checks failed: {last_words(log)}") from error

    async def _on_runner(
        self, argv: Sequence[str], log: Path, seconds: float, line: Callable[[str], None]
    ) -> bytes:
        """Run a program on the runner's host; returns its standard output.

        Its output goes to `log`, and its standard error line by line to `line`.

        Raises:
            ProgramFailed: it takes longer than `seconds`.
        """
        output = bytearray()
        process = await trio.lowlevel.open_process(
            self._rig.hosts.runner.command(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

        async def read_output() -> None:
            if process.stdout is not None:
                async for chunk in process.stdout:
                    output.extend(chunk)

        try:
            with trio.move_on_after(seconds) as deadline, log.open("wb") as file:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read_output)
                    async for text in _lines(process):
                        file.write(text.encode() + b"\n")
                        line(text)
                file.write(output)
        finally:
            await stop(process)
        if deadline.cancelled_caught:
            raise ProgramFailed(f"{log.stem} was not done within {seconds:.0f} s")
        return bytes(output)

    # ---- stages with a load

    async def _loaded(
        self, stage: Stage, result: StageResult, limits: Limits, server: Running
    ) -> StageResult:
        host: list[HostSample] = []
        started_unix = time.time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_host, limits, host)
            load = await self._load(stage, server)
            nursery.cancel_scope.cancel(reason="the load has ended")
        found = checks(load, stage.criteria_beside(self._cores_of(stage.plain_stage)))
        if self._backend.prometheus is not None:
            seconds = time.time() - started_unix
            found.append(await _scraped(self._backend.prometheus, seconds, stage))
        # The load's clock starts at its first connect.
        apart = started_unix - dt.datetime.fromisoformat(load.date).timestamp()
        host = [attrs.evolve(s, at=round(s.at + apart, 2)) for s in host if s.at + apart >= 0]
        found += host_checks(stage, host, load)
        return attrs.evolve(
            result,
            load=load,
            checks=found,
            host=host,
        )

    def _cores_of(self, number: int) -> float | None:
        """What the server used for all clients in an earlier stage; None: it was not measured."""
        loads = (stage.load for stage in self._stages if stage.number == number)
        return next((load.server.cores for load in loads if load and load.success == 1), None)

    async def _load(self, stage: Stage, server: Running) -> LoadResult:
        hold = self._plan.hold_of(stage)
        log = self._rig.log(f"load-{stage.number:02}")
        file = log.with_suffix(".json")
        argv = [sys.executable, "-m", "trio_odin", *self._load_arguments(stage, server, hold)]
        argv += ["--json", str(file)]
        limit = self._plan.seconds_of(stage) + stage.connections / 100 + _LOAD_SPARE_SECONDS
        try:
            await self._on_runner(argv, log, limit, self._told.line)
            load = msgspec.json.decode(file.read_bytes(), type=LoadResult)
        except (OSError, msgspec.DecodeError) as error:
            raise ProgramFailed(f"the load failed: {last_words(log)}") from error
        finally:
            file.unlink(missing_ok=True)
        if load.interrupted:
            raise ProgramFailed("the load was ended from outside, before its time")
        return load

    def _load_arguments(self, stage: Stage, server: Running, hold: float) -> list[str]:
        """The arguments that a user would type on another host."""
        subscriptions = ["--mix", f"home={HOME_SHARE:g},token={1 - HOME_SHARE:.3g}"]
        events = stage.rate * (0.2 if stage.is_filtered else 1.0)
        frames = stage.connections * (1000 / stage.every_ms if stage.every_ms else events)
        arguments = [
            *("load", f"ws://{server.address}/ws"),
            *("--connections", str(stage.connections)),
            *("--tokens", str(TOKENS)),
            *(subscriptions if stage.is_filtered else ["--unfiltered"]),
            *("--publisher", f"http://{self._backend.publisher.address}"),
            *("--rate", f"{stage.rate:g}"),
            *("--idle", f"{self._plan.idle_seconds:g}", "--hold", f"{hold:g}"),
            *("--seed", str(self._plan.seed)),
            *("--processes", "2" if frames > _PROCESSES_FROM else "1"),
            *("--every-ms", str(stage.every_ms), "--encoding", stage.encoding),
        ]
        if stage.is_cut:
            arguments.append("--cut")
        if stage.churn_per_second:
            arguments += ["--churn", f"{stage.churn_per_second:g}", "--reconnect"]
        return arguments


async def _lines(process: trio.Process) -> AsyncIterator[str]:
    """Read standard error line by line."""
    rest = b""
    if process.stderr is not None:
        async for chunk in process.stderr:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


async def _scraped(prometheus: Prometheus, seconds: float, stage: Stage) -> Check:
    """Check that Prometheus saw the same stage as the clients."""
    try:
        most = await prometheus.most_connections(seconds)
        measured = "nothing" if most is None else f"{most:,.0f}"
    except ProgramFailed as error:
        most, measured = None, str(error)
    return Check(
        what="most connections that Prometheus saw",
        wanted=f"at least {stage.connections:,}",
        measured=measured,
        is_met=most is not None and most >= stage.connections,
        source="ours",
    )
