"""The publisher's decisions: its open-loop schedule, and its control commands. No waiting."""

from __future__ import annotations

import math
from typing import Any

import attrs
import msgspec

from trio_odin.demo.market import TOKENS_RULE, are_symbols

RATE_MAX = 100_000.0
_CONNECTIONS_MAX = 1_000_000


class Schedule:
    """Ticks at `start + n / rate`, n from 1 on; a late tick does not shift the others."""

    def __init__(self, *, rate: float, start: float) -> None:
        self._rate = rate
        self._start = start
        self._taken = 0

    @property
    def next_at(self) -> float:
        """When the next tick is due."""
        return self.due_at(self._taken)

    def due_at(self, tick: int) -> float:
        """When a tick is due; the first one is tick 0."""
        return self._start + (tick + 1) / self._rate

    def take_due(self, now: float) -> int:
        """Take the ticks that have come due since the last call; returns how many."""
        before = self._taken
        self._taken = max(before, math.floor((now - self._start) * self._rate))
        while self.next_at <= now:  # the division above may have been rounded down
            self._taken += 1
        return self._taken - before


@attrs.define
class Stats:
    """Statistics in the answers of the control. Times are Unix milliseconds."""

    published: int = 0
    started_at: int = 0
    errors: int = 0

    def as_json(self) -> dict[str, int]:
        """The statistics with the keys of the wire."""
        return {
            "messagesPublished": self.published,
            "startTime": self.started_at,
            "errors": self.errors,
        }


@attrs.frozen
class Run:
    """One run of publishing, until stopped or until `ends_at` (seconds, monotonic)."""

    rate: float
    tokens: tuple[str, ...]
    ends_at: float = math.inf


class _Action(msgspec.Struct):
    action: str = ""


class _Options(msgspec.Struct):
    messagesPerSecond: float | None = None  # noqa: N815 - names of the wire
    tokens: list[str] | None = None
    duration: float | None = None
    connections: int | None = None


class _Refused(Exception):
    """A command cannot be carried out; the message says why."""


@attrs.define
class Control:
    """The publisher's orders, and its answers to requests. `run` is None while it is idle."""

    rate: float
    tokens: tuple[str, ...]
    connections: int = 0
    stats: Stats = attrs.field(factory=Stats)
    run: Run | None = None

    def command(self, body: bytes, *, now: float, unix_ms: int) -> dict[str, Any]:
        """Carry out a POST to /control; a bad command gets an answer and raises nothing."""
        try:
            action = msgspec.json.decode(body, type=_Action).action
            options = msgspec.json.decode(body, type=_Options)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            return _refusal(f"Not a command: {error}")
        try:
            match action:
                case "start":
                    self.start(options, now=now, unix_ms=unix_ms)
                    message = f"Publishing {self.rate:g} messages a second"
                case "stop":
                    self.stop()
                    message = "Stopped"
                case "configure":
                    self._configure(options)
                    message = "Configured"
                case _:
                    return _refusal(f"Unknown action {action!r}: start, stop or configure")
        except _Refused as refused:
            return _refusal(str(refused))
        return {
            "success": True,
            "message": message,
            "stats": self.stats.as_json(),
            "activeTokens": self.active_tokens,
        }

    @property
    def active_tokens(self) -> list[str]:
        """The tokens being published; empty while nothing is published."""
        return list(self.run.tokens) if self.run else []

    def start(self, options: _Options | None = None, *, now: float, unix_ms: int) -> None:
        """Begin a run and start `stats` anew.

        Args:
            options: changes to make first, and the duration of the run.
            now: monotonic seconds.
            unix_ms: the time of day.
        """
        if self.run:
            raise _Refused("Already publishing: stop first")
        seconds = math.inf
        if options is not None:
            self._configure(options)
            seconds = _seconds(options.duration)
        self.stats = Stats(started_at=unix_ms)
        self.run = Run(self.rate, self.tokens, now + seconds)

    def stop(self) -> None:
        """End the run, if there is one."""
        self.run = None

    def _configure(self, options: _Options) -> None:
        """Take over the given options; a run in progress continues with them."""
        rate = self.rate if options.messagesPerSecond is None else options.messagesPerSecond
        if not 0 < rate <= RATE_MAX:
            raise _Refused(f"messagesPerSecond={rate:g}: allowed is above 0, up to {RATE_MAX:g}")
        tokens = self.tokens if options.tokens is None else tuple(options.tokens)
        if not are_symbols(tokens):
            raise _Refused(f"tokens: allowed is {TOKENS_RULE}")
        connections = self.connections if options.connections is None else options.connections
        if not 0 <= connections <= _CONNECTIONS_MAX:
            raise _Refused(f"connections={connections}: allowed is 0 to {_CONNECTIONS_MAX}")
        self.rate, self.tokens, self.connections = float(rate), tokens, connections
        if self.run:
            self.run = attrs.evolve(self.run, rate=rate, tokens=tokens)

    def report(self) -> dict[str, Any]:
        """The answer to GET /stats."""
        return {
            "success": True,
            "stats": self.stats.as_json(),
            "isPublishing": self.run is not None,
            "activeTokens": self.active_tokens,
            "configuration": {
                "connections": self.connections,
                "messagesPerSecond": int(self.rate) if self.rate == int(self.rate) else self.rate,
                "tokens": list(self.tokens),
            },
        }


def _seconds(duration_ms: float | None) -> float:
    if not duration_ms:
        return math.inf
    if not 0 < duration_ms < math.inf:
        raise _Refused(f"duration={duration_ms:g}: allowed is milliseconds, 0 for no end")
    return duration_ms / 1000


def _refusal(message: str) -> dict[str, Any]:
    return {"success": False, "message": message}
