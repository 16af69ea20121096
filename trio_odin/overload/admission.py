"""Admission: whether a new connection is accepted, decided before the upgrade."""

from __future__ import annotations

import attrs

from trio_odin.ledger.reasons import Rejection
from trio_odin.overload.load import Load

# Once a cause has closed admission, its value has to fall this far below the threshold before
# admission opens again, or to half the threshold if the threshold is that low.
_CPU_HYSTERESIS_PERCENT = 10.0
_MEMORY_HYSTERESIS_PERCENT = 5.0


def is_still_over(was_over: bool, value: float, threshold: float, hysteresis: float) -> bool:
    """Whether `value` counts as over `threshold` (0: none), given whether it did before."""
    if not threshold:
        return False
    least = max(threshold - hysteresis, threshold / 2) if was_over else threshold
    return value >= least


@attrs.define
class Admission:
    """Decides whether admission is open or closed.

    A limit or a threshold of 0 means none. Each may be changed at any time. `connections_elsewhere`
    is the number of connections that other workers hold, as `max_connections` is for all workers.
    """

    max_connections: int = 0
    cpu_reject_percent: float = 0.0
    memory_reject_percent: float = 0.0
    lag_reject_seconds: float = 0.0
    max_per_address: int = 0
    is_draining: bool = False
    connections_elsewhere: int = attrs.field(default=0, init=False)
    _over: set[Rejection] = attrs.field(factory=set, init=False)

    def observe(self, load: Load) -> None:
        """Take in a sample. Each cause closes admission, and opens it again, independently."""
        cpu, memory, lag = (
            self.cpu_reject_percent,
            self.memory_reject_percent,
            self.lag_reject_seconds,
        )
        judged = (
            (Rejection.OVERLOADED, load.busiest_percent, cpu, _CPU_HYSTERESIS_PERCENT),
            (Rejection.MEMORY, load.memory_percent, memory, _MEMORY_HYSTERESIS_PERCENT),
            (Rejection.LAG, load.lag_seconds, lag, lag / 2),
        )
        self._over = {
            cause
            for cause, value, threshold, hysteresis in judged
            if is_still_over(cause in self._over, value, threshold, hysteresis)
        }

    @property
    def closed_by(self) -> list[Rejection]:
        """The causes that keep admission closed after the last sample."""
        return [cause for cause in Rejection if cause in self._over]

    def rejection(self, connections: int) -> Rejection | None:
        """Return why one more connection is rejected; None if it is admitted.

        Args:
            connections: number of connections of this process.
        """
        if self.is_draining:
            return Rejection.SHUTTING_DOWN
        everywhere = connections + self.connections_elsewhere
        if self.max_connections and everywhere >= self.max_connections:
            return Rejection.AT_CAPACITY
        return self.closed_by[0] if self._over else None

    def address_rejection(self, connections: int) -> Rejection | None:
        """Return why one more connection of a client's address is rejected, after `connections`."""
        is_full = self.max_per_address and connections >= self.max_per_address
        return Rejection.PER_ADDRESS if is_full else None
