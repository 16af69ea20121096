from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.demo.market import first_tokens
from trio_odin.demo.shares import Draw, parse_events, zipf_weights
from trio_odin.wire.payloads import EVENT_TYPES

TOKENS = first_tokens(30)
RATE = 30.0


def drawn(count: int, **options: object) -> list[tuple[str, str]]:
    draw = Draw(TOKENS, rate=RATE, seed=1, **options)  # type: ignore[arg-type]
    return [draw.take(tick) for tick in range(count)]


@given(tick=st.integers(0, 10**9))
def test_even_is_each_token_in_its_turn_and_trades_only(tick: int) -> None:
    assert Draw(TOKENS).take(tick) == (TOKENS[tick % 30], "trade")


def test_zipf_gives_the_kth_token_a_kth_of_the_first() -> None:
    times = Counter(token for token, _ in drawn(100_000, shares="zipf"))
    for rank in range(2, 25):
        assert times[TOKENS[rank - 1]] == pytest.approx(times["BTC"] / rank, rel=0.15)
    assert times.most_common(1)[0][0] == "BTC"


def test_the_last_fifth_has_an_event_a_minute_or_less() -> None:
    weights = zipf_weights(30, RATE)
    for number, weight in enumerate(weights[24:], start=1):
        assert weight / sum(weights) * RATE * 60 == pytest.approx(1 / number, rel=0.01)


@pytest.mark.parametrize("shares", ["zipf", "even"])
def test_each_token_has_a_first_event_at_once(shares: str) -> None:
    assert {token for token, _ in drawn(30, shares=shares)} == set(TOKENS)


@given(count=st.integers(1, 300), rate=st.floats(0.01, 100_000))
def test_weights_fall_and_all_tokens_have_one(count: int, rate: float) -> None:
    weights = zipf_weights(count, rate)
    assert len(weights) == count
    assert all(weight > 0 for weight in weights)
    assert weights == sorted(weights, reverse=True)


def test_most_events_are_trades_and_none_of_another_type_is_left_out() -> None:
    types = Counter(event_type for _, event_type in drawn(20_000, events=EVENT_TYPES))
    assert types["trade"] == pytest.approx(14_000, rel=0.03)
    assert set(types) == set(EVENT_TYPES)
    ranked = [event_type for event_type, _ in types.most_common()]
    assert ranked[0] == "trade"
    assert ranked[-2:] in (["metadata", "creation"], ["creation", "metadata"])


def test_the_same_seed_draws_the_same() -> None:
    options = {"shares": "zipf", "events": EVENT_TYPES}
    assert drawn(500, **options) == drawn(500, **options)


def test_event_types_are_named_or_all() -> None:
    assert parse_events("all") == EVENT_TYPES
    assert parse_events("trade") == ("trade",)
    assert parse_events(" analytics, trade,") == ("trade", "analytics")


@pytest.mark.parametrize("text", ["", ",", "trades", "trade,all", "TRADE", "*"])
def test_other_event_types_are_refused_with_the_rule(text: str) -> None:
    with pytest.raises(ValueError, match="allowed is all, or some of trade, liquidity, "):
        parse_events(text)
