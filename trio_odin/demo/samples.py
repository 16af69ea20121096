"""Samples of events: of the simulated market, and of a file of lines. Pure.

`demo/sampling.py` takes them from NATS.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from trio_odin.demo.market import Market, first_tokens
from trio_odin.demo.shares import Draw
from trio_odin.wire.channels import CHANNEL_RULE, is_channel
from trio_odin.wire.payload import why_invalid
from trio_odin.wire.payloads import EVENT_TYPES

_MARKET_TOKENS: Final = 30
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
    """Events of the simulated market, of all types, the same each time."""
    market = Market(_SEED)
    draw = Draw(
        first_tokens(_MARKET_TOKENS),
        events=EVENT_TYPES,
        shares="zipf",
        rate=1000 / _MS_BETWEEN,
        seed=_SEED,
    )
    return [
        Sample(*market.event(*draw.take(number), _START_MS + number * _MS_BETWEEN))
        for number in range(count)
    ]


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
