"""`trio-odin watch`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from trio_odin.cli.common import WholeRange, fail, run
from trio_odin.cli.interrupts import noted_signals, until_signal
from trio_odin.client import ClientError, Position
from trio_odin.client.tokens import TokenSource
from trio_odin.demo.watch import Ending, View, Wanted, watch
from trio_odin.demo.watch_lines import Lines
from trio_odin.demo.watch_table import LiveTable

_EVERY_MAX_MS = 60_000
_PAUSE = -1


class _Every(WholeRange):
    """Milliseconds; a pause is -1, as None would be no answer."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it.

        Raises:
            click.BadParameter: it is neither.
        """
        if value == "pause":
            return _PAUSE
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message}, or pause", param, ctx)


@click.command("watch", short_help="Show what a server sends.")
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@click.option(
    "--url",
    "urls",
    multiple=True,
    default=("ws://127.0.0.1:3002/ws",),
    show_default=True,
    help="URL of the server. If it is given several times, the next one is tried when one fails.",
)
@click.option(
    "--every",
    type=_Every(0, _EVERY_MAX_MS),
    default=0,
    metavar="MS|pause",
    help="At most one event of each channel in so many milliseconds.  [default: every event]",
)
@click.option(
    "--snapshot/--no-snapshot",
    default=True,
    show_default=True,
    help="Begin with the newest event of each channel.",
)
@click.option(
    "--after",
    type=WholeRange(0),
    metavar="OFFSET",
    help="Begin with what follows this offset, as far as the server keeps it; with --epoch. Take "
    "both from the last line of JSON of the type `position`: events may be in another order.",
)
@click.option("--epoch", help="The stream of that offset.")
@click.option(
    "--token",
    envvar="TRIO_ODIN_TOKEN",
    show_envvar=True,
    help="JSON Web Token. Other users of this machine can read the command line: prefer the "
    "variable, or a file.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with a JSON Web Token. It is read again when a new token is needed.",
)
@click.option("--count", type=WholeRange(1), help="End after so many events.")
@click.option("--json", "is_json", is_flag=True, help="Print lines of JSON on a terminal, too.")
def watch_command(
    channels: tuple[str, ...],
    urls: tuple[str, ...],
    every: int,
    snapshot: bool,
    after: int | None,
    epoch: str | None,
    token: str | None,
    token_file: Path | None,
    count: int | None,
    is_json: bool,
) -> None:
    """Follow channels, and connect again whenever that is needed.

    A channel is a name such as BTC.trade, or a pattern such as 'BTC.*', '*.trade' or '>'.

    On a terminal it is a table. The change is that of 24 hours if the events have one, else that
    since the first price. Otherwise each event, gap and state is a line of JSON; `type` says which,
    and `no_event` that a name has never had one, or not lately. A `position`, at most one a second
    and one at each state, is where --after and --epoch can go on: all up to it was in the lines
    before.

    It exits with 0 after Ctrl-C, SIGTERM or --count, and with 1 if the server cannot be reached at
    first, or says no for good.
    """
    if (after is None) != (epoch is None):
        fail("--after and --epoch: both are needed, as an offset is that of one stream")
    wanted = Wanted(
        urls=urls,
        channels=channels,
        every_ms=None if every == _PAUSE else every,
        with_snapshot=snapshot,
        after=None if after is None or epoch is None else Position(epoch, after),
        token=_token_source(token, token_file),
        count=count,
    )
    console = Console()
    with noted_signals() as noted:
        if is_json or not sys.stdout.isatty() or console.is_dumb_terminal:
            view = Lines(_write, channels if snapshot and after is None else ())
            ending = _run(wanted, view, noted)
        else:
            with LiveTable(channels, console) as table:
                ending = _run(wanted, table, noted)
        with suppress(OSError):  # the terminal has gone
            _end(ending)


def _run(wanted: Wanted, view: View, noted: list[int]) -> Ending | str:
    function = partial(until_signal, noted, partial(watch, wanted, view))
    ending: Ending | str = run(function, ClientError)
    return ending


def _end(ending: Ending | str) -> None:
    if isinstance(ending, str):  # a signal
        click.echo(f"trio-odin: {ending}", err=True)
    elif ending.is_failure:
        fail(ending.sentence, exit_code=1)
    else:
        click.echo(f"trio-odin: {ending.sentence}", err=True)


def _token_source(token: str | None, file: Path | None) -> TokenSource | None:
    if file is None:
        return token
    if token is not None:
        fail("a token and a file with one: only one of these is allowed")

    def read() -> str:
        return file.read_text().strip()

    try:
        read()
    except (OSError, UnicodeError) as error:
        fail(f"--token-file {str(file)!r}: {error}")
    return read


def _write(line: str) -> None:
    """Print a line, at once.

    Raises:
        BrokenPipeError: the reader, such as `head`, has gone.
    """
    try:
        click.echo(line)
    except BrokenPipeError:
        # The flush at the interpreter's exit must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
