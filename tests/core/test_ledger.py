from __future__ import annotations

from collections import Counter

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.core.ledger import Deliveries, Dropped, Invalid, Ledger, Publications, Shed

AMOUNTS = st.integers(0, 10**12)


def counters(kinds: type[Invalid | Shed | Dropped]) -> st.SearchStrategy[Counter[object]]:
    return st.dictionaries(st.sampled_from(list(kinds)), AMOUNTS).map(Counter)


@given(AMOUNTS, AMOUNTS, AMOUNTS, counters(Invalid), counters(Shed))
def test_publications_balance_if_each_became_something(
    waiting: int, fanned_out: int, unmatched: int, invalid: Counter[Invalid], shed: Counter[Shed]
) -> None:
    received = waiting + fanned_out + unmatched + sum(invalid.values()) + sum(shed.values())
    books = Publications(received, fanned_out, unmatched, invalid, shed)
    assert books.imbalance(waiting) == 0


@given(AMOUNTS, AMOUNTS, counters(Dropped))
def test_deliveries_balance_if_each_became_something(
    written: int, queued: int, dropped: Counter[Dropped]
) -> None:
    matched = written + queued + sum(dropped.values())
    assert Deliveries(matched, written, queued, dropped).imbalance() == 0


@pytest.mark.parametrize(
    "entry",
    # What NATS repeats was not received, as far as the books go.
    sorted({field.name for field in attrs.fields(Publications)} - {"repeated"}),
)
def test_every_entry_of_the_publications_weighs_in(entry: str) -> None:
    books = Publications()
    if entry == "received":
        books.received = 1
        assert books.imbalance(waiting=0) == 1
        assert books.imbalance(waiting=1) == 0
        return
    match entry:
        case "invalid":
            books.invalid[Invalid.PAYLOAD] += 1
        case "shed":
            books.shed[Shed.FEED_FULL] += 1
        case _:
            setattr(books, entry, 1)
    assert books.imbalance(waiting=0) == -1


@pytest.mark.parametrize("entry", [field.name for field in attrs.fields(Deliveries)])
def test_every_entry_of_the_deliveries_weighs_in(entry: str) -> None:
    books = Deliveries()
    if entry == "dropped":
        books.dropped[Dropped.CLOSING] += 1
    else:
        setattr(books, entry, 1)
    assert books.imbalance() == (1 if entry == "matched" else -1)


def test_two_servers_keep_books_of_their_own() -> None:
    first, second = Ledger(), Ledger()
    first.publications.invalid[Invalid.SUBJECT] += 1
    first.publications.shed[Shed.NATS_RATE] += 1
    first.deliveries.dropped[Dropped.CLOSING] += 1
    first.traffic.rejected["at_capacity"] += 1
    first.traffic.closed["peer_gone"] += 1
    first.traffic.commands["replay"] += 1
    first.traffic.errors["INVALID_JSON"] += 1
    assert second == Ledger()
