"""The nursery tree: the whole server in one picture and one function.

serve()                                cancel = stop now; drain() = leave in order, then stop
├── accept                             plain HTTP is answered until the very end
│   └── listener …                     one per queue and address that is accepted from
├── connection …                       one cancel scope each; cancelling it is the eviction
│   ├── reader                         frames → commands → session → replies
│   └── writer                         outbox → socket; asleep unless the socket would block
├── bridge                             NATS → inbound queue, until a drain has closed all clients
├── hub                                inbound queue → registry → Outbound; a fan-out never waits
├── notices                            reports gaps each second to the clients that asked for them
├── keepalive                          one timing wheel for every connection's pings
├── admin                              pages at WS_ADMIN_ADDR, if it is set
├── load monitor                       samples the load; opens and closes admission; sheds events
│   └── lag                            measures how late the scheduler is
├── turns                              lets clients that come all at once wait for events
├── collector                          looks for leaks now and then
├── parent link                        in a worker: obeys the supervisor, drains if it ends
├── nats                               in a worker: reports to the supervisor that NATS was reached
└── summary                            a line in the log now and then
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain

import attrs
import structlog
import trio

from trio_odin.auth.authorize import Authorizer
from trio_odin.connection.connection import Connection
from trio_odin.connection.keepalive import PingWheel
from trio_odin.drain import RECONNECTS_PER_SECOND, send_away
from trio_odin.fanout.hub import Hub
from trio_odin.fanout.resume_buffer import RESUME_EVENTS_MAX
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.snapshot import Build, Limits, ProcessStats, Snapshot, Workers
from trio_odin.listener.admin import AdminPort
from trio_odin.listener.endpoints import Pages
from trio_odin.listener.listener import Listener
from trio_odin.net.listening import (
    Address,
    bound_address,
    inherited_sockets,
    listen_on,
    open_listeners,
)
from trio_odin.overload.load import OtherWorkers
from trio_odin.overload.load_monitor import LoadMonitor
from trio_odin.overload.process import collect_what_leaked, cpu_seconds, resident_bytes
from trio_odin.overload.turnover import LISTENER
from trio_odin.overload.turns import Turns
from trio_odin.settings.reload import Apply, ReadEnvironment, reload_settings
from trio_odin.settings.settings import Settings
from trio_odin.telemetry.log_lines import lines_dropped
from trio_odin.telemetry.logs import set_log_level
from trio_odin.upstream.bridge import Bridge
from trio_odin.upstream.gaps import Mark
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.workers.parent_link import ParentLink

_COLLECT_SECONDS = 3600.0
_HEADS_LOOK_SECONDS = 0.01
_NATS_LOOK_SECONDS = 0.02

_log = structlog.get_logger("server")


class Server:
    """A running server. Made by `serve`.

    Attributes:
        addresses: addresses that it listens on, with the ports that the kernel chose.
        admin_addresses: addresses for Prometheus and health checks only; mostly none.
        ledger: its counters.
        finished: set when a drain is complete, or the server was stopped.
    """

    def __init__(
        self,
        settings: Settings,
        queues: Mapping[int, Sequence[trio.socket.SocketType]],
        authorizer: Authorizer,
        parent_link: ParentLink | None = None,
        admin_listeners: Sequence[trio.SocketListener] = (),
    ) -> None:
        # Any queue will do: each has a socket for each address.
        sockets = next(iter(queues.values()))
        self.addresses: list[Address] = [bound_address(sock) for sock in sockets]
        self.admin_addresses: list[Address] = [bound_address(one) for one in admin_listeners]
        self.ledger = Ledger()
        self._settings = settings
        self._queues = queues
        self._accepted_from: Collection[int] = ()
        self._accepted_from_changed = trio.Event()
        self._admin_listeners = admin_listeners
        self._parent_link = parent_link
        self._started_at = trio.current_time()
        self._drain_asked = trio.Event()
        self._hands_over = False
        self._draining_at: float | None = None
        self._door = trio.CancelScope()
        self.finished = trio.Event()
        # When it is full, the bridge sheds the newest message and counts it.
        self._inbound_send, self._inbound_receive = trio.open_memory_channel[NatsMessage | Mark](
            settings.inbound_capacity
        )
        self._load_monitor = LoadMonitor(settings, self.ledger)
        self._admission = self._load_monitor.admission
        self._turns = Turns(self._load_monitor.loop)
        self._hub: Hub[Connection] = Hub(settings, self.ledger, self._turns)
        self._bridge = Bridge(
            settings,
            self.ledger,
            self._inbound_send,
            self._hub.inbound_budget,
            self._hub.nats_status,
            self._load_monitor.shedder,
            backfill_max=min(RESUME_EVENTS_MAX, settings.inbound_capacity // 2),
        )
        self._wheel: PingWheel[Connection] = PingWheel(
            interval_seconds=settings.ping_interval_seconds,
            deadline_seconds=settings.keepalive_seconds,
            why_ended=lambda connection: authorizer.why_ended(connection.session.grant),
        )
        pages = Pages(self.gather, has_metrics=not admin_listeners)
        self._admin = AdminPort(pages.respond_to_admin, self.ledger.traffic)
        self._listener = Listener(
            hub=self._hub,
            wheel=self._wheel,
            admission=self._admission,
            loop=self._load_monitor.loop,
            authorizer=authorizer,
            respond=pages.respond,
            settings=settings,
        )
        # These apply new settings, in this order. Only the first may refuse them.
        self._reloads: list[Apply] = [
            authorizer.reload,  # the only one that may refuse
            self._load_monitor.reload,
            self._hub.reload,
            self._bridge.reload,
            self._listener.reload,
            lambda settings: set_log_level(settings.log_level),
        ]

    def accept_from(self, queues: Collection[int]) -> None:
        """Take clients from the queues of these numbers, and from no others. Does not wait."""
        self._accepted_from = queues
        self._accepted_from_changed.set()

    def drain(self) -> None:
        """Ask the server to drain; `serve` returns when it has. Does not wait."""
        self._drain_asked.set()

    def drain_alone(self) -> None:
        """Like `drain`, but also answer clients that wait for workers that have ended before."""
        self.accept_from(self._queues)
        self.drain()

    def hand_over(self) -> None:
        """Like `drain`, but leave the port to another process first, and reject no client."""
        self._hands_over = True
        self.drain()

    def reload(self, read: ReadEnvironment) -> None:
        """Apply the settings that can change; if `read` fails or one is not allowed, none."""
        self._settings = reload_settings(
            self._settings, read, apply=self._reloads, results=self.ledger.traffic.reloads
        )

    def roll(self) -> None:
        """Refuse a rolling restart: that takes several workers."""
        _log.warning("rolling.refused", reason="a rolling restart needs WS_WORKERS of 2 or more")

    def learn(self, others: OtherWorkers) -> None:
        """Take in what the other processes of the server hold and use."""
        self._load_monitor.learn(others)

    @property
    def connections(self) -> int:
        """Number of connections that are open now."""
        return len(self._hub.members)

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._accept, nursery, name="door")
            for listener in self._admin_listeners:
                nursery.start_soon(self._admin.run, listener, nursery, name="admin")
            nursery.start_soon(self._wheel.run, name="keepalive")
            nursery.start_soon(self._hub.notices.run, name="notices")
            nursery.start_soon(self._load_monitor.run, name="guard")
            nursery.start_soon(self._turns.run, name="turns")
            nursery.start_soon(self._collect_leaks, name="collector")
            nursery.start_soon(self._summary, name="summary")
            if self._parent_link is not None:
                nursery.start_soon(self._parent_link.run, self, name="siblings")
                nursery.start_soon(self._tell_of_nats, self._parent_link, name="nats")
            async with trio.open_nursery() as flow:
                flow.start_soon(self._hub.run, self._inbound_receive, name="hub")
                flow.start_soon(self._bridge_until_empty, name="bridge")
            self._log_end()
            if self._parent_link is not None:
                await self._parent_link.leave(self.snapshot())
            nursery.cancel_scope.cancel(reason="drained")

    async def _accept(self, connections: trio.Nursery) -> None:
        """Accept from the queues that `accept_from` has set, as they change."""
        accepting: dict[int, list[trio.CancelScope]] = {}
        with self._door:
            async with trio.open_nursery() as nursery:
                while True:
                    wanted = set(self._accepted_from)
                    for number in accepting.keys() - wanted:
                        for scope in accepting.pop(number):
                            scope.cancel(reason="another worker takes clients from this queue")
                    for number in wanted - accepting.keys():
                        accepting[number] = []
                        for sock in self._queues[number]:
                            scope = trio.CancelScope()
                            accepting[number].append(scope)
                            listen = partial(self._listen, listen_on(sock), connections, scope)
                            nursery.start_soon(listen, name=LISTENER)
                    if self._parent_link is not None:
                        self._parent_link.tell(self.snapshot())
                    await self._accepted_from_changed.wait()
                    self._accepted_from_changed = trio.Event()

    async def _listen(
        self,
        listener: trio.SocketListener,
        connections: trio.Nursery,
        scope: trio.CancelScope,
    ) -> None:
        with scope:
            await self._listener.run(listener, connections)

    async def _tell_of_nats(self, parent_link: ParentLink) -> None:
        """Report to the supervisor that NATS was reached: then it lets this worker take clients."""
        while True:
            await trio.sleep(_NATS_LOOK_SECONDS)
            if self._hub.nats_status.was_connected:
                break
        parent_link.tell(self.snapshot())

    async def _bridge_until_empty(self) -> None:
        """Run the bridge until a drain is done; then the inbound queue and the hub end too."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._bridge.run)
            await self._drain_asked.wait()
            await self._drain()
            nursery.cancel_scope.cancel(reason="drain")

    async def _drain(self) -> None:
        """Admit no more clients, and send all of them away."""
        _log.info("drain.started", connections=len(self._hub.members), relieved=self._hands_over)
        if self._hands_over:
            await self._leave_port()
        self._admission.is_draining = True
        self._draining_at = trio.current_time()
        await send_away(
            self._hub,
            self._listener,
            reconnects_per_second=self._reconnects_per_second(),
            drain_seconds=self._settings.drain_seconds,
        )

    async def _leave_port(self) -> None:
        """Stop accepting, and wait until all accepted sockets have their answer."""
        self._door.cancel(reason="a successor serves")
        self._accepted_from = ()
        for sock in chain.from_iterable(self._queues.values()):
            sock.close()
        with trio.move_on_after(self._settings.handshake_seconds):
            while True:
                await trio.sleep(_HEADS_LOOK_SECONDS)
                if not self._listener.unanswered:
                    break

    def _reconnects_per_second(self) -> float:
        """Return the rate at which our clients may come back: all workers leave together."""
        own, elsewhere = len(self._hub.members), self._admission.connections_elsewhere
        rate = self._settings.accepts_per_second or RECONNECTS_PER_SECOND
        return rate * max(1, own) / max(1, own + elsewhere)

    def _log_end(self) -> None:
        snapshot = self.snapshot()
        counters = snapshot.ledger
        _log.info(
            "drain.finished",
            uptime=round(snapshot.uptime_seconds, 1),
            matched=counters.deliveries.matched,
            written=counters.deliveries.written,
            conflated=counters.deliveries.conflated,
            dropped={
                reason.value: number for reason, number in counters.deliveries.dropped.items()
            },
            imbalance=snapshot.imbalance,
        )

    async def _collect_leaks(self) -> None:
        while True:
            await trio.sleep(_COLLECT_SECONDS)
            collect_what_leaked(len(self._hub.members))

    async def _summary(self) -> None:
        while True:
            await trio.sleep(self._settings.summary_seconds)
            self._listener.connection_log.write_rest()
            deliveries = self.ledger.deliveries
            _log.info(
                "summary",
                connections=len(self._hub.members),
                received=self.ledger.publications.received,
                written=deliveries.written,
                queued=deliveries.queued,
                conflated=deliveries.conflated,
                dropped=deliveries.dropped.total(),
                cpu_percent=round(self._load_monitor.load.cpu_percent, 1),
                nats=self._hub.nats_status.is_connected,
            )

    def _uptime(self) -> float:
        return trio.current_time() - self._started_at

    async def gather(self) -> Snapshot:
        """Return the state of the whole server, with all its workers, for its pages."""
        if self._parent_link is None:
            return self.snapshot()
        return await self._parent_link.gather() or self._without_siblings()

    def _without_siblings(self) -> Snapshot:
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
        draining_at = self._draining_at
        return Snapshot(
            ledger=self.ledger,
            nats=self._hub.nats_status.stats(now),
            fan_out=self._hub.stats(fed=self._bridge.fed),
            load=self._load_monitor.stats(),
            listener=self._listener.stats(),
            process=ProcessStats(
                memory_bytes=resident_bytes(),
                cpu_seconds=cpu_seconds(),
                log_lines_dropped=lines_dropped(),
                builds=[Build.here(settings.revision)],
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
            uptime_seconds=self._uptime(),
            is_draining=self._admission.is_draining,
            draining_seconds=None if draining_at is None else now - draining_at,
            is_open=bool(self._accepted_from),
        )


async def serve(
    settings: Settings,
    parent_link: ParentLink | None = None,
    *,
    inherited: Mapping[int, Sequence[int]] | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until drained or cancelled. Starts with a `Server` as soon as it listens.

    NATS need not be there: the server is unhealthy until it is, and recovers by itself. With
    `parent_link` the server is a worker. It has `inherited` the sockets of all workers (file
    numbers, by number of the worker), and takes clients from the queues that the supervisor names.

    Raises:
        AddressUnavailable: it cannot listen at its address.
        SettingError: the keys of tokens cannot be used.

    Cancellation: every connection is cut at once; `Server.drain` is the polite way.
    """
    authorizer = Authorizer(settings)
    with ExitStack() as stack:
        if inherited:
            queues = {number: inherited_sockets(files) for number, files in inherited.items()}
        else:
            queues = {0: [one.socket for one in await open_listeners(settings.address)]}
        _close_with(stack, chain.from_iterable(queues.values()))
        admin: list[trio.SocketListener] = []
        if settings.admin_address is not None:
            is_shared = parent_link is not None
            admin = await open_listeners(settings.admin_address, shared=is_shared)
            _close_with(stack, [one.socket for one in admin])
        server = Server(settings, queues, authorizer, parent_link, admin)
        if parent_link is None:
            server.accept_from(queues)
        try:
            _log.info(
                "server.listening",
                addresses=[str(address) for address in server.addresses],
                admin=[str(address) for address in server.admin_addresses],
            )
            task_status.started(server)
            await server._run()  # noqa: SLF001 - its one caller, on the same page
        finally:
            server.finished.set()


def _close_with(stack: ExitStack, sockets: Iterable[trio.socket.SocketType]) -> None:
    for sock in sockets:
        stack.callback(sock.close)  # it does not wait
