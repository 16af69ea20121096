"""`trio-odin top`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from trio_odin.cli.common import NumberRange, WholeRange, fail, is_installed
from trio_odin.client.tokens import TokenUnusable, usable
from trio_odin.settings.extras import install_hint
from trio_odin.top import figures
from trio_odin.top.source import Reading, Source, SourceError

_INTERVAL_MAX = 3600.0
_ROWS_MAX = 10_000
_CHANNELS_MAX = 50
_PLAIN_WIDTH = 200
_BETWEEN_READINGS_SECONDS = 1.0


@click.command("top", short_help="Watch the connections of a running server.")
@click.argument("url", default="http://127.0.0.1:3008")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    envvar="WS_ADMIN_TOKEN_FILE",
    show_envvar=True,
    help="File with the token of the admin API, if it needs one.",
)
@click.option(
    "--interval",
    type=NumberRange(0.2, _INTERVAL_MAX),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two readings.",
)
@click.option(
    "--sort",
    type=click.Choice(figures.SORTS),
    default=figures.SORTS[0],
    show_default=True,
    help="Order of the connections.",
)
@click.option(
    "--filter",
    "filter_text",
    default="",
    metavar="TEXT",
    help="Only some connections: address=10.0.0.0/8 user=ann channel=BTC.* lagging",
)
@click.option("--once", is_flag=True, help="Print two readings' figures as text, and end.")
@click.option("--json", "is_json", is_flag=True, help="With --once: print them as JSON.")
@click.option(
    "--limit",
    type=WholeRange(1, _ROWS_MAX),
    default=20,
    show_default=True,
    help="With --once: connections at most.",
)
def top_command(
    url: str,
    token_file: Path | None,
    interval: float,
    sort: str,
    filter_text: str,
    once: bool,
    is_json: bool,
    limit: int,
) -> None:
    """Show load, rates, slow clients, hot channels, NATS and losses of the server at URL.

    URL is its admin address; the server logs it when it starts (admin of server.listening).

    \b
    Keys:  s sort   r reverse   / filter   Enter open   t follow frames   x close (asks first)
           Tab other table   p pause   Esc back, no filter   q quit

    Needs textual: pip install 'trio-odin[top]'; not so with --once.
    """  # noqa: D301 - click's mark for a paragraph as it is
    source = _source(url, token_file)
    try:
        query: dict[str, Any] = {"sort": sort, **figures.filters_of(filter_text)}
    except ValueError as error:
        fail(f"--filter: {error}")
    if is_json and not once:
        fail("--json: allowed is --once --json")
    if once:
        _print_once(source, query, limit, is_json=is_json)
        return
    if not is_installed("textual"):
        fail(f"not installed: textual; {install_hint('top')}, or use --once")
    if not sys.stdout.isatty():
        fail("standard output is not a terminal: use --once, or --once --json")
    from trio_odin.top.app import TopApp  # noqa: PLC0415 - textual is of an extra

    TopApp(source, interval=interval, query=query).run()


def _source(url: str, token_file: Path | None) -> Source:
    token = ""
    if token_file is not None:
        try:
            token = usable(token_file.read_text("ascii").strip())
        except (OSError, UnicodeError) as error:
            fail(f"--token-file {str(token_file)!r}: {error}")
        except TokenUnusable:  # not shown, as it is a secret
            fail(f"--token-file {str(token_file)!r}: allowed is one line with a token")
    try:
        return Source(url, token)
    except ValueError as error:
        fail(f"URL {url!r}: allowed is {error}")


def _print_once(source: Source, query: dict[str, Any], limit: int, *, is_json: bool) -> None:
    try:
        before = _read(source, query, limit)
        time.sleep(_BETWEEN_READINGS_SECONDS)
        now = _read(source, query, limit)
    except SourceError as error:
        fail(str(error), exit_code=1)
    if is_json:
        rates = figures.rates_between(before, now)
        click.echo(json.dumps(figures.as_json(source.name, now, rates)))
    else:
        click.echo("\n".join(figures.as_text(source.name, now, before, _PLAIN_WIDTH)))


def _read(source: Source, query: dict[str, Any], limit: int) -> Reading:
    channels = source.get("/channels", {"limit": min(limit, _CHANNELS_MAX)})
    connections = source.get("/connections", {**query, "limit": limit})
    return Reading(time.monotonic(), source.get("/overview"), connections, channels)
