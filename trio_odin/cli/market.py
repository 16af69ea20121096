"""Options shared by the commands that publish a market or listen to one."""

from __future__ import annotations

import click

from trio_odin.cli.common import NumberRange
from trio_odin.demo.market import parse_tokens


def _tokens(_: click.Context, __: click.Parameter, text: str) -> list[str]:
    try:
        return parse_tokens(text)
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
