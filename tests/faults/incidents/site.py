"""What runs during an incident: NATS, a server with two workers, Prometheus, and clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import trio

from tests.e2e.nats import NatsServer, free_port, nats_client, running_nats
from tests.faults.attacker import Attackers
from tests.faults.cohort import fleet_plan
from tests.faults.publisher import Publisher
from tests.faults.server import ServerProcess, serving
from tests.ops.alerting import INSTANCE, copy_prometheus
from tests.ops.prometheus import Prometheus, running_prometheus
from tests.waiting import until_answer
from trio_odin.lab.fleet.fleets import fleets

FASTER = 20
SCRAPE_SECONDS = 1.0
WORKERS = 2
EVENTS_PER_SECOND = 20.0
CLIENTS = 50
# The machine may have other work, which is not an incident of this server.
USUAL: Mapping[str, str] = {
    "WS_CPU_REJECT_THRESHOLD": "0",
    "WS_CPU_PAUSE_THRESHOLD": "0",
    "WS_LAG_REJECT_MS": "0",
}
_STEADY_SECONDS = 6.0
_READY_SECONDS = 60.0


@attrs.define
class Site:
    """All that runs. `admin` is the URL of the admin API."""

    nats: NatsServer
    server: ServerProcess
    admin: str
    prometheus: Prometheus
    publisher: Publisher
    attackers: Attackers
    nursery: trio.Nursery

    async def publish(self, channel: str, per_second: float, payload: bytes) -> None:
        """Publish further events of one channel until cancelled."""
        async with nats_client(self.nats.url) as client:
            due = trio.current_time()
            while True:
                await client.publish(f"odin.token.{channel}", payload)
                due += 1 / per_second
                await trio.sleep_until(due)


@asynccontextmanager
async def site(
    folder: Path, settings: Mapping[str, str], *, clients: int = CLIENTS
) -> AsyncIterator[Site]:
    """Start all parts, with `clients` that read and come back; they end with the block.

    It is entered when everything has run for some seconds, so that figures of before exist.
    """
    admin, port = free_port(), free_port()
    variables = {**USUAL, "WS_ADMIN_ADDR": f"127.0.0.1:{admin}", **settings}
    async with AsyncExitStack() as stack:
        nats = stack.enter_context(running_nats(folder / "nats"))
        server = await stack.enter_async_context(
            serving(folder, nats.url, workers=WORKERS, **variables)
        )
        copy_prometheus(
            folder,
            admin,
            port,
            9,  # nobody is notified: what fires is asked of Prometheus itself
            every=f"{SCRAPE_SECONDS:g}s",
            faster=FASTER,
            has_short_windows=True,
        )
        prometheus = stack.enter_context(running_prometheus(folder, port))
        await prometheus.wait_ready()
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel, reason="the incident is over")
        publisher = Publisher(nats.port, EVENTS_PER_SECOND)
        nursery.start_soon(publisher.run)
        publisher.is_paused = False
        if clients:
            plan = attrs.evolve(fleet_plan(server.port, clients), reconnect_seconds=1.0)
            crowd = await stack.enter_async_context(fleets([plan]))
            connected = await crowd.connect()
            if connected.connected != clients:
                raise RuntimeError(f"{connected.connected} of {clients} clients are connected")
        attackers = Attackers(server.port)
        stack.callback(attackers.leave)
        url = f"http://127.0.0.1:{admin}"
        it = Site(nats, server, url, prometheus, publisher, attackers, nursery)
        await until_answer(lambda: _is_whole(it), what="the server is scraped", seconds=60)
        await trio.sleep(_STEADY_SECONDS)
        yield it


async def _is_whole(it: Site) -> bool:
    """Whether the server is scraped, and both workers serve."""
    up = await it.prometheus.values(f'up{{job="ws", instance="{INSTANCE}"}}')
    alive = await it.prometheus.values("ws_workers_alive")
    return up == [1.0] and alive == [float(WORKERS)]
