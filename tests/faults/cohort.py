"""The well-behaved clients during an attack, and the events that reached them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from tests.faults.publisher import CHANNELS, Publisher
from trio_odin.lab.fleet.fleets import Fleets, fleets
from trio_odin.lab.fleet.latency import percentile_ms
from trio_odin.lab.fleet.plan import FleetPlan
from trio_odin.lab.fleet.workload import Workload

_CHANNELS_EACH = 3
_ARRIVAL_SECONDS = 20.0
_LOOK_SECONDS = 0.1
_QUIET_LOOKS = 15


def fleet_plan(
    port: int, connections: int, *, channels: int = _CHANNELS_EACH, **changes: Any
) -> FleetPlan:
    """Clients in their own process, each with `channels` of the ten channels."""
    workload = Workload(channels=CHANNELS, channels_per_connection=channels)
    plan = FleetPlan(host="127.0.0.1", port=port, connections=connections, workload=workload)
    return attrs.evolve(plan, **changes)


@attrs.define
class Cohort:
    """Subscribed clients, and the sum of what they received.

    Attributes:
        size: number of clients.
        deliveries: of each event, by its number.
        repeated, foreign, gaps: as in the fleet's `Received`.
        disconnects: unexpected ends of connections, by code and reason.
    """

    crowd: Fleets
    publisher: Publisher
    size: int = 0
    deliveries: Counter[int] = attrs.field(factory=Counter)
    repeated: int = 0
    foreign: int = 0
    gaps: int = 0
    disconnects: Counter[str] = attrs.field(factory=Counter)
    _subscribers: dict[str, int] = attrs.field(factory=dict)

    async def connect(self) -> None:
        """Connect all clients; call it before anything is published."""
        connected = await self.crowd.connect()
        assert not connected.rejections, connected.rejections
        assert not connected.failures, connected.failures
        self.size = connected.connected
        self._subscribers = connected.subscribers

    async def look(self) -> float:
        """Collect the events since the last call; returns the 99th percentile of latency in ms."""
        collected = await self.crowd.collect()
        received = collected.received
        for entry in received.deliveries:
            self.deliveries[entry.number] += entry.times
        self.repeated += received.repeated
        self.foreign += received.foreign
        self.gaps += received.gaps
        self.disconnects.update(collected.disconnects)
        return percentile_ms(received.buckets, 0.99)

    def lost(self) -> int:
        """Deliveries missing, of all events that NATS has taken."""
        return sum(
            max(0, self._subscribers.get(event.channel, 0) - self.deliveries[number])
            for number, event in self.publisher.taken.items()
        )

    def missing(self, number: int) -> int:
        """The number of subscribers that do not have an event yet, as of the last `look`."""
        wanted = self._subscribers.get(self.publisher.taken[number].channel, 0)
        return wanted - self.deliveries[number]

    def missed_by_all(self) -> int:
        """The number of events that NATS has taken and nobody received."""
        return sum(1 for number in self.publisher.taken if not self.deliveries[number])

    async def wait_arrival(self) -> None:
        """Wait until all events have come, or no more come; the publisher must be paused."""
        last, quiet = -1, 0
        with trio.move_on_after(_ARRIVAL_SECONDS):
            while last < self._expected() and quiet < _QUIET_LOOKS:
                await trio.sleep(_LOOK_SECONDS)
                received = (await self.crowd.progress()).received
                quiet = quiet + 1 if received == last else 0
                last = received

    def _expected(self) -> int:
        events = self.publisher.taken.values()
        return sum(self._subscribers.get(event.channel, 0) for event in events)

    async def wait_flowing(self, seconds: float) -> float:
        """Wait for the next event; returns the time it took."""
        begun = trio.current_time()
        before = (await self.crowd.progress()).received
        with trio.fail_after(seconds):
            while (await self.crowd.progress()).received <= before:
                await trio.sleep(0.01)
        return trio.current_time() - begun


@asynccontextmanager
async def cohort_of(plan: FleetPlan, publisher: Publisher) -> AsyncIterator[Cohort]:
    """A connected cohort, which ends with the block."""
    async with fleets([plan]) as crowd:
        cohort = Cohort(crowd, publisher)
        await cohort.connect()
        yield cohort
