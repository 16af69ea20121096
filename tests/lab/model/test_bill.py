"""The whole bill of a demand."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.lab.model.bill import (
    PLAN_SETUPS,
    EgressTier,
    Item,
    bill,
    egress_usd,
    production_usd,
    setup_usd,
)
from trio_odin.lab.model.model import PLAN_COSTS, Demand, Forecast, forecast
from trio_odin.lab.model.tables import read_prices

TARIFF = read_prices().tariff
MACHINE = TARIFF.machines["e2-standard-2"]
TIB = 1024.0


def forecast_of(users: int) -> Forecast:
    return forecast(Demand(users=users, rate=1.0), PLAN_COSTS, MACHINE)


def items(users: int, spare: int = 1) -> dict[str, Item]:
    demand = Demand(users=users, rate=1.0)
    found = bill(demand, forecast_of(users), MACHINE, TARIFF, spare=spare)
    return {item.what: item for item in found}


def test_the_versions_of_the_plan_cost_the_plans_figures() -> None:
    first, second = PLAN_SETUPS
    assert [setup_usd(setup, TARIFF.machines) for setup in PLAN_SETUPS] == [60, 96]
    assert (production_usd(first, TARIFF.machines), first.production_count) == (240, 10)
    assert (production_usd(second, TARIFF.machines), second.production_count) == (120, 2)


@pytest.mark.parametrize(
    ("tib", "usd"),
    [
        (0.0, 0.0),
        (1.0, TIB * 0.12),
        (10.0, TIB * (0.12 + 9 * 0.11)),
        (15.0, TIB * (0.12 + 9 * 0.11 + 5 * 0.08)),
    ],
)
def test_each_part_of_the_traffic_has_the_price_of_its_tier(tib: float, usd: float) -> None:
    assert egress_usd(tib * TIB, TARIFF.egress) == pytest.approx(usd)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_more_traffic_costs_more_but_at_most_the_first_price(gib: float, more: float) -> None:
    few, many = (egress_usd(size, TARIFF.egress) for size in (gib, gib + more))
    assert few <= many <= (gib + more) * 0.12 + 1e-6
    assert egress_usd(gib, [EgressTier(usd_per_gib=0.5)]) == gib * 0.5


def test_one_machine_can_fail_and_there_is_a_balancer() -> None:
    found = items(10_000)
    assert (found["server"].count, found["server to spare"].count) == (1, 1)
    gib = found["traffic to the users"].count
    assert found["load balancer"].monthly_usd == pytest.approx(18.25 + gib * 0.008)
    assert found["back-end"].monthly_usd == 30
    assert found["test runner"].monthly_usd == 6
    assert items(30_000)["server"].monthly_usd == 3 * 60


def test_a_single_machine_needs_no_balancer() -> None:
    found = items(10_000, spare=0)
    assert "load balancer" not in found
    assert "server to spare" not in found
    assert items(30_000, spare=0)["load balancer"].count == 1


def test_an_impossible_demand_has_no_bill() -> None:
    found = attrs.evolve(forecast_of(1), instances=None)
    with pytest.raises(ValueError, match="no number of e2-standard-2 is enough"):
        bill(Demand(), found, MACHINE, TARIFF)
