"""`trio-odin publisher`: to control a running publisher from afar."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

from trio_odin.cli.common import NumberRange, run
from trio_odin.lab.load.plan import is_address
from trio_odin.lab.load.publisher import (
    PublisherRefuses,
    PublisherSilent,
    ask_publisher,
    command_publisher,
)
from trio_odin.lab.market import parse_tokens

_DEFAULT_URL = "http://127.0.0.1:3003"
_MILLISECONDS = 1000

_F = TypeVar("_F", bound=Callable[..., Any])


def _publisher_url(_: click.Context, __: click.Parameter, text: str) -> str:
    if not is_address(text, {"http", "https"}):
        raise click.BadParameter(f"{text!r}: allowed is an address like {_DEFAULT_URL}")
    return text.rstrip("/")


def _tokens(_: click.Context, __: click.Parameter, text: str | None) -> list[str] | None:
    try:
        return None if text is None else parse_tokens(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}") from error


_url_option = click.option(
    "--url",
    callback=_publisher_url,
    default=_DEFAULT_URL,
    envvar="PUBLISHER_URL",
    show_default=True,
    show_envvar=True,
    help="The publisher's HTTP control.",
)
_tokens_option = click.option(
    "--tokens",
    callback=_tokens,
    metavar="N|SYMBOL,…",
    help="How many tokens, or which.  [default: as the publisher has it]",
)


def _rate_option(default: float | None) -> Callable[[_F], _F]:
    return click.option(
        "--rate",
        type=NumberRange(min=0, min_open=True, max=100_000),
        default=default,
        show_default=default is not None,
        metavar="PER_SECOND",
        help="Events a second over all tokens; the plan's load is 12, its peak 30.",
    )


@click.group("publisher", short_help="Start, stop and ask a running publisher.")
def publisher_command() -> None:
    """Control a publisher that runs already: `trio-odin publish`, here or on the back-end.

    \b
      trio-odin publish --idle &                              # one to control
      trio-odin publisher start                               # the plan's 12 events a second
      trio-odin publisher configure --rate 30                 # its peak, without a pause
      trio-odin publisher stats --url http://10.0.0.3:3003
      trio-odin publisher stop

    Exit code 0 means that it is done, 1 that the publisher refused, with its reason, 2 that nobody
    answers or that an option is wrong.
    """  # noqa: D301 - click needs the character, not the backslash


@publisher_command.command("start")
@_url_option
@_rate_option(12.0)
@_tokens_option
@click.option(
    "--duration",
    type=NumberRange(min=0, min_open=True, max=10_000_000),
    metavar="SECONDS",
    help="Stop after that by itself.  [default: never]",
)
def start_command(url: str, rate: float, tokens: list[str] | None, duration: float | None) -> None:
    """Have it publish, with new statistics. It refuses if it publishes already."""
    duration_ms = None if duration is None else duration * _MILLISECONDS
    _command(url, "start", messagesPerSecond=rate, tokens=tokens, duration=duration_ms)


@publisher_command.command("stop")
@_url_option
def stop_command(url: str) -> None:
    """Have it publish nothing more. Not a mistake if it does not publish anyway."""
    _command(url, "stop")


@publisher_command.command("configure")
@_url_option
@_rate_option(None)
@_tokens_option
def configure_command(url: str, rate: float | None, tokens: list[str] | None) -> None:
    """Change rate or tokens; what is not given stays. A run in progress goes on with it."""
    if rate is None and tokens is None:
        raise click.UsageError("nothing to configure: give --rate, --tokens or both")
    _command(url, "configure", messagesPerSecond=rate, tokens=tokens)


@publisher_command.command("stats")
@_url_option
def stats_command(url: str) -> None:
    """Say what it has published since its last start, and how it is configured.

    Errors are events that were due and are not known to be in NATS.
    """
    found = _answer_of(partial(ask_publisher, url))
    stats, configured = found.get("stats") or {}, found.get("configuration") or {}
    tokens = configured.get("tokens") or []
    click.echo(f"publishing: {'yes' if found.get('isPublishing') else 'no'}")
    click.echo(f"published:  {stats.get('messagesPublished')}")
    click.echo(f"errors:     {stats.get('errors')}")
    click.echo(f"NATS:       {found.get('nats')}")
    click.echo(f"rate:       {configured.get('messagesPerSecond')} a second")
    click.echo(f"tokens:     {len(tokens)}, {_named(tokens)}")


def _named(tokens: list[str], at_most: int = 10) -> str:
    return " ".join(tokens[:at_most]) + (" …" if len(tokens) > at_most else "")


def _command(url: str, action: str, **options: Any) -> None:
    """Have it done with those options that were given, and say what came of it."""
    given = {name: value for name, value in options.items() if value is not None}
    answer = _answer_of(partial(command_publisher, url, action, **given))
    published = (answer.get("stats") or {}).get("messagesPublished")
    click.echo(f"{answer.get('message')}; published so far: {published}")


def _answer_of(ask: Callable[[], Any]) -> dict[str, Any]:
    """What the publisher answers; ends the process if it does not, or refuses."""
    refusal = ""

    async def asked() -> dict[str, Any]:
        nonlocal refusal
        try:
            answer: dict[str, Any] = await ask()
        except PublisherRefuses as error:
            refusal = str(error)
            return {}
        return answer

    answer = run(asked, PublisherSilent)
    if answer == "interrupted":
        sys.exit(130)
    if refusal:
        click.echo(f"trio-odin: {refusal}", err=True)
        sys.exit(1)
    found: dict[str, Any] = answer
    return found
