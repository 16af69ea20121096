"""A message from NATS on its way from the bridge to the hub."""

from __future__ import annotations

from typing import NamedTuple


class NatsMessage(NamedTuple):
    """A message as the bridge puts it into the inbound queue.

    Attributes:
        offset: its sequence in the stream; None in core mode.
        arrived_at: when it arrived, in monotonic seconds.
        unix_ms: when NATS stored it; in core mode, when it arrived.
        is_backfill: whether it was published before the start, so that it is not news to any
            connected client.
    """

    subject: str
    payload: bytes
    offset: int | None
    arrived_at: float
    unix_ms: int = 0
    is_backfill: bool = False
