"""`trio-odin load`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

import click
from rich.console import Console

from trio_odin.cli.common import NumberRange, require_extra, run
from trio_odin.cli.market import tokens_option
from trio_odin.cli.progress import telling
from trio_odin.lab.capacity.stages import HOME_SHARE, STAGES, TOKENS
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.fleet.workload import Workload
from trio_odin.lab.load.criteria import INTEGRITY, Criterion, at_least, at_most, checks
from trio_odin.lab.load.plan import LoadPlan, health_beside
from trio_odin.lab.load.report import render
from trio_odin.lab.load.runner import LoadAbandoned, run_load

# The plan's capacity tests, and which stages of the lab they are.
_PLAN_STAGES = {"1k": 2, "5k": 3, "10k": 4}
_INTERRUPTED = 130


def _plan(context: click.Context, _: click.Parameter, name: str | None) -> None:
    """Have a test of the plan in place of the defaults; what is given goes before it."""
    if name is None:
        return
    stage = next(stage for stage in STAGES if stage.number == _PLAN_STAGES[name])
    bounds = {one.figure: one.bound for one in stage.criteria if one.source == "plan"}
    context.default_map = {
        "connections": stage.connections,
        "mix": f"home={HOME_SHARE:g},token={1 - HOME_SHARE:g}",
        "tokens": str(TOKENS),
        "hold": stage.hold_seconds,
        "rate": stage.rate,
        "expect_success": bounds["success"],
        "expect_rejected_below": bounds["rejected"],
        "expect_cpu_below": bounds["cpu"],
        "expect_memory_below": bounds.get("memory"),
    }


def _mix(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """The share of home-page users in `home=0.8,token=0.2`."""
    if text is None:
        return None
    allowed = "allowed is home=SHARE,token=SHARE, two numbers from 0 to 1 that add up to 1"
    shares: dict[str, float] = {}
    try:
        for part in text.replace(" ", "").split(","):
            name, share = part.split("=")
            shares[name] = float(share)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {allowed}") from error
    home = shares.get("home", 0.0)
    is_whole = abs(home + shares.get("token", 0.0) - 1) < 1e-9
    if not is_whole or not 0 <= home <= 1 or set(shares) - {"home", "token"}:
        raise click.BadParameter(f"{text!r}: {allowed}")
    return home


_expect_options: list[tuple[str, str, Callable[[float], Criterion], str]] = [
    (
        "--expect-success",
        "SHARE",
        partial(at_least, "success"),
        "share of connections subscribed, such as 1.0.",
    ),
    (
        "--expect-cpu-below",
        "SHARE",
        partial(at_most, "cpu"),
        "mean CPU of the server, of its limit.",
    ),
    ("--expect-memory-below", "MIB", partial(at_most, "memory"), "memory of the server."),
    ("--expect-p99-below", "MS", partial(at_most, "p99"), "latency."),
    ("--expect-rejected-below", "N", partial(at_most, "rejected"), "connections refused."),
]


def _expectations(function: Callable[..., None]) -> Callable[..., None]:
    for flag, metavar, _, text in reversed(_expect_options):
        function = click.option(
            flag, type=NumberRange(min=0), metavar=metavar, help=f"Fail otherwise: {text}"
        )(function)
    return function


@click.command("load", short_help="Hold many connections and check all they get.")
@click.argument("url", default="ws://127.0.0.1:3002/ws")
@click.option(
    "--plan",
    type=click.Choice(list(_PLAN_STAGES)),
    callback=_plan,
    is_eager=True,
    expose_value=False,
    help="A capacity test of the plan: its connections, mix, tokens, rate, time and expectations "
    "in place of the defaults here.",
)
@click.option("--connections", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option(
    "--channels-per-connection",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many of the tokens' trade channels each connection samples.",
)
@click.option(
    "--mix",
    callback=_mix,
    metavar="home=0.8,token=0.2",
    help="Instead: the share of users with the home page, who all hold the same 30 tokens, and of "
    "those with one token.",
)
@click.option(
    "--unfiltered", is_flag=True, help="Instead: subscribe to nothing, and expect everything."
)
@tokens_option
@click.option(
    "--hold",
    type=NumberRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to receive once all are subscribed.",
)
@click.option(
    "--idle",
    type=NumberRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Before that, how long to measure what connections cost that receive nothing.",
)
@click.option(
    "--ramp",
    type=NumberRange(min=0),
    default=0.0,
    metavar="PER_SECOND",
    help="Connects a second; 0, the default: as fast as it goes.",
)
@click.option("--reconnect", is_flag=True, help="Connections that are lost or refused come back.")
@click.option(
    "--churn",
    type=NumberRange(min=0, max=1000),
    default=0.0,
    metavar="PER_SECOND",
    help="Connections replaced in order, a second.",
)
@click.option("--cut", is_flag=True, help="After the hold cut all at once, and have them back.")
@click.option(
    "--publisher",
    metavar="URL",
    help="Control of a `trio-odin publish --idle`: publishes during the hold only.",
)
@click.option(
    "--rate",
    type=NumberRange(min=0, min_open=True),
    metavar="PER_SECOND",
    help="Events a second that the publisher is told.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1, max=64),
    default=1,
    show_default=True,
    help="Of clients, at least; one for each 18,000 connections in any case.",
)
@click.option(
    "--health-url",
    metavar="URL",
    help="The server's /health, with /metrics beside it.  [default: beside URL]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which channels are sampled.")
@_expectations
@click.option(
    "--json",
    "json_file",
    type=click.File("wb", lazy=False),
    metavar="FILE",
    help="Write the figures there too, with a sample of each second.",
)
def load_command(
    *,
    url: str,
    connections: int,
    channels_per_connection: int,
    mix: float | None,
    unfiltered: bool,
    tokens: list[str],
    hold: float,
    idle: float,
    ramp: float,
    reconnect: bool,
    churn: float,
    cut: bool,
    publisher: str | None,
    rate: float | None,
    processes: int,
    health_url: str | None,
    seed: int,
    json_file: BinaryIO | None,
    **expected: float | None,
) -> None:
    """Hold many connections to URL, check every event they get, and say what that cost.

    Needs the extra `lab`. The figures of the server come from /metrics beside /health. Somebody has
    to publish: `trio-odin publish` or `up`, with the same --tokens.

    Exit code 0 means that every event came, once, in order, to whom it concerned, and that what
    you --expect holds; 1 that it does not; 2 that it could not be started from here. Ctrl-C ends in
    order, with the figures so far and exit code 130; a second one ends at once.

    \b
      trio-odin load ws://127.0.0.1:3002/ws --tokens 10 --hold 10
      trio-odin load ws://10.0.0.2:3004/ws --connections 10000 --tokens 200 \\
          --mix home=0.8,token=0.2 --publisher http://10.0.0.3:3003 --rate 12 \\
          --hold 1800 --expect-success 1.0 --expect-cpu-below 0.3 --json load.json
      trio-odin load ws://10.0.0.2:3004/ws --plan 10k --publisher http://10.0.0.3:3003

    Latency is counted from the time that the publisher had planned for an event, so nothing that is
    late can hide; between machines it needs clocks that agree.
    """  # noqa: D301 - click needs the character, not the backslash
    require_extra("hdrh", "psutil")
    workload = Workload(
        channels=[f"{token}.trade" for token in tokens],
        channels_per_connection=channels_per_connection,
        home_share=mix,
        seed=seed,
        is_filtered=not unfiltered,
    )
    plan = LoadPlan(
        url=url,
        connections=connections,
        workload=workload,
        ramp_per_second=ramp,
        idle_seconds=idle,
        hold_seconds=hold,
        is_cut=cut,
        reconnects=reconnect,
        churn_per_second=churn,
        rate=rate,
        publisher_url=publisher,
        processes=processes,
        health_url=health_url or health_beside(url),
    )
    # Without markup: reasons to close are the server's own words.
    console = Console(highlight=False, markup=False, emoji=False)
    try:
        with telling(console) as tell:
            load = partial(run_load, plan, lambda now: tell(now.sample.phase, now.line()))
            result = run(load, LoadImpossible)
    except LoadAbandoned as error:
        click.echo(f"trio-odin: {error}", err=True)
        sys.exit(_INTERRUPTED)
    if result == "interrupted":  # before there was anything to tell
        sys.exit(_INTERRUPTED)
    found = checks(result, [*INTEGRITY, *_criteria(expected)])
    render(result, found, console)
    if json_file is not None:
        json_file.write(result.as_json() + b"\n")
    if result.interrupted:
        sys.exit(_INTERRUPTED)
    sys.exit(0 if all(check.is_met for check in found) else 1)


def _criteria(expected: dict[str, float | None]) -> Iterator[Criterion]:
    """Everybody is to be connected, unless something else was said."""
    bounds = {"expect_success": 1.0} | {k: v for k, v in expected.items() if v is not None}
    for flag, _, criterion, _ in _expect_options:
        bound = bounds.get(flag.removeprefix("--").replace("-", "_"))
        if bound is not None:
            yield criterion(bound)
