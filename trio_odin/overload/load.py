"""The load of the server, in this process and in the others."""

from __future__ import annotations

import attrs
import msgspec


@attrs.frozen(kw_only=True)
class Load:
    """The load over the last second.

    Attributes:
        cpu_percent: CPU of all workers and of whatever shares their control group, in percent of
            what the whole server may use.
        loop_busy_percent: CPU of this process, in percent of one core: its loop cannot use more
            than one.
        turnover_percent: the part of `loop_busy_percent` for clients that come or go. They take
            what the rest leaves, so a high value does not mean that there is no room for more.
        turnover_of_limit_percent: the same part of `cpu_percent`.
        memory_percent: memory, in percent of what the whole server may use.
        lag_seconds: greatest lateness of the scheduler.
    """

    cpu_percent: float = 0.0
    loop_busy_percent: float = 0.0
    turnover_percent: float = 0.0
    turnover_of_limit_percent: float = 0.0
    memory_percent: float = 0.0
    lag_seconds: float = 0.0

    @property
    def serving_percent(self) -> float:
        """CPU for clients that are connected, in percent of what the whole server may use."""
        return max(0.0, self.cpu_percent - self.turnover_of_limit_percent)

    @property
    def busiest_percent(self) -> float:
        """The same, against the nearer limit: that of the server, or the core of this process."""
        return max(self.serving_percent, self.loop_busy_percent - self.turnover_percent)


class OtherWorkers(msgspec.Struct, tag=True, frozen=True):
    """What the other processes of this server hold and use. Limits are for all of them together."""

    connections: int
    cpu_cores: float = 0.0
    turnover_cores: float = 0.0
    memory_bytes: int = 0
