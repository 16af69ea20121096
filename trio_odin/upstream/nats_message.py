"""What the bridge takes from NATS and hands to the hub."""

from __future__ import annotations

from typing import NamedTuple


class NatsMessage(NamedTuple):
    """What the bridge puts into the feed.

    Attributes:
        offset: the stream's sequence, None in core mode.
        arrived_at: monotonic seconds.
        unix_ms: when NATS stored it; in core mode, when it arrived.
        is_past: it was published before we came, so it is no news to anybody connected.
    """

    subject: str
    payload: bytes
    offset: int | None
    arrived_at: float
    unix_ms: int = 0
    is_backfill: bool = False
