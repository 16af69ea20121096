"""What one has to buy: the servers, and all that belongs to them. Pure.

The plan counts the machines of the server and nothing else. What can be bought has a machine to
spare, so that any one can fail or be replaced; where there are several, a load balancer in front;
the back-end with NATS and all that watches; the test runner; and the traffic to the users.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from trio_odin.lab.model.model import Demand, Forecast, Instance

_GIB = 2**30
_GIB_OF_A_TIB = 1024


@attrs.frozen(kw_only=True)
class EgressTier:
    """Traffic of a month to the internet, up to so much, at one price."""

    usd_per_gib: float
    up_to_tib: float = math.inf


@attrs.frozen(kw_only=True)
class Balancer:
    """A load balancer: by the month, and by what its servers send through it."""

    monthly_usd: float
    usd_per_gib: float


@attrs.frozen(kw_only=True)
class Item:
    """A line of the bill: how many of what, and what all of them cost a month."""

    what: str
    count: float
    unit: str
    monthly_usd: float


@attrs.frozen(kw_only=True)
class Setup:
    """One version of the plan's test environment, and what the plan says of production with it.

    Args:
        machines: the server's first, then back-end and runner.
        production_count: of the server's machine, for the plan's 20,000 users.
        note: what the plan says beside that figure.
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
    """Everything that is not the server's machine.

    Args:
        machines: kinds of them, by name.
        egress: the tiers, the last of which has no end.
    """

    machines: dict[str, Instance]
    egress: Sequence[EgressTier]
    balancer: Balancer


def bill(
    demand: Demand, found: Forecast, instance: Instance, tariff: Tariff, *, spare: int = 1
) -> list[Item]:
    """All items for a demand that `found` says is possible.

    Args:
        demand: of all users.
        found: for it, on `instance`.
        instance: the server's machine.
        tariff: what else costs what.
        spare: machines beyond those that the users need.

    Raises:
        ValueError: no number of machines is enough.
    """
    if found.instances is None:
        raise ValueError(f"no number of {instance.name} is enough")
    gib = demand.bytes_per_month / _GIB
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


def _machines(what: str, instance: Instance, count: int) -> Item:
    usd = count * instance.monthly_usd
    return Item(what=what, count=count, unit=instance.name, monthly_usd=usd)


def egress_usd(gib: float, tiers: Sequence[EgressTier]) -> float:
    """What so much traffic of one month costs: each part of it at the price of its tier."""
    total = below = 0.0
    for tier in tiers:
        until = min(gib, tier.up_to_tib * _GIB_OF_A_TIB)
        total += max(0.0, until - below) * tier.usd_per_gib
        below = max(below, until)
    return total


def setup_usd(setup: Setup, machines: dict[str, Instance]) -> float:
    """What a version of the plan's test environment costs a month."""
    return sum(machines[name].monthly_usd for name in setup.machines)


def production_usd(setup: Setup, machines: dict[str, Instance]) -> float:
    """What the plan says that 20,000 users cost a month with it: the server's machines alone."""
    return setup.production_count * machines[setup.machines[0]].monthly_usd
