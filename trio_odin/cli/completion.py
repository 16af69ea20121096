"""`trio-odin completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_NAME = "trio-odin"
_VARIABLE = "_TRIO_ODIN_COMPLETE"
_SHELLS = ("bash", "zsh", "fish")


@click.command("completion", short_help="Print a script that completes commands in a shell.")
@click.argument("shell", type=click.Choice(_SHELLS))
def completion_command(shell: str) -> None:
    """Print a script with which bash, zsh or fish complete the commands and options of trio-odin.

    \b
      bash   trio-odin completion bash > ~/.local/share/bash-completion/completions/trio-odin
      zsh    trio-odin completion zsh > "${fpath[1]}/_trio-odin"
      fish   trio-odin completion fish > ~/.config/fish/completions/trio-odin.fish

    It takes effect in the next shell. For this one alone:

    \b
      source <(trio-odin completion bash)
    """  # noqa: D301 - click needs the character, not the backslash
    root = click.get_current_context().find_root().command
    completion = get_completion_class(shell)
    if completion is None:  # click knows all of them, unless somebody has taken one away
        raise click.ClickException(f"the installed click cannot complete in {shell}")
    source = completion(root, {}, _NAME, _VARIABLE)
    # Not `source.source()`, which for bash starts bash to look at its version.
    click.echo(source.source_template % source.source_vars())
