"""What a load is to do, and how it tells where it is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import Enum
from urllib.parse import urlsplit

import attrs

from trio_odin.core.names import CHANNEL_RULE, is_channel


class LoadImpossible(Exception):
    """The load cannot be started from here. The message is one sentence that says what would do."""


@attrs.frozen(kw_only=True)
class LoadPlan:
    """What to do.

    Args:
        connections: how many WebSocket connections, 1 or more.
        channels_per_connection: how many of the channels `{token}.{event_type}` each one samples.
        ramp_per_second: connects a second; 0 goes as fast as it can, 200 handshakes at a time.
        seed: the same seed gives the same samples.
        metrics_url: the server's metrics page; by default /metrics beside `url`. None: no scraping.
    """

    url: str = "ws://127.0.0.1:3002/ws"
    connections: int
    channels_per_connection: int
    tokens: list[str]
    event_type: str = "trade"
    hold_seconds: float
    ramp_per_second: float = 0.0
    seed: int = 0
    metrics_url: str | None = attrs.field(
        default=attrs.Factory(lambda plan: _metrics_beside(plan.url), takes_self=True)
    )

    @property
    def channels(self) -> list[str]:
        """Every channel that a connection may sample."""
        return [f"{token}.{self.event_type}" for token in dict.fromkeys(self.tokens)]

    def check(self) -> None:
        """Refuse a plan that cannot be carried out by any machine.

        Raises:
            LoadImpossible: says which number or name is wrong, and what is allowed.
        """
        channels = self.channels
        bad = [channel for channel in channels if not is_channel(channel)]
        parts = urlsplit(self.url)
        if parts.scheme not in {"ws", "wss"} or not parts.hostname:
            raise LoadImpossible(f"{self.url!r} is no address like ws://127.0.0.1:3002/ws")
        if self.connections < 1:
            raise LoadImpossible(f"{self.connections} connections: allowed is 1 or more")
        if bad:
            raise LoadImpossible(f"{bad[0]!r} is no channel: {CHANNEL_RULE}")
        if not 1 <= self.channels_per_connection <= len(channels):
            raise LoadImpossible(
                f"{self.channels_per_connection} channels a connection: "
                f"with {len(channels)} tokens, allowed is 1 to {len(channels)}"
            )
        for name, value in (("hold", self.hold_seconds), ("ramp", self.ramp_per_second)):
            if not 0 <= value < float("inf"):
                raise LoadImpossible(f"{name} of {value}: allowed is a number, 0 or more")

    def samples(self) -> Iterator[list[str]]:
        """The channels of each connection, in the order of connecting."""
        return samples(self.channels, self.channels_per_connection, self.connections, self.seed)


def samples(channels: list[str], each: int, connections: int, seed: int) -> Iterator[list[str]]:
    """`each` of `channels` for every connection; the same seed gives the same samples."""
    chance = random.Random(seed)
    for _ in range(connections):
        yield chance.sample(channels, each)


def _metrics_beside(url: str) -> str:
    parts = urlsplit(url)
    return f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}/metrics"


class Phase(Enum):
    """Where a load is."""

    CONNECTING = "connecting"
    SUBSCRIBING = "subscribing"
    HOLDING = "holding"
    CLOSING = "closing"


@attrs.frozen
class Progress:
    """A glance at a running load. `seconds_left` of this phase, None where nobody can know."""

    phase: Phase
    connected: int
    subscribed: int
    received: int
    seconds_left: float | None
