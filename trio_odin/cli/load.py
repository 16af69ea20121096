"""`trio-odin load`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import BinaryIO

import click
import msgspec
from rich.console import Console

from trio_odin.cli.common import NumberRange, WholeRange, require_extra, run
from trio_odin.cli.market import tokens_option
from trio_odin.cli.progress import telling
from trio_odin.lab.capacity.stages import HOME_SHARE, STAGES, TOKENS
from trio_odin.lab.fleet.encodings import ENCODINGS
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.fleet.workload import Workload
from trio_odin.lab.load.criteria import INTEGRITY, Criterion, at_least, at_most, checks
from trio_odin.lab.load.plan import LoadPlan, health_beside
from trio_odin.lab.load.report import render
from trio_odin.lab.load.runner import LoadAbandoned, run_load

# The plan's capacity tests, and the stages of the lab that run them.
_PLAN_STAGES = {"1k": 2, "5k": 3, "10k": 4}
_INTERRUPTED = 130


def _plan(context: click.Context, _: click.Parameter, name: str | None) -> None:
    """Replace the defaults by a test of the plan; options that are given override it."""
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
        "at least this share of connections is subscribed, such as 1.0.",
    ),
    (
        "--expect-cpu-below",
        "SHARE",
        partial(at_most, "cpu"),
        "the server's mean CPU is at most this share of its limit.",
    ),
    (
        "--expect-memory-below",
        "MIB",
        partial(at_most, "memory"),
        "the server's memory is at most this.",
    ),
    ("--expect-p99-below", "MS", partial(at_most, "p99"), "the p99 latency is at most this."),
    (
        "--expect-rejected-below",
        "N",
        partial(at_most, "rejected"),
        "at most this many connections are refused.",
    ),
]


def _expectations(function: Callable[..., None]) -> Callable[..., None]:
    for flag, metavar, _, text in reversed(_expect_options):
        function = click.option(
            flag, type=NumberRange(min=0), metavar=metavar, help=f"Fail unless {text}"
        )(function)
    return function


@click.command("load", short_help="Hold many connections and check all that they receive.")
@click.argument("url", default="ws://127.0.0.1:3002/ws")
@click.option(
    "--plan",
    type=click.Choice(list(_PLAN_STAGES)),
    callback=_plan,
    is_eager=True,
    expose_value=False,
    help="Run a capacity test of the plan: its connections, mix, tokens, rate, time and "
    "expectations replace the defaults here.",
)
@click.option("--connections", type=WholeRange(min=1), default=1000, show_default=True)
@click.option(
    "--channels-per-connection",
    type=WholeRange(min=1),
    default=1,
    show_default=True,
    help="Number of the tokens' trade channels that each connection samples.",
)
@click.option(
    "--mix",
    callback=_mix,
    metavar="home=0.8,token=0.2",
    help="Instead: the share of users with the home page, which has the same 30 tokens for all, "
    "and the share with one token.",
)
@click.option(
    "--unfiltered", is_flag=True, help="Instead: subscribe to nothing, and expect every event."
)
@tokens_option
@click.option(
    "--every-ms",
    type=WholeRange(min=0, max=3_600_000),
    default=0,
    show_default=True,
    metavar="N",
    help="Ask for at most one update of a channel in N milliseconds; 0: every event.",
)
@click.option(
    "--encoding",
    type=click.Choice(ENCODINGS),
    default="plain",
    show_default=True,
    help="Offer the subprotocol trio-odin.z1, or permessage-deflate (deflate).",
)
@click.option(
    "--hold",
    type=NumberRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time to receive events, once all are subscribed.",
)
@click.option(
    "--idle",
    type=NumberRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Time before that to measure the cost of connections that receive nothing.",
)
@click.option(
    "--ramp",
    type=NumberRange(min=0),
    default=0.0,
    metavar="PER_SECOND",
    help="Connects a second; 0, the default: as fast as possible.",
)
@click.option("--reconnect", is_flag=True, help="Reconnect after a connection is lost or refused.")
@click.option(
    "--churn",
    type=NumberRange(min=0, max=1000),
    default=0.0,
    metavar="PER_SECOND",
    help="Connections closed and replaced, a second.",
)
@click.option(
    "--cut", is_flag=True, help="After the hold, cut all connections at once, and reconnect."
)
@click.option(
    "--publisher",
    metavar="URL",
    help="Control a `trio-odin publish --idle`, so that it publishes during the hold only.",
)
@click.option(
    "--rate",
    type=NumberRange(min=0, min_open=True),
    metavar="PER_SECOND",
    help="Events a second to request from the publisher.",
)
@click.option(
    "--processes",
    type=WholeRange(min=1, max=64),
    default=1,
    show_default=True,
    help="Client processes, at least; always one for each 18,000 connections.",
)
@click.option(
    "--health-url",
    metavar="URL",
    help="The server's /health, with /metrics on the same address.  [default: that of URL]",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Selects the sample of channels."
)
@_expectations
@click.option(
    "--json",
    "json_file",
    type=click.File("wb", lazy=False),
    metavar="FILE",
    help="Also write the figures and criteria to this file, with a sample of each second.",
)
def load_command(
    *,
    url: str,
    connections: int,
    channels_per_connection: int,
    mix: float | None,
    unfiltered: bool,
    tokens: list[str],
    every_ms: int,
    encoding: str,
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
    """Hold many connections to URL, check every event they receive, and report the cost.

    Needs the extra `load`. The server's figures come from /metrics on the address of /health.
    `trio-odin publish` or `up` has to publish events, with the same --tokens.

    Exit code 0 means that every event reached its subscribers, once and in order, and that all that
    you --expect holds; 1 that it does not; 2 that the load could not start from here. Ctrl-C closes
    the connections, reports the figures so far, and exits with 130; a second one exits immediately.

    \b
      trio-odin load ws://127.0.0.1:3002/ws --tokens 10 --hold 10
      trio-odin load ws://10.0.0.2:3004/ws --connections 10000 --tokens 200 \\
          --mix home=0.8,token=0.2 --publisher http://10.0.0.3:3003 --rate 12 \\
          --hold 1800 --expect-success 1.0 --expect-cpu-below 0.3 --json load.json
      trio-odin load ws://10.0.0.2:3004/ws --plan 10k --publisher http://10.0.0.3:3003

    With --every-ms each connection must have received or been told to have skipped all events of
    each channel, and the latency includes the wait for the tick. Without a --publisher that this
    load starts and stops it is unknown how many these are; then only the chain of `prev` is
    checked. Bytes are those that the clients read: WebSocket frames, before TLS.

    Latency counts from the time at which the publisher planned an event, so no lateness is hidden.
    Between machines, their clocks must agree.
    """  # noqa: D301 - click needs the character, not the backslash
    require_extra("load", "hdrh", "psutil")
    workload = Workload(
        channels=[f"{token}.trade" for token in tokens],
        channels_per_connection=channels_per_connection,
        home_share=mix,
        seed=seed,
        is_filtered=not unfiltered,
        every_ms=every_ms,
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
        encoding=encoding,
        health_url=health_url or health_beside(url),
    )
    _carry_out(plan, [*INTEGRITY, *_criteria(expected)], json_file)


def _carry_out(plan: LoadPlan, criteria: Sequence[Criterion], json_file: BinaryIO | None) -> None:
    """Run the load, report it, and exit."""
    # Without markup: the server chooses the text of close reasons.
    console = Console(highlight=False, markup=False, emoji=False)
    try:
        with telling(console) as tell:
            load = partial(run_load, plan, lambda now: tell(now.sample.phase, now.line()))
            result = run(load, LoadImpossible)
    except LoadAbandoned as error:
        click.echo(f"trio-odin: {error}", err=True)
        sys.exit(_INTERRUPTED)
    if result == "interrupted":  # before there was anything to report
        sys.exit(_INTERRUPTED)
    found = checks(result, criteria)
    render(result, found, console)
    if json_file is not None:
        content = msgspec.to_builtins(result) | {"checks": msgspec.to_builtins(found)}
        json_file.write(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    if result.interrupted:
        sys.exit(_INTERRUPTED)
    sys.exit(0 if all(check.is_met for check in found) else 1)


def _criteria(expected: dict[str, float | None]) -> Iterator[Criterion]:
    """Yield the criteria that were given; all connections must succeed by default."""
    bounds = {"expect_success": 1.0} | {k: v for k, v in expected.items() if v is not None}
    for flag, _, criterion, _ in _expect_options:
        bound = bounds.get(flag.removeprefix("--").replace("-", "_"))
        if bound is not None:
            yield criterion(bound)
