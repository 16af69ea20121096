"""The drain of the connections: the plan of `core/draining.py`, carried out."""

from __future__ import annotations

import random
from collections.abc import Iterable

import structlog
import trio

from trio_odin.core.draining import plan_drain
from trio_odin.core.reasons import CloseReason
from trio_odin.server.connection import Connection
from trio_odin.server.hub import Hub
from trio_odin.server.listener import Listener

# Some 5 ms of notices; then readers and fan-outs get their turn.
_NOTICES_BETWEEN_CHECKPOINTS = 200

_log = structlog.get_logger("server")


async def send_away(
    hub: Hub[Connection],
    listener: Listener,
    *,
    reconnects_per_second: float,
    drain_seconds: float,
) -> None:
    """Tell each connection when to come back elsewhere, close it at that moment, cut who is left.

    They get events until then. Returns when there is no connection any more, in time for the
    process to end within `drain_seconds`. Nobody may be let in meanwhile.

    Cancellation: those that are left stay connected.
    """
    began = trio.current_time()
    plan = plan_drain(
        len(hub.members),
        reconnects_per_second=reconnects_per_second,
        drain_seconds=drain_seconds,
        phase=random.random(),
    )
    connections = list(hub.members)
    random.shuffle(connections)
    slots = [
        (began + slot, connection) for slot, connection in zip(plan.slots, connections, strict=True)
    ]
    hub.is_draining = True  # a handshake that is being completed
    with trio.move_on_at(began + plan.cut_seconds):
        await _announce(slots)
        for slot, connection in slots:
            await trio.sleep_until(slot)
            connection.leave()
        await listener.wait_empty()
    if hub.members:
        _log.warning("drain.cut", connections=len(hub.members))
    for connection in list(hub.members):
        connection.evict(CloseReason.DRAINING)
    await listener.wait_empty()


async def _announce(slots: Iterable[tuple[float, Connection]]) -> None:
    for number, (slot, connection) in enumerate(slots):
        if number % _NOTICES_BETWEEN_CHECKPOINTS == 0:
            await trio.lowlevel.checkpoint()
        connection.announce_leave(slot - trio.current_time())
