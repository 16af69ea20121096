"""The nursery tree: the whole server in one picture and one function.

serve()                                cancel = stop now; drain() = leave in order, then stop
├── listener                           plain HTTP is answered until the very end
│   └── connection …                   one cancel scope each; cancelling it is the eviction
│       ├── reader                     frames → commands → session → replies
│       └── writer                     outbox → socket, asleep unless the socket would block
├── bridge                             NATS → feed
├── hub                                feed → registry → outlets; a fan-out never waits
├── keepalive                          one timing wheel for every connection's pings
├── guard                              samples the CPU, closes and opens the door
├── lag                                measures how late the scheduler is
├── collector                          looks for leaks now and then
├── siblings                           in a worker: the parent's questions, and its end
└── summary                            a line in the log now and then
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import structlog
import trio

from trio_odin.config import Settings
from trio_odin.core.admission import Admission
from trio_odin.core.ledger import Ledger
from trio_odin.core.publication import NatsMessage
from trio_odin.net.address import Address, bound_address, open_listeners
from trio_odin.server.bridge import Bridge
from trio_odin.server.connection import Connection
from trio_odin.server.hub import Hub
from trio_odin.server.keepalive import PingWheel
from trio_odin.server.listener import Listener
from trio_odin.server.pages import Pages
from trio_odin.server.siblings import Siblings
from trio_odin.telemetry.process import (
    CpuMeter,
    collect_what_leaked,
    cpu_seconds,
    machine_bytes,
    resident_bytes,
)
from trio_odin.telemetry.snapshot import Snapshot, Workers

_GUARD_SECONDS = 1.0
_TASKS_EVERY = 10  # of these seconds
_LAG_SECONDS = 0.1
_COLLECT_SECONDS = 3600.0

_log = structlog.get_logger("server")


class Server:
    """A running server, as whoever started it sees it. Made by `serve`.

    Attributes:
        addresses: where it listens, with the ports the kernel chose.
        ledger: its books.
        finished: set when a drain is complete, or everything was stopped.
    """

    def __init__(
        self,
        settings: Settings,
        listeners: Sequence[trio.SocketListener],
        siblings: Siblings | None = None,
    ) -> None:
        self.addresses: list[Address] = [bound_address(listener) for listener in listeners]
        self.ledger = Ledger()
        self._settings = settings
        self._listeners = listeners
        self._siblings = siblings
        self._started_at = trio.current_time()
        self._drain_asked = trio.Event()
        self.finished = trio.Event()
        self._cpu_percent = 0.0
        self._tasks = 0
        self._memory_limit = settings.memory_limit_bytes or machine_bytes()
        # Full: the bridge sheds the newest message and counts it.
        self._feed_send, self._feed_receive = trio.open_memory_channel[NatsMessage](
            settings.feed_capacity
        )
        self._admission = Admission(
            max_connections=settings.max_connections,
            cpu_reject_percent=settings.cpu_reject_percent,
        )
        self._hub: Hub[Connection] = Hub(settings, self.ledger)
        self._bridge = Bridge(settings, self.ledger, self._feed_send)
        self._wheel: PingWheel[Connection] = PingWheel(
            interval_seconds=settings.ping_interval_seconds,
            deadline_seconds=settings.keepalive_seconds,
        )
        self._listener = Listener(
            hub=self._hub,
            wheel=self._wheel,
            admission=self._admission,
            respond=Pages(self.gather).respond,
            settings=settings,
        )

    def drain(self) -> None:
        """Ask the server to leave in order; `serve` returns when it has. Does not wait."""
        self._drain_asked.set()

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._hub.members)

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                nursery.start_soon(self._listener.run, listener, nursery, name="listener")
            nursery.start_soon(self._wheel.run, name="keepalive")
            nursery.start_soon(self._guard, name="guard")
            nursery.start_soon(self._feel_lag, name="lag")
            nursery.start_soon(self._collect_leaks, name="collector")
            nursery.start_soon(self._summary, name="summary")
            if self._siblings is not None:
                nursery.start_soon(
                    self._siblings.run, self.snapshot, self._admission, self.drain, name="siblings"
                )
            async with trio.open_nursery() as flow:
                flow.start_soon(self._hub.run, self._feed_receive, name="hub")
                flow.start_soon(self._bridge_until_drain, name="bridge")
            await self._empty()
            if self._siblings is not None:
                await self._siblings.leave(self.snapshot())
            nursery.cancel_scope.cancel(reason="drained")

    async def _bridge_until_drain(self) -> None:
        """Run the bridge until a drain is asked for; the feed ends then, and with it the hub."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._bridge.run)
            await self._drain_asked.wait()
            self._admission.is_draining = True
            _log.info("drain.started", connections=len(self._hub.members))
            nursery.cancel_scope.cancel(reason="drain")

    async def _empty(self) -> None:
        """Let every connection empty its outbox, close with 1001 and end."""
        self._hub.is_draining = True
        for connection in list(self._hub.members):
            connection.leave()
        await self._listener.wait_empty()  # each has deadlines of its own
        _log.info("drain.finished", uptime=round(self._uptime(), 1))

    async def _guard(self) -> None:
        meter = CpuMeter(self._settings.cpu_limit_cores)
        for second in itertools.count():
            if second % _TASKS_EVERY == 0:  # trio looks at every socket for it: 4 ms at 10,000
                self._tasks = trio.lowlevel.current_statistics().tasks_living
            await trio.sleep(_GUARD_SECONDS)
            self._cpu_percent = meter.read()
            self._admission.observe_cpu(self._cpu_percent)

    async def _collect_leaks(self) -> None:
        while True:
            await trio.sleep(_COLLECT_SECONDS)
            collect_what_leaked(len(self._hub.members))

    async def _feel_lag(self) -> None:
        """Measure how late the scheduler runs what is due."""
        due = trio.current_time()
        while True:
            due = max(due + _LAG_SECONDS, trio.current_time())
            await trio.sleep_until(due)
            self.ledger.lag.add(trio.current_time() - due)

    async def _summary(self) -> None:
        while True:
            await trio.sleep(self._settings.summary_seconds)
            deliveries = self.ledger.deliveries
            _log.info(
                "summary",
                connections=len(self._hub.members),
                received=self.ledger.publications.received,
                written=deliveries.written,
                queued=deliveries.queued,
                dropped=deliveries.dropped.total(),
                cpu_percent=round(self._cpu_percent, 1),
                nats=self._bridge.status.is_connected,
            )

    def _uptime(self) -> float:
        return trio.current_time() - self._started_at

    async def gather(self) -> Snapshot:
        """The state of the whole server, with all its workers, for its pages."""
        of_all = None if self._siblings is None else await self._siblings.gather()
        return of_all or self.snapshot()

    def snapshot(self) -> Snapshot:
        """The state of this process now."""
        settings, registry, bridge = self._settings, self._hub.registry, self._bridge.status
        return Snapshot(
            ledger=self.ledger,
            uptime_seconds=self._uptime(),
            is_draining=self._admission.is_draining,
            connections=len(self._hub.members),
            max_connections=settings.max_connections,
            subscription_counts=registry.subscription_counts(),
            channels=registry.channel_count(),
            is_nats_connected=bridge.is_connected,
            was_nats_connected=bridge.was_connected,
            nats_mode=bridge.mode,
            nats_reconnects=bridge.reconnects,
            # Not the channel's own count: a message on its way into the hub is in neither.
            feed_waiting=self._bridge.fed - self._hub.taken,
            feed_capacity=settings.feed_capacity,
            tasks=self._tasks,
            max_tasks=settings.max_tasks,
            cpu_percent=self._cpu_percent,
            cpu_reject_percent=settings.cpu_reject_percent,
            cpu_pause_percent=settings.cpu_pause_percent,
            is_overloaded=self._admission.is_overloaded,
            memory_bytes=resident_bytes(),
            memory_limit_bytes=self._memory_limit,
            max_nats_rate=settings.max_nats_rate,
            max_broadcast_rate=settings.max_broadcast_rate,
            cpu_seconds=cpu_seconds(),
            workers=Workers.alone(len(self._hub.members)),
        )


async def serve(
    settings: Settings,
    siblings: Siblings | None = None,
    *,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until drained or cancelled. Starts with a `Server` as soon as it listens.

    NATS need not be there: the server is unhealthy until it is, and recovers by itself. A server
    with `siblings` shares its address with them.

    Raises:
        AddressUnavailable: it cannot listen where it should.

    Cancellation: every connection is cut at once; `Server.drain` is the polite way.
    """
    listeners = await open_listeners(settings.address, shared=siblings is not None)
    server = Server(settings, listeners, siblings)
    try:
        _log.info("server.listening", addresses=[str(address) for address in server.addresses])
        task_status.started(server)
        await server._run()  # noqa: SLF001 - its one caller, on the same page
    finally:
        server.finished.set()
        for listener in listeners:
            with trio.CancelScope(shield=True):  # closing a listening socket does not wait
                await listener.aclose()
