"""`trio-odin lab` and `trio-odin lab down`."""

from __future__ import annotations

import datetime as dt
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.status import Status
from rich.text import Text

from trio_odin.cli.common import NumberRange, fail, require_extra, run
from trio_odin.cli.prefix import prefix_option
from trio_odin.demo.nats_server import BrokerUnavailable
from trio_odin.lab.capacity.rig import ProgramFailed
from trio_odin.lab.capacity.runner import LabPlan, Told, run_lab
from trio_odin.lab.capacity.stages import STAGES, Stage, stage_of
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.hosts.hosts import HostsUnavailable
from trio_odin.lab.hosts.namespaces import down
from trio_odin.lab.load.criteria import tally
from trio_odin.lab.report.folder import write_report
from trio_odin.lab.verdict import LabResult, StageResult

_INTERRUPTED = 130
_LONG_SECONDS = 120
_HOLD_MIN_SECONDS = 5
_MISTAKES = (HostsUnavailable, BrokerUnavailable, LoadImpossible, ProgramFailed)
_OF_A_RUN = ("verdict.json", "report.html", "series", "logs")


def _stages(_: click.Context, __: click.Parameter, text: str) -> list[Stage]:
    """Read `all`, `1,2,7` or `2-5,9`."""
    numbers = [stage.number for stage in STAGES]
    if text == "all":
        return list(STAGES)
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise click.BadParameter(f"{text!r}: {_stages_allowed()}")
        chosen += range(int(first), int(last or first) + 1)
    if not chosen or set(chosen) - set(numbers):
        raise click.BadParameter(f"{text!r}: {_stages_allowed()}")
    return [stage_of(number) for number in sorted(set(chosen))]


def _stages_allowed() -> str:
    return f"allowed are all, or numbers from 1 to {len(STAGES)} such as 1,2 or 2-5,9"


_STAGE_LINES = "\n".join(f"      {stage.number:>2}  {stage.title}" for stage in STAGES)


@click.group("lab", invoke_without_command=True, short_help="Prove the capacity on isolated hosts.")
@click.option(
    "--stages",
    callback=_stages,
    default="all",
    show_default=True,
    metavar="N,…",
    help="Stages to run, such as 1,2 or 2-5,9.",
)
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder for the report.  [default: lab-DATE-TIME]",
)
@click.option(
    "--hold",
    type=NumberRange(min=_HOLD_MIN_SECONDS, max=86_400),
    metavar="SECONDS",
    help="Hold of every stage.  [default: that of the plan, up to 30 minutes]",
)
@click.option(
    "--idle",
    type=NumberRange(min=1, max=3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Time before each hold, without events.",
)
@click.option("--short", is_flag=True, help="Hold each stage for 2 minutes, the soak for 10.")
@click.option(
    "--no-isolation",
    is_flag=True,
    help="Run on loopback: needs no root, but all hosts share one network.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Selects the sample of channels."
)
@prefix_option("namespaces and cgroups")
@click.pass_context
def lab_command(
    context: click.Context,
    *,
    stages: list[Stage],
    folder: Path | None,
    hold: float | None,
    idle: float,
    short: bool,
    no_isolation: bool,
    seed: int,
    prefix: str,
) -> None:
    """Prove the capacity: three isolated hosts on this machine, stage by stage, and a verdict."""
    if context.invoked_subcommand is not None:
        return
    require_extra("demo,lab", "hdrh", "jinja2", "matplotlib", "psutil", "scipy", "websockets")
    folder = folder or Path(f"lab-{dt.datetime.now(tz=dt.UTC):%Y%m%d-%H%M%S}")
    plan = LabPlan(
        stages=stages,
        folder=_made(folder),
        hold_seconds=hold,
        is_short=short,
        idle_seconds=idle,
        is_isolated=not no_isolation,
        prefix=prefix,
        seed=seed,
        command=shlex.join(["trio-odin", *sys.argv[1:]]),
    )
    # Text of other programs is not markup.
    console = Console(highlight=False, markup=False, soft_wrap=True)
    told = _Screen(plan, console)
    with told:
        result = run(partial(run_lab, plan, told), *_MISTAKES)
    if not isinstance(result, LabResult):
        console.print(f"interrupted; what was found is in {folder}")
        sys.exit(_INTERRUPTED)
    if complaint := _kept(result, folder):
        fail(complaint)
    passed = sum(stage.passed for stage in result.stages)
    console.print(
        f"{'PASSED' if result.passed else 'NOT passed'}: {passed} of {len(result.stages)} stages; "
        f"{folder / 'report.html'}"
    )
    sys.exit(0 if result.passed else 1)


# `\\b` keeps click from flowing the table.
lab_command.help = f"""Prove the capacity: three isolated hosts, stages, a verdict, a report.

The hosts are network namespaces of this machine: ws with the server, within the limits of its
capacity plan (1.9 CPU, 7,168 MiB); backend with nats-server, publisher and, if it is installed,
Prometheus; runner with the clients. The lab removes everything at the end, also after Ctrl-C;
`trio-odin lab down` removes what a kill has left. It does not touch this machine's own network.
Needs the extras `demo` and `lab`, and root and iproute2 or --no-isolation.

\b
{_STAGE_LINES}

\b
      trio-odin lab --stages 1,2 --hold 30
      trio-odin lab --short --out run-1

Exit code 0 means that every stage passed, 1 that one did not.
"""


@lab_command.command("down", short_help="Remove what a killed lab has left.")
@click.pass_context
def down_command(context: click.Context) -> None:
    """Remove what a killed lab has left: its processes, namespaces and cgroups, nothing else.

    For a --prefix other than odin: trio-odin lab --prefix NAME down.
    """
    prefix = context.parent.params["prefix"] if context.parent is not None else "odin"
    removed = run(partial(down, prefix), HostsUnavailable)
    for sentence in removed or ["there was nothing to remove"]:
        click.echo(sentence)


def _made(folder: Path) -> Path:
    """Create the folder, or remove an earlier run from it; return it."""
    try:
        for name in _OF_A_RUN:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (folder / "logs").mkdir(parents=True)
    except OSError as error:
        fail(f"--out {str(folder)!r} cannot be written: {error.strerror}")
    return folder


def _kept(result: LabResult, folder: Path) -> str:
    """Write the report; return the error if that fails, otherwise an empty text."""
    try:
        write_report(result, folder)
    except OSError as error:
        return f"--out {str(folder)!r}: the report cannot be written: {error.strerror}"
    return ""


class _Screen(Told):
    """Shows the progress of a lab; writes the report after each stage, as it may be the last."""

    def __init__(self, plan: LabPlan, console: Console) -> None:
        self._plan = plan
        self._console = console
        self._status = Status("building the hosts", console=console)
        self._what = ""

    def __enter__(self) -> None:
        if self._console.is_terminal:
            self._status.start()

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def stage_begins(self, stage: Stage, seconds_left: float) -> None:
        """Show the stage, and the time left for all stages."""
        self._what = f"stage {stage.number}"
        left = _duration(seconds_left)
        self._console.print(f"{self._what}, {stage.title}; about {left} to go")

    def note(self, sentence: str) -> None:
        """Show how the hosts are isolated, and how they are not."""
        self._console.print(f"  {sentence}", style="dim")

    def line(self, text: str) -> None:
        """Show the progress of the load."""
        if self._console.is_terminal:
            self._status.update(Text(f"{self._what} {text}"))
        else:
            click.echo(f"  {text}", err=True)

    def stage_ended(self, result: StageResult, so_far: LabResult) -> None:
        """Show the result, and write the report."""
        if complaint := _kept(so_far, self._plan.folder):
            self._console.print(complaint, style="red")
        style = "green" if result.passed else "red"
        verdict = "passed" if result.passed else "NOT passed"
        self._console.print(f"  {verdict}{_figures(result)}", style=style)
        if result.failure:
            self._console.print(f"  {result.failure}", style="red")
        for check in result.checks:
            if not check.is_met:
                sentence = f"{check.what}: {check.wanted} wanted, {check.measured} measured"
                self._console.print(f"  {sentence}", style="red")


def _figures(result: StageResult) -> str:
    load = result.load
    if load is None:
        return f": {tally(result.checks, 'checks')}"
    server, latency = load.server, load.latency
    parts = [f"{load.connected:,} of {load.connections:,}"]
    if server.cores is not None and server.percent is not None:
        parts.append(f"{server.cores:.2f} cores ({server.percent:.0f} %)")
    if server.held_mib is not None:
        parts.append(f"{server.held_mib:,.0f} MiB")
    parts.append(f"{load.received_per_second:,.0f} events/s")
    if latency is not None:
        parts.append(f"p99 {latency.p99_ms:,.0f} ms")
    parts.append(f"{load.lost:,} lost")
    return ": " + ", ".join(parts)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= _LONG_SECONDS else f"{seconds:.0f} s"
