"""The bill: the servers and everything else that must be bought. Pure.

The plan counts the machines of the server and nothing else. The bill adds a spare machine, so that
any one can fail or be replaced; a load balancer, if there are several machines; the back-end with
NATS and the monitoring; the test runner; and the traffic to the users.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import attrs

from trio_odin.lab.model.model import Costs, Demand, Forecast, Instance
from trio_odin.lab.model.wire import FIRST_WIRE, Wire

GIB: Final = 2**30
TB: Final = 10**12
_GIB_OF_A_TIB = 1024


@attrs.frozen(kw_only=True)
class EgressTier:
    """One price for the month's traffic to the internet, up to a limit."""

    usd_per_gib: float
    up_to_tib: float = math.inf


@attrs.frozen(kw_only=True)
class Balancer:
    """A load balancer: its price a month, and by the traffic that its servers send through it."""

    monthly_usd: float
    usd_per_gib: float


@attrs.frozen(kw_only=True)
class Item:
    """A line of the bill: a thing, its number, and the monthly cost of all."""

    what: str
    count: float
    unit: str
    monthly_usd: float


@attrs.frozen(kw_only=True)
class Setup:
    """One version of the plan's test environment, and the plan's figure for production with it.

    Args:
        machines: the server's first, then back-end and runner.
        production_count: number of the server's machines, for the plan's 20,000 users.
        note: the plan's remark on that figure.
    """

    name: str
    machines: Sequence[str]
    production_count: int
    note: str


PLAN_USERS = 20_000
PLAN_SETUPS = (
    Setup(
        name="V1",
        machines=("e2-medium", "e2-small", "e2-micro"),
        production_count=10,
        note="without filtering",
    ),
    Setup(
        name="V2",
        machines=("e2-standard-2", "e2-small", "e2-micro"),
        production_count=2,
        note="with filtering",
    ),
)
_BACKEND, _RUNNER = PLAN_SETUPS[-1].machines[1:]


@attrs.frozen(kw_only=True)
class Tariff:
    """The prices of everything but the server's machine.

    Args:
        machines: kinds of machines, by name.
        egress: the tiers; the last one has no limit.
        between_regions_usd_per_gib: traffic from one region to another.
    """

    machines: dict[str, Instance]
    egress: Sequence[EgressTier]
    balancer: Balancer
    between_regions_usd_per_gib: float = 0.0


def bill(
    demand: Demand,
    found: Forecast,
    instance: Instance,
    tariff: Tariff,
    *,
    spare: int = 1,
    wire: Wire = FIRST_WIRE,
) -> list[Item]:
    """All items for a demand that is possible by `found`.

    Args:
        demand: of all users.
        found: the forecast for it, on `instance`.
        instance: the server's machine.
        tariff: prices of everything else.
        spare: machines in addition to those that the users need.
        wire: bytes of the encodings.

    Raises:
        ValueError: no number of machines is enough.
    """
    if found.instances is None:
        raise ValueError(f"no number of {instance.name} is enough")
    gib = demand.bytes_per_month(wire) / GIB
    items = [
        _machines("server", instance, found.instances),
        _machines("server to spare", instance, spare),
    ]
    if found.instances + spare > 1:
        usd = tariff.balancer.monthly_usd + gib * tariff.balancer.usd_per_gib
        items.append(Item(what="load balancer", count=1, unit="", monthly_usd=usd))
    items += [
        _machines("back-end", tariff.machines[_BACKEND], 1),
        _machines("test runner", tariff.machines[_RUNNER], 1),
        Item(
            what="traffic to the users",
            count=gib,
            unit="GiB",
            monthly_usd=egress_usd(gib, tariff.egress),
        ),
    ]
    return [item for item in items if item.count]


@attrs.frozen(kw_only=True)
class Egress:
    """The traffic of a demand to its users, with TCP/IP headers and in TLS.

    Args:
        every_ms, encoding: see `Demand`.
        deliveries_per_second: events.
        delivery_bytes: those of a month by its deliveries.
        month_tb: 10¹² bytes a month.
        monthly_usd: by the tiers of the tariff.
        cores: CPU of the server, in one process.
    """

    every_ms: int
    encoding: str
    writes_per_second: float
    deliveries_per_second: float
    delivery_bytes: float
    month_tb: float
    monthly_usd: float
    cores: float


def egress(demand: Demand, costs: Costs, tiers: Sequence[EgressTier]) -> Egress:
    """The traffic of a demand, and its cost."""
    sent, deliveries = demand.bytes_per_second(costs.wire), demand.deliveries_per_second
    month = demand.bytes_per_month(costs.wire)
    return Egress(
        every_ms=demand.every_ms,
        encoding=demand.encoding,
        writes_per_second=demand.writes_per_second,
        deliveries_per_second=deliveries,
        delivery_bytes=sent / deliveries if deliveries else 0.0,
        month_tb=month / TB,
        monthly_usd=egress_usd(month / GIB, tiers),
        cores=costs.cores_of(demand),
    )


def _machines(what: str, instance: Instance, count: int) -> Item:
    usd = count * instance.monthly_usd
    return Item(what=what, count=count, unit=instance.name, monthly_usd=usd)


def egress_usd(gib: float, tiers: Sequence[EgressTier]) -> float:
    """The cost of one month's traffic: each part at the price of its tier."""
    total = below = 0.0
    for tier in tiers:
        until = min(gib, tier.up_to_tib * _GIB_OF_A_TIB)
        total += max(0.0, until - below) * tier.usd_per_gib
        below = max(below, until)
    return total


def setup_usd(setup: Setup, machines: dict[str, Instance]) -> float:
    """The monthly cost of a version of the plan's test environment."""
    return sum(machines[name].monthly_usd for name in setup.machines)


def production_usd(setup: Setup, machines: dict[str, Instance]) -> float:
    """The plan's monthly cost of 20,000 users with this version: the server's machines alone."""
    return setup.production_count * machines[setup.machines[0]].monthly_usd
