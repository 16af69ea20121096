"""How hard the server works, in this process and in the others."""

from __future__ import annotations

import attrs
import msgspec


@attrs.frozen(kw_only=True)
class Load:
    """How hard the server works, over the last second.

    Attributes:
        cpu_percent: of what the whole server may use, all workers and what shares its group.
        loop_busy_percent: CPU of this process, of one core: more than one its loop cannot use.
        turnover_percent: the part of `loop_busy_percent` that clients take which come or go. It is
            as much as the rest leaves to them, so it does not say that there is no more room.
        turnover_of_limit_percent: the same part of `cpu_percent`.
        memory_percent: of what the whole server may use.
        lag_seconds: how late the scheduler was at worst.
    """

    cpu_percent: float = 0.0
    loop_busy_percent: float = 0.0
    turnover_percent: float = 0.0
    turnover_of_limit_percent: float = 0.0
    memory_percent: float = 0.0
    lag_seconds: float = 0.0

    @property
    def serving_percent(self) -> float:
        """CPU, of what the whole server may use, that serves the clients who are in."""
        return max(0.0, self.cpu_percent - self.turnover_of_limit_percent)

    @property
    def busiest_percent(self) -> float:
        """The same, by whichever limit is nearer: the server's, or the core of this process."""
        return max(self.serving_percent, self.loop_busy_percent - self.turnover_percent)


class OtherWorkers(msgspec.Struct, tag="Elsewhere", frozen=True):
    """What the other processes of this server hold and use: limits are for all of them together."""

    connections: int
    cpu_cores: float = 0.0
    turnover_cores: float = 0.0
    memory_bytes: int = 0
