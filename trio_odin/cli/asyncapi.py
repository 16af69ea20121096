"""`trio-odin asyncapi`."""

from __future__ import annotations

from pathlib import Path

import click

from trio_odin.cli.common import fail
from trio_odin.wire.contract import asyncapi_json
from trio_odin.wire.type_definitions import python, typescript

_TYPES = {"typescript": typescript, "python": python}


@click.command("asyncapi", short_help="Print the contract of the WebSocket endpoint.")
@click.option(
    "--types",
    "language",
    type=click.Choice(list(_TYPES)),
    help="Print the types of all messages in this language instead.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it to this file instead.",
)
def asyncapi_command(language: str | None, out: Path | None) -> None:
    """Print the contract of the WebSocket endpoint: AsyncAPI 3.0, in JSON.

    It describes every command, everything that the server sends, and the events of the site. A
    server has it at /asyncapi.json, and docs/asyncapi.json is the same.
    """
    content = asyncapi_json() if language is None else _TYPES[language]().encode()
    if out is None:
        click.echo(content, nl=False)
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        fail(f"--out {str(out)!r}: {error.strerror}")
