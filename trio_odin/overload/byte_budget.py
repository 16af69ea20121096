"""A limit for the bytes that wait in one place."""

from __future__ import annotations

import attrs


@attrs.define
class ByteBudget:
    """The bytes that wait in one place, such as all outboxes. A limit of 0 means no limit."""

    limit_bytes: int = 0
    used_bytes: int = 0

    def has_room_for(self, size: int) -> bool:
        """Whether `size` more bytes may wait."""
        return not self.limit_bytes or self.used_bytes + size <= self.limit_bytes
