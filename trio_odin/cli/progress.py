"""Progress of a long command, in one line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.status import Status

_LINE_SECONDS = 5.0


@contextmanager
def telling(console: Console) -> Iterator[Callable[[str, str], None]]:
    """Yield a function that takes the name of the current step and a line about it.

    A terminal shows the newest line. Otherwise standard error gets a line when a step begins, and
    then one every 5 s.
    """
    if console.is_terminal:
        with Status("starting", console=console) as status:
            yield lambda _, line: status.update(line)
        return
    told_at: dict[str, float] = {}

    def tell(name: str, line: str) -> None:
        now = time.monotonic()
        if now - told_at.get(name, -math.inf) >= _LINE_SECONDS:
            told_at[name] = now
            click.echo(line, err=True)

    yield tell
