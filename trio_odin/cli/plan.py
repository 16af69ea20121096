"""`trio-odin plan`: the machines that a number of users needs, and their cost."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import BinaryIO, NoReturn

import click
from rich.console import Console

from trio_odin.cli.common import NumberRange, WholeRange, require_extra
from trio_odin.lab.model.answer import render
from trio_odin.lab.model.comparison import Quote, compare
from trio_odin.lab.model.fit import BadFigure, TooLittle, fit, predictions
from trio_odin.lab.model.model import ENDLESS, PLAN_COSTS, Costs, Demand, Instance
from trio_odin.lab.model.regions import REGIONS_MAX, Common, Layout, lay_out
from trio_odin.lab.model.regions_answer import render_layout
from trio_odin.lab.model.tables import Prices, read_costs, read_prices
from trio_odin.lab.model.wire import ENCODINGS
from trio_odin.lab.report.folder import read_verdict
from trio_odin.lab.verdict import LabResult
from trio_odin.settings.reading import read_settings
from trio_odin.wire.rates import RATES_MS, granted

_TABLE_CHARS = 100
_TOKENS_MAX = 1_000_000
_VCPUS_MAX = 1_024
_MIB_MAX = 2**30
_SHARE_MAX = 1e9
_EVERY_MS = (0, 250, 1000)
_LEAST_MS = read_settings({}).least_every_ms


def _home_share(_: click.Context, __: click.Parameter, text: str) -> float:
    """Read a share; 0.8 and 80% are the same."""
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise click.BadParameter(f"{text!r}: allowed is a share, 0 to 1, or 0% to 100%")
    return share


def _shares(_: click.Context, __: click.Parameter, text: str | None) -> list[float] | None:
    """Read the shares of the regions."""
    if text is None:
        return None
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not (1 <= len(shares) <= REGIONS_MAX and all(0 < one <= _SHARE_MAX for one in shares)):
        raise click.BadParameter(
            f"{text!r}: allowed are 1 to {REGIONS_MAX} numbers above 0, such as 50,30,20"
        )
    return shares


def _lab_result(_: click.Context, __: click.Parameter, path: Path | None) -> LabResult | None:
    if path is None:
        return None
    try:
        return read_verdict(path)
    except ValueError as error:
        raise click.BadParameter(f"{error}; allowed is a run of the capacity lab") from error


@click.command(
    "plan", short_help="Compute the machines that a number of users needs, and the cost."
)
@click.option(
    "--users",
    type=WholeRange(min=1, max=ENDLESS),
    default=10_000,
    show_default=True,
    help="Number of users, with one connection each.",
)
@click.option(
    "--home",
    "home_share",
    callback=_home_share,
    default="0.8",
    metavar="SHARE",
    show_default=True,
    help="Share of users with the home page open; the others hold one token each.",
)
@click.option(
    "--home-tokens",
    type=WholeRange(min=1, max=_TOKENS_MAX),
    default=30,
    show_default=True,
    help="Number of tokens on the home page.",
)
@click.option(
    "--tokens",
    type=WholeRange(min=1, max=_TOKENS_MAX),
    default=200,
    show_default=True,
    help="Number of tokens in total.",
)
@click.option(
    "--rate",
    type=NumberRange(min=0, min_open=True, max=100_000),
    default=12.0,
    show_default=True,
    help="Events a second over all tokens.",
)
@click.option(
    "--payload",
    "payload_bytes",
    type=WholeRange(min=2, max=1_048_576),
    default=200,
    metavar="BYTES",
    show_default=True,
    help="Size of an event; affects only the network and its cost.",
)
@click.option(
    "--every-ms",
    type=WholeRange(min=0, max=RATES_MS[-1]),
    metavar="N",
    help="Users ask for at most one update of a channel in N milliseconds; 0: for every event. "
    "The rate is the one that a server grants: the next longer one that it has.  "
    "[default: traffic of 0, 250 and 1000, machines of 0]",
)
@click.option(
    "--encoding",
    type=click.Choice(ENCODINGS),
    help="Encoding of the events.  [default: traffic of all, machines of plain]",
)
@click.option(
    "--machine",
    default="e2-standard-2",
    metavar="NAME",
    show_default=True,
    help=f"{', '.join(read_prices().machines)}; or VCPUS,MIB,USD such as 4,16384,120.",
)
@click.option(
    "--workers",
    type=WholeRange(min=1, max=64),
    default=1,
    show_default=True,
    help="Processes on each machine; each uses one core at most.",
)
@click.option(
    "--spare",
    type=WholeRange(min=0, max=100),
    default=1,
    show_default=True,
    help="Extra machines, in case one fails.",
)
@click.option(
    "--target-cpu",
    type=NumberRange(min=0, min_open=True, max=100),
    default=75.0,
    metavar="PERCENT",
    show_default=True,
    help="How much of the usable cores to use at most.",
)
@click.option(
    "--costs",
    type=click.Choice(["plan", "measured"]),
    help="Which costs to use.  [default: the lab's latest, if any, beside the plan's]",
)
@click.option(
    "--fit",
    "lab_result",
    callback=_lab_result,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Take the costs from this run of the lab: its folder or its verdict.json.",
)
@click.option(
    "--regions",
    type=WholeRange(min=1, max=REGIONS_MAX),
    metavar="N",
    help="Spread the users over so many regions, each with its own NATS cluster of three, and "
    "show what the loss of each part means.",
)
@click.option(
    "--shares",
    callback=_shares,
    metavar="A,B,…",
    help="Users of each region, in proportion, such as 50,30,20; the stream of events is in the "
    "first.  [default: the same for all]",
)
@click.option(
    "--survive-region",
    is_flag=True,
    help="Buy as many machines as the users of a lost region need in the others.",
)
@click.option(
    "--json",
    "json_file",
    type=click.File("wb", lazy=False),
    metavar="FILE",
    help="Also write the figures to this file; -: instead of the text.",
)
def plan_command(
    users: int,
    home_share: float,
    home_tokens: int,
    tokens: int,
    rate: float,
    payload_bytes: int,
    every_ms: int | None,
    encoding: str | None,
    machine: str,
    workers: int,
    spare: int,
    target_cpu: float,
    costs: str | None,
    lab_result: LabResult | None,
    regions: int | None,
    shares: list[float] | None,
    survive_region: bool,
    json_file: BinaryIO | None,
) -> None:
    """Compute the traffic to a number of users, the machines that they need, and the cost a month.

    After the answer comes the traffic, as it costs most: of every event, or of the newest event of
    each channel at each tick of a rate (--every-ms); as plain text or compressed (--encoding).

    An event goes to all subscribers of its token, so deliveries a second are users × subscriptions
    ÷ tokens × events a second. CPU is deliveries times the cost of each; memory is users times the
    cost of a connection. The resource that runs out first limits a machine. The costs are the
    latest measured ones, beside those of the isolation plan.

    \b
      trio-odin plan --users 50000 --home 60% --rate 30 --workers 2
      trio-odin plan --rate 30 --every-ms 1000 --encoding z1
      trio-odin plan --machine e2-small --target-cpu 60 --json figures.json
      trio-odin plan --machine 4,16384,120 --workers 3 --users 40000
      trio-odin plan --users 1000000 --regions 3 --every-ms 1000 --encoding z1
      trio-odin plan --users 1000000 --shares 50,30,20 --survive-region
      trio-odin plan --fit docs/capacity

    With --regions or --shares the answer is about regions: machines, NATS, money and, for the
    loss of a node, of a NATS node or of a region, how long until all clients are back
    (docs/scale.md).

    `--fit` calibrates the costs with a run of the lab, and shows how well a fit to the
    small stages predicts the large ones. Exit code 0 means that there is an answer, 1 that no
    number of these machines is enough.
    """  # noqa: D301 - click needs the character, not the backslash
    given_ms = None if every_ms is None else granted(every_ms, least_ms=_LEAST_MS)
    try:
        demand = Demand(
            users=users,
            home_share=home_share,
            home_tokens=home_tokens,
            tokens=tokens,
            rate=rate,
            payload_bytes=payload_bytes,
            every_ms=given_ms or 0,
            encoding=encoding or "plain",
        )
    except ValueError as error:
        raise click.UsageError(
            f"--home-tokens {home_tokens}: allowed is at most --tokens, {tokens}"
        ) from error
    prices, known = read_prices(), _measured(costs, lab_result)
    if regions is not None or shares is not None:
        common = Common(
            costs=known or PLAN_COSTS,
            instance=_machine(prices, machine),
            tariff=prices.tariff,
            workers=workers,
            target_cpu_percent=target_cpu,
            spare=spare,
            survives_region=survive_region,
        )
        layout = lay_out(
            demand, common, _given_shares(regions, shares), ways=_ways(given_ms, encoding)
        )
        _show_layout(layout, prices, json_file)
    if survive_region:
        raise click.UsageError("--survive-region: allowed with --regions or --shares only")
    quote = compare(
        demand,
        _machine(prices, machine),
        prices,
        known,
        workers=workers,
        target_cpu_percent=target_cpu,
        spare=spare,
        predictions=None if lab_result is None else predictions(lab_result),
        ways=_ways(given_ms, encoding),
        asked_every_ms=every_ms,
    )
    _show(quote, json_file)


def _given_shares(regions: int | None, shares: list[float] | None) -> list[float]:
    """The shares of all regions; the same for all if none were given."""
    if shares is None:
        return [1.0] * (regions or 1)
    if regions not in (None, len(shares)):
        raise click.UsageError(
            f"--shares: allowed are {regions} numbers, one for each of --regions; "
            f"{len(shares)} were given"
        )
    return shares


def _ways(every_ms: int | None, encoding: str | None) -> list[tuple[int, str]]:
    """The rates and encodings to compare: every event and what was given, or all usual ones."""
    rates = _EVERY_MS if every_ms is None else sorted({0, every_ms})
    encodings = ENCODINGS if encoding is None else [encoding]
    return [(rate, one) for rate in rates for one in encodings]


def _console() -> Console:
    # A file or a pipe gets the table in full width; a terminal has its own width.
    return Console(highlight=False, width=None if sys.stdout.isatty() else _TABLE_CHARS)


def _is_written(figures: bytes, json_file: BinaryIO | None) -> bool:
    """Write the figures, if asked; returns whether they are on the screen, instead of the text.

    They come first: whoever reads only the head of the text has them, too.
    """
    if json_file is None:
        return False
    json_file.write(figures + b"\n")
    json_file.flush()
    return json_file is sys.stdout.buffer


def _show_layout(layout: Layout, prices: Prices, json_file: BinaryIO | None) -> NoReturn:
    if not _is_written(layout.as_json(), json_file):
        render_layout(layout, prices.described, _console())
    sys.exit(0 if layout.is_possible else 1)


def _show(quote: Quote, json_file: BinaryIO | None) -> None:
    if not _is_written(quote.as_json(), json_file):
        render(quote, _console())
    sys.exit(0 if quote.is_possible else 1)


def _machine(prices: Prices, name: str) -> Instance:
    if name in prices.machines:
        return prices.machines[name]
    parts = name.split(",")
    try:
        vcpus, memory_mib, usd = map(float, parts)
    except ValueError:
        vcpus = memory_mib = usd = math.nan
    if not (0 < vcpus <= _VCPUS_MAX and 0 < memory_mib <= _MIB_MAX and 0 <= usd < math.inf):
        known = ", ".join(prices.machines)
        raise click.BadParameter(
            f"{name!r}: allowed are {known}, or numbers above 0 as VCPUS,MIB,USD",
            param_hint="--machine",
        )
    own = f"{vcpus:g} vCPU, {memory_mib:,.0f} MiB"
    return Instance(name=own, vcpus=vcpus, memory_mib=memory_mib, monthly_usd=usd)


def _measured(choice: str | None, lab_result: LabResult | None) -> Costs | None:
    """Return the measured costs that the options ask for; None for the plan's costs alone."""
    if lab_result is not None:
        if choice == "plan":
            raise click.UsageError("--costs plan: allowed with --fit is measured, or no --costs")
        return _fitted(lab_result)
    if choice == "plan":
        return None
    costs = read_costs()
    if costs is None and choice == "measured":
        raise click.UsageError("--costs measured: nothing was measured yet; give --fit RUN")
    return costs


def _fitted(lab_result: LabResult) -> Costs:
    require_extra("lab", "scipy")
    try:
        return fit(lab_result.stages)
    except (TooLittle, BadFigure) as error:
        raise click.UsageError(f"--fit: {error}") from error
