"""What `trio-odin watch` writes for programs: a line of JSON for each item."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import trio

from trio_odin.client import Event, Feed, Gap, Refused, State
from trio_odin.client.queues import Item, Policy


class Lines:
    """Writes a line for each item.

    If whoever reads them is slow, nothing is dropped here: the client does not read on either.

    Args:
        write: takes a line; it may block, and raises BrokenPipeError if nobody reads.
    """

    policy: Policy = "wait"

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    async def take(self, item: Item) -> None:
        """Write an item. In a thread, as a full pipe blocks."""
        line = msgspec.json.encode(described(item, round(time.time() * 1000))).decode()
        await trio.to_thread.run_sync(partial(self._write, line), abandon_on_cancel=True)

    def draw(self, feed: Feed) -> None:
        """Nothing is drawn."""


def described(item: Item, now_ms: int) -> dict[str, Any]:
    """An item as an object. Events have the names of docs/protocol.md.

    Args:
        item: what to describe.
        now_ms: the Unix time, for what has none of its own.
    """
    if isinstance(item, Event):
        return _described_event(item)
    if isinstance(item, Gap):
        return {
            "type": "gap",
            "ts": now_ms,
            "channels": item.channels,
            "missed": item.missed,
            "reason": item.reason,
        }
    if isinstance(item, Refused):
        return {"type": "refused", "ts": now_ms, "channel": item.channel, "code": item.code}
    return _described_state(item, now_ms)


def _described_event(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "price:update",
        "channel": event.channel,
        "ts": event.unix_ms,
        "data": event.data,
    }
    for name in ("offset", "prev", "epoch", "trace"):
        if (value := getattr(event, name)) is not None:
            found[name] = value
    if event.skipped != 0:
        found["skipped"] = event.skipped
    if event.is_snapshot:
        found["snapshot"] = True
    return found


def _described_state(state: State, now_ms: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "state", "ts": now_ms, "state": state.name}
    if state.cause:
        found["cause"] = state.cause
    if state.retry_at is not None:
        found["retry_in_ms"] = max(0, round(state.retry_at - state.at))
    return found
