"""`trio-odin watch`."""

from __future__ import annotations

import os
import sys
from functools import partial

import click

from trio_odin.cli.common import run
from trio_odin.demo.watch import WatchError, watch


@click.command("watch", short_help="Print what a server sends.")
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@click.option(
    "--url", default="ws://127.0.0.1:3002/ws", show_default=True, help="URL of the server."
)
@click.option("--snapshot", is_flag=True, help="Begin with the newest event of each channel.")
def watch_command(channels: tuple[str, ...], url: str, snapshot: bool) -> None:
    """Subscribe to channels and print every message as it arrives.

    A channel is a name such as BTC.trade, or a pattern such as 'BTC.*', '*.trade' or '>'.
    """
    ending = run(partial(watch, url, channels, _show, with_snapshot=snapshot), WatchError)
    click.echo(f"trio-odin: {ending}", err=True)


def _show(line: str) -> bool:
    """Print a line; return False if the reader, such as `head`, has gone."""
    try:
        click.echo(line)
    except BrokenPipeError:
        # The flush at the interpreter's exit must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
