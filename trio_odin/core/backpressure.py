"""When a slow consumer is too slow: the compatible policy, eviction."""

from __future__ import annotations

FULL_OUTBOXES_IN_A_ROW = 3


class SlowConsumerWatch:
    """Counts deliveries in a row that found the outbox full. A delivery that fits starts anew."""

    __slots__ = ("_full_in_a_row",)

    def __init__(self) -> None:
        self._full_in_a_row = 0

    def outbox_accepted(self) -> None:
        """An envelope went out or found room."""
        self._full_in_a_row = 0

    def outbox_full(self) -> bool:
        """An envelope found no room. Returns whether the connection is now to be evicted."""
        self._full_in_a_row += 1
        return self._full_in_a_row >= FULL_OUTBOXES_IN_A_ROW
