"""A server of several processes: a parent that starts, watches and asks N workers.

    serve_with_workers()           cancel = cut the workers; drain() = have them leave in order
    ├── worker 1                   starts it, and starts it again when it has ended
    │   ├── writer, reader         the link: figures, and questions for those of all workers
    │   └── process                `trio-odin serve`, the whole nursery tree of tree.py in it
    ├── worker …
    ├── poll                       asks all of them every second, kills one that hangs
    ├── rolling                    replaces one after the other
    └── drain

The workers listen on one port (SO_REUSEPORT), each on a socket that the parent has bound and never
accepts from: a client never meets the parent, which can neither slow down a delivery nor lose one.
A successor inherits the socket of the worker that it replaces, so nothing that waits there is lost.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial

import attrs
import structlog
import trio

from trio_odin.config import SettingError, Settings, changes, read_settings, variables
from trio_odin.net.address import Address, AddressUnavailable, bind_shared, reserved_address
from trio_odin.server.hub import total_outbox_bytes, total_replay_bytes
from trio_odin.server.permits import verifier_of
from trio_odin.server.reloading import ReadEnvironment, log_failed_reload, log_reload
from trio_odin.server.worker_link import (
    Answer,
    Ask,
    Elsewhere,
    Figures,
    FromParent,
    FromWorker,
    Link,
    Question,
    Relieve,
    Reload,
    parent_decoder,
)
from trio_odin.telemetry.log_lines import lines_dropped
from trio_odin.telemetry.logs import set_log_level
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
# A worker that has been silent for so long is killed: its clients are better off elsewhere.
_HUNG_SECONDS = 30.0
# How long a successor may take until it serves and has NATS, and how often that is looked at.
_SUCCESSOR_SECONDS = 30.0
_LOOK_SECONDS = 0.05
# On top of what the workers allow themselves for a drain.
_DRAIN_EXTRA_SECONDS = 10.0
# What the command line exits with for a person's mistake: it would be the same the next time.
_MISTAKE = 2
# What no worker decides: only a new parent takes them on.
_OF_THE_PARENT = {"WS_ADDR", "WS_ADMIN_ADDR", "WS_WORKERS"}

_log = structlog.get_logger("workers")


class WorkerUnfit(Exception):
    """A worker cannot serve as it is configured; it has said why on standard error."""


class Worker:
    """The place of one worker, which one process after the other fills.

    In a rolling restart there are two of one number for a while.

    Attributes:
        number: from 1.
        sockets: those that the process listens on, if any runs.
        process: the one that runs, if any.
        link: to that process.
        last: its last known figures; None until it serves.
        has_served: whether any process ever did here.
        restarts: how many processes came after the first one.
        missing_since: since when no process serves and answers here; None while one does.
        is_leaving: set once no further process is to come.
        gone: set once the last process has ended.
    """

    def __init__(self, number: int, *, has_served: bool = False) -> None:
        self.number = number
        self.sockets: list[trio.socket.SocketType] = []
        self.is_leaving = trio.Event()
        self.gone = trio.Event()
        self.process: trio.Process | None = None
        self.link: Link[FromWorker] | None = None
        self.last: Snapshot | None = None
        self.has_served = has_served
        self.restarts = 0
        self.missing_since: float | None = trio.current_time()
        self._began_at = -math.inf
        self._pause_seconds = 0.0

    @property
    def connections(self) -> int:
        """How many it held when it was asked last."""
        return 0 if self.last is None else self.last.connections

    def begin(self, process: trio.Process, link: Link[FromWorker]) -> None:
        """A process was started."""
        self.process, self.link = process, link
        self._began_at = trio.current_time()

    def leave(self) -> None:
        """Have the process leave in order, and no other come."""
        self.is_leaving.set()
        if self.process is not None:
            self.process.terminate()

    def hangs(self) -> bool:
        """Whether there is a process that has been silent for too long."""
        if self.process is None or self.missing_since is None:
            return False
        silent_since = max(self.missing_since, self._began_at)
        return trio.current_time() - silent_since >= _HUNG_SECONDS

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
        self,
        settings: Settings,
        environment: Mapping[str, str],
        address: Address,
        admin_address: Address | None,
    ) -> None:
        self.address = address
        self.finished = trio.Event()
        self._settings = self._first_settings = settings
        self._configured = settings.workers
        self._admin_address = admin_address
        self._environment = environment_of_worker(settings, environment, address, admin_address)
        self.workers = [Worker(number) for number in range(1, self._configured + 1)]
        self._past = Past()
        self._past_restarts = 0
        self._rollings = 0
        self._started_at = trio.current_time()
        self._drain_asked = trio.Event()
        self._rolling_asked = trio.Event()
        self._round = _Round()
        self._asked_at = -math.inf
        self._one_round_at_a_time = trio.Lock()

    def drain(self) -> None:
        """Ask all workers to leave in order; `serve_with_workers` returns when they have."""
        self._drain_asked.set()

    def roll(self) -> None:
        """Ask for all workers to be replaced, one after the other, without a client refused."""
        if self._drain_asked.is_set() or self._rolling_asked.is_set():
            _log.warning("rolling.refused", reason="a rolling restart or a drain is under way")
        else:
            self._rolling_asked.set()

    def reload(self, read: ReadEnvironment) -> None:
        """Hand new settings to all workers, also to those to come; if `read` fails, none.

        A worker to come takes on all of them, but for what is the parent's.
        """
        try:
            environment = read()
            settings = read_settings(environment)
            verifier_of(settings)  # with keys that are of no use no later worker could start
        except SettingError as error:
            self._past.ledger.traffic.reloads["failed"] += 1
            log_failed_reload(error)
            return
        self._environment = self._of_worker(environment)
        for worker in self.workers:
            if worker.link is not None:
                worker.link.send(self._reload())
        set_log_level(settings.log_level)
        later = set(changes(self._first_settings, settings)) & _OF_THE_PARENT
        log_reload(self._settings, settings, later=sorted(later))
        self._settings = settings

    def _of_worker(self, environment: Mapping[str, str]) -> dict[str, str]:
        # The number of workers is that of the start.
        environment = {**environment, "WS_WORKERS": str(self._configured)}
        settings = read_settings(environment)
        return environment_of_worker(settings, environment, self.address, self._admin_address)

    def _reload(self) -> Reload:
        ours = {variable.name for variable in variables()}
        return Reload({n: os.fsencode(text) for n, text in self._environment.items() if n in ours})

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._poll, name="poll")
            nursery.start_soon(self._drain_when_asked, nursery.cancel_scope, name="drain")
            async with trio.open_nursery() as processes:
                nursery.start_soon(self._roll_when_asked, processes, name="rolling")
                for worker in self.workers:
                    processes.start_soon(self._keep_running, worker, name=_name(worker))
            nursery.cancel_scope.cancel(reason="all workers have ended")

    async def _drain_when_asked(self, stop: trio.CancelScope) -> None:
        await self._drain_asked.wait()
        _log.info("drain.started", workers=len(self.workers))
        for worker in self.workers:
            worker.leave()
        await trio.sleep(self._settings.drain_seconds + _DRAIN_EXTRA_SECONDS)
        late = [worker.number for worker in self.workers if worker.process is not None]
        _log.error("drain.late", workers=late)
        stop.cancel(reason="a worker did not leave in time")

    async def _roll_when_asked(self, processes: trio.Nursery) -> None:
        while True:
            await self._rolling_asked.wait()
            _log.info("rolling.started", workers=self._configured)
            is_done = True
            for worker in list(self.workers):
                is_done = is_done and await self._replace(worker, processes)
            if is_done:
                _log.info("rolling.finished")
            self._rolling_asked = trio.Event()

    async def _replace(self, worker: Worker, processes: trio.Nursery) -> bool:
        """Start a successor, and have `worker` leave once that serves. False if it does not."""
        if self._drain_asked.is_set():
            return False
        successor = Worker(worker.number, has_served=worker.has_served)
        # The same sockets: what waits to be accepted does not care which of the two comes for it.
        successor.sockets = [sock.dup() for sock in worker.sockets]
        self.workers.append(successor)
        processes.start_soon(self._keep_running, successor, name=_name(successor))
        serves = await self._comes_into_service(successor)
        if self._drain_asked.is_set():
            return False
        if not serves:
            _log.error("rolling.failed", worker=worker.number, kept="the one that serves")
            await self._retire(successor)
            return False
        self._rollings += 1
        await self._retire(worker)
        return True

    async def _comes_into_service(self, worker: Worker) -> bool:
        """Wait until it serves and has NATS. False if it ends before, or does not get there."""
        with trio.move_on_after(_SUCCESSOR_SECONDS):
            while worker.last is None or not worker.last.was_nats_connected:
                if worker.restarts or self._drain_asked.is_set():
                    return False
                await self._ask_all_since(trio.current_time())
                await trio.sleep(_LOOK_SECONDS)
            return True
        return False

    async def _retire(self, worker: Worker) -> None:
        """Have a worker leave the port to the other one of its number, and forget it then."""
        worker.is_leaving.set()
        self._tell_what_the_others_hold()  # its clients are about to come to them
        if worker.last is not None:
            worker.tell(Relieve())
        else:
            worker.leave()
        with trio.move_on_after(self._settings.drain_seconds + _DRAIN_EXTRA_SECONDS) as deadline:
            await worker.gone.wait()
        if deadline.cancelled_caught and worker.process is not None:
            _log.error("drain.late", workers=[worker.number])
            worker.process.kill()
            await worker.gone.wait()
        self.workers.remove(worker)
        self._past_restarts += worker.restarts
        _log.info("worker.retired", worker=worker.number)

    async def _keep_running(self, worker: Worker) -> None:
        """Run one process after the other in this place, until it is to leave.

        Raises:
            WorkerUnfit: none ever served, and the next one would not get any further.
        """
        while True:
            began_at = trio.current_time()
            exit_code = await self._run_once(worker)
            if worker.is_leaving.is_set():
                break
            # Later the others do serve: then it is waited for whoever mends this one.
            if exit_code == _MISTAKE and not worker.has_served:
                raise WorkerUnfit(f"worker {worker.number} cannot serve, for the reason above")
            pause = worker.next_pause_seconds(trio.current_time() - began_at)
            _log.error("worker.ended", worker=worker.number, how=_how(exit_code), pause=pause)
            with trio.move_on_after(pause):
                await worker.is_leaving.wait()
                break
            worker.restarts += 1
        worker.gone.set()

    async def _run_once(self, worker: Worker) -> int | None:
        """Run one process to its end. Returns its exit code, None if it could not be started."""
        exit_code: int | None = None
        try:
            exit_code = await self._run_process(worker)
        except* (OSError, AddressUnavailable) as group:
            _log.error("worker.not_started", worker=worker.number, errors=str(group.exceptions))
        finally:
            for sock in worker.sockets:
                sock.close()
            worker.sockets = []
            last = worker.end()
            self._round.note_answer(worker)
            if last is not None:
                self._past = self._past.with_ended(last)
        return exit_code

    async def _run_process(self, worker: Worker) -> int | None:
        worker.sockets = worker.sockets or await bind_shared(self.address)
        near, far = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
        link = Link(stream, parent_decoder())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run_writer)
            environment = self._environment
            with far:
                process = await self._start_process(worker, far.fileno(), nursery)
            worker.begin(process, link)
            if environment is not self._environment:  # while it was being started
                link.send(self._reload())
            if worker.is_leaving.is_set():  # while it was being started
                process.terminate()
            await self._converse(worker, link, nursery)
            with trio.move_on_after(_EXIT_SECONDS):
                await process.wait()
            nursery.cancel_scope.cancel(reason="the worker has closed its link")
        return process.returncode

    async def _start_process(
        self, worker: Worker, far_file_number: int, nursery: trio.Nursery
    ) -> trio.Process:
        inherited = [sock.fileno() for sock in worker.sockets]
        as_worker = ["--as-worker", str(worker.number), str(far_file_number)]
        as_worker += [word for number in inherited for word in ("--socket", str(number))]
        # In a session of its own: a Ctrl-C in the terminal is for us, we tell it when to leave.
        child = partial(
            trio.run_process,
            [sys.executable, "-m", "trio_odin", "serve", *as_worker],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[far_file_number, *inherited],
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
            self._kill_hung()
            await trio.sleep(_POLL_SECONDS)

    def _kill_hung(self) -> None:
        for worker in self.workers:
            if worker.process is not None and worker.hangs():
                _log.error("worker.hung", worker=worker.number, silent_seconds=_HUNG_SECONDS)
                worker.process.kill()

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
        for worker in self.workers:
            rest = [other for other in self.workers if other is not worker and other.last]
            others = [other.last for other in rest if other.last is not None]
            worker.tell(
                Elsewhere(
                    # Clients of one that leaves come back here: they are not to count twice.
                    connections=sum(o.connections for o in rest if not o.is_leaving.is_set()),
                    cpu_cores=sum(other.loop_busy_percent for other in others) / 100,
                    turnover_cores=sum(other.turnover_percent for other in others) / 100,
                    # This process is a part of the server too, and a small one.
                    memory_bytes=sum(other.memory_bytes for other in others) + resident_bytes(),
                )
            )

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
            memory_bytes=whole.memory_bytes + resident_bytes(),
            cpu_seconds=whole.cpu_seconds + cpu_seconds(),
            log_lines_dropped=whole.log_lines_dropped + lines_dropped(),
        )

    def _figures(self) -> Workers:
        now = trio.current_time()
        places = [
            [worker for worker in self.workers if worker.number == number]
            for number in range(1, self._configured + 1)
        ]
        missing = [
            now - max(worker.missing_since or now for worker in place)
            for place in places
            if all(worker.missing_since is not None for worker in place)
        ]
        return Workers(
            configured=self._configured,
            alive=self._configured - len(missing),
            restarts=self._past_restarts + sum(worker.restarts for worker in self.workers),
            connections=[sum(worker.connections for worker in place) for place in places],
            missing_seconds=max(missing, default=0.0),
            rollings=self._rollings,
        )


def _name(worker: Worker) -> str:
    return f"worker {worker.number}"


def environment_of_worker(
    settings: Settings,
    environment: Mapping[str, str],
    address: Address,
    admin_address: Address | None,
) -> dict[str, str]:
    """The same settings, but for the ports, and for a share of the bytes that may wait or be kept.

    The other limits are for all workers, and each knows the rest.
    """
    return {
        **environment,
        "WS_ADDR": str(address),
        "WS_ADMIN_ADDR": "" if admin_address is None else str(admin_address),
        "WS_TOTAL_OUTBOX_BYTES": str(max(1, total_outbox_bytes(settings) // settings.workers)),
        "WS_REPLAY_BYTES": str(max(1, total_replay_bytes(settings) // settings.workers)),
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
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(reserved_address(settings.address))
        admin = settings.admin_address
        if admin is not None:
            admin = await stack.enter_async_context(reserved_address(admin))
        parent = Parent(settings, environment, address, admin)
        _log.info(
            "workers.starting",
            address=str(address),
            admin=None if admin is None else str(admin),
            workers=settings.workers,
        )
        task_status.started(parent)
        try:
            await parent._run()  # noqa: SLF001 - its one caller, on the same page
        finally:
            parent.finished.set()
