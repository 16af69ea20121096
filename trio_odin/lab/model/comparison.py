"""The forecasts of a demand by the plan's costs and by measured ones, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import msgspec

from trio_odin.lab.model.bill import (
    PLAN_SETUPS,
    Egress,
    Item,
    Setup,
    bill,
    egress,
    production_usd,
    setup_usd,
)
from trio_odin.lab.model.model import (
    PLAN_COSTS,
    Costs,
    Demand,
    Forecast,
    Instance,
    forecast,
)
from trio_odin.lab.model.tables import Prices
from trio_odin.lab.verdict import Prediction


@attrs.frozen(kw_only=True)
class Column:
    """One set of costs, and the forecast by it."""

    costs: Costs
    forecast: Forecast


@attrs.frozen(kw_only=True)
class SetupCosts:
    """A version of the plan, in USD a month.

    Args:
        setup: which.
        testing_usd: its test environment.
        production_usd: the plan's figure for 20,000 users.
        count: number of its server's machines for the demand by the answer's costs; None: no number
            is enough.
        usd: the cost of these.
    """

    setup: Setup
    testing_usd: float
    production_usd: float
    count: int | None
    usd: float | None


@attrs.frozen(kw_only=True)
class Quote:
    """The whole answer of `trio-odin plan`.

    Args:
        egress: the traffic by each rate and encoding that was asked for, and its cost.
        prices: source and date of the prices.
        bill: the things to buy, by the answer; empty if no number of instances is enough.
        setups: V1 and V2 of the plan.
        plan: by the plan's costs.
        measured: by measured costs; None if only the plan's were requested, or there are none.
        predictions: those of the lab's stages to which the costs were fitted, by number.
        asked_every_ms: the rate that was asked for; that of the demand is the one that a server
            grants for it. None: none was.
    """

    demand: Demand
    instance: Instance
    prices: str
    egress: Sequence[Egress]
    bill: Sequence[Item]
    setups: Sequence[SetupCosts]
    workers: int
    target_cpu_percent: float
    plan: Column
    measured: Column | None = None
    predictions: Mapping[int, Sequence[Prediction]] = attrs.field(factory=dict)
    asked_every_ms: int | None = None

    @property
    def answer(self) -> Column:
        """The decisive column: the measured one, if there is one."""
        return self.measured or self.plan

    @property
    def monthly_usd(self) -> float:
        """The sum of the bill."""
        return sum(item.monthly_usd for item in self.bill)

    @property
    def is_possible(self) -> bool:
        """Whether any number of the instances is enough."""
        return self.answer.forecast.instances is not None

    def as_json(self) -> bytes:
        """Indented JSON with the names of the attributes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


def compare(
    demand: Demand,
    instance: Instance,
    prices: Prices,
    measured: Costs | None,
    *,
    workers: int = 1,
    target_cpu_percent: float = 75.0,
    spare: int = 1,
    predictions: Mapping[int, Sequence[Prediction]] | None = None,
    ways: Sequence[tuple[int, str]] = (),
    asked_every_ms: int | None = None,
) -> Quote:
    """Forecast the demand by the plan's costs, and by measured ones if there are any.

    Args:
        demand: of the users; its rate and encoding are those of the machines and the bill.
        instance: the server's machine.
        prices: of everything.
        measured: costs; None: there are none.
        workers: processes on each machine.
        target_cpu_percent: how much of the usable cores to use at most.
        spare: machines in addition to those that the users need.
        predictions: those of the lab to which the costs were fitted.
        ways: rates and encodings whose traffic is compared; none: those of the demand.
        asked_every_ms: the rate that was asked for, if any.
    """

    def found_on(machine: Instance, costs: Costs) -> Forecast:
        return forecast(
            demand,
            costs,
            machine,
            workers=workers,
            target_cpu_percent=target_cpu_percent,
        )

    def column(costs: Costs) -> Column:
        return Column(costs=costs, forecast=found_on(instance, costs))

    def of_setup(setup: Setup) -> SetupCosts:
        found = found_on(prices.machines[setup.machines[0]], answer)
        return SetupCosts(
            setup=setup,
            testing_usd=setup_usd(setup, prices.machines),
            production_usd=production_usd(setup, prices.machines),
            count=found.instances,
            usd=found.monthly_usd,
        )

    answer = measured or PLAN_COSTS
    best = found_on(instance, answer)
    possible = best.instances is not None
    return Quote(
        demand=demand,
        instance=instance,
        prices=prices.described,
        egress=[
            egress(
                attrs.evolve(demand, every_ms=every_ms, encoding=encoding),
                answer,
                prices.tariff.egress,
            )
            for every_ms, encoding in ways or [(demand.every_ms, demand.encoding)]
        ],
        bill=bill(demand, best, instance, prices.tariff, spare=spare, wire=answer.wire)
        if possible
        else [],
        setups=[of_setup(setup) for setup in PLAN_SETUPS],
        workers=workers,
        target_cpu_percent=target_cpu_percent,
        plan=column(PLAN_COSTS),
        measured=None if measured is None else column(measured),
        predictions=predictions or {},
        asked_every_ms=asked_every_ms,
    )
