"""The command line: the only package that prints, exits, reads the environment and calls trio.run.

Each command has a module, which is imported when the command is called. So `serve` and its
workers do not load the dependencies of the lab.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

try:
    import click

    from trio_odin import __version__
except KeyboardInterrupt:
    # Nothing has begun: no traceback.
    raise SystemExit(130) from None

# The module NAME defines `NAME_command`.
_NAMES = (
    "asyncapi",
    "bench",
    "completion",
    "dictionary",
    "explain",
    "lab",
    "load",
    "plan",
    "publish",
    "ready",
    "serve",
    "settings",
    "top",
    "up",
    "watch",
)


class _Commands(Mapping[str, click.Command]):
    """The commands by name; each is imported on first use."""

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


class _Group(click.Group):
    """Commands, of which none prints more than a line when it is interrupted early."""

    def invoke(self, ctx: click.Context) -> Any:
        """Call a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # also while its module is imported
            click.echo("trio-odin: interrupted", err=True)
            ctx.exit(130)


@click.group(
    cls=_Group,
    commands=_Commands(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="trio-odin")
def main() -> None:
    """Serve token events from NATS to WebSocket clients that subscribed to them.

    Start with `trio-odin up`: it runs a NATS server, a publisher and the WebSocket server.
    """
