from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.demo.quotes import KNOWN, Quote, Start, start_of

NOON = 1_759_060_800_000
HOUR = 3_600_000
START = Start(price=100.0, supply=1_000, turnover=24_000_000.0)


def quote(seed: int = 1) -> Quote:
    return Quote(START, random.Random(seed))


def test_a_token_without_a_name_that_is_known_starts_with_what_its_name_gives() -> None:
    assert start_of("BTC") is KNOWN["BTC"]
    assert start_of("X_1") == start_of("X_1")
    assert start_of("X_1") != start_of("X_2")
    for number in range(100):
        start = start_of(f"T{number}")
        assert 0.001 <= start.price <= 100


@given(seed=st.integers(), steps=st.lists(st.integers(0, 10_000_000), max_size=60))
def test_prices_stay_positive_rounded_and_near_the_start(seed: int, steps: list[int]) -> None:
    it, now = quote(seed), NOON
    for milliseconds in steps:
        now += milliseconds
        assert it.trade(now) >= 1
        assert it.price == round(it.price, 6)
        assert 50 < it.price < 200
        assert it.market_cap == int(it.price * START.supply)
        assert it.volume_24h > 0


def test_time_moves_a_price_not_the_number_of_trades() -> None:
    """The typical distance after an hour is the same for a busy token and for a quiet one."""
    distances = []
    for trades in (360, 10):
        squares = []
        for seed in range(150):
            it = quote(seed)
            for number in range(trades + 1):
                it.trade(NOON + number * HOUR // trades)
            squares.append((it.price / START.price - 1) ** 2)
        distances.append((sum(squares) / len(squares)) ** 0.5)
    busy, quiet = distances
    assert busy == pytest.approx(quiet, rel=0.3)
    assert 0.005 < busy < 0.05


def test_a_market_of_weeks_stays_near_its_start() -> None:
    it = quote()
    for hour in range(24 * 60):
        it.trade(NOON + hour * HOUR)
        assert 60 < it.price < 160


def test_the_volume_of_a_day_is_what_was_traded_in_its_hours() -> None:
    it = quote()
    before = it.volume_24h
    amount = it.trade(NOON)
    assert it.volume_24h == before + amount
    assert it.volume_24h == pytest.approx(START.turnover, rel=0.05)
    traded = [it.trade(NOON + hour * HOUR) for hour in range(1, 30)]
    assert it.volume_24h == sum(traded[-24:])
    it.trade(NOON + 100 * HOUR)  # nothing in between: 23 hours without a trade
    assert it.volume_24h < sum(traded[-24:])


def test_the_change_of_a_day_is_that_since_its_first_hour_began() -> None:
    it = quote()
    it.trade(NOON)
    assert it.change_24h == round((it.price / START.price - 1) * 100, 2)
    prices = [it.price]
    for hour in range(1, 49):
        it.trade(NOON + hour * HOUR)
        prices.append(it.price)
    # The hour began with the last price before it.
    assert it.change_24h == round((prices[-1] / prices[-25] - 1) * 100, 2)


def test_a_clock_that_goes_back_does_no_harm() -> None:
    it = quote()
    for at in (NOON, NOON - 5 * HOUR, NOON - 50 * HOUR, NOON):
        it.trade(at)
    assert it.price > 0
    assert it.volume_24h >= 0


def test_each_trade_moves_the_price_at_least_a_little() -> None:
    it = quote()
    prices = []
    for _ in range(20):
        it.trade(NOON)
        prices.append(it.price)
    assert all(one != other for one, other in pairwise(prices))
