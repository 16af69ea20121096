"""`trio-odin settings`."""

from __future__ import annotations

from functools import partial

import click

from trio_odin.cli.common import settings_of, with_reload_file_and
from trio_odin.settings.reading import differing, effective


@click.command("settings", short_help="Print the settings that a server would run with.")
@click.option(
    "--changed", is_flag=True, help="Print only settings that differ from their defaults."
)
def settings_command(changed: bool) -> None:
    """Print the settings that `trio-odin serve` would run with here, as NAME=value.

    They come from the environment and the file that WS_RELOAD_FILE names. Secrets are not shown.
    The exit code is 2 if a setting is wrong.
    """
    _, environment = settings_of(partial(with_reload_file_and, {}))
    shown = differing(environment) if changed else effective(environment)
    for name, text in shown.items():
        click.echo(f"{name}={text}")
