"""Many users in several regions."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_odin.lab.model.bill import GIB, egress_usd
from trio_odin.lab.model.model import PLAN_COSTS, Demand
from trio_odin.lab.model.regions import (
    NATS_NODES,
    Common,
    Layout,
    Loss,
    lay_out,
    nats_message_bytes,
    nats_traffic,
    shared,
)
from trio_odin.lab.model.tables import read_costs, read_prices

TARIFF = read_prices().tariff
COSTS = read_costs() or PLAN_COSTS
COMMON = Common(costs=COSTS, instance=TARIFF.machines["e2-standard-2"], tariff=TARIFF)
MILLION = Demand(users=1_000_000)

some_shares = st.lists(st.integers(1, 100), min_size=1, max_size=5)
some_commons = st.builds(
    lambda **more: attrs.evolve(COMMON, **more),
    workers=st.integers(1, 2),
    spare=st.integers(0, 3),
    survives_region=st.booleans(),
    target_cpu_percent=st.floats(30, 100),
)
some_demands = st.builds(
    Demand,
    users=st.integers(1, 1_500_000),
    rate=st.floats(1, 60),
    every_ms=st.sampled_from([0, 1000]),
    encoding=st.sampled_from(["plain", "z1"]),
)


def loss_of(layout: Layout, kind: str) -> Loss:
    (found,) = [loss for loss in layout.losses if loss.kind == kind]
    return found


def test_a_million_users_in_three_regions() -> None:
    layout = lay_out(MILLION, COMMON, [1, 1, 1])
    assert [region.users for region in layout.regions] == [333_333, 333_334, 333_333]
    for region in layout.regions:
        assert region.nodes == region.needed + 1
        assert region.connections * (region.nodes - 1) <= layout.max_connections * region.nodes
    node = loss_of(layout, "node")
    assert node.fits
    assert node.calm is not None
    assert node.calm.left_out == 0
    assert node.calm.peak_busy < 1


def test_a_lost_region_that_does_not_fit_says_so_and_what_it_takes() -> None:
    """With room for the loss of one node, the third of all users is far too much."""
    narrow = lay_out(MILLION, COMMON, [1, 1, 1])
    lost = loss_of(narrow, "region")
    assert not lost.fits
    assert lost.calm is not None
    assert lost.calm.left_out > 100_000
    assert lost.more_usd == lost.more_nodes * COMMON.instance.monthly_usd > 0
    wide = lay_out(MILLION, attrs.evolve(COMMON, survives_region=True), [1, 1, 1])
    assert narrow.survival_nodes == wide.nodes - narrow.nodes > lost.more_nodes
    assert wide.survival_nodes == 0
    fits = loss_of(wide, "region")
    assert fits.fits
    assert fits.calm is not None
    assert fits.calm.left_out == 0
    assert fits.calm.seconds is not None
    # They notice after up to 14 s, and try the old address for 10 s.
    assert fits.calm.seconds > 20
    assert wide.nodes >= narrow.nodes + lost.more_nodes


def test_a_single_region_has_no_other_one_to_lose_it_to() -> None:
    layout = lay_out(Demand(), COMMON, [1])
    assert [loss.kind for loss in layout.losses] == ["node", "drain", "nats"]
    assert layout.regions[0].nats.outwards == 0
    assert "traffic to other regions" not in [item.what for item in layout.regions[0].bill]


def test_without_a_spare_the_only_node_is_missed() -> None:
    node = loss_of(lay_out(Demand(), attrs.evolve(COMMON, spare=0), [1]), "node")
    assert (node.nodes, node.fits, node.more_nodes, node.calm) == (0, False, 1, None)


def test_an_event_crosses_to_each_other_region_once() -> None:
    first, *others = lay_out(MILLION, COMMON, [1, 1, 1]).regions
    assert first.nats.outwards == 2 * MILLION.rate
    assert all(region.nats.outwards == 0 for region in others)
    assert first.nats.deliveries == MILLION.rate * first.nodes
    two = nats_traffic(MILLION, 2 * first.nodes, mirrors=2)
    assert two.deliveries == 2 * first.nats.deliveries
    assert two.outwards == first.nats.outwards
    # Subject, reply and size take some 140 bytes beside the payload, and TCP/IP 52.
    assert 200 + 52 + 120 < nats_message_bytes(200) < 200 + 52 + 180


def test_too_many_events_are_possible_nowhere() -> None:
    layout = lay_out(Demand(rate=90_000), COMMON, [1, 1])
    assert not layout.is_possible
    assert (layout.nodes, layout.losses) == (0, [])


@pytest.mark.parametrize("shares", [[], [0.0], [1.0, -1.0]])
def test_a_share_above_zero_is_needed(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="allowed are numbers above 0"):
        shared(10, shares)


@given(st.integers(0, 10_000_000), some_shares)
def test_all_users_are_shared(users: int, shares: list[int]) -> None:
    counts = shared(users, shares)
    assert sum(counts) == users
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - users * share / sum(shares)) <= 1


@settings(deadline=None, max_examples=25)
@given(some_demands, some_commons, some_shares, st.integers(0, 500_000))
def test_more_users_never_need_fewer_nodes_or_less_money(
    demand: Demand, common: Common, shares: list[int], more: int
) -> None:
    few = lay_out(demand, common, shares)
    many = lay_out(demand.of(demand.users + more), common, shares)
    assert few.is_possible == many.is_possible
    if few.is_possible:
        # A user more or less by rounding may move a whole node between two regions.
        assert few.nodes <= many.nodes + len(shares)
        assert few.monthly_usd <= many.monthly_usd + len(shares) * common.instance.monthly_usd
    if len(shares) == 1:
        assert few.nodes <= many.nodes
        assert few.monthly_usd <= many.monthly_usd


@settings(deadline=None, max_examples=25)
@given(some_demands, some_commons, some_shares)
def test_the_users_of_a_region_fit_with_its_spare_nodes_gone(
    demand: Demand, common: Common, shares: list[int]
) -> None:
    layout = lay_out(demand, common, shares)
    for region in layout.regions:
        assert region.users <= (region.nodes - common.spare) * layout.max_connections
        assert region.connections * region.nodes >= region.users
        usd = sum(item.monthly_usd for item in region.bill)
        assert region.monthly_usd == pytest.approx(usd)
        gib = demand.of(region.users).bytes_per_month(common.costs.wire) / GIB
        assert region.egress_usd == pytest.approx(egress_usd(gib, TARIFF.egress))
        nats = next(item for item in region.bill if item.what == "NATS")
        assert nats.count == NATS_NODES


@settings(deadline=None, max_examples=25)
@given(some_demands, some_commons, some_shares)
def test_a_loss_fits_or_somebody_stays_outside(
    demand: Demand, common: Common, shares: list[int]
) -> None:
    layout = lay_out(demand, common, shares)
    for loss in layout.losses:
        if loss.calm is None:
            continue
        assert loss.fits == (loss.more_nodes == 0)
        assert math.isclose(loss.more_usd, loss.more_nodes * common.instance.monthly_usd)
        if loss.fits:
            assert loss.calm.left_out < 1 + loss.nodes
        if common.survives_region and loss.kind == "region":
            assert loss.fits
        if common.spare and loss.what.startswith("node"):
            assert loss.fits
