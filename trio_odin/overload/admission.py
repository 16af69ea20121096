"""Whether a new connection may come in, decided before the upgrade."""

from __future__ import annotations

import attrs

from trio_odin.ledger.reasons import Rejection
from trio_odin.overload.load import Load

# Once a cause has closed the door, it has to fall this far below its threshold before clients are
# let in again, or to half of it where the threshold is that low.
_CPU_HYSTERESIS_PERCENT = 10.0
_MEMORY_HYSTERESIS_PERCENT = 5.0


def is_still_over(was_over: bool, value: float, threshold: float, hysteresis: float) -> bool:
    """Whether `value` counts as over `threshold` (0: there is none), where it did or did not."""
    if not threshold:
        return False
    least = max(threshold - hysteresis, threshold / 2) if was_over else threshold
    return value >= least


@attrs.define
class Admission:
    """The door. A limit or a threshold of 0 is none; each may be set anew at any time.

    `connections_elsewhere` are those that other workers hold: the limit is for all of them.
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
        """Take in a sample; each cause closes the door, and opens it again, by itself."""
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
        """The causes for which the last sample left the door closed."""
        return [cause for cause in Rejection if cause in self._over]

    def rejection(self, connections: int, *, from_address: int = 0) -> Rejection | None:
        """Why one more connection beside `connections` may not come in; None if it may.

        `from_address` are those of them that are the same client's, by its address.
        """
        if self.is_draining:
            return Rejection.SHUTTING_DOWN
        everywhere = connections + self.connections_elsewhere
        if self.max_connections and everywhere >= self.max_connections:
            return Rejection.AT_CAPACITY
        if self._over:
            return self.closed_by[0]
        if self.max_per_address and from_address >= self.max_per_address:
            return Rejection.PER_ADDRESS
        return None
