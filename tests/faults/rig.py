"""NATS, a server, a publisher and a cohort as processes, and the verdict on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.e2e.nats import NatsServer, nats_client, running_nats
from tests.faults.attacker import Attackers
from tests.faults.cohort import Cohort, cohort_of, fleet_plan
from tests.faults.publisher import Publisher
from tests.faults.server import Footprint, ServerProcess, serving
from trio_odin.lab.reliability import Row

_BEFORE_SECONDS = 1.0
_DURING_SECONDS = 1.0  # at least, so that there is a latency to compare
_SETTLE_SECONDS = 15.0
# Bounds for timing and the allocator: far above the usual figures, far below harmful ones.
_P99_MAX_MS = 2000.0
_GROWTH_MAX_MIB = 20.0
_FILES_MORE_MAX = 3


@attrs.define
class Rig:
    """All running parts of a test."""

    nats: NatsServer
    server: ServerProcess
    publisher: Publisher
    cohort: Cohort
    attackers: Attackers
    nursery: trio.Nursery

    @asynccontextmanager
    async def watch(
        self,
        row: Row,
        *,
        p99_max_ms: float = _P99_MAX_MS,
        growth_max_mib: float = _GROWTH_MAX_MIB,
        may_shed: bool = False,
    ) -> AsyncIterator[None]:
        """Run an attack in the block; at its end the cohort must not have noticed it.

        Args:
            row: the row to fill in.
            p99_max_ms: bound for the latency meanwhile.
            growth_max_mib: bound for the memory afterwards.
            may_shed: whole events may be missing, if the server has counted them as shed.
        """
        p99_before, footprint = await self._before(row)
        begun = trio.current_time()
        try:
            yield
        except Exception:
            await self._tell_all_the_same(row)
            raise
        await trio.sleep_until(begun + _DURING_SECONDS)
        self.attackers.leave()
        await self.pause()
        p99 = await self.cohort.look()
        self.fill(row)
        row.notes.append(f"p99 {p99_before:.0f} → {f'{p99:.0f}' if p99 else '–'} ms")
        if may_shed:
            await self._explain_loss(row)
        self.check_books(row, lost=row.lost if may_shed else 0)
        await self.check_balance()
        await self.check_footprint(row, footprint, growth_max_mib)
        assert p99 < p99_max_ms

    async def _before(self, row: Row) -> tuple[float, Footprint]:
        row.clients = self.cohort.size
        self.publisher.is_paused = False
        await self.cohort.look()
        await trio.sleep(_BEFORE_SECONDS)
        return await self.cohort.look(), self.server.footprint()

    async def _tell_all_the_same(self, row: Row) -> None:
        """After a failure, add the figures of the cohort to the row."""
        self.attackers.leave()
        with trio.move_on_after(_SETTLE_SECONDS):
            await self.pause()
            await self.cohort.look()
            self.fill(row)

    async def pause(self) -> None:
        """Stop publishing, and wait until all events have arrived."""
        self.publisher.is_paused = True
        await self.cohort.wait_arrival()

    def fill(self, row: Row) -> None:
        """Fill in the figures of the cohort."""
        row.held = self.cohort.size - self.cohort.disconnects.total()
        row.lost = self.cohort.lost()
        row.repeated = self.cohort.repeated
        row.foreign = self.cohort.foreign

    def check_books(self, row: Row, *, lost: int | None = 0) -> None:
        """Check that all clients stayed, and got everything once."""
        assert (row.held, row.lost, row.repeated, row.foreign) == (row.clients, lost, 0, 0), (
            f"{row.held} held, {row.lost} lost, {row.repeated} repeated, "
            f"{row.foreign} foreign, {dict(self.cohort.disconnects)}"
        )

    async def _explain_loss(self, row: Row) -> None:
        """Check that only whole events are lost, and that the server has counted them as shed."""
        shed = await self.server.metric("ws_nats_messages_shed_total", 'reason="paused"')
        missed = self.cohort.missed_by_all()
        row.notes.append(f"{shed:,.0f} events shed and counted, {missed} of them the clients'")
        assert missed <= shed
        assert not self.cohort.gaps, "an envelope is missing without being counted"

    async def check_balance(self) -> None:
        """Check that every event is accounted for."""
        assert (await self.server.metrics())["ws_ledger_imbalance"] == 0

    async def check_footprint(self, row: Row, before: Footprint, growth_max_mib: float) -> None:
        """Check that files return to their number within seconds, and memory has not grown much."""
        with trio.move_on_after(_SETTLE_SECONDS):
            while self.server.footprint().files > before.files + _FILES_MORE_MAX:
                await trio.sleep(0.1)
        after = self.server.footprint()
        grown = after.mib - before.mib
        row.notes.append(f"memory {grown:+.1f} MiB")
        assert after.files <= before.files + _FILES_MORE_MAX, "files were left open"
        assert grown < growth_max_mib, f"memory has grown by {grown:.1f} MiB"


@asynccontextmanager
async def rig(
    folder: Path,
    *,
    clients: int = 300,
    rate: float = 20,
    stream: dict[str, Any] | None = None,
    fleet: dict[str, Any] | None = None,
    monitoring: int = 0,
    through: Callable[[trio.Nursery, int], Awaitable[str]] | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    """Start all parts; they end with the block, whatever happens.

    Args:
        folder: for the store of NATS and the log.
        clients: number of clients in the cohort.
        rate: events a second.
        stream: settings of a stream to make first.
        fleet: changes to the plan of the cohort.
        monitoring: a port for the pages of NATS; none if 0.
        through: makes another way from the server to NATS; returns the URL.
        options: for the server, variables in upper case.
    """
    with running_nats(folder / "nats", monitoring=monitoring) as nats:
        async with trio.open_nursery() as nursery:
            async with nats_client(nats.url) as client:
                if stream is not None:
                    made = await client.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", stream)
                    assert "error" not in made, made
            url = nats.url if through is None else await through(nursery, nats.port)
            async with serving(folder, url, **options) as server:
                publisher = Publisher(nats.port, rate)
                nursery.start_soon(publisher.run)
                plan = fleet_plan(server.port, clients, **(fleet or {}))
                attackers = Attackers(server.port)
                async with cohort_of(plan, publisher) as cohort:
                    try:
                        yield Rig(nats, server, publisher, cohort, attackers, nursery)
                    finally:
                        attackers.leave()
            nursery.cancel_scope.cancel(reason="the test is over")


async def soon(condition: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Wait until `condition`; returns the time it took."""
    begun = trio.current_time()
    with trio.fail_after(seconds):
        while not await condition():
            await trio.sleep(0.02)
    return trio.current_time() - begun
