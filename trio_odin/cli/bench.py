"""`trio-odin bench`."""

from __future__ import annotations

import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, NoReturn

import attrs
import click
import trio
from rich.console import Console

from trio_odin.cli.common import NumberRange, fail, require_extra, run
from trio_odin.cli.prefix import prefix_option
from trio_odin.cli.progress import telling
from trio_odin.demo.nats_server import BrokerUnavailable
from trio_odin.lab.bench.bridge import ON_RUNNER, over_bridge, run_on_runner
from trio_odin.lab.bench.interpreter import Interpreter, interpreter_at
from trio_odin.lab.bench.plan import STAGES, BenchPlan
from trio_odin.lab.bench.record import BenchReport, as_json
from trio_odin.lab.bench.report import render, render_summary
from trio_odin.lab.bench.runner import Progress, run_benches
from trio_odin.lab.bench.targets import (
    TARGETS,
    Target,
    on_interpreter,
    ours,
    parse_peer,
    why_not_here,
)
from trio_odin.lab.fleet.dialects import DIALECTS
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.hosts.hosts import HostsUnavailable
from trio_odin.lab.hosts.namespaces import hosts_of
from trio_odin.lab.load.plan import is_address
from trio_odin.signals import end_signals

_TABLE_CHARS = 200
_INTERRUPTED = 130
_SHOWN = 100


def _chosen(_: click.Context, __: click.Parameter, text: str) -> list[str]:
    known = {target.name: why_not_here(target) for target in TARGETS}
    names = [one for one in known if not known[one]] if text == "all" else text.split(",")
    for name in names:
        if why_not := known.get(name):
            raise click.BadParameter(f"{name!r}: {why_not}")
        if name not in known and not re.fullmatch(r"odin-([1-9]|[1-5]\d|6[0-4])", name):
            raise click.BadParameter(
                f"{name!r}: allowed are all, {', '.join(known)}, or odin-N for N workers, 1 to 64"
            )
    _require_each_once(names)
    return names


def _require_each_once(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise click.BadParameter(f"{name!r}: it is there twice, and may be only once")


def _stages(_: click.Context, __: click.Parameter, text: str | None) -> list[str] | None:
    if text is None:
        return None
    stages = text.replace(" ", "").split(",")
    if not set(stages) <= set(STAGES):
        raise click.BadParameter(f"{text!r}: allowed are {', '.join(STAGES)}, with commas")
    return stages


def _peers(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> list[Target]:
    try:
        peers = [parse_peer(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    _require_each_once([peer.name for peer in peers])
    return peers


def _nats_url(_: click.Context, __: click.Parameter, text: str) -> str:
    if not is_address(text, {"nats"}):
        raise click.BadParameter(f"{text!r}: allowed is nats://HOST:PORT")
    return text


def _interpreters(
    _: click.Context, __: click.Parameter, paths: tuple[str, ...]
) -> list[Interpreter]:
    try:
        found = [interpreter_at(path) for path in paths]
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if len({one.version for one in found}) < len(found):
        raise click.BadParameter("two of them are the same version: they would have one name")
    return found


def _plot_file(_: click.Context, __: click.Parameter, text: str | None) -> Path | None:
    """Check the name before the measurement, which takes a while."""
    if text is None:
        return None
    path = Path(text)
    if path.suffix not in {".svg", ".png"}:
        raise click.BadParameter(f"{text!r}: allowed is a name that ends in .svg or .png")
    try:
        if not stat.S_ISDIR(path.parent.stat().st_mode):
            raise NotADirectoryError
        with suppress(FileNotFoundError):
            path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise click.BadParameter(f"{text!r}: there is no folder {str(path.parent)!r}") from None
    except OSError as error:
        raise click.BadParameter(f"{text[:_SHOWN]!r}: {error.strerror}") from None
    require_extra("lab", "matplotlib")
    return path


@click.command("bench", short_help="Measure this server against others, on this machine.")
@click.option("--quick", is_flag=True, help="1,000 connections and short stages: about a minute.")
@click.option(
    "--connections",
    type=click.IntRange(min=1, max=1_000_000),
    help="Number of connections.  [default: 10000, quick: 1000]",
)
@click.option(
    "--targets",
    "--subjects",
    "targets",
    callback=_chosen,
    default="all",
    show_default=True,
    metavar="NAME,…",
    help=f"Servers: {', '.join(target.name for target in TARGETS)}; odin-N has N workers.",
)
@click.option(
    "--peer",
    "peers",
    callback=_peers,
    multiple=True,
    metavar="NAME=URL[,DIALECT][,pid=N]",
    help=f"Another server, ws://HOST:PORT/PATH; dialects: {', '.join(DIALECTS)}.  [repeatable]",
)
@click.option(
    "--python",
    "interpreters",
    callback=_interpreters,
    multiple=True,
    metavar="PATH",
    help="Run trio-odin with this Python, in which it is installed.  [repeatable]",
)
@click.option(
    "--nats",
    "nats_url",
    callback=_nats_url,
    default="nats://127.0.0.1:4222",
    show_default=True,
    help="NATS server from which every --peer takes its events.",
)
@click.option(
    "--hold",
    type=NumberRange(min=0.1, max=86_400),
    metavar="SECONDS",
    help="Duration of the main workload.  [default: 30, quick: 2]",
)
@click.option(
    "--rate",
    type=NumberRange(min=0.1, max=1000),
    default=30.0,
    show_default=True,
    help="Events a second of the main workload.",
)
@click.option(
    "--only-hold",
    is_flag=True,
    help="Run the main workload and nothing after it; for many connections.",
)
@click.option(
    "--only",
    callback=_stages,
    metavar="STAGE,…",
    help=f"Run these stages only: {', '.join(STAGES)}.  [default: all, with --quick hold]",
)
@click.option(
    "--bridge",
    is_flag=True,
    help="Run over veth pairs and a bridge, not loopback; needs root, Linux, iproute2, util-linux.",
)
@prefix_option("the network namespaces of --bridge")
@click.option(ON_RUNNER, is_flag=True, hidden=True)
@click.option(
    "--runs",
    "count",
    type=click.IntRange(min=1, max=100),
    default=1,
    show_default=True,
    help="Repeat everything this many times, and add medians with the lowest and highest.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Selects the sample of channels."
)
@click.option(
    "--json",
    "json_file",
    type=click.File("wb", lazy=False),
    metavar="FILE",
    help="Also write the figures to this file, as a list of runs.",
)
@click.option(
    "--plot",
    "plot_file",
    callback=_plot_file,
    metavar="FILE",
    help="SVG or PNG plot of the first run.",
)
def bench_command(
    targets: list[str],
    peers: list[Target],
    interpreters: list[Interpreter],
    connections: int | None,
    hold: float | None,
    rate: float,
    count: int,
    seed: int,
    json_file: BinaryIO | None,
    plot_file: Path | None,
    nats_url: str,
    prefix: str,
    *,
    quick: bool,
    only_hold: bool,
    only: list[str] | None,
    bridge: bool,
    on_runner: bool,
) -> None:
    """Measure this server against others, on this machine.

    Needs the extras `demo` and `lab`. Each server runs in separate processes with a
    fresh nats-server, and is measured from outside: CPU of a delivery, memory of a connection,
    latency from the planned time of the publication, and whether all events arrived. The stages in
    turn: all clients connect and subscribe, 200 at a time; nothing is published; 30 events a second
    to 24 of 200 channels each (W); the same while one client in a hundred never reads; the rate
    doubles, three times at most; and 12 events a second to 16 channels each. Each stage is a load
    like that of `trio-odin load`, with new connections. Three stages are about trio-odin alone and
    take some minutes. Rates: the plan's users and W ask for an update every 1,000 or 250 ms, while
    the market has 30, 300 and 3,000 events a second. Compression: the bytes, CPU and memory of
    each encoding, at W and for home pages with an update every second. TLS: W without it and with
    it, which needs the program openssl.

    A --peer runs elsewhere; its CPU and memory are measured only with its pid on this machine. It
    must take its events from the NATS server of --nats, to which the bench publishes for it.

    With --bridge the server, nats-server and the clients have a network namespace each, joined by
    veth pairs and a bridge. It shows what the way of packets from interface to interface costs,
    which loopback spares, without a network card. `trio-odin lab down` removes what a kill left.

    \b
      trio-odin bench --quick
      trio-odin bench --runs 5 --targets odin,nats --json figures.json --plot figures.svg
      trio-odin bench --quick --targets odin,nats --bridge
      trio-odin bench --targets odin --only rates,compression --json figures.json
      trio-odin bench --targets odin-6 --connections 100000 --hold 60 --only-hold --rate 1

    Exit code 0 means that trio-odin lost and duplicated no event, 1 that it did.
    """  # noqa: D301 - click needs the character, not the backslash
    require_extra("demo,lab", "hdrh", "psutil", "websockets")
    if bridge and not on_runner:
        _run_on_runner(prefix, peers)
    plan = BenchPlan(
        targets=[*_targets(targets, interpreters), *peers],
        rate=rate,
        seed=seed,
        peers_nats_url=nats_url,
    )
    plan = over_bridge(plan, hosts_of(prefix)) if on_runner else plan
    plan = plan.quick() if quick else plan
    plan = plan.only_hold() if only_hold else plan
    if only is not None:
        if only_hold:
            fail("--only cannot be combined with --only-hold")
        plan = _only(plan, only)
    plan = attrs.evolve(
        plan, connections=connections or plan.connections, hold_seconds=hold or plan.hold_seconds
    )
    _carry_out(plan, count, json_file, plot_file)


def _only(plan: BenchPlan, stages: list[str]) -> BenchPlan:
    """The plan with these stages, and the targets that have any of them."""
    plan = plan.only(stages)
    if not plan.is_held:
        plan = attrs.evolve(plan, targets=[target for target in plan.targets if target.is_ours])
    if not plan.targets:
        fail(f"--only {','.join(stages)}: --targets must have odin or odin-N")
    return plan


def _run_on_runner(prefix: str, peers: list[Target]) -> NoReturn:
    """Run this command again on the runner of new hosts, and exit with its exit code."""
    if peers:
        fail("--peer cannot be combined with --bridge, whose hosts reach nothing but each other")
    code = run(partial(run_on_runner, prefix, sys.argv[1:]), HostsUnavailable)
    sys.exit(code if isinstance(code, int) else _INTERRUPTED)


def _carry_out(
    plan: BenchPlan, count: int, json_file: BinaryIO | None, plot_file: Path | None
) -> None:
    """Run the benches, report them, and exit."""
    # A file or a pipe gets the table in full width; a terminal has its own width.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _TABLE_CHARS)
    runs: list[BenchReport] = []
    with telling(console) as tell:
        measure = partial(_bench_until_signalled, plan, count, tell, runs)
        run(measure, LoadImpossible, BrokerUnavailable)
    for report in runs:
        render(report, console)
    if len(runs) > 1:
        render_summary(runs, console)
    if json_file is not None:
        json_file.write(as_json(runs) + b"\n")
    if plot_file is not None:
        _plot(runs[0], plot_file)
    if len(runs) < count or len(runs[-1].targets) < len(plan.targets):
        sys.exit(_INTERRUPTED)
    sys.exit(0 if all(report.is_perfect for report in runs) else 1)


async def _bench_until_signalled(
    plan: BenchPlan, count: int, tell: Progress, runs: list[BenchReport]
) -> None:
    with end_signals() as signals:
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await anext(signals)
                nursery.cancel_scope.cancel(reason="a signal")

            nursery.start_soon(end)
            await run_benches(plan, count, tell, runs)
            nursery.cancel_scope.cancel(reason="all is measured")


def _targets(names: list[str], interpreters: list[Interpreter]) -> Iterator[Target]:
    known = {target.name: target for target in TARGETS}
    for name in names:
        target = known[name] if name in known else ours(int(name.removeprefix("odin-")))
        if target.is_ours and interpreters:
            yield from (on_interpreter(target, one) for one in interpreters)
        else:
            yield target


def _plot(report: BenchReport, path: Path) -> None:
    from trio_odin.lab.bench.plot import plot  # noqa: PLC0415 - its library comes with an extra

    try:
        plot(report, path)
    except (ValueError, OSError) as error:
        fail(f"--plot: {error}")
