"""What `trio-odin watch` writes for programs: a line of JSON for each item."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import trio

from trio_odin.client import Event, Feed, Gap, Position, Refused, State
from trio_odin.client.connection import names_for
from trio_odin.client.queues import Item, Policy
from trio_odin.demo.watch_words import hint_for, json_text, why_of

# Of JSON these may be in strings as they are. A terminal obeys some, and some readers of lines see
# an end in others.
_CONTROLS = re.compile("[\x7f-\x9f\u2028\u2029]")


class Lines:
    """Writes a line for each item; and one, once it is live, about names that never had an event.

    If whoever reads them is slow, nothing is dropped here: the client does not read on either.

    Args:
        write: takes a line; it may block, and raises BrokenPipeError if nobody reads.
        names: the names that bring their newest event first, if they ever had one.
    """

    policy: Policy = "wait"

    def __init__(self, write: Callable[[str], None], names: Sequence[str] = ()) -> None:
        self._write = write
        self._silent = dict.fromkeys(names)
        self._position: Position | None = None

    async def take(self, item: Item) -> None:
        """Write an item. In a thread, as a full pipe blocks."""
        now_ms = _now_ms()
        lines = [line_of(described(item, now_ms))]
        if self._silent:
            lines += self._look_at(item, now_ms)
        await self._write_all(lines)

    async def reach(self, position: Position) -> None:
        """Write a position, if it is another one. What is up to it is in the lines before."""
        if position != self._position:
            self._position = position
            await self._write_all([line_of(described_position(position, _now_ms()))])

    async def _write_all(self, lines: Sequence[str]) -> None:
        for line in lines:
            await trio.to_thread.run_sync(partial(self._write, line), abandon_on_cancel=True)

    def _look_at(self, item: Item, now_ms: int) -> list[str]:
        """Once all first values have come, the names without one."""
        if isinstance(item, Event):
            for name in names_for(item.channel):
                self._silent.pop(name, None)
        elif isinstance(item, Refused):
            self._silent.pop(item.channel, None)
        elif isinstance(item, State) and item.name == "live":
            silent, self._silent = self._silent, {}
            return [line_of(described_silence(name, now_ms)) for name in silent]
        return []

    def draw(self, feed: Feed) -> None:
        """Nothing is drawn."""


def _now_ms() -> int:
    return round(time.time() * 1000)


def line_of(described: dict[str, Any]) -> str:
    """An object as a line, which no terminal takes for anything but text."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text(described))


def described_silence(name: str, now_ms: int) -> dict[str, Any]:
    """A name that has not had an event, and another one that may be meant."""
    found = {"type": "no_event", "ts": now_ms, "channel": name}
    return found | ({"hint": hint} if (hint := hint_for(name)) else {})


def described_position(position: Position, now_ms: int) -> dict[str, Any]:
    """A position, as `--epoch` and `--after` take it."""
    return {"type": "position", "ts": now_ms, "epoch": position.epoch, "offset": position.offset}


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
            "why": why_of(item.reason),
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
