"""The supervisor: starts, watches and polls the worker processes of one server.

    serve_with_workers()           cancel = cut the workers; drain() = have them leave in order
    ├── worker 1                   starts it, and starts it again when it has ended
    │   ├── writer, reader         the link: stats, and questions for those of all workers
    │   └── process                `trio-odin serve`, with the whole nursery tree of server.py
    ├── worker …
    ├── poll                       asks all workers every second, kills one that hangs
    ├── rolling                    replaces one after the other
    ├── admin                      the admin API and pages, for all workers
    └── drain

The workers share one port (SO_REUSEPORT). Each has its own queue there: a socket that the
supervisor has bound and never accepts from. Clients never connect to the supervisor, so it can
neither delay nor lose a delivery. Queues outlive the processes, and each process inherits all of
them. The supervisor decides which worker takes clients from which queue. A worker takes them from
its own once it has NATS, or after a while if no other worker has NATS either. If a worker has no
process, another worker takes clients from its queue.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import attrs
import structlog
import trio

from trio_odin.admin.access import read_token
from trio_odin.admin.port import Admin, open_admin
from trio_odin.auth.authorize import verifier_of
from trio_odin.ledger.counters import Traffic
from trio_odin.ledger.snapshot import Snapshot
from trio_odin.listener.tls import renewed_tls_identity
from trio_odin.net.listening import Address, AddressUnavailable, bind_shared, reserved_address
from trio_odin.overload.process import cpu_seconds, resident_bytes
from trio_odin.settings.dictionary_file import dictionary_of
from trio_odin.settings.reading import changes, read_settings, variables
from trio_odin.settings.reload import ReadEnvironment, log_failed_reload, log_reload
from trio_odin.settings.setting_field import SettingError
from trio_odin.settings.settings import Settings
from trio_odin.telemetry.log_lines import lines_dropped
from trio_odin.telemetry.logs import set_log_level
from trio_odin.upstream.access import access_of
from trio_odin.workers.link import (
    Answer,
    FromWorker,
    HandOver,
    Inspected,
    Link,
    Question,
    Reload,
    StatsReport,
    parent_decoder,
)
from trio_odin.workers.merge import Past, merge, workers_stats
from trio_odin.workers.poll import Poll
from trio_odin.workers.process import environment_of_worker, how_it_ended, start_process
from trio_odin.workers.queues import Taker, share_out
from trio_odin.workers.slot import FIRST_PAUSE_SECONDS, HUNG_SECONDS, WorkerSlot

_POLL_SECONDS = 1.0
# From the end of the link to that of the process.
_EXIT_SECONDS = 5.0
# The time for a successor to serve and have NATS, and the time between two checks of that.
_SUCCESSOR_SECONDS = 30.0
_LOOK_SECONDS = 0.05
# Added to the time that the workers have for a drain.
_DRAIN_EXTRA_SECONDS = 10.0
# The command line's exit code for a mistake of the user: the next start would end the same way.
_MISTAKE = 2
# Settings of the supervisor, not of a worker: only a new supervisor applies them.
_SUPERVISOR_SETTINGS = {"WS_ADDR", "WS_ADMIN_ADDR", "WS_WORKERS"}

_log = structlog.get_logger("workers")


class WorkerUnfit(Exception):
    """A worker cannot serve with its settings. It has written why to standard error."""


class Supervisor:
    """A running server of several processes. Made by `serve_with_workers`.

    Attributes:
        address: address that the workers share, with the port that the kernel chose.
        workers: worker slots; during a rolling restart two have one number.
        finished: set when all workers have ended for good.
    """

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str],
        address: Address,
        queues: Mapping[int, Sequence[trio.socket.SocketType]] | None = None,
        admin_listeners: Sequence[trio.SocketListener] = (),
    ) -> None:
        self.address = address
        self._queues = queues or {}
        self.finished = trio.Event()
        self._settings = self._first_settings = settings
        self._configured = settings.workers
        self._environment = environment_of_worker(settings, environment, address)
        self.workers = [WorkerSlot(number) for number in range(1, self._configured + 1)]
        self._past = Past()
        self._past_restarts = 0
        self._rollings = 0
        self._started_at = trio.current_time()
        self._drain_asked = trio.Event()
        self._rolling_asked = trio.Event()
        self._poll = Poll(self.workers)
        self.admin = Admin(
            admin_listeners,
            settings,
            gather=self.gather,
            processes=lambda: [one.inspections for one in self.workers if one.last is not None],
            traffic=Traffic(),
        )

    def drain(self) -> None:
        """Ask all workers to drain; `serve_with_workers` returns when they have."""
        self._drain_asked.set()

    def roll(self) -> None:
        """Ask for all workers to be replaced, one after the other. No client is rejected for it."""
        if self._drain_asked.is_set() or self._rolling_asked.is_set():
            _log.warning("rolling.refused", reason="a rolling restart or a drain is in progress")
        else:
            self._rolling_asked.set()

    def reload(self, read: ReadEnvironment) -> None:
        """Send new settings to all workers, later ones included; if `read` fails, to none.

        A worker that starts later applies all of them, except those of the supervisor.
        """
        try:
            environment = read()
            settings = read_settings(environment)
            verifier_of(settings)  # with unusable files no later worker could start
            dictionary_of(settings)
            access_of(settings)
            renewed_tls_identity(self._settings, settings)
            token = read_token(settings.admin_token_file)
        except SettingError as error:
            self._past.ledger.traffic.reloads["failed"] += 1
            log_failed_reload(error)
            return
        self._environment = self._of_worker(environment)
        for worker in self.workers:
            if worker.link is not None:
                worker.link.send(self._reload())
        self.admin.set_token(token)
        set_log_level(settings.log_level)
        later = set(changes(self._first_settings, settings)) & _SUPERVISOR_SETTINGS
        log_reload(self._settings, settings, later=sorted(later))
        self._settings = settings

    def _of_worker(self, environment: Mapping[str, str]) -> dict[str, str]:
        # The number of workers stays that of the start.
        environment = {**environment, "WS_WORKERS": str(self._configured)}
        settings = read_settings(environment)
        return environment_of_worker(settings, environment, self.address)

    def _reload(self) -> Reload:
        ours = {variable.name for variable in variables()}
        return Reload({n: os.fsencode(text) for n, text in self._environment.items() if n in ours})

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, name="poll")
            nursery.start_soon(self.admin.run, name="admin")
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

    async def _replace(self, worker: WorkerSlot, processes: trio.Nursery) -> bool:
        """Start a successor, and retire `worker` once that serves. False if it does not."""
        if self._drain_asked.is_set():
            return False
        successor = WorkerSlot(worker.number, has_served=worker.has_served)
        self.workers.append(successor)
        processes.start_soon(self._keep_running, successor, name=_name(successor))
        serves = await self._comes_into_service(successor)
        if self._drain_asked.is_set():
            return False
        if not serves:
            _log.error("rolling.failed", worker=worker.number, kept="the worker that serves")
            await self._retire(successor)
            return False
        self._rollings += 1
        await self._retire(worker)
        return True

    async def _comes_into_service(self, worker: WorkerSlot) -> bool:
        """Wait until `worker` serves and has NATS. False if it ends first or takes too long."""
        with trio.move_on_after(_SUCCESSOR_SECONDS):
            while not (worker.takes_clients and worker.has_nats):
                if worker.restarts or self._drain_asked.is_set():
                    return False
                await self._poll.since(trio.current_time())
                await trio.sleep(_LOOK_SECONDS)
            return True
        return False

    async def _retire(self, worker: WorkerSlot) -> None:
        """Have `worker` leave the port to the other one of its number, then forget it."""
        worker.is_leaving.set()
        self._share_out_queues()
        self._poll.tell_of_others()  # its clients are about to reconnect to them
        if not worker.tell(HandOver()):
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

    async def _keep_running(self, worker: WorkerSlot) -> None:
        """Run one process after another in this slot, until it is to leave.

        Raises:
            WorkerUnfit: no process has served in it, and the next one would fail the same way.
        """
        while True:
            began_at = trio.current_time()
            exit_code = await self._run_once(worker)
            if worker.is_leaving.is_set():
                break
            # Once it has served, the others serve on: try until somebody corrects the mistake.
            if exit_code == _MISTAKE and not worker.has_served:
                raise WorkerUnfit(f"worker {worker.number} cannot serve, for the reason above")
            pause = worker.next_pause_seconds(trio.current_time() - began_at)
            _log.error(
                "worker.ended", worker=worker.number, how=how_it_ended(exit_code), pause=pause
            )
            await self._pause(worker, pause)
            if worker.is_leaving.is_set():
                break
            worker.restarts += 1
        worker.gone.set()

    async def _pause(self, worker: WorkerSlot, seconds: float) -> None:
        """Wait `seconds`; a moment if no other worker takes clients, and less if it is to leave."""
        with trio.move_on_after(FIRST_PAUSE_SECONDS):
            await worker.is_leaving.wait()
        with trio.move_on_after(seconds - FIRST_PAUSE_SECONDS):
            while True:
                if worker.is_leaving.is_set() or not self._others_take_clients(worker):
                    break
                await trio.sleep(_LOOK_SECONDS)

    def _others_take_clients(self, worker: WorkerSlot) -> bool:
        return any(other.takes_clients for other in self.workers if other is not worker)

    def _others_have_nats(self, worker: WorkerSlot) -> bool:
        return any(other.has_nats for other in self.workers if other is not worker)

    async def _run_once(self, worker: WorkerSlot) -> int | None:
        """Run one process to its end. Returns its exit code; None if it could not be started."""
        exit_code: int | None = None
        try:
            exit_code = await self._run_process(worker)
        except* (OSError, AddressUnavailable) as group:
            _log.error("worker.not_started", worker=worker.number, errors=str(group.exceptions))
        finally:
            last = worker.end()
            self._share_out_queues()
            self._poll.note_end(worker)
            if last is not None:
                self._past = self._past.with_ended(last)
        return exit_code

    async def _run_process(self, worker: WorkerSlot) -> int | None:
        near, far = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
        link = Link(stream, parent_decoder())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run_writer)
            environment = self._environment
            with far:
                process = await start_process(
                    worker.number,
                    far.fileno(),
                    environment=environment,
                    queues=self._queues,
                    nursery=nursery,
                )
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

    async def _converse(
        self, worker: WorkerSlot, link: Link[FromWorker], nursery: trio.Nursery
    ) -> None:
        """Handle the messages of the worker until the link ends, at the latest when it exits."""
        while (message := await link.receive()) is not None:
            match message:
                case StatsReport():
                    is_new = worker.last is None
                    worker.note(message.snapshot)
                    if is_new:
                        self._poll.tell_of_others()
                    self._share_out_queues()
                    self._poll.note_answer(worker, message.number)
                case Inspected():
                    worker.inspections.take(message)
                case Question():
                    nursery.start_soon(self._answer, link, message.number)

    async def _answer(self, link: Link[FromWorker], number: int) -> None:
        snapshot = await self.gather()
        if snapshot is not None:
            link.send(Answer(number, snapshot))

    async def _watch(self) -> None:
        while True:
            await self._poll.since(trio.current_time())
            self._kill_hung()
            self._share_out_queues()
            self._end_deaf()
            await trio.sleep(_POLL_SECONDS)

    def _share_out_queues(self) -> None:
        """Assign the queues to the workers that can serve clients, if there are any."""
        # A silent worker takes clients again, from the same queues, when it wakes up.
        answering = [worker for worker in self.workers if worker.silent_since is None]
        if not self._drain_asked.is_set():
            answering = [worker for worker in answering if not worker.is_leaving.is_set()]
        takers = {
            worker: Taker(worker.number, worker.queues, worker.connections)
            for worker in answering
            # In a drain of all, those that are left reject new clients with the reason.
            if self._drain_asked.is_set()
            or worker.can_take_clients(has_another_nats=self._others_have_nats(worker))
        }
        shares = share_out(self._queues, takers)
        for worker in answering:
            worker.accept_from(shares.get(worker, set()))

    def _end_deaf(self) -> None:
        for worker in self.workers:
            is_deaf = worker.is_deaf(has_another_nats=self._others_have_nats(worker))
            if is_deaf and worker.process is not None:
                _log.error("worker.without_nats", worker=worker.number)
                worker.process.terminate()  # its clients go to the others, and it is started again

    def _kill_hung(self) -> None:
        for worker in self.workers:
            if worker.process is not None and worker.hangs():
                _log.error("worker.hung", worker=worker.number, silent_seconds=HUNG_SECONDS)
                worker.process.kill()

    async def gather(self) -> Snapshot | None:
        """Ask all workers, and return them as one server; None if there are none."""
        await self._poll.since(trio.current_time())
        return self.snapshot()

    def snapshot(self) -> Snapshot | None:
        """Return all workers as one server, as of the last poll; None if there are none."""
        parts = [worker.last for worker in self.workers if worker.last is not None]
        if not parts:
            return None
        stats = workers_stats(
            self.workers,
            configured=self._configured,
            past_restarts=self._past_restarts,
            rollings=self._rollings,
            now=trio.current_time(),
        )
        whole = merge(parts, past=self._past, workers=stats)
        return attrs.evolve(
            whole,
            uptime_seconds=trio.current_time() - self._started_at,
            is_draining=whole.is_draining or self._drain_asked.is_set(),
            process=attrs.evolve(
                whole.process,
                memory_bytes=whole.process.memory_bytes + resident_bytes(),
                cpu_seconds=whole.process.cpu_seconds + cpu_seconds(),
                log_lines_dropped=whole.process.log_lines_dropped + lines_dropped(),
            ),
        )


def _name(worker: WorkerSlot) -> str:
    return f"worker {worker.number}"


async def serve_with_workers(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve with `settings.workers` processes until drained or cancelled.

    Starts with a `Supervisor` once the port is reserved. `environment` is what `settings` were read
    from, and what the workers read theirs from.

    Raises:
        AddressUnavailable: the workers cannot listen at their address, or it not at that of the
            admin port.
        SettingError: the admin token cannot be used.
        WorkerUnfit: a worker cannot serve with its settings.

    Cancellation: the workers are told to stop at once, and killed if they have not after a second.
    """
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(reserved_address(settings.address))
        listeners = await open_admin(settings)
        for listener in listeners:
            stack.callback(listener.socket.close)
        queues = {}
        for number in range(1, settings.workers + 1):
            queues[number] = await bind_shared(address)
            for sock in queues[number]:
                stack.callback(sock.close)
        supervisor = Supervisor(settings, environment, address, queues, listeners)
        _log.info(
            "workers.starting",
            address=str(address),
            admin=[str(one) for one in supervisor.admin.addresses],
            workers=settings.workers,
        )
        task_status.started(supervisor)
        try:
            await supervisor._run()  # noqa: SLF001 - its one caller, on the same page
        finally:
            supervisor.finished.set()
