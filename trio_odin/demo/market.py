"""A simulated market: its tokens, and a random walk of each token's price."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import msgspec

_OPENING_PRICES = {
    "BTC": 64_000.0,
    "ETH": 3_200.0,
    "ODIN": 0.042,
    "SOL": 150.0,
    "DOGE": 0.12,
    "USDT": 1.0,
    "BNB": 580.0,
    "XRP": 0.52,
    "ADA": 0.45,
    "MATIC": 0.7,
}
DEFAULT_TOKENS = tuple(_OPENING_PRICES)
TOKENS_MAX = 10_000
TOKENS_RULE = f"a number from 1 to {TOKENS_MAX}, or symbols of letters, digits, _ and - with commas"
_SYMBOL = re.compile(r"[A-Za-z0-9_-]{1,32}")
# A trade moves the price by about this share of itself.
_VOLATILITY = 0.002
_PRICE_MIN = 0.000_001
_SUPPLY = 21_000_000


def first_tokens(count: int) -> list[str]:
    """The first `count` tokens: the well-known ones, then made-up names from `TKN011` on."""
    made_up = [f"TKN{number:03}" for number in range(len(DEFAULT_TOKENS) + 1, count + 1)]
    return [*DEFAULT_TOKENS[:count], *made_up]


def are_symbols(tokens: Sequence[str]) -> bool:
    """Whether `tokens` are between one and `TOKENS_MAX` well-formed symbols."""
    return 0 < len(tokens) <= TOKENS_MAX and all(_SYMBOL.fullmatch(token) for token in tokens)


def parse_tokens(text: str) -> list[str]:
    """Read a number of tokens, `25`, or their names, `BTC,ETH`.

    Raises:
        ValueError: says what is allowed.
    """
    is_number = text.isascii() and text.isdigit()
    if is_number and len(text) <= len(str(TOKENS_MAX)) and 1 <= int(text) <= TOKENS_MAX:
        return first_tokens(int(text))
    named = (token.strip() for token in text.split(","))
    tokens = list(dict.fromkeys(token for token in named if token))
    if is_number or not are_symbols(tokens):
        raise ValueError(f"allowed is {TOKENS_RULE}")
    return tokens


class _Trade(msgspec.Struct):
    """The payload of a trade. The order of the fields is the order of the keys."""

    type: str
    tokenId: str  # noqa: N815 - names of the wire
    price: float
    volume24h: int
    marketCap: int  # noqa: N815
    priceChange24h: float  # noqa: N815
    timestamp: int
    source: str
    nonce: str


class Market:
    """Prices that walk at random, each token independently; the same seed gives the same walk."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._opening: dict[str, float] = {}
        self._prices: dict[str, float] = {}
        self._volumes: dict[str, float] = {}

    def trade(self, token: str, unix_ms: int) -> bytes:
        """The next trade of `token` at `unix_ms`, as the JSON that goes to NATS."""
        price = self._walk(token)
        opening = self._opening[token]
        trade = _Trade(
            type="price:update",
            tokenId=token,
            price=round(price, 6),
            volume24h=int(self._volumes[token]),
            marketCap=int(price * _SUPPLY),
            priceChange24h=round((price / opening - 1) * 100, 2),
            timestamp=unix_ms,
            source="simulator",
            nonce=f"{self._random.getrandbits(64):016x}",
        )
        return msgspec.json.encode(trade)

    def _walk(self, token: str) -> float:
        choose = self._random
        if token not in self._prices:
            opening = _OPENING_PRICES.get(token) or 10.0 ** choose.uniform(-2, 5)
            self._opening[token] = self._prices[token] = opening
            self._volumes[token] = choose.uniform(1e5, 1e9)
        self._volumes[token] += abs(choose.gauss(0, 1000))
        moved = self._prices[token] * (1 + choose.gauss(0, _VOLATILITY))
        self._prices[token] = max(moved, _PRICE_MIN)
        return self._prices[token]
