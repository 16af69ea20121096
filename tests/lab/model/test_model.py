from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.model.stages import some_costs
from trio_odin.lab.model.model import (
    ENDLESS,
    PLAN_COSTS,
    Costs,
    Demand,
    Instance,
    doublings,
    forecast,
)
from trio_odin.lab.model.tables import read_costs, read_prices, write_costs
from trio_odin.lab.model.wire import FIRST_WIRE

MACHINE = read_prices().machines["e2-standard-2"]
OURS = Costs(
    base_mib=46.0,
    connection_kib=19.5,
    delivery_us=8.0,
    doubling_us=1.2,
    publication_us=40.0,
    connection_us_per_second=2.0,
    base_cores=0.005,
    connect_us=240.0,
)

any_costs = st.builds(
    attrs.evolve,
    some_costs,
    connect_us=st.none() | st.floats(1, 1000),
    uses_all_cores=st.booleans(),
)
some_demands = st.builds(
    Demand,
    users=st.integers(1, 300_000),
    home_share=st.floats(0, 1),
    home_tokens=st.integers(1, 100),
    tokens=st.integers(100, 1000),
    rate=st.floats(0.1, 200),
)
some_machines = st.sampled_from(list(read_prices().machines.values()))
some_workers = st.integers(1, 4)


# --- the plan's own arithmetic


@pytest.mark.parametrize(
    ("home_share", "subscribers", "writes", "cores", "percent"),
    [(0.5, 775, 9300, 0.34, 17.8), (0.8, 1210, 14_520, 0.53, 27.9)],
)
def test_the_scenarios_of_the_plan_are_reproduced(
    home_share: float, subscribers: float, writes: float, cores: float, percent: float
) -> None:
    demand = Demand(home_share=home_share)
    found = forecast(demand, PLAN_COSTS, MACHINE)
    assert demand.subscribers_per_token == pytest.approx(subscribers, rel=1e-12)
    assert demand.writes_per_second == pytest.approx(writes, rel=1e-12)
    assert found.writes_per_second == demand.writes_per_second
    assert round(found.cores, 2) == cores
    # The first is 17.87; the plan cut it.
    assert found.cpu_percent == pytest.approx(percent, abs=0.1)


def test_memory_bounds_the_plan_at_10240_connections() -> None:
    found = forecast(Demand(), PLAN_COSTS, MACHINE)
    assert (found.max_connections, found.bound_by) == (10_240, "memory")
    assert found.memory_mib == pytest.approx(7000)
    assert (MACHINE.cpu_limit, MACHINE.memory_limit_mib) == (1.9, 7168)
    assert found.target_cores == pytest.approx(1.425)


def test_the_plans_e2_medium_was_full_at_52000_writes() -> None:
    """Its "99.5 %" and "3,584 MB" of the test without filtering."""
    machine = read_prices().machines["e2-medium"]
    burst = (machine.burst_vcpus or 0) * machine.cpu_share
    assert 52_000 * PLAN_COSTS.delivery_us / 1e6 / burst == pytest.approx(1, abs=0.005)
    assert machine.memory_limit_mib == 3584
    assert forecast(Demand(), PLAN_COSTS, machine).max_connections == 5120


@pytest.mark.parametrize(("users", "instances", "usd"), [(10_000, 1, 60), (20_000, 2, 120)])
def test_the_plans_instances_and_their_cost(users: int, instances: int, usd: int) -> None:
    found = forecast(Demand(users=users), PLAN_COSTS, MACHINE)
    assert (found.instances, found.monthly_usd, found.connections) == (instances, usd, 10_000)


def test_the_plans_0_4_mib_a_connection_makes_17500() -> None:
    """Its "Future Optimizations": 7 GB / 0.4 MB = 17,500, counted in thousands."""
    costs = attrs.evolve(PLAN_COSTS, connection_kib=0.4 * 1024)
    assert forecast(Demand(), costs, MACHINE).max_by_memory == 17_920


def test_the_prices_are_those_of_the_plan() -> None:
    prices = read_prices()
    assert {name: machine.monthly_usd for name, machine in prices.machines.items()} == {
        "e2-micro": 6,
        "e2-small": 30,
        "e2-medium": 24,
        "e2-standard-2": 60,
    }
    assert (prices.date, prices.currency) == ("2025-10-11", "USD")


def test_a_shared_core_counts_with_its_sustained_share() -> None:
    machines = read_prices().machines
    assert {name: (machine.vcpus, machine.burst_vcpus) for name, machine in machines.items()} == {
        "e2-micro": (0.25, 2),
        "e2-small": (0.5, 2),
        "e2-medium": (1, 2),
        "e2-standard-2": (2, None),
    }
    assert forecast(Demand(), OURS, machines["e2-medium"]).usable_cores == 0.95


# --- our additions


def test_a_worker_uses_one_core_and_the_plans_process_all_cores() -> None:
    assert forecast(Demand(), OURS, MACHINE).usable_cores == 1
    assert forecast(Demand(), OURS, MACHINE, workers=2).usable_cores == 1.9
    assert forecast(Demand(), OURS, MACHINE, workers=8).usable_cores == 1.9
    assert forecast(Demand(), PLAN_COSTS, MACHINE).usable_cores == 1.9


def test_each_worker_takes_each_event_and_has_its_own_base() -> None:
    one, two = (forecast(Demand(), OURS, MACHINE, workers=workers) for workers in (1, 2))
    assert two.cores - one.cores == pytest.approx(0.005 + 12 * 40e-6)
    assert two.memory_mib - one.memory_mib == pytest.approx(46)


def test_memory_is_the_sum_of_the_process_and_its_connections() -> None:
    found = forecast(Demand(), OURS, MACHINE)
    assert found.memory_mib == pytest.approx(46 + 10_000 * 19.5 / 1024)


def test_a_delivery_costs_more_with_each_doubling_above_1000() -> None:
    assert [doublings(n) for n in (1, 1000, 2000, 8000)] == [0, 0, 1, 3]
    assert OURS.delivery_us_among(8000) == pytest.approx(8 + 3 * 1.2)


def test_the_fullest_worker_has_a_fifth_more_than_its_share() -> None:
    """This holds for files and for CPU."""
    wide = attrs.evolve(MACHINE, vcpus=8)
    one, four = (forecast(Demand(), OURS, wide, workers=workers) for workers in (1, 4))
    alone = OURS.base_cores + 12 * 40e-6
    assert four.max_by_files == pytest.approx(one.max_by_files / 0.3, rel=1e-3)
    fullest = alone + (one.cores - alone) * 0.3
    full = forecast(Demand(), OURS, wide, workers=4, target_cpu_percent=fullest * 100 + 1e-6)
    assert full.max_by_cpu == pytest.approx(10_000, abs=1)


def test_workers_beyond_the_cores_only_add_cost() -> None:
    two, eight = (forecast(Demand(), OURS, MACHINE, workers=workers) for workers in (2, 8))
    assert eight.memory_mib - two.memory_mib == pytest.approx(6 * 46)
    assert eight.cores > two.cores


def test_the_network_bounds_large_events() -> None:
    large = Demand(payload_bytes=20_000, rate=1)
    found = forecast(large, OURS, MACHINE, workers=2)
    assert found.bound_by == "network"
    sent = large.of(found.max_connections).bytes_per_second(FIRST_WIRE) * 8 / 1e9
    assert sent == pytest.approx(4, rel=1e-3)
    unknown = attrs.evolve(MACHINE, egress_gbit=None)
    assert forecast(large, OURS, unknown).max_by_network == ENDLESS


def test_each_bound_binds_if_it_is_the_lowest() -> None:
    quiet = Demand(rate=0.1)
    assert forecast(Demand(), OURS, MACHINE).bound_by == "CPU"
    patient = forecast(quiet, attrs.evolve(OURS, connection_kib=30.0), MACHINE, workers=2)
    assert patient.bound_by == "memory"
    few_files = attrs.evolve(MACHINE, file_limit=1024)
    found = forecast(quiet, OURS, few_files)
    assert (found.bound_by, found.max_connections) == ("open files", 960)


def test_memory_does_not_bind_connections_without_memory() -> None:
    costs = attrs.evolve(OURS, connection_kib=0)
    assert forecast(Demand(), costs, MACHINE).max_by_memory == ENDLESS


def test_no_number_of_instances_is_enough_for_too_many_events() -> None:
    found = forecast(Demand(rate=90_000), OURS, MACHINE)
    assert (found.max_connections, found.instances, found.monthly_usd) == (0, None, None)


def test_an_event_costs_less_at_a_higher_rate() -> None:
    costs = attrs.evolve(OURS, publication_us=1266.0, joined_rate=297.0)
    each = [round(costs.event_us(rate)) for rate in (300, 1000, 3000)]
    assert each == [630, 290, 114]
    # It is unknown whether the cost falls further.
    assert costs.event_us(9000) == costs.event_us(3000)
    assert costs.cores(0, 9000, 0) > 2 * costs.cores(0, 3000, 0)
    assert attrs.evolve(costs, joined_rate=None).event_us(3000) == 1266


def test_the_bytes_include_the_envelope_tls_and_headers() -> None:
    demand = Demand()
    each = demand.bytes_per_second(FIRST_WIRE) / demand.writes_per_second
    # TCP and IP take 52 bytes, a TLS record 22.
    assert 200 + 52 + 22 + 80 < each < 200 + 52 + 22 + 140
    large = Demand(payload_bytes=10_000)
    # Eight segments of 1,448 bytes.
    assert large.bytes_per_second(FIRST_WIRE) / large.writes_per_second - each == pytest.approx(
        9800 + 7 * 52
    )
    assert demand.bytes_per_month(FIRST_WIRE) == pytest.approx(
        demand.bytes_per_second(FIRST_WIRE) * 2.628e6
    )
    # A record has at most 16,384 bytes, so this payload takes two.
    larger = Demand(payload_bytes=20_000)
    more = larger.bytes_per_second(FIRST_WIRE) / larger.writes_per_second - each
    assert (round(more) - 19_800 - 22) % 52 == 0


def test_a_home_page_of_more_tokens_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="300 home tokens of 200 tokens"):
        Demand(home_tokens=300)


@given(some_demands, any_costs, some_machines, some_workers, st.integers(0, 300_000))
def test_more_users_never_need_fewer_instances(
    demand: Demand, costs: Costs, machine: Instance, workers: int, more: int
) -> None:
    few = forecast(demand, costs, machine, workers=workers)
    many = forecast(demand.of(demand.users + more), costs, machine, workers=workers)
    assert few.max_connections == many.max_connections
    if few.instances is None or many.instances is None:
        assert few.instances == many.instances
        return
    assert few.instances <= many.instances
    assert (few.monthly_usd or 0) <= (many.monthly_usd or 0)
    if few.instances == many.instances:
        figures: list[Any] = [(f.cores, f.memory_mib) for f in (few, many)]
        assert all(a <= b for a, b in zip(*figures, strict=True))


@given(some_demands, any_costs, some_machines, some_workers)
def test_one_connection_above_the_maximum_breaks_the_bound(
    demand: Demand, costs: Costs, machine: Instance, workers: int
) -> None:
    most = forecast(demand, costs, machine, workers=workers).max_connections
    if most:
        fits = forecast(demand.of(most), costs, machine, workers=workers)
        assert fits.instances == 1
        assert fits.cores <= fits.target_cores * (1 + 1e-9)
        assert fits.memory_mib <= machine.memory_limit_mib * (1 + 1e-9)
    more = forecast(demand.of(most + 1), costs, machine, workers=workers)
    assert more.instances == (2 if most else None)


@given(some_demands, any_costs, some_machines, some_workers)
def test_the_number_of_instances_is_exact(
    demand: Demand, costs: Costs, machine: Instance, workers: int
) -> None:
    found = forecast(demand, costs, machine, workers=workers)
    if found.instances is not None:
        assert found.connections <= found.max_connections
        assert found.instances * found.connections >= demand.users
        assert (found.instances - 1) * found.max_connections < demand.users


# --- the files


def test_costs_come_back_from_their_file(tmp_path: Any) -> None:
    path = tmp_path / "costs.toml"
    costs = attrs.evolve(OURS, max_rate=30.0, max_connections=18_000)
    costs = attrs.evolve(costs, source='the "lab", stages 2 to 7 µ', date="2026-11-30")
    write_costs(path, costs)
    assert read_costs(path) == costs
    write_costs(path, attrs.evolve(costs, connect_us=None, delivery_us=12.34567))
    assert read_costs(path) == attrs.evolve(costs, connect_us=None, delivery_us=12.35)


def test_without_a_file_there_are_no_measured_costs(tmp_path: Any) -> None:
    assert read_costs(tmp_path / "costs.toml") is None


def test_the_costs_that_come_with_the_project_have_a_source() -> None:
    costs = read_costs()
    assert costs is None or (costs.source and len(costs.date) == 10)
