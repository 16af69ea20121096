"""Samples of events: of the simulated market, and of a file of lines. Pure.

`demo/sampling.py` takes them from NATS.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final, NamedTuple

from trio_odin.demo.market import Market, first_tokens
from trio_odin.wire.channels import CHANNEL_RULE, is_channel
from trio_odin.wire.payload import why_invalid

# docs/protocol.md. The simulated market has trades only, so of the others only the names are known.
_OTHER_EVENT_TYPES: Final = (
    "liquidity",
    "metadata",
    "social",
    "favorites",
    "creation",
    "analytics",
    "balances",
)
_MARKET_TOKENS: Final = 30
_TRADES_BETWEEN_OTHERS: Final = 20
_START_MS: Final = 1_759_027_038_365
_MS_BETWEEN: Final = 33
_SEED: Final = 1


class Sample(NamedTuple):
    """An event: its channel, and what was published."""

    channel: str
    payload: bytes


class BadLine(ValueError):
    """A line of a file is no event. The message says which, and what is allowed."""


def of_market(count: int) -> list[Sample]:
    """Events of the simulated market, the same each time."""
    market, choose = Market(_SEED), random.Random(_SEED)
    tokens = first_tokens(_MARKET_TOKENS)
    samples = []
    for number in range(count):
        token = choose.choice(tokens)
        if number % _TRADES_BETWEEN_OTHERS == _TRADES_BETWEEN_OTHERS - 1:
            samples.append(Sample(f"{token}.{choose.choice(_OTHER_EVENT_TYPES)}", b"{}"))
        else:
            trade = market.trade(token, _START_MS + number * _MS_BETWEEN)
            samples.append(Sample(f"{token}.trade", trade))
    return samples


def of_lines(lines: Iterable[bytes]) -> list[Sample]:
    """The events in lines of a channel, a tab and a payload. Empty lines count as none.

    Raises:
        BadLine: a line is something else.
    """
    samples = []
    for number, line in enumerate(lines, start=1):
        line = line.rstrip(b"\r\n")
        if not line:
            continue
        name, tab, payload = line.partition(b"\t")
        channel = name.decode("ascii", errors="replace")
        why_not = why_invalid(payload) if tab else "there is no tab"
        if not is_channel(channel):
            why_not = f"{channel[:80]!r} is no channel: {CHANNEL_RULE}"
        if why_not:
            raise BadLine(
                f"line {number}: allowed is a channel, a tab and a JSON payload ({why_not})"
            )
        samples.append(Sample(channel, payload))
    return samples
