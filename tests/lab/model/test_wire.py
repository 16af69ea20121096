"""Bytes on the wire: the known figures, rates, and the fit."""

from __future__ import annotations

import math
import random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.lab.model.bill import egress
from trio_odin.lab.model.model import PLAN_COSTS, Demand
from trio_odin.lab.model.tables import read_prices
from trio_odin.lab.model.wire import (
    ENCODINGS,
    FIRST_WIRE,
    Frames,
    Sample,
    Wire,
    fit_wire,
)

TLS = 22
MONTH = 365 / 12 * 86_400
TIERS = read_prices().tariff.egress


# --- the known figures


@pytest.mark.parametrize(("rate", "tb", "usd"), [(12.0, 14.2, 1_130), (30.0, 35.4, 2_830)])
def test_the_plans_two_loads_cost_what_is_known(rate: float, tb: float, usd: float) -> None:
    """Without TLS, at 0.08 USD a GB."""
    demand = Demand(rate=rate)
    sent = (demand.bytes_per_second(FIRST_WIRE) - demand.writes_per_second * TLS) * MONTH
    assert sent / 1e12 == pytest.approx(tb, rel=0.005)
    assert sent / 1e9 * 0.08 == pytest.approx(usd, rel=0.005)


@pytest.mark.parametrize(
    ("encoding", "events", "each"),
    [
        *(("deflate", 5, 100), ("deflate", 15, 68), ("deflate", 30, 61)),
        *(("z1", 5, 80), ("z1", 15, 58), ("z1", 30, 55)),
    ],
)
def test_batches_have_the_measured_bytes(encoding: str, events: int, each: float) -> None:
    sent = FIRST_WIRE.bytes_of_batches(encoding, 200, 1, events)
    without_tls = (sent - TLS) / (1 + TLS / 16_384)
    assert without_tls / events == pytest.approx(each, rel=0.05)


@pytest.mark.parametrize(("encoding", "each"), [("plain", 371), ("deflate", 274), ("z1", 137)])
def test_single_events_have_the_measured_bytes(encoding: str, each: float) -> None:
    assert FIRST_WIRE.bytes_of_singles(encoding, 200, 10) == pytest.approx(10 * (each + TLS))


@given(st.integers(2, 5_000), st.integers(1, 3_000), st.sampled_from(ENCODINGS))
def test_larger_events_take_more_bytes_in_every_encoding(
    payload: int, more: int, encoding: str
) -> None:
    def sizes(payload_bytes: int) -> tuple[float, float]:
        return (
            FIRST_WIRE.bytes_of_singles(encoding, payload_bytes, 1),
            FIRST_WIRE.bytes_of_batches(encoding, payload_bytes, 1, 4),
        )

    assert all(a < b for a, b in zip(sizes(payload), sizes(payload + more), strict=True))


# --- rates


def test_a_home_page_gets_the_newest_of_what_has_changed() -> None:
    demand = Demand(users=1, home_share=1.0, rate=30.0, every_ms=1000)
    assert demand.deliveries_per_second == pytest.approx(30 * (1 - math.exp(-0.15)))
    assert demand.writes_per_second == pytest.approx(1 - math.exp(-4.5))


def test_the_expected_events_are_those_of_a_simulated_market() -> None:
    demand = Demand(users=1, home_share=1.0, home_tokens=5, tokens=20, rate=30.0, every_ms=250)
    rng = random.Random(1)
    ticks = changed = 0
    count = 20_000
    for _ in range(count):
        number = sum(1 for _ in range(750) if rng.random() < 0.01)  # 30 a second, for 0.25 s
        found = {token for token in (rng.randrange(20) for _ in range(number)) if token < 5}
        changed += len(found)
        ticks += bool(found)
    assert demand.deliveries_per_second == pytest.approx(changed / count * 4, rel=0.03)
    assert demand.writes_per_second == pytest.approx(ticks / count * 4, rel=0.03)


demands = st.builds(
    Demand,
    users=st.integers(1, 100_000),
    home_share=st.floats(0, 1),
    home_tokens=st.integers(1, 100),
    tokens=st.integers(100, 1_000),
    rate=st.floats(0.1, 10_000),
    every_ms=st.integers(1, 60_000),
)


@given(demands)
def test_a_rate_bounds_the_writes_whatever_the_market_does(demand: Demand) -> None:
    raw = attrs.evolve(demand, every_ms=0)
    writes, events = demand.writes_per_second, demand.deliveries_per_second
    margin = 1 + 1e-9
    assert 0 < writes <= events * margin
    assert events <= raw.deliveries_per_second * margin
    assert writes <= demand.users * 1000 / demand.every_ms * margin
    faster = attrs.evolve(demand, rate=demand.rate * 2)
    assert writes <= faster.writes_per_second * margin


def test_a_very_fast_rate_is_every_event() -> None:
    demand = Demand(every_ms=1, rate=1.0)
    assert demand.writes_per_second == pytest.approx(Demand(rate=1.0).writes_per_second, rel=0.001)


def test_at_the_peak_a_rate_and_compression_divide_the_traffic() -> None:
    peak = Demand(rate=30.0)
    rated = attrs.evolve(peak, every_ms=1000)
    assert rated.writes_per_second < 0.25 * peak.writes_per_second

    def found(demand: Demand, encoding: str) -> float:
        one = egress(attrs.evolve(demand, encoding=encoding), PLAN_COSTS, TIERS)
        assert one.month_tb == pytest.approx(
            one.delivery_bytes * one.deliveries_per_second * MONTH / 1e12
        )
        return one.monthly_usd

    assert found(peak, "plain") == pytest.approx(3_111, abs=1)
    assert found(peak, "z1") < 0.5 * found(peak, "plain")
    assert found(rated, "deflate") < 0.4 * found(peak, "plain")
    assert found(rated, "z1") < 0.3 * found(peak, "plain")


def test_batches_and_encodings_add_cpu_to_the_writes() -> None:
    wire = attrs.evolve(
        FIRST_WIRE, z1=attrs.evolve(FIRST_WIRE.z1, added_us=2.0), batch_event_us=3.0
    )
    costs = attrs.evolve(PLAN_COSTS, wire=wire)
    demand = Demand(rate=30.0)
    plain = costs.cores_of(demand)
    z1 = costs.cores_of(attrs.evolve(demand, encoding="z1"))
    assert z1 - plain == pytest.approx(demand.writes_per_second * 2e-6)
    rated = attrs.evolve(demand, every_ms=1000)
    assert costs.cores_of(rated) == pytest.approx(
        rated.writes_per_second * 36.5e-6 + rated.deliveries_per_second * 3e-6
    )


# --- the fit

frames = st.builds(
    Frames,
    event=st.floats(50, 500),
    batch=st.floats(0, 300),
    batch_event=st.floats(10, 400),
    added_us=st.floats(0, 5),
)
wires = st.builds(
    Wire,
    plain=frames.map(lambda one: attrs.evolve(one, added_us=0.0)),
    deflate=frames,
    z1=frames,
    batch_event_us=st.floats(0, 5),
    source=st.just("made up"),
    date=st.just("2026-01-01"),
)


def samples_of(wire: Wire, delivery_us: float | None) -> list[Sample]:
    """What a bench would measure."""
    found = []
    for encoding in ENCODINGS:
        own = wire.of(encoding)
        us = None if delivery_us is None else delivery_us + own.added_us
        found.append(
            Sample(
                encoding=encoding,
                is_batched=False,
                bytes_of_event=own.event,
                events_of_write=1.0,
                us_of_event=us,
            )
        )
        found += [
            Sample(
                encoding=encoding,
                is_batched=True,
                bytes_of_event=own.batch / size + own.batch_event,
                events_of_write=size,
                us_of_event=None if us is None else us / size + wire.batch_event_us,
            )
            for size in (4.2, 23.3)
        ]
    return found


@given(wires, st.floats(5, 50))
def test_the_fit_finds_the_costs_that_made_the_figures(wire: Wire, delivery_us: float) -> None:
    found = fit_wire(samples_of(wire, delivery_us), source="made up", date="2026-01-01")
    assert found is not None
    assert found.batch_event_us == pytest.approx(wire.batch_event_us, abs=1e-6)
    for encoding in ENCODINGS:
        assert attrs.astuple(found.of(encoding)) == pytest.approx(
            attrs.astuple(wire.of(encoding)), rel=1e-6, abs=1e-6
        )


def test_without_cpu_only_the_bytes_are_fitted() -> None:
    found = fit_wire(samples_of(FIRST_WIRE, None), source="made up", date="2026-01-01")
    assert found is not None
    assert (found.z1.added_us, found.batch_event_us) == (0.0, FIRST_WIRE.batch_event_us)


def test_a_part_of_the_figures_is_not_enough() -> None:
    whole = samples_of(FIRST_WIRE, 10.0)
    assert fit_wire([], source="", date="") is None
    for missing in range(len(whole)):
        part = whole[:missing] + whole[missing + 1 :]
        assert fit_wire(part, source="", date="") is None
