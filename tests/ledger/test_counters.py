from __future__ import annotations

import copy
from collections import Counter

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.ledger.counters import Deliveries, Ledger, Publications, total
from trio_odin.ledger.durations import Durations
from trio_odin.ledger.reasons import Dropped, Invalid, Shed

AMOUNTS = st.integers(0, 10**12)


def counters(kinds: type[Invalid | Shed | Dropped]) -> st.SearchStrategy[Counter[object]]:
    return st.dictionaries(st.sampled_from(list(kinds)), AMOUNTS).map(Counter)


@given(AMOUNTS, AMOUNTS, AMOUNTS, counters(Invalid), counters(Shed))
def test_publications_balance_if_each_has_one_outcome(
    waiting: int, fanned_out: int, unmatched: int, invalid: Counter[Invalid], shed: Counter[Shed]
) -> None:
    received = waiting + fanned_out + unmatched + sum(invalid.values()) + sum(shed.values())
    counters = Publications(received, fanned_out, unmatched, invalid, shed)
    assert counters.imbalance(waiting) == 0


@given(AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS, counters(Dropped))
def test_deliveries_balance_if_each_has_one_outcome(
    written: int, queued: int, conflated: int, skipped: int, dropped: Counter[Dropped]
) -> None:
    deliveries = Deliveries(
        matched=written + queued + conflated + skipped + sum(dropped.values()),
        written=written,
        queued=queued,
        conflated=conflated,
        skipped=skipped,
        batches=7,  # of some of the written ones
        dropped=dropped,
    )
    assert deliveries.imbalance() == 0


@pytest.mark.parametrize(
    "entry",
    # Events that NATS repeated or never sent do not count as received.
    sorted({field.name for field in attrs.fields(Publications)} - {"repeated", "gaps", "missed"}),
)
def test_every_entry_of_the_publications_counts(entry: str) -> None:
    counters = Publications()
    if entry == "received":
        counters.received = 1
        assert counters.imbalance(waiting=0) == 1
        assert counters.imbalance(waiting=1) == 0
        return
    match entry:
        case "invalid":
            counters.invalid[Invalid.PAYLOAD] += 1
        case "shed":
            counters.shed[Shed.FEED_FULL] += 1
        case _:
            setattr(counters, entry, 1)
    assert counters.imbalance(waiting=0) == -1


# Messages, and not events: see `Deliveries.outcomes`.
_BESIDE_THE_BALANCE = {"batches"}


@pytest.mark.parametrize(
    "entry",
    sorted({field.name for field in attrs.fields(Deliveries)} - _BESIDE_THE_BALANCE),
)
def test_every_entry_of_the_deliveries_counts(entry: str) -> None:
    counters = Deliveries()
    if entry == "dropped":
        counters.dropped[Dropped.CLOSING] += 1
    else:
        setattr(counters, entry, 1)
    assert counters.imbalance() == (1 if entry == "matched" else -1)


def test_two_servers_have_separate_counters() -> None:
    first, second = Ledger(), Ledger()
    first.publications.invalid[Invalid.SUBJECT] += 1
    first.publications.shed[Shed.NATS_RATE] += 1
    first.deliveries.dropped[Dropped.CLOSING] += 1
    first.traffic.rejected["at_capacity"] += 1
    first.traffic.closed["peer_gone"] += 1
    first.traffic.commands["replay"] += 1
    first.traffic.errors["INVALID_JSON"] += 1
    assert second == Ledger()


# --- several servers as one

DURATIONS = st.builds(
    Durations,
    st.lists(AMOUNTS, min_size=len(Durations.BOUNDS) + 1, max_size=len(Durations.BOUNDS) + 1),
    st.integers(0, 10**6).map(float),
)


@given(st.lists(st.tuples(DURATIONS, DURATIONS), max_size=4))
def test_histograms_add_up_by_bucket_and_leave_the_parts_unchanged(
    parts: list[tuple[Durations, Durations]],
) -> None:
    ledgers = [Ledger(fan_out=fan_out, lag=lag) for fan_out, lag in parts]
    before = copy.deepcopy(ledgers)
    whole = total(ledgers)
    for name in ("fan_out", "lag"):
        histograms = [getattr(ledger, name) for ledger in ledgers]
        assert getattr(whole, name) == Durations(
            [sum(of.counts[place] for of in histograms) for place in range(len(whole.lag.counts))],
            sum(of.total_seconds for of in histograms),
        )
    whole.fan_out.add(0.01)
    whole.lag.add(0.01)
    assert ledgers == before


def test_the_sum_of_no_counters_is_zero() -> None:
    assert total([]) == Ledger()


def test_counters_and_labels_add_up_and_leave_the_parts_unchanged() -> None:
    one, two = Ledger(), Ledger()
    one.traffic.accepted, two.traffic.accepted = 2, 3
    one.traffic.closed["peer_gone"] += 1
    two.traffic.closed.update({"peer_gone": 4, "draining": 5})
    whole = total([one, two])
    assert whole.traffic.accepted == 5
    assert whole.traffic.closed == {"peer_gone": 5, "draining": 5}
    whole.traffic.closed["peer_gone"] += 1
    assert (one.traffic.closed["peer_gone"], two.traffic.closed["peer_gone"]) == (1, 4)
