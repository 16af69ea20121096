"""Options shared by the commands that publish a market or listen to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from trio_odin.cli.common import NumberRange
from trio_odin.demo.market import parse_tokens
from trio_odin.demo.shares import DEFAULT_EVENTS, Shares, parse_events

_F = TypeVar("_F", bound=Callable[..., Any])


def _tokens(_: click.Context, __: click.Parameter, text: str) -> list[str]:
    try:
        return parse_tokens(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}") from error


def _events(_: click.Context, __: click.Parameter, text: str) -> tuple[str, ...]:
    try:
        return parse_events(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}") from error


rate_option = click.option(
    "--rate",
    type=NumberRange(min=0, min_open=True, max=100_000),
    default=12.0,
    show_default=True,
    help="Events a second over all tokens.",
)
tokens_option = click.option(
    "--tokens",
    callback=_tokens,
    default="10",
    metavar="N|SYMBOL,…",
    show_default=True,
    help="Number of tokens, or their symbols.",
)
events_option = click.option(
    "--events",
    callback=_events,
    default=",".join(DEFAULT_EVENTS),
    metavar="all|TYPE,…",
    show_default=True,
    help="Event types: trade, liquidity, metadata, social, favorites, creation, balances, and "
    "analytics, which are candles. With several, most events are trades.",
)


def shares_option(default: Shares) -> Callable[[_F], _F]:
    """The option `--shares`: those who measure need another default than those who look."""
    return click.option(
        "--shares",
        type=click.Choice(get_args(Shares)),
        default=default,
        show_default=True,
        help="How the events are spread over the tokens. even: each token in its turn, as a "
        "measurement needs it. zipf: as on a real market, the first token has most of them, and "
        "the last fifth has one a minute or less.",
    )
