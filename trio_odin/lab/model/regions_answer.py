"""The answer of `trio-odin plan --regions` for people: the sentences, a drawing and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from trio_odin.lab.figures import NOTHING, figure
from trio_odin.lab.model.answer import (
    TOO_MUCH,
    counted,
    demand_sentence,
    egress_notes,
    egress_table,
)
from trio_odin.lab.model.bill import GIB, TB, Item
from trio_odin.lab.model.regions import NATS_NODES, Layout, Loss, Region
from trio_odin.lab.model.storm import LONGEST_SECONDS
from trio_odin.settings.reading import read_settings

_MBIT = 8 / 1e6
_NEVER = "never"
_REJECT_PERCENT = read_settings({}).cpu_reject_percent


def render_layout(layout: Layout, prices: str, console: Console) -> None:
    """Print the sentences, the drawing and the tables. `prices`: their source and date."""
    for sentence in first_sentences(layout):
        console.print(sentence)
    console.print(demand_sentence(layout.demand, layout.costs.wire))
    if layout.is_possible:
        console.print("\n".join(topology(layout)), markup=False)
        for table in (regions_table(layout), nats_table(layout), losses_table(layout)):
            console.print(table)
        for note in loss_notes(layout):
            console.print(note)
        console.print(bill_table(layout))
    console.print(egress_table(layout.egress))
    for note in (*egress_notes(layout.egress), *_notes(layout, prices)):
        console.print(note)


def first_sentences(layout: Layout) -> Iterator[str]:
    """The answer: machines and money; then whether the loss of a region fits."""
    demand = layout.demand
    users, events = counted(demand.users, "user"), counted(demand.rate, "event")
    name = layout.instance.name
    if not layout.is_possible:
        why = TOO_MUCH[layout.bound_by].format(cores=layout.target_cores)
        yield f"No number of {name} is enough for {users} at {events} a second: {why}."
        return
    regions = len(layout.regions)
    traffic = sum(region.egress_usd for region in layout.regions)
    each = sorted({region.nodes for region in layout.regions})
    of_each = f"{each[0]}" if len(each) == 1 else f"{each[0]} to {each[-1]}"
    spare = f", of which {layout.spare} may be lost" if layout.spare else ", none to spare"
    need = "needs" if demand.users == 1 else "need"
    yield (
        f"{users} in {counted(regions, 'region')} at {events} a second {need} "
        f"{layout.nodes:,} × {name} ({of_each} in each region{spare}) and "
        f"{regions * NATS_NODES} nodes of NATS: ${layout.monthly_usd:,.0f} a month, "
        f"{traffic / layout.monthly_usd * 100:.0f} % of it for the traffic to the users."
    )
    yield from _says_of_region(layout)


def _says_of_region(layout: Layout) -> Iterator[str]:
    usd = layout.survival_nodes * layout.instance.monthly_usd
    survival = (
        "To survive the loss of any region takes "
        f"{counted(layout.survival_nodes, 'more machine')}, ${usd:,.0f} a month: --survive-region."
    )
    for loss in layout.losses:
        if loss.kind != "region" or loss.calm is None:
            continue
        if loss.fits:
            yield (
                f"If {loss.what} is lost, its {counted(loss.clients, 'user')} fit into the "
                f"others, and are back after {_seconds(loss.calm.seconds)}."
            )
            if layout.survival_nodes:
                yield f"Those of another one do not. {survival}"
        else:
            yield (
                f"If {loss.what} is lost, its {counted(loss.clients, 'user')} do not fit into the "
                f"others, which lack {counted(loss.more_nodes, 'machine')}: "
                f"{counted(round(loss.calm.left_out), 'user')} would stay outside. {survival}"
            )


def topology(layout: Layout) -> Iterator[str]:
    """The drawing: what is connected to what, and how much flows."""
    first, *others = layout.regions
    rate, each = first.nats.events, first.nats.outwards_bytes / max(1, len(others))
    workers = f" of {layout.workers} workers" if layout.workers > 1 else ""
    yield "  publishers"
    yield f"      │ {_per_second(rate)}"
    for region in layout.regions:
        is_last = region is layout.regions[-1]
        corner = "▼" if region is first else "├" if not is_last else "└"
        gate = "" if region is first else f"─ {_per_second(rate)}, {each * _MBIT:.3g} Mbit/s ─► "
        holds = "stream" if region is first else "mirror"
        bar = "      │" if not is_last else "       "
        yield (
            f"      {corner}{gate} region {region.number}: NATS × {NATS_NODES}, {holds} × "
            f"{NATS_NODES} ──► {counted(region.nats.deliveries, 'message')}/s"
        )
        yield (
            f"{bar}      ──► {counted(region.nodes, 'server')}{workers} ◄── balancer "
            f"◄── {counted(region.users, 'user')}"
        )


def _per_second(rate: float) -> str:
    return f"{counted(rate, 'event')}/s"


def regions_table(layout: Layout) -> Table:
    """Each region's machines, and what each of these does."""
    table = _table("The regions", "region", "users", "nodes", "needed")
    for head in (
        "users\na node",
        "cores\na node",
        "MiB\na node",
        "Mbit/s\na node",
        "writes/s\na node",
    ):
        table.add_column(head, justify="right")
    for region in layout.regions:
        table.add_row(*region_cells(region))
    return table


def region_cells(region: Region) -> tuple[str, ...]:
    """A row of the table of regions."""
    return (
        f"{region.number}",
        *(f"{count:,}" for count in (region.users, region.nodes, region.needed)),
        f"{region.connections:,}",
        *(f"{region.cores:.2f}", f"{region.memory_mib:,.0f}"),
        *(f"{region.egress_gbit * 1000:,.0f}", f"{region.writes_per_second:,.0f}"),
    )


def nats_table(layout: Layout) -> Table:
    """What the cluster of each region carries."""
    table = _table("What NATS carries", "region", "events\nin /s", "to servers\n/s", "replicas\n/s")
    for head in ("to regions\n/s", "Mbit/s\nout", "subscrip-\ntions", "con-\nsumers"):
        table.add_column(head, justify="right")
    for region in layout.regions:
        nats = region.nats
        rates = (nats.events, nats.deliveries, nats.replicas, nats.outwards)
        table.add_row(
            f"{region.number}",
            *(f"{rate:,.0f}" for rate in rates),
            f"{nats.bytes_out * _MBIT:.3g}",
            *(f"{count:,}" for count in (nats.subscriptions, nats.consumers)),
        )
    return table


def losses_table(layout: Layout) -> Table:
    """What the loss of each part means."""
    table = _table("If a part is lost", "lost", "clients", "all back\nafter", "half\nafter")
    for head in ("come\nagain", "stay\noutside", "busiest\ncore", "then"):
        table.add_column(head, justify="right")
    for loss in layout.losses:
        table.add_row(*loss_cells(loss))
    return table


def loss_cells(loss: Loss) -> tuple[str, ...]:
    """A row of the table of losses."""
    calm = loss.calm
    if calm is None:
        is_over = loss.nodes == 0
        return (loss.what, f"{loss.clients:,}", _NEVER if is_over else NOTHING, *[NOTHING] * 5)
    is_full = calm.left_out >= 1
    # Those who stay outside try again without an end, which no number says.
    refused = NOTHING if is_full else f"{calm.refused:,.0f}"
    return (
        loss.what,
        f"{loss.clients:,}",
        _NEVER if is_full else _seconds(calm.seconds),
        _NEVER if is_full and calm.half_seconds is None else _seconds(calm.half_seconds),
        *(refused, f"{calm.left_out:,.0f}"),
        *(f"{calm.peak_busy * 100:.0f} %", f"{calm.steady_busy * 100:.0f} %"),
    )


def loss_notes(layout: Layout) -> Iterator[str]:
    """What the table of losses does not show."""
    for loss in layout.losses:
        if loss.kind == "node" and not loss.fits:
            yield (
                f"Without {counted(loss.more_nodes, 'more node')} the loss of a node is one too "
                f"many: --spare {layout.spare + loss.more_nodes}."
            )
        if loss.reattached:
            is_one = loss.reattached == 1
            processes, go = ("process", "goes") if is_one else ("processes", "go")
            pause = (
                "events wait for an election"
                if loss.pause_seconds is None
                else f"events wait for up to {loss.pause_seconds:.1f} s, as measured, then come"
            )
            yield (
                f"If a node of NATS is lost, clients stay and {pause}. "
                f"{loss.reattached:,} {processes} of a region {go} to another node."
            )
    if len(layout.regions) > 1:
        yield (
            "If region 1 is lost, nothing can be published until another region's mirror is made "
            "the stream (docs/scale.md)."
        )
    cost = layout.costs.reconnect_us or layout.costs.connect_us
    yield (
        "The storm is a simulation with the server's and the client library's own rules: a "
        f"reconnect takes {cost or 0:,.0f} µs of a process' loop (the lab's storm), which accepts "
        "with what events leave of it. Clients of a killed node see that at once; those of a "
        "drained one come at their slots; those of a silent region notice within 14 s and try "
        "it once more. They come again, each after a random and longer wait, if they are refused "
        "or get no answer. Give each client the addresses of the regions in another order: the "
        "next one in its list is where it goes."
    )


def bill_table(layout: Layout) -> Table:
    """The bill of each region, and the sum."""
    table = Table(title="A month, USD", title_justify="left")
    table.add_column("", no_wrap=True)
    shown = _alike(layout.regions)
    for region, count in shown:
        head = f"region {region.number}" if count == 1 else f"regions {region.number} …, each"
        table.add_column(head, justify="right")
    table.add_column("all", justify="right")
    for what in dict.fromkeys(item.what for region in layout.regions for item in region.bill):
        cells = [_item(region, what) for region, _ in shown]
        total = sum(i.monthly_usd for r in layout.regions for i in r.bill if i.what == what)
        table.add_row(what, *cells, f"{total:,.0f}")
    table.add_section()
    sums = [f"{region.monthly_usd:,.0f}" for region, _ in shown]
    table.add_row("all", *sums, f"{layout.monthly_usd:,.0f}")
    return table


def _alike(regions: Sequence[Region]) -> list[tuple[Region, int]]:
    """The regions, those with the same bill once."""
    keys = [tuple((item.what, round(item.monthly_usd)) for item in r.bill) for r in regions]
    counts = Counter(keys)
    return [
        (region, counts[key])
        for place, (region, key) in enumerate(zip(regions, keys, strict=True))
        if keys.index(key) == place
    ]


def _item(region: Region, what: str) -> str:
    for item in region.bill:
        if item.what == what:
            return f"{_amount(item)}{item.monthly_usd:,.0f}"
    return ""


def _amount(item: Item) -> str:
    if item.unit == "GiB":
        return f"{figure(item.count * GIB / TB)} TB: "
    return f"{item.count:,.0f} × {item.unit}: " if item.unit else ""


def _notes(layout: Layout, prices: str) -> Iterator[str]:
    """The limits of the answer."""
    costs, found = layout.costs, max((r.connections for r in layout.regions), default=0)
    if layout.is_possible:
        yield (
            f"One machine holds up to {counted(layout.max_connections, 'connection')}, bound by "
            f"{layout.bound_by}: set WS_MAX_CONNECTIONS to that, 10,000 is its default."
        )
    if layout.target_cpu_percent > _REJECT_PERCENT:
        yield (
            f"A server admits nobody while its events take {_REJECT_PERCENT:g} % of the CPU "
            "(WS_CPU_REJECT_THRESHOLD). The storm does not know that: keep --target-cpu below it."
        )
    most = max(found, layout.max_connections)
    if costs.max_connections is not None and most > costs.max_connections:
        yield (
            f"{most:,} connections on a machine are beyond what was measured "
            f"({costs.max_connections:,})."
        )
    yield (
        "Not measured, so not in the answer: the CPU of nats-server and of a proxy. A cloud may "
        "count the traffic of all regions together, which is cheaper. Other continents cost more. "
        f"Prices: {prices}. Costs: {costs.source}."
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return f"> {LONGEST_SECONDS / 60:.0f} min"
    return f"{value:.1f} s"


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=not number)
    return table
