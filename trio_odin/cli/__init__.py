"""The command line: the only place with print, exit, the environment and trio.run.

A module for each command, which is imported when that command is called: `serve`, and so each
worker of it, loads none of what the lab needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

import click

from trio_odin import __version__

# `NAME_command` is in the module of that name.
_NAMES = (
    "bench",
    "lab",
    "load",
    "plan",
    "publish",
    "ready",
    "serve",
    "settings",
    "up",
    "watch",
)


class _Commands(Mapping[str, click.Command]):
    """The commands by their names, each imported when it is asked for."""

    def __getitem__(self, name: str) -> click.Command:
        if name not in _NAMES:
            raise KeyError(name)
        module = import_module(f"trio_odin.cli.{name}")
        command: click.Command = getattr(module, f"{name}_command")
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)


@click.group(
    commands=_Commands(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="trio-odin")
def main() -> None:
    """Token events from NATS, over WebSocket, to whom they concern.

    Start with `trio-odin up`: a NATS server, a publisher and the WebSocket server in one go.
    """
