"""Whether a new connection may come in, decided before the upgrade."""

from __future__ import annotations

from enum import Enum

import attrs

# Once overloaded, the CPU has to fall this far below the threshold before clients are let in again,
# or to half of it where the threshold is that low.
_HYSTERESIS_PERCENT = 10.0


class Rejection(Enum):
    """Why a connection is refused: the metric label, and the text behind the 503."""

    SHUTTING_DOWN = ("shutting_down", "Server is shutting down")
    AT_CAPACITY = ("at_capacity", "Server at capacity")
    OVERLOADED = ("overloaded", "Server overloaded")

    def __init__(self, label: str, text: str) -> None:
        self.label = label
        self.text = text


@attrs.define
class Admission:
    """The door. `max_connections` 0 is no limit, `cpu_reject_percent` 0 is none either.

    `connections_elsewhere` are those that other workers hold: the limit is for all of them.
    """

    max_connections: int
    cpu_reject_percent: float
    is_draining: bool = False
    connections_elsewhere: int = attrs.field(default=0, init=False)
    is_overloaded: bool = attrs.field(default=False, init=False)

    def observe_cpu(self, percent: float) -> None:
        """Take in a sample of the CPU, in percent of what the server may use."""
        if not self.cpu_reject_percent:
            return
        if percent >= self.cpu_reject_percent:
            self.is_overloaded = True
        elif percent < max(
            self.cpu_reject_percent - _HYSTERESIS_PERCENT, self.cpu_reject_percent / 2
        ):
            self.is_overloaded = False

    def rejection(self, connections: int) -> Rejection | None:
        """Why one more connection beside `connections` may not come in; None if it may."""
        if self.is_draining:
            return Rejection.SHUTTING_DOWN
        everywhere = connections + self.connections_elsewhere
        if self.max_connections and everywhere >= self.max_connections:
            return Rejection.AT_CAPACITY
        if self.is_overloaded:
            return Rejection.OVERLOADED
        return None
