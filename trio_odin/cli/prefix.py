"""The option --prefix of the commands that make network namespaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from trio_odin.lab.hosts.lock import check_prefix

_F = TypeVar("_F", bound=Callable[..., Any])


def prefix_option(of_what: str) -> Callable[[_F], _F]:
    """Declare it; its help says that it is the prefix `of_what`."""
    return click.option(
        "--prefix",
        callback=_prefix,
        default="odin",
        show_default=True,
        help=f"Prefix of {of_what}.",
    )


def _prefix(_: click.Context, __: click.Parameter, text: str) -> str:
    try:
        check_prefix(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return text
