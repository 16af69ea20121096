from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.demo.market import DEFAULT_TOKENS, Market, first_tokens, parse_tokens
from trio_odin.wire.channels import is_channel


def test_a_trade_has_the_documented_keys_in_their_order() -> None:
    trade = msgspec.json.decode(Market(seed=1).trade("BTC", 1759027038365))
    assert list(trade) == [
        "type",
        "tokenId",
        "price",
        "volume24h",
        "marketCap",
        "priceChange24h",
        "timestamp",
        "source",
        "nonce",
    ]
    assert (trade["type"], trade["tokenId"], trade["source"]) == (
        "price:update",
        "BTC",
        "simulator",
    )
    assert trade["timestamp"] == 1759027038365
    assert isinstance(trade["volume24h"], int)
    assert isinstance(trade["marketCap"], int)


@given(seed=st.integers(), steps=st.integers(1, 300))
def test_prices_stay_positive_and_rounded(seed: int, steps: int) -> None:
    market = Market(seed)
    for _ in range(steps):
        trade = msgspec.json.decode(market.trade("BTC", 0))
        assert trade["price"] > 0
        assert trade["price"] == round(trade["price"], 6)
        assert trade["priceChange24h"] == round(trade["priceChange24h"], 2)


def test_tokens_walk_independently_and_repeat_for_the_same_seed() -> None:
    first, second = Market(seed=7), Market(seed=7)
    tokens = ["BTC", "ETH", "BTC", "BTC", "ETH"]
    assert [first.trade(t, 0) for t in tokens] == [second.trade(t, 0) for t in tokens]
    nonces = {msgspec.json.decode(first.trade("BTC", 0))["nonce"] for _ in range(100)}
    assert len(nonces) == 100


@given(count=st.integers(1, 10_000))
def test_any_number_of_tokens_is_that_many_different_channels(count: int) -> None:
    tokens = first_tokens(count)
    assert len(set(tokens)) == count
    assert tokens[:10] == list(DEFAULT_TOKENS)[:count]
    assert all(is_channel(f"{token}.trade") for token in tokens[-3:])


def test_tokens_are_given_as_a_number_or_by_name() -> None:
    assert parse_tokens("3") == ["BTC", "ETH", "ODIN"]
    assert parse_tokens(" SOL, X_1 ,") == ["SOL", "X_1"]


@pytest.mark.parametrize("text", ["", "0", "10001", ",", "B C", "B.C", "BTC,>", "٣"])
def test_other_tokens_are_refused_with_the_rule(text: str) -> None:
    with pytest.raises(ValueError, match="a number from 1 to 10000, or symbols"):
        parse_tokens(text)
