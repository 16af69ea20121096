"""A server of several processes: a parent that starts, watches and asks N workers.

    serve_with_workers()           cancel = cut the workers; drain() = have them leave in order
    ├── worker 1                   starts it, and starts it again when it has ended
    │   ├── writer, reader         the link: figures, and questions for those of all workers
    │   └── process                `trio-odin serve`, the whole nursery tree of tree.py in it
    ├── worker …
    ├── poll                       asks all of them every second
    └── drain

The workers listen on one port (SO_REUSEPORT), which the parent holds without listening. A client
never meets the parent: it can neither slow down a delivery nor lose one.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import partial

import attrs
import structlog
import trio

from trio_odin.config import Settings
from trio_odin.net.address import Address, reserved_address
from trio_odin.server.worker_link import (
    Answer,
    Ask,
    Elsewhere,
    Figures,
    FromParent,
    FromWorker,
    Link,
    Question,
    parent_decoder,
)
from trio_odin.telemetry.merge import Past, merge
from trio_odin.telemetry.process import cpu_seconds, resident_bytes
from trio_odin.telemetry.snapshot import Snapshot, Workers

_POLL_SECONDS = 1.0
_ASK_SECONDS = 0.5
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0
# A worker that has lived so long was in order: if it ends, it is back at once.
_PROVEN_SECONDS = 30.0
# Between the end of the link and that of the process, and between the two signals of a cut.
_EXIT_SECONDS = 5.0
_CUT_SECONDS = 1.0
# On top of what the workers allow themselves for a drain.
_DRAIN_EXTRA_SECONDS = 10.0
# What the command line exits with for a person's mistake: it would be the same the next time.
_MISTAKE = 2

_log = structlog.get_logger("workers")


class WorkerUnfit(Exception):
    """A worker cannot serve as it is configured; it has said why on standard error."""


class Worker:
    """The place of one worker, which one process after the other fills.

    Attributes:
        number: from 1.
        process: the one that runs, if any.
        link: to that process.
        last: its last known figures; None until it serves.
        has_served: whether any process ever did here.
        restarts: how many processes came after the first one.
        missing_since: since when no process serves and answers here; None while one does.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: trio.Process | None = None
        self.link: Link[FromWorker] | None = None
        self.last: Snapshot | None = None
        self.has_served = False
        self.restarts = 0
        self.missing_since: float | None = trio.current_time()
        self._pause_seconds = 0.0

    @property
    def connections(self) -> int:
        """How many it held when it was asked last."""
        return 0 if self.last is None else self.last.connections

    def begin(self, process: trio.Process, link: Link[FromWorker]) -> None:
        """A process was started."""
        self.process, self.link = process, link

    def tell(self, message: FromParent) -> None:
        """Send it to the process that serves here, if there is one."""
        if self.link is not None and self.last is not None:
            self.link.send(message)

    def note(self, snapshot: Snapshot) -> None:
        """It serves, and has told how it is."""
        self.last = snapshot
        self.has_served = True
        self.missing_since = None

    def note_missing(self) -> None:
        """It serves no more, or does not answer."""
        if self.missing_since is None:
            self.missing_since = trio.current_time()

    def end(self) -> Snapshot | None:
        """The process has ended. Returns its last known figures, if it ever served."""
        self.note_missing()
        last, self.last = self.last, None
        self.process = self.link = None
        return last

    def next_pause_seconds(self, lived_seconds: float) -> float:
        """How long to wait before the next process, after one that has lived so long."""
        if lived_seconds >= _PROVEN_SECONDS or not self._pause_seconds:
            self._pause_seconds = _FIRST_PAUSE_SECONDS
        else:
            self._pause_seconds = min(self._pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
        return self._pause_seconds


@attrs.define
class _Round:
    """One question to all workers. `awaited` are those that have not answered yet."""

    number: int = 0
    awaited: set[Worker] = attrs.field(factory=set)
    is_complete: trio.Event = attrs.field(factory=trio.Event)

    def note_answer(self, worker: Worker) -> None:
        self.awaited.discard(worker)
        if not self.awaited:
            self.is_complete.set()


class Parent:
    """A running server of several processes, as whoever started it sees it.

    Made by `serve_with_workers`.

    Attributes:
        address: what the workers share, with the port the kernel chose.
        workers: their places, by number.
        finished: set when all of them have ended for good.
    """

    def __init__(
        self, settings: Settings, environment: Mapping[str, str], address: Address
    ) -> None:
        self.address = address
        self.finished = trio.Event()
        self._settings = settings
        self._environment = environment_of_worker(settings, environment, address)
        self.workers = [Worker(number) for number in range(1, settings.workers + 1)]
        self._past = Past()
        self._started_at = trio.current_time()
        self._drain_asked = trio.Event()
        self._round = _Round()
        self._asked_at = -math.inf
        self._one_round_at_a_time = trio.Lock()

    def drain(self) -> None:
        """Ask all workers to leave in order; `serve_with_workers` returns when they have."""
        self._drain_asked.set()

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._poll, name="poll")
            nursery.start_soon(self._drain_when_asked, nursery.cancel_scope, name="drain")
            async with trio.open_nursery() as processes:
                for worker in self.workers:
                    name = f"worker {worker.number}"
                    processes.start_soon(self._keep_running, worker, name=name)
            nursery.cancel_scope.cancel(reason="all workers have ended")

    async def _drain_when_asked(self, stop: trio.CancelScope) -> None:
        await self._drain_asked.wait()
        _log.info("drain.started", workers=len(self.workers))
        for worker in self.workers:
            if worker.process is not None:
                worker.process.terminate()
        await trio.sleep(self._settings.drain_seconds + _DRAIN_EXTRA_SECONDS)
        late = [worker.number for worker in self.workers if worker.process is not None]
        _log.error("drain.late", workers=late)
        stop.cancel(reason="a worker did not leave in time")

    async def _keep_running(self, worker: Worker) -> None:
        """Run one process after the other in this place, until a drain.

        Raises:
            WorkerUnfit: none ever served, and the next one would not get any further.
        """
        while True:
            began_at = trio.current_time()
            exit_code = await self._run_once(worker)
            if self._drain_asked.is_set():
                return
            # Later the others do serve: then it is waited for whoever mends this one.
            if exit_code == _MISTAKE and not worker.has_served:
                raise WorkerUnfit(f"worker {worker.number} cannot serve, for the reason above")
            pause = worker.next_pause_seconds(trio.current_time() - began_at)
            _log.error("worker.ended", worker=worker.number, how=_how(exit_code), pause=pause)
            with trio.move_on_after(pause):
                await self._drain_asked.wait()
                return
            worker.restarts += 1

    async def _run_once(self, worker: Worker) -> int | None:
        """Run one process to its end. Returns its exit code, None if it could not be started."""
        exit_code: int | None = None
        try:
            exit_code = await self._run_process(worker)
        except* OSError as group:
            _log.error("worker.not_started", worker=worker.number, errors=str(group.exceptions))
        finally:
            last = worker.end()
            self._round.note_answer(worker)
            if last is not None:
                self._past = self._past.with_ended(last)
        return exit_code

    async def _run_process(self, worker: Worker) -> int | None:
        near, far = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
        link = Link(stream, parent_decoder())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run_writer)
            with far:
                process = await self._start_process(worker, far.fileno(), nursery)
            worker.begin(process, link)
            if self._drain_asked.is_set():  # while it was being started
                process.terminate()
            await self._converse(worker, link, nursery)
            with trio.move_on_after(_EXIT_SECONDS):
                await process.wait()
            nursery.cancel_scope.cancel(reason="the worker has closed its link")
        return process.returncode

    async def _start_process(
        self, worker: Worker, far_file_number: int, nursery: trio.Nursery
    ) -> trio.Process:
        as_worker = ("--as-worker", str(worker.number), str(far_file_number))
        # In a session of its own: a Ctrl-C in the terminal is for us, we tell it when to leave.
        child = partial(
            trio.run_process,
            [sys.executable, "-m", "trio_odin", "serve", *as_worker],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[far_file_number],
            check=False,
            start_new_session=True,
            deliver_cancel=_cut,
        )
        process: trio.Process = await nursery.start(child)
        _log.info("worker.started", worker=worker.number, pid=process.pid)
        return process

    async def _converse(
        self, worker: Worker, link: Link[FromWorker], nursery: trio.Nursery
    ) -> None:
        """Take in what the worker says until it closes the link, which the kernel does for it."""
        while (message := await link.receive()) is not None:
            match message:
                case Figures():
                    worker.note(message.snapshot)
                    if message.number == self._round.number:
                        self._round.note_answer(worker)
                case Question():
                    nursery.start_soon(self._answer, link, message.number)

    async def _answer(self, link: Link[FromWorker], number: int) -> None:
        await self._ask_all_since(trio.current_time())
        snapshot = self.snapshot()
        if snapshot is not None:
            link.send(Answer(number, snapshot))

    async def _poll(self) -> None:
        while True:
            await self._ask_all_since(trio.current_time())
            await trio.sleep(_POLL_SECONDS)

    async def _ask_all_since(self, moment: float) -> None:
        """Ask all workers how they are, unless they were asked since `moment`."""
        async with self._one_round_at_a_time:
            if self._asked_at < moment:
                now = trio.current_time()
                await self._ask_all()
                self._asked_at = now

    async def _ask_all(self) -> None:
        """Wait for the answers of those that serve, but not for one that was silent before."""
        serving = [worker for worker in self.workers if worker.last is not None]
        awaited = {worker for worker in serving if worker.missing_since is None}
        self._round = _Round(self._round.number + 1, awaited)
        for worker in serving:
            worker.tell(Ask(self._round.number))
        if awaited:
            with trio.move_on_after(_ASK_SECONDS):
                await self._round.is_complete.wait()
        for worker in self._round.awaited:
            _log.warning("worker.silent", worker=worker.number)
            worker.note_missing()
        self._tell_what_the_others_hold()

    def _tell_what_the_others_hold(self) -> None:
        everywhere = sum(worker.connections for worker in self.workers)
        for worker in self.workers:
            worker.tell(Elsewhere(everywhere - worker.connections))

    def snapshot(self) -> Snapshot | None:
        """All workers as one server, as they were when asked last; None if there are none."""
        parts = [worker.last for worker in self.workers if worker.last is not None]
        if not parts:
            return None
        whole = merge(parts, past=self._past, workers=self._figures())
        return attrs.evolve(
            whole,
            uptime_seconds=trio.current_time() - self._started_at,
            is_draining=whole.is_draining or self._drain_asked.is_set(),
            # This process is a part of the server too, and a small one.
            memory_bytes=whole.memory_bytes + resident_bytes(),
            cpu_seconds=whole.cpu_seconds + cpu_seconds(),
        )

    def _figures(self) -> Workers:
        now = trio.current_time()
        missing = [now - w.missing_since for w in self.workers if w.missing_since is not None]
        return Workers(
            configured=len(self.workers),
            alive=len(self.workers) - len(missing),
            restarts=sum(worker.restarts for worker in self.workers),
            connections=[worker.connections for worker in self.workers],
            missing_seconds=max(missing, default=0.0),
        )


def environment_of_worker(
    settings: Settings, environment: Mapping[str, str], address: Address
) -> dict[str, str]:
    """The same settings, but for the port and for what one worker has only a share of."""
    cores = settings.cpu_limit_cores or len(os.sched_getaffinity(0))
    return {
        **environment,
        "WS_ADDR": str(address),
        "WS_CPU_LIMIT": f"{cores / settings.workers:.3f}",
    }


async def _cut(process: trio.Process) -> None:
    """End a process that may be leaving already. Cancelled when it has ended."""
    process.terminate()
    await trio.sleep(_CUT_SECONDS)
    process.kill()


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "not started"
    if exit_code < 0:
        # A real-time signal has no name.
        names = {member.value: member.name for member in signal.Signals}
        return names.get(-exit_code, f"signal {-exit_code}")
    return f"exit code {exit_code}"


async def serve_with_workers(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    task_status: trio.TaskStatus[Parent] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve with `settings.workers` processes until drained or cancelled.

    Starts with a `Parent` once the port is theirs; `environment` is that from which `settings` were
    read, and what the workers read theirs from.

    Raises:
        AddressUnavailable: they cannot listen where they should.
        WorkerUnfit: one of them cannot serve as it is configured.

    Cancellation: the workers are told to stop at once, and killed if they have not in a second.
    """
    async with reserved_address(settings.address) as address:
        parent = Parent(settings, environment, address)
        _log.info("workers.starting", address=str(address), workers=settings.workers)
        task_status.started(parent)
        try:
            await parent._run()  # noqa: SLF001 - its one caller, on the same page
        finally:
            parent.finished.set()
