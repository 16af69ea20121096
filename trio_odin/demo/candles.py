"""The candles of the simulated market: the trades of each token, by the minute. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

import attrs

_MS_PER_MINUTE: Final = 60_000


@attrs.define
class Minute:
    """The trades of one token in one minute.

    Attributes:
        number: minutes since 1970.
        open: the first price, as it was published; `high`, `low` and `close` as well.
        volume: what was traded.
        trades: how many trades there were.
    """

    number: int
    open: float
    high: float
    low: float
    close: float
    volume: int = 0
    trades: int = 0

    @classmethod
    def at(cls, unix_ms: int, price: float) -> Minute:
        """A minute in which nothing has been traded yet."""
        return cls(unix_ms // _MS_PER_MINUTE, price, price, price, price)

    @property
    def open_ms(self) -> int:
        """Its first millisecond."""
        return self.number * _MS_PER_MINUTE

    @property
    def close_ms(self) -> int:
        """Its last millisecond."""
        return self.open_ms + _MS_PER_MINUTE - 1

    def has_ended(self, unix_ms: int) -> bool:
        """Whether it is over at `unix_ms`."""
        return unix_ms > self.close_ms

    def add(self, price: float, amount: int) -> None:
        """Take a trade in."""
        if not self.trades:
            self.open = self.high = self.low = price
        self.high, self.low, self.close = max(self.high, price), min(self.low, price), price
        self.volume += amount
        self.trades += 1


class Candle(NamedTuple):
    """A candle to publish."""

    token: str
    minute: Minute
    is_final: bool


class Candles:
    """The minutes of all tokens: those that may still last, and those that are over.

    Of a token only the newest minute that is over is kept. So nothing grows, however few candles
    are taken; then some are never taken.
    """

    def __init__(self) -> None:
        self._lasting: dict[str, Minute] = {}  # in both the oldest is the first
        self._over: dict[str, Minute] = {}

    def add(self, token: str, price: float, amount: int, unix_ms: int) -> None:
        """Take a trade in."""
        minute = self._lasting.get(token)
        if minute is not None and minute.has_ended(unix_ms):
            self._end(token)
            minute = None
        if minute is None:
            minute = self._lasting[token] = Minute.at(unix_ms, price)
        minute.add(price, amount)

    def take(self, token: str, price: float, unix_ms: int) -> Candle:
        """The next candle: the oldest that is over, else that of `token` until now.

        Args:
            token: the one to take if no minute is over.
            price: its last price, for a minute without a trade.
            unix_ms: now.
        """
        oldest = next(iter(self._lasting), None)
        if oldest is not None and self._lasting[oldest].has_ended(unix_ms):
            self._end(oldest)
        if self._over:
            over = next(iter(self._over))
            return Candle(over, self._over.pop(over), is_final=True)
        return Candle(token, self._lasting.get(token) or Minute.at(unix_ms, price), is_final=False)

    def _end(self, token: str) -> None:
        self._over.pop(token, None)
        self._over[token] = self._lasting.pop(token)
