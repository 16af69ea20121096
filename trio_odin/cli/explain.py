"""`trio-odin explain`."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable

import click

from trio_odin.admin.explaining import explain, facts_in
from trio_odin.cli.common import fail


@click.command("explain", short_help="Say in sentences why a connection ended.")
@click.argument("line", nargs=-1)
def explain_command(line: tuple[str, ...]) -> None:
    """Turn lines of the server's log about the end of connections into sentences.

    LINE is a line with the event connection.evicted or connection.closed, of any LOG_FORMAT.
    Without it the lines come from standard input, and other lines are passed over:

        journalctl -u trio-odin -o cat | trio-odin explain

    Put LINE into single quotes. Exit code 2: there was no such line.
    """
    if not line and sys.stdin.isatty():
        fail("give a line of the log, or the log itself on standard input; see --help")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    lines: Iterable[str] = [" ".join(line)] if line else sys.stdin
    found = 0
    for text in lines:
        facts = facts_in(text)
        if facts is None:
            continue
        if found:
            click.echo()
        found += 1
        for sentence in explain(facts):
            click.echo(sentence)
    if not found:
        fail("there is no line with the event connection.evicted or connection.closed")
