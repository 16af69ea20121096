"""Pings every connection from one task, with a timing wheel."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from trio_odin.ledger.reasons import CloseReason

if TYPE_CHECKING:
    from trio_odin.connection.connection import Connection

# Many small spokes: the pongs of one are read together, and must not delay a fan-out for long.
_SPOKES_PER_SECOND = 4.0
# At an interval of hours this many spokes are small enough.
_SPOKES_MAX = 2_000


def _no_objection(_: object) -> None:
    """Let every connection stay."""


class PingWheel:
    """Pings each connection every `interval_seconds`, ends those silent for `deadline_seconds`.

    It also ends those for which `why_ended` gives a reason. A connection gets a random spoke, so
    ten thousand that came at once are not pinged at once. Silence and `why_ended` are checked when
    the spoke comes round: up to one interval late, never early.
    """

    def __init__(
        self,
        *,
        interval_seconds: float,
        deadline_seconds: float,
        why_ended: Callable[[Connection], CloseReason | None] = _no_objection,
    ) -> None:
        spokes = min(max(1, round(interval_seconds * _SPOKES_PER_SECOND)), _SPOKES_MAX)
        self._spokes: list[dict[Connection, None]] = [{} for _ in range(spokes)]
        self._pause_seconds = interval_seconds / spokes
        self._deadline_seconds = deadline_seconds
        self._why_ended = why_ended
        self._salt = random.random()

    def add(self, connection: Connection) -> None:
        """Ping `connection` from now on, until it is removed."""
        self._spoke_of(connection)[connection] = None

    def remove(self, connection: Connection) -> None:
        """Stop pinging `connection`."""
        del self._spoke_of(connection)[connection]

    def _spoke_of(self, connection: Connection) -> dict[Connection, None]:
        """A salted hash of its identity: as good as random, and nothing has to be stored."""
        return self._spokes[hash((self._salt, connection)) % len(self._spokes)]

    async def run(self) -> None:
        """Ping one spoke after the other until cancelled."""
        while True:
            for spoke in self._spokes:
                await trio.sleep(self._pause_seconds)
                self._visit(spoke)

    def _visit(self, spoke: dict[Connection, None]) -> None:
        silent_since = trio.current_time() - self._deadline_seconds
        for connection in spoke:
            if connection.outbound.heard_at < silent_since:
                connection.evict(CloseReason.KEEPALIVE_TIMEOUT)
            elif (why_ended := self._why_ended(connection)) is not None:
                connection.evict(why_ended)
            else:
                connection.outbound.ping()
