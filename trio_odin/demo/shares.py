"""Which token has the next event of the simulated market, and of which type it is. Pure.

even   each token in its turn: for measurements, where all channels have the same load
zipf   as on a real market: the first token has most, the k-th one a k-th of that, and the last
       fifth of the tokens is quiet
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final, Literal, TypeAlias

from trio_odin.wire.payloads import EVENT_TYPES

Shares: TypeAlias = Literal["even", "zipf"]

DEFAULT_EVENTS: Final = ("trade",)
EVENTS_RULE: Final = f"all, or some of {', '.join(EVENT_TYPES)} with commas"
# Of a thousand events, if all types are published.
_OF_EACH_TYPE: Final[Mapping[str, int]] = {
    "trade": 700,
    "analytics": 120,
    "liquidity": 70,
    "balances": 50,
    "favorites": 30,
    "social": 20,
    "metadata": 6,
    "creation": 4,
}
# The first quiet token has an event a minute, the second one in two minutes, and so on.
_QUIET_OF: Final = 5
_QUIET_SECONDS: Final = 60.0
# At first each token has an event, so that it has a price; of thousands only the first do.
_OPENED_MAX: Final = 100


def parse_events(text: str) -> tuple[str, ...]:
    """Read `all`, or event types with commas; they are returned in the order of the protocol.

    Raises:
        ValueError: says what is allowed.
    """
    named = {name.strip() for name in text.split(",")} - {""}
    if named == {"all"}:
        return EVENT_TYPES
    if not named or not named <= set(EVENT_TYPES):
        raise ValueError(f"allowed is {EVENTS_RULE}")
    return tuple(name for name in EVENT_TYPES if name in named)


class Draw:
    """Chooses the token and the type of each event; the same seed chooses the same.

    Args:
        tokens: those of the market, the one with most events first.
        events: the event types.
        shares: how the events are spread over the tokens.
        rate: events a second.
        seed: of what is random.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        *,
        events: Sequence[str] = DEFAULT_EVENTS,
        shares: Shares = "even",
        rate: float = 1.0,
        seed: int | None = None,
    ) -> None:
        self._random = random.Random(seed)
        self._tokens = tokens
        self._events = events
        self._up_to = list(accumulate(_OF_EACH_TYPE[event] for event in events))
        weights = zipf_weights(len(tokens), rate) if shares == "zipf" else []
        self._tokens_up_to = list(accumulate(weights))

    def take(self, tick: int) -> tuple[str, str]:
        """The token and the event type of the event number `tick`, which counts from 0."""
        tokens = self._tokens
        if not self._tokens_up_to or tick < min(len(tokens), _OPENED_MAX):
            token = tokens[tick % len(tokens)]
        else:
            (token,) = self._random.choices(tokens, cum_weights=self._tokens_up_to)
        if len(self._events) == 1:
            return token, self._events[0]
        return token, self._random.choices(self._events, cum_weights=self._up_to)[0]


def zipf_weights(count: int, rate: float) -> list[float]:
    """How often each of `count` tokens has an event, in proportion, at `rate` events a second."""
    weights = [1 / rank for rank in range(1, count + 1)]
    quiet = count // _QUIET_OF
    busy = sum(weights[: count - quiet])
    for number, rank in enumerate(range(count - quiet, count), start=1):
        # As a share of the busy tokens' events, of which the quiet ones take next to nothing.
        share = 1 / (_QUIET_SECONDS * number * rate)
        weights[rank] = min(weights[rank], share * busy)
    return weights
