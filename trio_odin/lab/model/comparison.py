"""What a demand comes to by the plan's costs and by measured ones, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs
import msgspec
from rich.console import Console
from rich.table import Table

from trio_odin.lab.figures import NOTHING, deviation, figure
from trio_odin.lab.model.bill import (
    PLAN_SETUPS,
    PLAN_USERS,
    Item,
    Setup,
    bill,
    production_usd,
    setup_usd,
)
from trio_odin.lab.model.model import (
    ENDLESS,
    MEASURED_PAYLOAD_BYTES,
    PLAN_COSTS,
    Costs,
    Demand,
    Forecast,
    Instance,
    forecast,
)
from trio_odin.lab.model.tables import Prices
from trio_odin.lab.verdict import Prediction

# The CPU of an event was measured with one payload, and holds for others of about that size.
_PAYLOAD_FACTOR = 2
# From here on nobody wants to know the fraction of a count.
_WHOLE = 100
_Figure: TypeAlias = float | None
_Row: TypeAlias = tuple[str, str, str, str]


@attrs.frozen(kw_only=True)
class Column:
    """One set of costs, and what it makes of the demand."""

    costs: Costs
    forecast: Forecast


@attrs.frozen(kw_only=True)
class SetupCosts:
    """A version of the plan, in USD a month.

    Args:
        setup: which.
        testing_usd: its test environment.
        production_usd: 20,000 users, as the plan says.
        count: of its server's machine that the answer's costs make of the demand; None: no number
            is enough.
        usd: what these cost.
    """

    setup: Setup
    testing_usd: float
    production_usd: float
    count: int | None
    usd: float | None


@attrs.frozen(kw_only=True)
class Quote:
    """All that `trio-odin plan` finds.

    Args:
        prices: where the prices come from, and of when.
        bill: what one has to buy, by the answer; empty if no number of instances is enough.
        setups: V1 and V2 of the plan.
        plan: by the plan's costs.
        measured: by measured costs; None if only the plan's were asked for, or nothing was
            measured.
        predictions: of the stages of the lab that the costs were fitted to, by number.
    """

    demand: Demand
    instance: Instance
    prices: str
    bill: Sequence[Item]
    setups: Sequence[SetupCosts]
    workers: int
    target_cpu_percent: float
    plan: Column
    measured: Column | None = None
    predictions: Mapping[int, Sequence[Prediction]] = attrs.field(factory=dict)

    @property
    def answer(self) -> Column:
        """The column that counts: what was measured, if there is any."""
        return self.measured or self.plan

    @property
    def monthly_usd(self) -> float:
        """All of the bill."""
        return sum(item.monthly_usd for item in self.bill)

    @property
    def is_possible(self) -> bool:
        """Whether any number of the instances is enough."""
        return self.answer.forecast.instances is not None

    def as_json(self) -> bytes:
        """Indented, with the names of the attributes."""
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
) -> Quote:
    """Forecast the demand by the plan's costs, and by measured ones if there are any."""

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
        prices=(
            f"{prices.currency}; machines: {prices.source}, {prices.date}; balancer and traffic: "
            f"Google's list, {prices.network_date}"
        ),
        bill=bill(demand, best, instance, prices.tariff, spare=spare) if possible else [],
        setups=[of_setup(setup) for setup in PLAN_SETUPS],
        workers=workers,
        target_cpu_percent=target_cpu_percent,
        plan=column(PLAN_COSTS),
        measured=None if measured is None else column(measured),
        predictions=predictions or {},
    )


def render(quote: Quote, console: Console) -> None:
    """Print the tables, and the sentences to take along."""
    console.print(demand_sentence(quote.demand))
    console.print(_table(quote))
    if quote.bill:
        console.print(_bill_table(quote))
    console.print(_setups_table(quote))
    if quote.predictions:
        console.print(_predictions_table(quote.predictions))
    for sentence in sentences(quote):
        console.print(sentence)


def demand_sentence(demand: Demand) -> str:
    """What is asked of the server, whatever it costs."""
    return (
        f"{_count(demand.users, 'user')}, {demand.home_share * 100:g} % on the home page with "
        f"{demand.home_tokens:,} of {_count(demand.tokens, 'token')}, the others with one each; "
        f"{_count(demand.rate, 'event')} a second of {demand.payload_bytes:,} bytes: "
        f"{_count(demand.subscribers_per_token, 'subscriber')} a token, "
        f"{_count(demand.writes_per_second, 'write')} a second, "
        f"{demand.bytes_per_second * 8 / 1e6:,.1f} Mbit/s "
        f"in TLS ({demand.bytes_per_month / 2**40:,.1f} TiB a month)."
    )


def sentences(quote: Quote) -> Iterator[str]:
    """The answer in words, and what has to be known to use it."""
    yield _need(quote)
    if quote.is_possible:
        yield _limits(quote)
        yield from _beyond(quote)
    if quote.measured is not None:
        yield _plan_says(quote)
    yield _left_out(quote)


def _need(quote: Quote) -> str:
    found, instance = quote.answer.forecast, quote.instance
    memory_percent = found.memory_mib / instance.memory_limit_mib * 100
    users = _count(quote.demand.users, "user")
    events = f"{_count(quote.demand.rate, 'event')} a second"
    if found.instances is None:
        why = _TOO_MUCH[found.bound_by].format(cores=found.target_cores)
        return f"No number of {instance.name} is enough for {users} at {events}: {why}."
    return (
        f"{users} at {events} need{'s' * (quote.demand.users == 1)} {_machines(quote, found)} "
        f"(${quote.monthly_usd:,.0f} with all that belongs to it): "
        f"each serves {_count(found.connections, 'connection')} with {found.cores:.2f} cores "
        f"({found.cpu_percent:.1f} % of {instance.cpu_limit:g}) and {found.memory_mib:,.0f} MiB "
        f"({memory_percent:.1f} % of {instance.memory_limit_mib:,.0f})."
    )


_TOO_MUCH = {
    "memory": "the processes alone take more than the memory that one has for them",
    "CPU": "the events alone take more than the {cores:.2f} cores that one has for them",
    "open files": "a process may not open enough files",
    "network": "the events of one connection are more than it can send",
}


def _machines(quote: Quote, found: Forecast) -> str:
    return f"{found.instances:,} × {quote.instance.name}, ${found.monthly_usd:,.0f} a month"


def _limits(quote: Quote) -> str:
    found, instance = quote.answer.forecast, quote.instance
    used = f"{found.usable_cores:g} of its {instance.cpu_limit:g} cores"
    if quote.answer.costs.uses_all_cores:
        who = f"One process uses {used}"
    else:
        who = f"{_count(quote.workers, 'worker')}, a core each at most, can use {used}"
    return (
        f"{who}, of which {quote.target_cpu_percent:g} % is the target. One instance holds up to "
        f"{_count(found.max_connections, 'connection')}, bound by {found.bound_by}."
        f"{_shared_core(instance)}{_too_many_workers(quote)}"
    )


def _shared_core(instance: Instance) -> str:
    if instance.burst_vcpus is None:
        return ""
    return (
        f" {instance.name} shares its cores: it has {instance.vcpus:g} for long, which counts "
        f"here, and {instance.burst_vcpus:g} for a while."
    )


def _too_many_workers(quote: Quote) -> str:
    cores = quote.instance.vcpus
    if quote.answer.costs.uses_all_cores or quote.workers <= max(1, cores):
        return ""
    return (
        f" {quote.workers} workers on {_count(cores, 'core')} are too many: "
        "each takes every event, and needs memory of its own."
    )


def _beyond(quote: Quote) -> Iterator[str]:
    """What of the demand and the answer nobody has measured."""
    costs, found = quote.answer.costs, quote.answer.forecast
    most = max(found.connections, found.max_connections)
    beyond: list[str] = []
    known: list[str] = []
    if costs.max_connections is not None:
        known.append(_count(costs.max_connections, "connection"))
        if most > costs.max_connections:
            beyond.append(_count(most, "connection"))
    if costs.max_rate is not None:
        known.append(f"{_count(costs.max_rate, 'event')} a second")
        if quote.demand.rate > costs.max_rate:
            beyond.append(f"{_count(quote.demand.rate, 'event')} a second")
    if costs.max_deliveries is not None:
        known.append(f"{_count(costs.max_deliveries, 'write')} a second")
        if found.writes_per_second > costs.max_deliveries:
            beyond.append(f"{_count(found.writes_per_second, 'write')} a second")
    if beyond:
        yield f"{' and '.join(beyond)}: beyond what was measured ({', '.join(known)})."
    times = quote.demand.payload_bytes / MEASURED_PAYLOAD_BYTES
    if quote.measured is not None and not 1 / _PAYLOAD_FACTOR <= times <= _PAYLOAD_FACTOR:
        yield (
            f"CPU was measured with events of {MEASURED_PAYLOAD_BYTES} bytes; of "
            f"{quote.demand.payload_bytes:,} bytes it is {'more' if times > 1 else 'less'}."
        )


def _plan_says(quote: Quote) -> str:
    found, instance = quote.plan.forecast, quote.instance
    if found.instances is None:
        return f"By the plan's costs, no number of {instance.name} is enough."
    return (
        f"By the plan's costs: {_machines(quote, found)}, {found.cores:.2f} cores "
        f"({found.cpu_percent:.1f} %) and {found.memory_mib:,.0f} MiB each, up to "
        f"{_count(found.max_connections, 'connection')}."
    )


def _left_out(quote: Quote) -> str:
    cores = "" if quote.measured is None else " A core is taken to be like one measured on."
    return (
        f"Prices: {quote.prices}. Discounts, disks and logs are not in them. Latency and the "
        f"kernel's memory for sockets are not forecast: docs/capacity.md has what the lab saw."
        f"{cores}"
    )


def _count(number: float, noun: str) -> str:
    """1 user, 2 users, 1,000 users; a share of a thing counts as more than one."""
    text = f"{number:,.0f}" if number >= _WHOLE else f"{number:,.3g}"
    return f"{text} {noun}" if text == "1" else f"{text} {noun}s"


def _origin(costs: Costs) -> str:
    """Where costs come from, and of when, if that does not say it."""
    return costs.source if costs.date in costs.source else f"{costs.source}, {costs.date}"


def _table(quote: Quote) -> Table:
    table = Table(title=f"On {quote.instance.name}", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column(f"the plan's costs\n{quote.plan.costs.date}", justify="right")
    if quote.measured is not None:
        costs = quote.measured.costs
        table.add_column(f"measured costs\n{_origin(costs)}", justify="right")
        table.add_column("measured\n÷ plan", justify="right")
    for label, *cells in rows(quote):
        table.add_row(label, *(cells if quote.measured is not None else cells[:1]))
    return table


def rows(quote: Quote) -> Iterator[_Row]:
    """The table: a label, the plan's figure, the measured one, and their ratio."""
    both = _Both(quote)
    yield both.cost("CPU of a delivery, up to 1,000", lambda c: c.delivery_us, "{:.1f} µs")
    yield both.cost("  each doubling of these adds", lambda c: c.doubling_us, "{:.1f} µs")
    yield both.cost("  of an event", lambda c: c.event_us(quote.demand.rate), "{:,.0f} µs")
    yield both.cost("  of a connect", lambda c: c.connect_us, "{:,.0f} µs")
    yield both.cost("  of a connection, idle", lambda c: c.connection_us_per_second, "{:.1f} µs/s")
    yield both.cost("  of a process, idle", lambda c: c.base_cores, "{:.3f} cores")
    yield both.cost("memory of a connection", lambda c: c.connection_kib, "{:,.1f} KiB")
    yield both.cost("  of a process", lambda c: c.base_mib, "{:,.1f} MiB")
    yield both.found("connections of one, by memory", lambda f: _bound(f.max_by_memory))
    yield both.found("  by CPU", lambda f: _bound(f.max_by_cpu))
    yield both.found("  by open files", lambda f: _bound(f.max_by_files))
    yield both.found("  by network", lambda f: _bound(f.max_by_network))
    yield both.found("  so at most", lambda f: f.max_connections)
    yield both.bound_by()
    yield both.found("instances", lambda f: f.instances)
    yield both.found("machines a month", lambda f: f.monthly_usd, "${:,.0f}")
    yield both.each("each: connections", lambda f: f.connections)
    yield both.each("  writes a second", lambda f: f.writes_per_second)
    yield both.each("  CPU of a delivery there", lambda f: f.delivery_us, "{:.1f} µs")
    yield both.each("  CPU", lambda f: f.cores, "{:.2f} cores")
    limit = quote.instance.cpu_limit
    yield both.each(f"  of its {limit:g} cores", lambda f: f.cpu_percent, "{:.1f} %")
    yield both.each("  memory", lambda f: f.memory_mib, "{:,.0f} MiB")


@attrs.frozen
class _Both:
    quote: Quote

    def cost(self, label: str, figure: Callable[[Costs], _Figure], form: str) -> _Row:
        """A cost of 0 is one that nobody asked for, or that was too small to be found."""

        def of(column: Column | None) -> _Figure:
            return None if column is None else figure(column.costs) or None

        return _row(label, of(self.quote.plan), of(self.quote.measured), form)

    def found(
        self, label: str, figure: Callable[[Forecast], _Figure], form: str = "{:,.0f}"
    ) -> _Row:
        measured = self.quote.measured
        right = None if measured is None else figure(measured.forecast)
        return _row(label, figure(self.quote.plan.forecast), right, form)

    def each(
        self, label: str, figure: Callable[[Forecast], _Figure], form: str = "{:,.0f}"
    ) -> _Row:
        """Compared only if either way an instance has as many connections."""
        label, plan, measured, ratio = self.found(label, figure, form)
        counts = {
            column.forecast.connections
            for column in (self.quote.plan, self.quote.measured)
            if column is not None
        }
        return label, plan, measured, ratio if len(counts) == 1 else ""

    def bound_by(self) -> _Row:
        measured = self.quote.measured
        right = "" if measured is None else measured.forecast.bound_by
        return "  bound by", self.quote.plan.forecast.bound_by, right, ""


def _bound(most: int) -> int | None:
    return most if most < ENDLESS else None


def _row(label: str, plan: _Figure, measured: _Figure, form: str) -> _Row:
    ratio = f"× {measured / plan:.3g}" if plan and measured is not None else ""
    return label, _cell(plan, form), _cell(measured, form), ratio


def _cell(value: _Figure, form: str) -> str:
    return NOTHING if value is None else form.format(value)


def _bill_table(quote: Quote) -> Table:
    """What to buy; the runner is there for tests, so it need not run all month."""
    table = Table(title="A month, with all that belongs to it", title_justify="left")
    for head in ("", "how many", "of what", "USD"):
        table.add_column(head, justify="left" if head in ("", "of what") else "right")
    for item in quote.bill:
        table.add_row(item.what, f"{item.count:,.0f}", item.unit, f"{item.monthly_usd:,.0f}")
    table.add_section()
    table.add_row("all", "", "", f"{quote.monthly_usd:,.0f}")
    return table


def _setups_table(quote: Quote) -> Table:
    """The plan's two versions beside each other; the server's machines alone in production."""
    table = Table(title="The plan's versions, USD a month", title_justify="left")
    table.add_column("", no_wrap=True)
    for one in quote.setups:
        table.add_column(f"{one.setup.name}: {one.setup.machines[0]}", justify="right")

    def row(label: str, cell: Callable[[SetupCosts], str]) -> None:
        table.add_row(label, *map(cell, quote.setups))

    first = quote.setups[0].testing_usd
    row("test environment, three machines", lambda one: _with_change(one.testing_usd, first))
    row(f"{PLAN_USERS:,} users, as the plan says", _as_planned)
    row(f"{_count(quote.demand.users, 'user')}, by the costs above", _as_found)
    return table


def _with_change(usd: float, first: float) -> str:
    return f"{usd:,.0f}" + (f" ({usd - first:+,.0f})" if usd != first else "")


def _as_planned(one: SetupCosts) -> str:
    return f"{one.production_usd:,.0f} ({one.setup.production_count} ×, {one.setup.note})"


def _as_found(one: SetupCosts) -> str:
    return "no number is enough" if one.usd is None else f"{one.usd:,.0f} ({one.count:,} ×)"


def _predictions_table(predictions: Mapping[int, Sequence[Prediction]]) -> Table:
    table = Table(title="Predicted from smaller stages only", title_justify="left")
    table.add_column("stage", justify="right")
    table.add_column("")
    for head in ("predicted", "measured", "error"):
        table.add_column(head, justify="right")
    for number, found in sorted(predictions.items()):
        for one in found:
            table.add_row(str(number), *_prediction_cells(one))
    return table


def _prediction_cells(prediction: Prediction) -> tuple[str, str, str, str]:
    """What, predicted, measured and the error, as docs/capacity.md has them."""
    return (
        prediction.what,
        figure(prediction.predicted, prediction.unit),
        figure(prediction.measured, prediction.unit),
        deviation(prediction.error),
    )
