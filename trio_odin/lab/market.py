"""A simulated market: token names, prices that wander, and their trades as JSON. No waiting."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import attrs
import msgspec

from trio_odin.core.names import CHANNEL_MAX_CHARS, is_channel

DEFAULT_TOKENS = ("BTC", "ETH", "ODIN", "SOL", "DOGE", "USDT", "BNB", "XRP", "ADA", "MATIC")
TOKENS_MAX = 10_000
TOKEN_RULE = (
    f"at most {CHANNEL_MAX_CHARS - len('.trade')} characters, each a letter, a digit, _ or -"
)
TOKENS_RULE = (
    f"allowed is a whole number from 1 to {TOKENS_MAX}, or as many symbols as that with commas "
    f"between them, {TOKEN_RULE}"
)

_OPENING_PRICES = {
    "BTC": 65_000.0,
    "ETH": 3_200.0,
    "ODIN": 0.5,
    "SOL": 150.0,
    "DOGE": 0.12,
    "USDT": 1.0,
    "BNB": 580.0,
    "XRP": 0.6,
    "ADA": 0.45,
    "MATIC": 0.7,
}
# The price stays within this factor of the opening: a walk of a month neither vanishes nor explodes.
_PRICE_FACTOR_MAX = 50.0
_PRICE_STEP = 0.002
_VOLUME_STEP = 0.01
_VOLUME_FACTOR_MAX = 10.0


def is_token(name: str) -> bool:
    """Whether `name` can be a token: clients must be able to subscribe to `{name}.trade`."""
    return is_channel(f"{name}.trade")


def are_tokens(names: Iterable[str]) -> bool:
    """Whether `names` are from 1 to `TOKENS_MAX` good ones."""
    names = list(names)
    return 1 <= len(names) <= TOKENS_MAX and all(map(is_token, names))


def tokens(count: int) -> list[str]:
    """The first `count` tokens: the default ones, then `TKN011`, `TKN012` and so on."""
    generated = (f"TKN{number:03d}" for number in range(len(DEFAULT_TOKENS) + 1, count + 1))
    return [*DEFAULT_TOKENS[:count], *generated]


def parse_tokens(text: str) -> list[str]:
    """Read how many tokens, or which: `200`, or `BTC,ETH`. One named twice counts once.

    Raises:
        ValueError: says what is allowed.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        # Longer numbers than the largest allowed one are not even converted.
        count = int(text) if len(text) <= len(str(TOKENS_MAX)) else 0
        names = tokens(count)
    else:
        names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if not are_tokens(names):
        raise ValueError(TOKENS_RULE)
    return names


class _Trade(msgspec.Struct, frozen=True, rename="camel"):
    """The payload; the order of the fields is the order on the wire."""

    type: str
    token_id: str
    price: float
    volume24h: int
    market_cap: int
    price_change24h: float
    timestamp: int
    source: str
    nonce: str


@attrs.define
class _Walk:
    """Where a token stands."""

    opening_price: float
    price: float
    opening_volume: float
    volume: float
    supply: float


class Market:
    """A random walk per token. With a `seed` the same calls give the same bytes."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._walks: dict[str, _Walk] = {}
        # Unique over markets by the first part, within one by the second.
        self._nonce_prefix = f"{self._random.getrandbits(32):08x}"
        self._trades = 0
        self._encoder = msgspec.json.Encoder()

    def trade(self, token: str, unix_ms: int) -> bytes:
        """Move `token` one step and return the trade as JSON, stamped with `unix_ms`."""
        walk = self._walks.get(token) or self._open(token)
        walk.price = self._step(walk.price, _PRICE_STEP, walk.opening_price, _PRICE_FACTOR_MAX)
        walk.volume = self._step(walk.volume, _VOLUME_STEP, walk.opening_volume, _VOLUME_FACTOR_MAX)
        self._trades += 1
        return self._encoder.encode(
            _Trade(
                type="price:update",
                token_id=token,
                price=round(walk.price, 6),
                volume24h=int(walk.volume),
                market_cap=int(walk.price * walk.supply),
                # Adding 0.0 makes a plain 0.0 of a -0.0.
                price_change24h=round((walk.price / walk.opening_price - 1) * 100, 2) + 0.0,
                timestamp=unix_ms,
                source="simulator",
                nonce=f"{self._nonce_prefix}-{self._trades:x}",
            )
        )

    def _open(self, token: str) -> _Walk:
        price = _OPENING_PRICES.get(token) or 10 ** self._random.uniform(-2, 3)
        volume = 10 ** self._random.uniform(5, 9)
        supply = 10 ** self._random.uniform(7, 10)
        walk = self._walks[token] = _Walk(price, price, volume, volume, supply)
        return walk

    def _step(self, value: float, size: float, opening: float, factor_max: float) -> float:
        moved = value * math.exp(self._random.gauss(0.0, size))
        return min(max(moved, opening / factor_max), opening * factor_max)
