from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.test_contract import problems
from trio_odin.demo.market import DEFAULT_TOKENS, Market, first_tokens, parse_tokens
from trio_odin.demo.quotes import start_of
from trio_odin.wire.channels import is_channel
from trio_odin.wire.payloads import EVENT_TYPES, PAYLOADS

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
NOON = 1_759_060_800_000


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


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_an_event_has_the_documented_keys_in_their_order(event_type: str) -> None:
    channel, payload = Market(seed=1).event("BTC", event_type, NOON)
    assert channel == f"BTC.{event_type}"
    made = msgspec.json.decode(payload)
    (row,) = re.findall(rf"^\| `{event_type}` \|(.*)\|(.*)\|$", PAGE, re.MULTILINE)
    kind, keys = (re.findall("`([^`]+)`", cell) for cell in row)
    assert [made["type"]] == kind
    assert list(made) == ["type", *keys, "timestamp", "source", "nonce"]
    assert (made["timestamp"], made["source"]) == (NOON, "simulator")
    assert re.fullmatch("[0-9a-f]{16}", made["nonce"])


@given(
    seed=st.integers(),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["BTC", "X_1"]), st.sampled_from(EVENT_TYPES), st.integers(0, 90_000)
        ),
        max_size=40,
    ),
)
def test_every_event_fits_the_contract(seed: int, steps: list[tuple[str, str, int]]) -> None:
    market, now = Market(seed), NOON
    for token, event_type, milliseconds in steps:
        now += milliseconds
        channel, payload = market.event(token, event_type, now)
        schema = {"$ref": f"#/components/schemas/{PAYLOADS[event_type].__name__}"}
        assert problems(json.loads(payload), schema) == []
        assert is_channel(channel)
        assert msgspec.json.encode(msgspec.json.decode(payload, type=PAYLOADS[event_type])) == (
            payload
        )


def test_prices_begin_at_the_same_for_every_seed() -> None:
    for token in ("BTC", "DOGE", "TKN011", "X_1"):
        first, second = (
            msgspec.json.decode(Market(seed).trade(token, NOON))["price"] for seed in (1, 2)
        )
        assert first == pytest.approx(second, rel=0.02)
        assert first == pytest.approx(start_of(token).price, rel=0.02)
    assert len({start_of(f"TKN{number:03}").price for number in range(11, 111)}) > 80


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
