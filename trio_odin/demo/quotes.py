"""One token of the simulated market: its price, and its last 24 hours. Pure.

The price is a random walk in time, not in trades: a token that is traded once a minute moves as far
in an hour as one that is traded each second. A weak pull towards the start price keeps a market
believable that runs for weeks.
"""

from __future__ import annotations

import math
import random
from array import array
from typing import Final

import attrs

PRICE_DECIMALS: Final = 6
_PRICE_MIN = 10.0**-PRICE_DECIMALS
_MS_PER_HOUR: Final = 3_600_000
_HOURS: Final = 24
_DAY_SECONDS: Final = 86_400
# Between two trades: the least, so that each moves the price, and the most that counts.
_SECONDS_MIN, _SECONDS_MAX = 0.05, 3600.0
# The time in which about two thirds of a distance from the start price are lost.
_PULL_SECONDS: Final = 3 * 3600.0


@attrs.frozen
class Start:
    """What a token begins with.

    Attributes:
        price: its price.
        supply: how many there are.
        turnover: what is traded in 24 hours.
        volatility: the share of its price by which it moves in a second, as a standard deviation.
    """

    price: float
    supply: int
    turnover: float
    volatility: float = 0.000_3


# Prices, supplies and turnover are about those of the real ones in 2025.
KNOWN: Final = {
    "BTC": Start(64_000.0, 19_700_000, 3.0e10, 0.000_15),
    "ETH": Start(3_200.0, 120_000_000, 1.5e10, 0.000_2),
    "ODIN": Start(0.042, 21_000_000_000, 4.0e6, 0.000_6),
    "SOL": Start(150.0, 460_000_000, 2.5e9, 0.000_25),
    "DOGE": Start(0.12, 145_000_000_000, 8.0e8, 0.000_4),
    "USDT": Start(1.0, 110_000_000_000, 4.5e10, 0.000_003),
    "BNB": Start(580.0, 146_000_000, 1.6e9),
    "XRP": Start(0.52, 55_000_000_000, 1.2e9),
    "ADA": Start(0.45, 35_500_000_000, 3.5e8),
    "MATIC": Start(0.7, 9_900_000_000, 3.0e8),
}


def start_of(token: str) -> Start:
    """What `token` begins with: it follows from its name, so it is the same in each run."""
    if token in KNOWN:
        return KNOWN[token]
    choose = random.Random(token)
    return Start(
        price=float(f"{10 ** choose.uniform(-3, 2):.3g}"),
        supply=10 ** choose.randint(7, 10),
        turnover=10 ** choose.uniform(5, 7),
        volatility=choose.uniform(0.000_2, 0.000_8),
    )


class Quote:
    """The price of one token, and what happened in its last 24 hours.

    Attributes:
        price: the last price, rounded as it is published.
    """

    def __init__(self, start: Start, choose: random.Random) -> None:
        self.price = start.price
        self._start = start
        self._choose = choose
        self._log = 0.0  # of the price by that at the start
        self._traded_ms: int | None = None
        self._hour = 0
        # The first price and the volume of each hour, as if it had gone on like this before.
        self._prices = array("d", [start.price] * _HOURS)
        self._volumes = array("q", [int(start.turnover / _HOURS)] * _HOURS)

    @property
    def volume_24h(self) -> int:
        """What was traded in this hour and the 23 before."""
        return sum(self._volumes)

    @property
    def market_cap(self) -> int:
        """The value of all tokens."""
        return int(self.price * self._start.supply)

    @property
    def change_24h(self) -> float:
        """By how many percent the price has moved since the first of these hours began."""
        opening = self._prices[(self._hour + 1) % _HOURS]
        return round((self.price / opening - 1) * 100, 2)

    def trade(self, unix_ms: int) -> int:
        """Trade at `unix_ms`, at a new price; returns how much was traded."""
        seconds = self._seconds_since(unix_ms)
        self._enter_hour(unix_ms // _MS_PER_HOUR)
        self._walk(seconds)
        expected = self._start.turnover / _DAY_SECONDS * seconds
        amount = 1 + int(expected * self._choose.expovariate(1.0))
        self._volumes[self._hour % _HOURS] += amount
        return amount

    def _seconds_since(self, unix_ms: int) -> float:
        seconds = 1.0 if self._traded_ms is None else (unix_ms - self._traded_ms) / 1000
        self._traded_ms = unix_ms
        return min(max(seconds, _SECONDS_MIN), _SECONDS_MAX)

    def _walk(self, seconds: float) -> None:
        """An Ornstein-Uhlenbeck process: the logarithm of the price, pulled towards the start."""
        self._log *= math.exp(-seconds / _PULL_SECONDS)
        self._log += self._choose.gauss(0, self._start.volatility) * math.sqrt(seconds)
        price = round(self._start.price * math.exp(self._log), PRICE_DECIMALS)
        self.price = max(price, _PRICE_MIN)

    def _enter_hour(self, hour: int) -> None:
        if self._hour:  # else these are the first ones
            for entered in range(max(self._hour, hour - _HOURS) + 1, hour + 1):
                self._prices[entered % _HOURS] = self.price
                self._volumes[entered % _HOURS] = 0
        self._hour = max(self._hour, hour)
