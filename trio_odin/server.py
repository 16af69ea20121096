"""The nursery tree: the whole server in one picture and one function.

serve()                                cancel = stop now; drain() = leave in order, then stop
├── accept                             plain HTTP is answered until the very end
│   └── listener …                     one per queue and address that is accepted from
├── connection …                       one cancel scope each; cancelling it is the eviction
│   ├── reader                         frames → commands → session → replies
│   └── writer                         outbox → socket; asleep unless the socket would block
├── admin                              the admin API and pages, unless it is a worker
├── inspector                          ends what nobody looks at any longer
├── keepalive                          one timing wheel for every connection's pings
├── notices                            reports gaps each second to the clients that asked for them
├── ticks                              all rates: what changed since the last tick, for each cohort
├── load monitor                       samples the load; opens and closes admission; sheds events
│   └── lag                            measures how late the scheduler is
├── turns                              lets clients that come all at once wait for events
├── collector                          looks for leaks now and then
├── summary                            a line in the log now and then
├── traces                             spans of traced events, if there is a collector for them
├── parent link                        in a worker: obeys the supervisor, drains if it ends
├── reports                            in a worker: which queues it accepts from, NATS was reached
├── hub                                inbound queue → registry → Outbound; a fan-out never waits
└── bridge                             NATS → inbound queue, until a drain has closed all clients
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from itertools import chain

import attrs
import structlog
import trio

from trio_odin.admin.access import read_token
from trio_odin.admin.inspector import Inspector
from trio_odin.admin.port import Admin, Own, open_admin
from trio_odin.admin.questions import Question, Reply
from trio_odin.auth.authorize import Authorizer
from trio_odin.connection.connection import Connection
from trio_odin.connection.keepalive import PingWheel
from trio_odin.drain import Drain
from trio_odin.fanout.hub import Hub
from trio_odin.fanout.resume_buffer import RESUME_EVENTS_MAX
from trio_odin.fanout.traces import Traces
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.snapshot import Build, Limits, ProcessStats, Snapshot, Workers
from trio_odin.listener.endpoints import Pages
from trio_odin.listener.listener import Listener
from trio_odin.listener.page import Page
from trio_odin.listener.port import Port, Queues
from trio_odin.listener.tls import renewed_tls_identity, tls_identity_of
from trio_odin.net.listening import Address, inherited_sockets, open_listeners
from trio_odin.net.tls_stream import TlsIdentity
from trio_odin.overload.load import OtherWorkers
from trio_odin.overload.load_monitor import LoadMonitor
from trio_odin.overload.process import (
    collect_what_leaked,
    collect_young,
    cpu_seconds,
    resident_bytes,
)
from trio_odin.overload.turns import Turns
from trio_odin.settings.dictionary_file import dictionary_of
from trio_odin.settings.reload import Apply, ReadEnvironment, reload_settings
from trio_odin.settings.settings import Settings
from trio_odin.telemetry.log_lines import lines_dropped
from trio_odin.telemetry.logs import set_log_level
from trio_odin.telemetry.tracing import export_of
from trio_odin.upstream.access import OF_THE_URL, NatsAccess, access_of
from trio_odin.upstream.bridge import Bridge
from trio_odin.upstream.gaps import Mark
from trio_odin.upstream.nats_message import NatsMessage, Newest
from trio_odin.wire.dictionary import Dictionary
from trio_odin.workers.parent_link import ParentLink

_COLLECT_SECONDS = 0.25
_COLLECTIONS_BETWEEN_LOOKS = round(3600 / _COLLECT_SECONDS)
_NATS_CHECK_SECONDS = 0.02
_COLLECT_SPANS_SECONDS = 0.5
# For the spans that wait at the end of a drain, if so much of its time is left.
_FLUSH_SECONDS = 2.0

_log = structlog.get_logger("server")


async def serve(
    settings: Settings,
    parent_link: ParentLink | None = None,
    *,
    inherited: Mapping[int, Sequence[int]] | None = None,
    worker: int = 0,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until drained or cancelled. Starts with a `Server` as soon as it listens.

    NATS need not be there: the server is unhealthy until it is, and recovers by itself. With
    `parent_link` the server is a worker. It has `inherited` the sockets of all workers (file
    numbers, by number of the worker), and takes clients from the queues that the supervisor names.
    `worker` is its number.

    Raises:
        AddressUnavailable: it cannot listen at its address.
        SettingError: the keys of tokens, the dictionary, the login to NATS, the certificate, the
            admin token or the settings of traces cannot be used.

    Cancellation: every connection is cut at once; `Server.drain` is the polite way.
    """
    authorizer = Authorizer(settings)
    dictionary = dictionary_of(settings)
    access = access_of(settings)
    tls = tls_identity_of(settings)
    async with _sockets(settings, inherited) as (queues, admin_listeners):
        server = Server(
            settings,
            authorizer,
            queues,
            parent_link,
            admin_listeners,
            dictionary,
            access,
            tls,
            worker=worker,
        )
        try:
            server.begin(task_status)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.port.run, nursery, name="accept")
                nursery.start_soon(server.admin.run, name="admin")
                nursery.start_soon(server.inspector.run, name="inspector")
                nursery.start_soon(server.wheel.run, name="keepalive")
                nursery.start_soon(server.hub.notices.run, name="notices")
                nursery.start_soon(server.hub.ticks.run, server.hub.notices, name="ticks")
                nursery.start_soon(server.load_monitor.run, name="load monitor")
                nursery.start_soon(server.turns.run, name="turns")
                nursery.start_soon(server.collect_garbage, name="collector")
                nursery.start_soon(server.log_summaries, name="summary")
                if server.hub.traces is not None:
                    nursery.start_soon(server.collect_spans, server.hub.traces, name="traces")
                if parent_link is not None:
                    nursery.start_soon(parent_link.run, server, name="parent link")
                    nursery.start_soon(server.report_to, parent_link, name="reports")
                async with trio.open_nursery() as flow:
                    flow.start_soon(server.hub.run, server.inbound_receive, name="hub")
                    flow.start_soon(server.bridge_until_drained, name="bridge")
                await server.end()
                nursery.cancel_scope.cancel(reason="drained")
        finally:
            server.finished.set()


@asynccontextmanager
async def _sockets(
    settings: Settings, inherited: Mapping[int, Sequence[int]] | None
) -> AsyncIterator[tuple[Queues, list[trio.SocketListener]]]:
    """The queues that clients wait in, and the listeners of the admin port; closed at the end."""
    with ExitStack() as stack:
        queues: Queues
        if inherited is not None:
            queues = {number: inherited_sockets(files) for number, files in inherited.items()}
        else:
            queues = {0: [one.socket for one in await open_listeners(settings.address)]}
        for sock in chain.from_iterable(queues.values()):
            stack.callback(sock.close)
        # The supervisor has that of workers.
        admin = await open_admin(settings) if inherited is None else []
        for one in admin:
            stack.callback(one.socket.close)
        yield queues, admin


class Server:
    """The parts of a running server. `serve` makes it, and has the tasks of its parts.

    Attributes:
        port: where clients connect; `addresses` are those of the port.
        admin_addresses: addresses of the admin port; none in a worker.
        ledger: its counters.
        finished: set when a drain is complete, or the server was stopped.

    The other public attributes are the parts that have a task in `serve`.
    """

    def __init__(
        self,
        settings: Settings,
        authorizer: Authorizer,
        queues: Queues,
        parent_link: ParentLink | None = None,
        admin_listeners: Sequence[trio.SocketListener] = (),
        dictionary: Dictionary | None = None,
        access: NatsAccess = OF_THE_URL,
        tls: TlsIdentity | None = None,
        *,
        worker: int = 0,
    ) -> None:
        self.ledger = Ledger()
        self.finished = trio.Event()
        self._settings = settings
        self._authorizer = authorizer
        self._dictionary_id = "" if dictionary is None else dictionary.id
        self._parent_link = parent_link
        self._started_at = trio.current_time()
        # When it is full, the bridge sheds the newest message and counts it.
        inbound_send, self.inbound_receive = trio.open_memory_channel[NatsMessage | Mark | Newest](
            settings.inbound_capacity
        )
        self.load_monitor = LoadMonitor(settings, self.ledger)
        self.turns = Turns(self.load_monitor.loop)
        worker = 0 if parent_link is None else parent_link.number
        self._span_export = export_of(settings, self.ledger.traces, worker=worker)
        give_span = None if self._span_export is None else self._span_export.give
        self.hub: Hub[Connection] = Hub(settings, self.ledger, self.turns, give_span)
        self._bridge = Bridge(
            settings,
            self.ledger,
            inbound_send,
            self.hub.inbound_budget,
            self.hub.nats_status,
            self.load_monitor.shedder,
            backfill_max=min(RESUME_EVENTS_MAX, settings.inbound_capacity // 2),
            access=access,
            is_tracing=give_span is not None,
        )
        self.wheel = PingWheel(
            interval_seconds=settings.ping_interval_seconds,
            deadline_seconds=settings.keepalive_seconds,
            why_ended=lambda connection: authorizer.why_ended(connection.session.grant),
        )
        pages = Pages(
            self.gather,
            has_metrics=settings.admin_address in {None, "off"},
            dictionary=dictionary,
            page=Page() if settings.page == "on" else None,
        )
        self.inspector = Inspector(self.hub, worker=worker, dictionary=dictionary)
        own = [Own(self.inspector)]
        self.admin = Admin(
            admin_listeners,
            settings,
            gather=self.gather,
            processes=lambda: own,
            traffic=self.ledger.traffic,
        )
        self.admin_addresses: list[Address] = self.admin.addresses
        self.listener = Listener(
            hub=self.hub,
            wheel=self.wheel,
            admission=self.load_monitor.admission,
            loop=self.load_monitor.loop,
            authorizer=authorizer,
            respond=pages.respond,
            settings=settings,
            dictionary=dictionary,
            tls=tls,
        )
        self.port = Port(queues, self.listener)
        self.addresses = self.port.addresses
        self._drain = Drain(self.hub, self.listener, self.port, self.load_monitor.admission)
        # These apply new settings, in this order. Only the first may refuse them.
        self._reloads: list[Apply] = [
            self._reload_files,
            self.load_monitor.reload,
            self.hub.reload,
            self._bridge.reload,
            self.listener.reload,
            lambda settings: set_log_level(settings.log_level),
        ]

    def begin(self, task_status: trio.TaskStatus[Server]) -> None:
        """Report that the server listens. Without workers, it accepts from all its queues."""
        if self._parent_link is None:
            self.port.accept_from()
        _log.info(
            "server.listening",
            addresses=[str(address) for address in self.addresses],
            admin=[str(address) for address in self.admin_addresses],
            tls=self._settings.tls_cert is not None,
            dictionary=self._dictionary_id,
        )
        task_status.started(self)

    def accept_from(self, queues: Collection[int]) -> None:
        """Take clients from the queues of these numbers, and from no others. Does not wait."""
        self.port.accept_from(queues)

    def drain(self) -> None:
        """Ask the server to drain; `serve` returns when it has. Does not wait."""
        self._drain.ask()

    def drain_alone(self) -> None:
        """Like `drain`, but also answer clients that wait for workers that have ended before."""
        self.port.accept_from()
        self._drain.ask()

    def hand_over(self) -> None:
        """Like `drain`, but leave the port to another process first, and reject no client."""
        self._drain.ask(hands_over=True)

    def reload(self, read: ReadEnvironment) -> None:
        """Apply the settings that can change; if `read` fails or one is not allowed, none."""
        self._settings = reload_settings(
            self._settings, read, apply=self._reloads, results=self.ledger.traffic.reloads
        )

    def _reload_files(self, settings: Settings) -> None:
        """Read the files anew: all of them, or none.

        Raises:
            SettingError: one of them cannot be used, or TLS would have to be switched on or off.
        """
        token = read_token(settings.admin_token_file)
        tls = renewed_tls_identity(self._settings, settings)
        self._authorizer.reload(settings)
        self.listener.renew(tls)
        self.admin.set_token(token)

    async def answer(self, question: Question) -> Reply:
        """Answer a question of the admin API about this process."""
        return await self.inspector.answer(question)

    def roll(self) -> None:
        """Refuse a rolling restart: that takes several workers."""
        _log.warning("rolling.refused", reason="a rolling restart needs WS_WORKERS of 2 or more")

    def learn(self, others: OtherWorkers) -> None:
        """Take in what the other processes of the server hold and use."""
        self.load_monitor.learn(others)

    @property
    def connections(self) -> int:
        """Number of connections that are open now."""
        return len(self.hub.members)

    async def bridge_until_drained(self) -> None:
        """Run the bridge until a drain is done; then the inbound queue and the hub end too."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._bridge.run)
            await self._drain.asked.wait()
            await self._drain.run(self._settings)
            nursery.cancel_scope.cancel(reason="drain")

    async def report_to(self, parent_link: ParentLink) -> None:
        """Report which queues are accepted from, and that NATS was reached: clients may come then.

        Runs until cancelled.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_nats, parent_link, name="nats")
            while True:
                parent_link.tell(self.snapshot())
                await self.port.changed.wait()
                await trio.lowlevel.checkpoint()  # until the port listens

    async def _report_nats(self, parent_link: ParentLink) -> None:
        while True:
            await trio.sleep(_NATS_CHECK_SECONDS)
            if self.hub.nats_status.was_connected:
                break
        parent_link.tell(self.snapshot())

    async def collect_garbage(self) -> None:
        """Collect a little all the time, and what leaked once an hour, until cancelled."""
        while True:
            for _ in range(_COLLECTIONS_BETWEEN_LOOKS):
                await trio.sleep(_COLLECT_SECONDS)
                collect_young()
            collect_what_leaked(len(self.hub.members))

    async def collect_spans(self, traces: Traces) -> None:
        """Hand over the spans of traced events now and then, until cancelled."""
        while True:
            await trio.sleep(_COLLECT_SPANS_SECONDS)
            traces.collect()

    async def _flush_spans(self) -> None:
        """Export the last spans, as far as a collector takes them in what is left of the drain."""
        if self._span_export is None:
            return
        # After the deadline the thread goes on until the process ends, which does not wait for it.
        with trio.move_on_at(min(trio.current_time() + _FLUSH_SECONDS, self._drain.ends_at)):
            await trio.to_thread.run_sync(self._span_export.shut_down, abandon_on_cancel=True)
        if waiting := self._span_export.waiting:
            _log.warning("traces.unsent", spans=waiting)

    async def log_summaries(self) -> None:
        """Write a line about the server now and then, until cancelled."""
        while True:
            await trio.sleep(self._settings.summary_seconds)
            self.listener.connection_log.write_rest()
            deliveries = self.ledger.deliveries
            _log.info(
                "summary",
                connections=len(self.hub.members),
                received=self.ledger.publications.received,
                written=deliveries.written,
                queued=deliveries.queued,
                conflated=deliveries.conflated,
                skipped=deliveries.skipped,
                dropped=deliveries.dropped.total(),
                cpu_percent=round(self.load_monitor.load.cpu_percent, 1),
                nats=self.hub.nats_status.is_connected,
            )

    async def end(self) -> None:
        """Log what the server did in its life, after a drain; a worker reports it too.

        The last spans are exported after that, as a collector may take its time.
        """
        if self.hub.traces is not None:
            self.hub.traces.collect(is_last=True)
        snapshot = self.snapshot()
        deliveries = snapshot.ledger.deliveries
        _log.info(
            "drain.finished",
            uptime=round(snapshot.uptime_seconds, 1),
            matched=deliveries.matched,
            written=deliveries.written,
            conflated=deliveries.conflated,
            skipped=deliveries.skipped,
            dropped={reason.value: number for reason, number in deliveries.dropped.items()},
            imbalance=snapshot.imbalance,
        )
        if self._parent_link is not None:
            await self._parent_link.leave(snapshot)
        await self._flush_spans()

    async def gather(self) -> Snapshot:
        """Return the state of the whole server, with all its workers, for its pages."""
        if self._parent_link is None:
            return self.snapshot()
        return await self._parent_link.gather() or self._as_one_worker()

    def _as_one_worker(self) -> Snapshot:
        """Return what this worker knows while its supervisor does not answer."""
        own = self.snapshot()
        return attrs.evolve(
            own,
            workers=Workers(
                configured=self._settings.workers,
                alive=int(own.is_open),
                restarts=0,
                connections=[own.fan_out.connections],
                is_whole=False,
            ),
        )

    def snapshot(self) -> Snapshot:
        """Return the state of this process now."""
        settings, now = self._settings, trio.current_time()
        return Snapshot(
            ledger=self.ledger,
            nats=self.hub.nats_status.stats(now),
            fan_out=self.hub.stats(fed=self._bridge.fed),
            load=self.load_monitor.stats(),
            listener=self.listener.stats(),
            process=ProcessStats(
                memory_bytes=resident_bytes(),
                cpu_seconds=cpu_seconds(),
                log_lines_dropped=lines_dropped(),
                builds=[Build.here(settings.revision)],
                dictionaries=[self._dictionary_id] if self._dictionary_id else [],
            ),
            limits=Limits(
                max_connections=settings.max_connections,
                max_tasks=settings.max_tasks,
                cpu_reject_percent=settings.cpu_reject_percent,
                cpu_pause_percent=settings.cpu_pause_percent,
                max_nats_rate=settings.max_nats_rate,
                max_broadcast_rate=settings.max_broadcast_rate,
            ),
            workers=Workers.alone(self.connections),
            uptime_seconds=now - self._started_at,
            is_draining=self._drain.began_at is not None,
            draining_seconds=self._drain.seconds(now),
            is_open=self.port.is_open,
        )
