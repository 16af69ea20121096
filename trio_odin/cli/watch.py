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
def watch_command(channels: tuple[str, ...], url: str) -> None:
    """Subscribe to channels such as BTC.trade and print every message as it arrives."""
    ending = run(partial(watch, url, channels, _show), WatchError)
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
