"""The answer of `trio-odin plan` for people: tables and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from trio_odin.lab.figures import NOTHING, deviation, figure
from trio_odin.lab.model.bill import GIB, PLAN_USERS, TB, Egress
from trio_odin.lab.model.comparison import Column, Quote, SetupCosts
from trio_odin.lab.model.model import (
    ENDLESS,
    Costs,
    Demand,
    Forecast,
    Instance,
)
from trio_odin.lab.model.wire import MEASURED_PAYLOAD_BYTES, Wire
from trio_odin.lab.verdict import Prediction

# The CPU of an event was measured with one payload, and applies to payloads of similar size.
_PAYLOAD_FACTOR = 2
# Above it a count is shown without a fraction.
_WHOLE = 100
_Figure: TypeAlias = float | None
_Row: TypeAlias = tuple[str, str, str, str]


def render(quote: Quote, console: Console) -> None:
    """Print the tables and the sentences."""
    console.print(_need(quote))
    console.print(demand_sentence(quote.demand, quote.answer.costs.wire, quote.asked_every_ms))
    console.print(egress_table(quote.egress))
    for note in egress_notes(quote.egress):
        console.print(note)
    console.print(_table(quote))
    if quote.bill:
        console.print(_bill_table(quote))
    console.print(_setups_table(quote))
    if quote.predictions:
        console.print(_predictions_table(quote.predictions))
    for sentence in sentences(quote):
        console.print(sentence)


def demand_sentence(demand: Demand, wire: Wire, asked: int | None = None) -> str:
    """The demand on the servers, in two sentences. `asked`: the rate that was asked for."""
    rate = ""
    if demand.every_ms:
        why = f" (asked: {asked:,})" if asked not in (None, demand.every_ms) else ""
        rate = f", of a channel at most one every {demand.every_ms:,} ms{why}"
    encoding = "" if demand.encoding == "plain" else f", sent as {demand.encoding}"
    return (
        f"{counted(demand.users, 'user')}, {demand.home_share * 100:g} % on the home page with "
        f"{demand.home_tokens:,} of {counted(demand.tokens, 'token')}, the others with one each; "
        f"{counted(demand.rate, 'event')} a second of {demand.payload_bytes:,} bytes{rate}"
        f"{encoding}. That makes {counted(demand.subscribers_per_token, 'subscriber')} a token, "
        f"{counted(demand.writes_per_second, 'write')} a second, "
        f"{demand.bytes_per_second(wire) * 8 / 1e6:,.1f} Mbit/s "
        f"in TLS ({figure(demand.bytes_per_month(wire) / TB)} TB a month)."
    )


EGRESS_HEAD = (
    *("sent", "writes\na second", "events\na second", "bytes\nan event"),
    *("TB\na month", "USD\na month", "cores"),
)


def egress_rows(found: Sequence[Egress]) -> Iterator[tuple[str, ...]]:
    """A row of the columns `EGRESS_HEAD` for each way to send the events."""
    for one in found:
        yield (
            f"every {_period(one.every_ms)}, {one.encoding}",
            *(f"{one.writes_per_second:,.0f}", f"{one.deliveries_per_second:,.0f}"),
            *(f"{one.delivery_bytes:,.0f}", figure(one.month_tb), f"{one.monthly_usd:,.0f}"),
            figure(one.cores),
        )


def _period(every_ms: int) -> str:
    if not every_ms:
        return "event"
    return f"{every_ms} ms" if every_ms % 1000 else f"{every_ms // 1000} s"


def egress_table(found: Sequence[Egress]) -> Table:
    """The table of the traffic."""
    # 80 columns are enough for it, so there are no rules between the columns.
    table = Table(
        title="Traffic to the users",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, column in enumerate(EGRESS_HEAD):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in egress_rows(found):
        table.add_row(*row)
    return table


def egress_notes(ways: Sequence[Egress]) -> Iterator[str]:
    """What the columns of the traffic mean, and why a rate may be dearer than every event."""
    yield (
        "A write is one message to one user. It carries one event or, with a rate, all channels "
        "that changed since the last tick. Events are counted for each user who gets them."
    )
    usd = {(one.every_ms, one.encoding): one.monthly_usd for one in ways}
    dearer = {rate for (rate, encoding), cost in usd.items() if cost > usd.get((0, encoding), cost)}
    if dearer:
        named = " and ".join(f"{rate:,} ms" for rate in sorted(dearer))
        yield (
            f"Every {named} may cost more than every event: so few events share a tick that the "
            "bytes that each batch adds outweigh those it saves."
        )
    if any(rate for rate, _ in usd):
        yield (
            "With a rate, each event is taken to be of a random token. The simulated market takes "
            "the tokens in turn, so a test with it gives other figures."
        )


def sentences(quote: Quote) -> Iterator[str]:
    """The limits of the answer, in words."""
    if quote.is_possible:
        yield _limits(quote)
        yield from _beyond(quote)
    if quote.measured is not None:
        yield _plan_says(quote)
    yield _left_out(quote)


def _need(quote: Quote) -> str:
    found, instance = quote.answer.forecast, quote.instance
    memory_percent = found.memory_mib / instance.memory_limit_mib * 100
    users = counted(quote.demand.users, "user")
    events = f"{counted(quote.demand.rate, 'event')} a second"
    if found.instances is None:
        why = TOO_MUCH[found.bound_by].format(cores=found.target_cores)
        return f"No number of {instance.name} is enough for {users} at {events}: {why}."
    return (
        f"{users} at {events} need{'s' * (quote.demand.users == 1)} {_machines(quote, found)} "
        f"(${quote.monthly_usd:,.0f} with all that belongs to it): "
        f"each serves {counted(found.connections, 'connection')} with {found.cores:.2f} cores "
        f"({found.cpu_percent:.1f} % of {instance.cpu_limit:g}) and {found.memory_mib:,.0f} MiB "
        f"({memory_percent:.1f} % of {instance.memory_limit_mib:,.0f})."
    )


TOO_MUCH = {
    "memory": "the processes alone take more than the memory that one has for them",
    "CPU": "the events alone take more than the {cores:.2f} cores that one has for them",
    "open files": "a process may not open enough files",
    "network": "the events of one connection are more than it can send",
}


def _machines(quote: Quote, found: Forecast) -> str:
    return f"{found.instances:,} × {quote.instance.name}, ${found.monthly_usd:,.0f} a month"


def _limits(quote: Quote) -> str:
    found, instance = quote.answer.forecast, quote.instance
    used = f"{found.usable_cores:g} of the {instance.cpu_limit:g} cores of a machine"
    if quote.answer.costs.uses_all_cores:
        who = f"One process can use {used}"
    else:
        who = f"{counted(quote.workers, 'worker')} can use {used}, one core each at most"
    return (
        f"{who}. The answer uses at most {quote.target_cpu_percent:g} % of that, "
        f"{found.target_cores:.3g} cores. One machine holds up to "
        f"{counted(found.max_connections, 'connection')}, bound by {found.bound_by}."
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
        f" {quote.workers} workers on {counted(cores, 'core')} are too many: "
        "each takes every event, and needs memory of its own."
    )


def _beyond(quote: Quote) -> Iterator[str]:
    """The parts of the demand and of the answer that were not measured."""
    costs, found = quote.answer.costs, quote.answer.forecast
    figures = [
        (max(found.connections, found.max_connections), costs.max_connections, "connection", ""),
        (quote.demand.rate, costs.max_rate, "event", " a second"),
        (found.writes_per_second, costs.max_deliveries, "write", " a second"),
    ]
    measured = [(value, most, noun, per) for value, most, noun, per in figures if most is not None]
    if beyond := [
        f"{counted(value, noun)}{per}" for value, most, noun, per in measured if value > most
    ]:
        known = ", ".join(f"{counted(most, noun)}{per}" for _, most, noun, per in measured)
        yield f"{' and '.join(beyond)}: beyond what was measured ({known})."
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
        f"{counted(found.max_connections, 'connection')}."
    )


def _left_out(quote: Quote) -> str:
    cores = "" if quote.measured is None else " A core is taken to be like one measured on."
    wire = quote.answer.costs.wire
    return (
        f"Bytes, with TCP/IP headers and TLS: {wire.source}, {wire.date}. "
        f"Prices: {quote.prices}. Discounts, disks and logs are not in them. Latency and the "
        f"kernel's memory for sockets are not forecast: docs/capacity.md has what the lab saw."
        f"{cores}"
    )


def counted(number: float, noun: str) -> str:
    """1 user, 2 users, 1,000 users; a fraction takes the plural."""
    text = f"{number:,.0f}" if number >= _WHOLE else f"{number:,.3g}"
    return f"{text} {noun}" if text == "1" else f"{text} {noun}s"


def _origin(costs: Costs) -> str:
    """The source of the costs, with the date if the source does not have it."""
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
        shown = cells if quote.measured is not None else cells[:1]
        if any(cell not in ("", NOTHING) for cell in shown):
            table.add_row(label, *shown)
    return table


def rows(quote: Quote) -> Iterator[_Row]:
    """The rows of the table: a label, the plan's figure, the measured one, and their ratio."""
    plan, measured = quote.plan, quote.measured
    # A machine's figures are compared only if both columns have the same number of connections.
    is_alike = measured is None or measured.forecast.connections == plan.forecast.connections

    def row(
        label: str,
        read: Callable[[Column], _Figure],
        form: str = "{:,.0f}",
        *,
        has_ratio: bool = True,
    ) -> _Row:
        left = read(plan)
        right = None if measured is None else read(measured)
        ratio = f"× {right / left:.3g}" if has_ratio and left and right is not None else ""
        return label, _cell(left, form), _cell(right, form), ratio

    # A cost of 0 was not asked for, or was too small to be found.
    yield row("CPU of a write, to 1,000 users", lambda c: c.costs.delivery_us or None, "{:.1f} µs")
    yield row("  each doubling of users adds", lambda c: c.costs.doubling_us or None, "{:.1f} µs")
    rate = quote.demand.rate
    yield row("  of an event", lambda c: c.costs.event_us(rate) or None, "{:,.0f} µs")
    yield row("  of a connect", lambda c: c.costs.connect_us or None, "{:,.0f} µs")
    idle = "  of a connection, idle"
    yield row(idle, lambda c: c.costs.connection_us_per_second or None, "{:.1f} µs/s")
    yield row("  of a process, idle", lambda c: c.costs.base_cores or None, "{:.3f} cores")
    yield row("memory of a connection", lambda c: c.costs.connection_kib or None, "{:,.1f} KiB")
    yield row("  of a process", lambda c: c.costs.base_mib or None, "{:,.1f} MiB")
    yield row("connections of one, by memory", lambda c: _bound(c.forecast.max_by_memory))
    yield row("  by CPU", lambda c: _bound(c.forecast.max_by_cpu))
    yield row("  by open files", lambda c: _bound(c.forecast.max_by_files))
    yield row("  by network", lambda c: _bound(c.forecast.max_by_network))
    yield row("  so at most", lambda c: c.forecast.max_connections)
    bound_by = measured.forecast.bound_by if measured is not None else ""
    yield "  bound by", plan.forecast.bound_by, bound_by, ""
    yield row("instances", lambda c: c.forecast.instances)
    yield row("machines a month", lambda c: c.forecast.monthly_usd, "${:,.0f}")
    each = partial(row, has_ratio=is_alike)
    yield each("each: connections", lambda c: c.forecast.connections)
    yield each("  writes a second", lambda c: c.forecast.writes_per_second)
    yield each("  CPU of a write there", lambda c: c.forecast.delivery_us, "{:.1f} µs")
    yield each("  CPU", lambda c: c.forecast.cores, "{:.2f} cores")
    of_limit = f"  of its {quote.instance.cpu_limit:g} cores"
    yield each(of_limit, lambda c: c.forecast.cpu_percent, "{:.1f} %")
    yield each("  memory", lambda c: c.forecast.memory_mib, "{:,.0f} MiB")


def _bound(most: int) -> int | None:
    return most if most < ENDLESS else None


def _cell(value: _Figure, form: str) -> str:
    return NOTHING if value is None else form.format(value)


def _bill_table(quote: Quote) -> Table:
    """The table of the bill; the runner is for tests, so it need not run all month."""
    table = Table(title="A month, with all that belongs to it", title_justify="left")
    for head in ("", "how many", "of what", "USD"):
        table.add_column(head, justify="left" if head in ("", "of what") else "right")
    for item in quote.bill:
        # Google's price is by GiB.
        tb = f" ({figure(item.count * GIB / TB)} TB)" if item.unit == "GiB" else ""
        usd = f"{item.monthly_usd:,.0f}"
        table.add_row(item.what, f"{item.count:,.0f}", f"{item.unit}{tb}", usd)
    table.add_section()
    table.add_row("all", "", "", f"{quote.monthly_usd:,.0f}")
    return table


def _setups_table(quote: Quote) -> Table:
    """The plan's two versions side by side; in production the server's machines alone."""
    table = Table(title="The plan's versions, USD a month", title_justify="left")
    table.add_column("", no_wrap=True)
    for one in quote.setups:
        table.add_column(f"{one.setup.name}: {one.setup.machines[0]}", justify="right")

    def row(label: str, cell: Callable[[SetupCosts], str]) -> None:
        table.add_row(label, *map(cell, quote.setups))

    first = quote.setups[0].testing_usd
    row("test environment, three machines", lambda one: _with_change(one.testing_usd, first))
    row(f"{PLAN_USERS:,} users, as the plan says", _as_planned)
    row(f"{counted(quote.demand.users, 'user')}, by the costs above", _as_found)
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
            predicted, measured = (figure(x, one.unit) for x in (one.predicted, one.measured))
            table.add_row(str(number), one.what, predicted, measured, deviation(one.error))
    return table
