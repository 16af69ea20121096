from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trio_odin.demo.candles import Candles, Minute
from trio_odin.demo.market import Market, first_tokens
from trio_odin.demo.shares import Draw
from trio_odin.wire.payloads import EVENT_TYPES

MINUTE = 60_000
START = 1_759_060_800_000  # the first millisecond of a minute


def test_a_candle_has_the_first_the_highest_the_lowest_and_the_last_price() -> None:
    candles = Candles()
    for at, price, amount in ((0, 5.0, 1), (10, 9.0, 2), (20, 3.0, 3), (59_999, 6.0, 4)):
        candles.add("A", price, amount, START + at)
    expected = Minute(START // MINUTE, 5.0, 9.0, 3.0, 6.0, volume=10, trades=4)
    assert candles.take("A", 6.0, START + 59_999) == ("A", expected, False)
    assert candles.take("B", 6.0, START + MINUTE) == ("A", expected, True)
    assert (expected.open_ms, expected.close_ms) == (START, START + MINUTE - 1)


def test_a_minute_without_a_trade_stands_at_the_last_price() -> None:
    candles = Candles()
    flat = Minute(START // MINUTE, 7.0, 7.0, 7.0, 7.0)
    assert candles.take("A", 7.0, START + 5) == ("A", flat, False)
    assert candles.take("A", 7.0, START + MINUTE + 5).is_final is False


def test_of_the_minutes_that_are_over_the_oldest_comes_first_and_each_once() -> None:
    candles = Candles()
    candles.add("B", 1.0, 1, START)
    candles.add("A", 1.0, 1, START + MINUTE)
    candles.add("B", 1.0, 1, START + MINUTE + 1)
    later = START + 5 * MINUTE
    taken = [candles.take("C", 1.0, later) for _ in range(4)]
    assert [(one.token, one.minute.open_ms, one.is_final) for one in taken] == [
        ("B", START, True),
        ("A", START + MINUTE, True),
        ("B", START + MINUTE, True),
        ("C", later, False),
    ]


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 200_000)), max_size=60))
def test_nobody_takes_candles_and_nothing_grows(trades: list[tuple[str, int]]) -> None:
    candles, now = Candles(), START
    for token, milliseconds in trades:
        now += milliseconds
        candles.add(token, 1.0, 1, now)
    taken = 0
    while candles.take("A", 1.0, now + MINUTE).is_final:
        taken += 1
    assert taken <= 2 * 3


def test_the_candles_of_an_hour_agree_with_its_trades() -> None:
    market, tokens = Market(seed=3), first_tokens(10)
    draw = Draw(tokens, events=EVENT_TYPES, shares="zipf", rate=12, seed=3)
    trades: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    volume_before: dict[str, int] = {}
    begun_with: dict[tuple[str, int], int] = {}
    finals: dict[tuple[str, int], dict[str, Any]] = {}
    for tick in range(12 * 3600):
        now = START + tick * 1000 // 12
        channel, payload = market.event(*draw.take(tick), now)
        token, _, event_type = channel.partition(".")
        event = json.loads(payload)
        if event_type == "trade":
            minute = token, now // MINUTE * MINUTE
            # Within an hour nothing leaves the volume of 24 hours.
            begun_with.setdefault(minute, volume_before.get(token, 0))
            volume_before[token] = event["volume24h"]
            trades[minute].append(event)
        elif event_type == "analytics":
            assert event["low"] <= min(event["open"], event["close"])
            assert event["high"] >= max(event["open"], event["close"])
            assert event["closeTime"] == event["openTime"] + MINUTE - 1
            so_far = trades.get((token, event["openTime"]), [])
            assert event["trades"] == len(so_far)
            if so_far:
                prices = [trade["price"] for trade in so_far]
                assert (event["open"], event["close"]) == (prices[0], prices[-1])
                assert (event["high"], event["low"]) == (max(prices), min(prices))
            if event["isFinal"]:
                assert event["timestamp"] > event["closeTime"]
                assert (token, event["openTime"]) not in finals
                finals[token, event["openTime"]] = event
    over = {minute for minute in trades if minute[1] < START + 58 * MINUTE}
    assert over <= finals.keys()
    checked = 0
    for minute, event in finals.items():
        if begun_with[minute]:
            volume = trades[minute][-1]["volume24h"] - begun_with[minute]
            assert event["volume"] == volume
            checked += 1
    assert checked > 300
