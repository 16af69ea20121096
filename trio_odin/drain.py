"""Draining: its state, its plan, its notice, and how they are carried out.

A client that has to leave reconnects at once, somewhere else. So connections are closed one after
the other, no faster than a server accepts them:

    0 ──► notice of the slot to all ──► slots, 1 / rate apart ──► flush, handshake ──► cut ──► exit
                                          └─ each is closed some time after its slot

A client that connects elsewhere at its slot, and leaves here when it has everything there, has no
moment without a connection.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

import attrs
import msgspec
import structlog
import trio

from trio_odin.connection.connection import Connection
from trio_odin.fanout.hub import Hub
from trio_odin.ledger.reasons import CloseReason
from trio_odin.listener.listener import Listener
from trio_odin.listener.port import Port
from trio_odin.overload.admission import Admission
from trio_odin.settings.settings import Settings
from trio_odin.wire.frames import text_frame
from trio_odin.wire.messages import Draining

# A connect and subscribe takes 190 to 750 µs of CPU, by machine. At this rate, which is also the
# default of WS_ACCEPT_RATE, a server on a fast one has half a core left; on a slow one it accepts
# as many as its loop has time for, and the others wait (`AcceptPace`).
RECONNECTS_PER_SECOND = 2000.0

# The time after the last slot, or a share of the whole if that is short: first for the last bytes
# and the closing handshakes, then for the link to NATS and the end of the process.
_CLOSING_SECONDS, _CLOSING_SHARE = 5.0, 0.3
_EXIT_SECONDS, _EXIT_SHARE = 3.0, 0.2

# About 5 ms of notices; then readers and fan-outs have their turn.
_NOTICES_BETWEEN_CHECKPOINTS = 200

# How long a client may have two connections: for a handshake, a command and a resume.
_BOTH_SECONDS, _BOTH_SHARE = 2.0, 0.1

_log = structlog.get_logger("server")


@attrs.frozen
class DrainPlan:
    """The schedule of a drain, in seconds from its beginning.

    Attributes:
        slots: time at which each client is to connect elsewhere, one after the other.
        both_seconds: time from then on until its connection here is closed.
        cut_seconds: time at which connections still open are closed forcibly.
    """

    slots: Sequence[float]
    both_seconds: float
    cut_seconds: float


def plan_drain(
    connections: int, *, reconnects_per_second: float, drain_seconds: float, phase: float
) -> DrainPlan:
    """Plan to close `connections` within `drain_seconds`.

    Args:
        connections: number of connections.
        reconnects_per_second: number of clients that may reconnect elsewhere per second, above 0.
            It is exceeded only if the time is too short for all of them.
        drain_seconds: time until the process has ended.
        phase: time of the first slot, from 0 up to 1 of the time between two slots. It is random,
            so that servers that drain together do not send their clients away in step.
    """
    cut_seconds = drain_seconds - min(_EXIT_SECONDS, drain_seconds * _EXIT_SHARE)
    both_seconds = min(_BOTH_SECONDS, drain_seconds * _BOTH_SHARE)
    closed_by = cut_seconds - min(_CLOSING_SECONDS, drain_seconds * _CLOSING_SHARE)
    window = closed_by - both_seconds
    apart = min(1 / reconnects_per_second, window / max(1, connections))
    slots = [(number + phase) * apart for number in range(connections)]
    return DrainPlan(slots, both_seconds, cut_seconds)


def notice(seconds: float) -> bytes:
    """Return the frame that tells a client when to reconnect elsewhere."""
    milliseconds = max(0, round(seconds * 1000))
    return text_frame(msgspec.json.encode(Draining(milliseconds)))


class Drain:
    """How one server drains: whether it was asked to, since when it does, and what it does then.

    Attributes:
        asked: set when the server is to drain.
        began_at: when the drain began, in monotonic seconds; None before.
        ends_at: when the process should have ended; `math.inf` before the drain.
    """

    def __init__(
        self, hub: Hub[Connection], listener: Listener, port: Port, admission: Admission
    ) -> None:
        self.asked = trio.Event()
        self.began_at: float | None = None
        self.ends_at = math.inf
        self._hands_over = False
        self._hub = hub
        self._listener = listener
        self._port = port
        self._admission = admission

    def ask(self, *, hands_over: bool = False) -> None:
        """Ask for the drain. `hands_over`: another process has the port: no client is rejected."""
        self._hands_over = self._hands_over or hands_over
        self.asked.set()

    def seconds(self, now: float) -> float | None:
        """How long the drain has been going on; None if it has not begun."""
        return None if self.began_at is None else now - self.began_at

    async def run(self, settings: Settings) -> None:
        """Admit no more clients, and send away those that are here.

        Cancellation: the connections that are left stay open.
        """
        connections = len(self._hub.members)
        _log.info("drain.started", connections=connections, relieved=self._hands_over)
        if self._hands_over:
            await self._port.leave(settings.handshake_seconds)
        self._admission.is_draining = True
        self.began_at = trio.current_time()
        self.ends_at = self.began_at + settings.drain_seconds
        await send_away(
            self._hub,
            self._listener,
            reconnects_per_second=self._reconnects_per_second(settings),
            drain_seconds=settings.drain_seconds,
        )

    def _reconnects_per_second(self, settings: Settings) -> float:
        """Return the rate at which our clients may come back: all workers leave together."""
        own, elsewhere = len(self._hub.members), self._admission.connections_elsewhere
        rate = settings.accepts_per_second or RECONNECTS_PER_SECOND
        return rate * max(1, own) / max(1, own + elsewhere)


async def send_away(
    hub: Hub[Connection],
    listener: Listener,
    *,
    reconnects_per_second: float,
    drain_seconds: float,
) -> None:
    """Tell each client when to reconnect elsewhere, close it soon after that, and cut the rest.

    Clients get events until then. Returns when no connection is left, in time for the process to
    end within `drain_seconds`. No client may be admitted meanwhile.

    Cancellation: the connections that are left stay open.
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
    with trio.move_on_at(began + plan.cut_seconds):
        await _announce(slots)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_close_each, slots, plan.both_seconds)
            await listener.wait_empty()
            nursery.cancel_scope.cancel(reason="all have left")
    if hub.members:
        _log.warning("drain.cut", connections=len(hub.members))
    for connection in list(hub.members):
        connection.evict(CloseReason.DRAINING)
    await listener.wait_empty()


async def _close_each(slots: Iterable[tuple[float, Connection]], both_seconds: float) -> None:
    for slot, connection in slots:
        await trio.sleep_until(slot + both_seconds)
        connection.leave()


async def _announce(slots: Iterable[tuple[float, Connection]]) -> None:
    for number, (slot, connection) in enumerate(slots):
        if number % _NOTICES_BETWEEN_CHECKPOINTS == 0:
            await trio.lowlevel.checkpoint()
        connection.announce_close(notice(slot - trio.current_time()))
