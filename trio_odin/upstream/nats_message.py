"""A message from NATS on its way from the bridge to the hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trio_odin.wire.trace_context import TraceContext


class NatsMessage(NamedTuple):
    """A message as the bridge puts it into the inbound queue.

    Attributes:
        offset: its sequence in the stream; None in core mode.
        arrived_at: when it arrived, in monotonic seconds.
        unix_ms: when NATS stored it; in core mode, when it arrived.
        is_backfill: whether it was published before the start, so that it is not news to any
            connected client.
        trace: the span that it comes from, if that is to be traced.
    """

    subject: str
    payload: bytes
    offset: int | None
    arrived_at: float
    unix_ms: int = 0
    is_backfill: bool = False
    trace: TraceContext | None = None


class Newest(NamedTuple):
    """The newest message of each channel, as the stream keeps it: what a new subscriber may want.

    They come in parts, beside the messages of the feed, which may have brought them before.

    Attributes:
        messages: a part of them.
        position: all parts are as the stream was at this position, or later.
        known_after: of each channel that had a message after this offset, the newest one is in some
            part; None: one may be missing.
        is_last: whether this is the last part.
    """

    messages: Sequence[NatsMessage]
    position: int
    known_after: int | None
    is_last: bool = False
