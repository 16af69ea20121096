"""A simulated market: its tokens, and what happens to them. Pure.

shares.py    which token has the next event, and of which type
market.py    makes the event
quotes.py    the price of a token: a random walk
candles.py   the trades of each token, by the minute
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import attrs
import msgspec

from trio_odin.demo.candles import Candles
from trio_odin.demo.quotes import KNOWN, PRICE_DECIMALS, Quote, start_of
from trio_odin.wire.payloads import (
    Balance,
    Candle,
    Creation,
    Favorites,
    Liquidity,
    Metadata,
    Social,
    Trade,
)

DEFAULT_TOKENS = tuple(KNOWN)
TOKENS_MAX = 10_000
TOKENS_RULE = f"a number from 1 to {TOKENS_MAX}, or symbols of letters, digits, _ and - with commas"
_SYMBOL = re.compile(r"[A-Za-z0-9_-]{1,32}")
_SOURCE: Final = "simulator"
_DESCRIPTIONS: Final = (
    "The coin of the simulated market that everybody knows.",
    "It has no use, and many friends.",
    "Made for payments, kept for luck.",
    "A token of the simulated market.",
)


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


@attrs.define
class _Crowd:
    """What people have done with a token."""

    followers: int
    comments: int
    favorites: int
    pool: int

    @classmethod
    def at_start(cls, token: str) -> _Crowd:
        """It follows from the name, as the price does."""
        choose = random.Random(f"{token} crowd")
        followers = int(10 ** choose.uniform(2, 6))
        return cls(followers, followers // 3, followers // 10, int(10 ** choose.uniform(5, 8)))


class Market:
    """Prices that walk at random, each token independently; the same seed gives the same walk.

    What a token starts with follows from its name, not from the seed.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._quotes: dict[str, Quote] = {}
        self._crowds: dict[str, _Crowd] = {}
        self._candles = Candles()
        self._made: Final[Mapping[str, Callable[[str, int], msgspec.Struct]]] = {
            "trade": self._trade,
            "liquidity": self._liquidity,
            "metadata": self._metadata,
            "social": self._social,
            "favorites": self._favorites,
            "creation": self._creation,
            "analytics": self._analytics,
            "balances": self._balance,
        }

    def trade(self, token: str, unix_ms: int) -> bytes:
        """The next trade of `token` at `unix_ms`, as the JSON that goes to NATS."""
        return msgspec.json.encode(self._trade(token, unix_ms))

    def event(self, token: str, event_type: str, unix_ms: int) -> tuple[str, bytes]:
        """The next event of a type at `unix_ms`: its channel, and the JSON that goes to NATS.

        It is of `token`, except for a candle: while minutes are over whose candle was not published
        yet, it is the oldest of them.
        """
        made: Any = self._made[event_type](token, unix_ms)
        return f"{made.tokenId}.{event_type}", msgspec.json.encode(made)

    def _trade(self, token: str, unix_ms: int) -> Trade:
        quote = self._quote(token)
        amount = quote.trade(unix_ms)
        self._candles.add(token, quote.price, amount, unix_ms)
        return Trade(
            token,
            quote.price,
            quote.volume_24h,
            quote.market_cap,
            quote.change_24h,
            *self._signed(unix_ms),
        )

    def _analytics(self, token: str, unix_ms: int) -> Candle:
        token, minute, is_final = self._candles.take(token, self._quote(token).price, unix_ms)
        return Candle(
            token,
            "1m",
            minute.open_ms,
            minute.close_ms,
            minute.open,
            minute.high,
            minute.low,
            minute.close,
            minute.volume,
            minute.trades,
            is_final,
            *self._signed(unix_ms),
        )

    def _liquidity(self, token: str, unix_ms: int) -> Liquidity:
        crowd, choose = self._crowd(token), self._random
        is_more = choose.random() < 0.5
        amount = 1 + int(crowd.pool * choose.uniform(0.000_1, 0.01))
        crowd.pool += amount if is_more else -amount
        action: Literal["add", "remove"] = "add" if is_more else "remove"
        return Liquidity(token, action, amount, crowd.pool, *self._signed(unix_ms))

    def _metadata(self, token: str, unix_ms: int) -> Metadata:
        description = self._random.choice(_DESCRIPTIONS)
        website = f"https://example.com/{token}"
        return Metadata(token, f"{token} Coin", description, website, *self._signed(unix_ms))

    def _social(self, token: str, unix_ms: int) -> Social:
        crowd, choose = self._crowd(token), self._random
        crowd.followers += choose.randint(0, 5)
        crowd.comments += choose.randint(1, 3)
        # A price that rises is talked about kindly.
        mood = choose.gauss(self._quote(token).change_24h / 10, 0.3)
        sentiment = round(min(max(mood, -1.0), 1.0), 2)
        signed = self._signed(unix_ms)
        return Social(token, crowd.followers, crowd.comments, sentiment, *signed)

    def _favorites(self, token: str, unix_ms: int) -> Favorites:
        crowd = self._crowd(token)
        is_less = crowd.favorites > 0 and self._random.random() < 0.4
        change: Literal[-1, 1] = -1 if is_less else 1
        crowd.favorites += change
        return Favorites(token, change, crowd.favorites, *self._signed(unix_ms))

    def _creation(self, token: str, unix_ms: int) -> Creation:
        created = f"NEW{self._random.randrange(1_000_000):06}"
        supply = 10 ** self._random.randint(6, 10)
        return Creation(token, created, self._hex(), supply, *self._signed(unix_ms))

    def _balance(self, token: str, unix_ms: int) -> Balance:
        balance = round(self._random.expovariate(1 / 1000), PRICE_DECIMALS)
        # It was not below 0 before.
        change = round(self._random.uniform(-balance, balance), PRICE_DECIMALS)
        return Balance(token, self._hex(), change, balance, *self._signed(unix_ms))

    def _quote(self, token: str) -> Quote:
        quote = self._quotes.get(token)
        if quote is None:
            quote = self._quotes[token] = Quote(start_of(token), self._random)
        return quote

    def _crowd(self, token: str) -> _Crowd:
        crowd = self._crowds.get(token)
        if crowd is None:
            crowd = self._crowds[token] = _Crowd.at_start(token)
        return crowd

    def _signed(self, unix_ms: int) -> tuple[int, str, str]:
        """What all events end with: the time, the source and the nonce."""
        return unix_ms, _SOURCE, self._hex()

    def _hex(self) -> str:
        return f"{self._random.getrandbits(64):016x}"
