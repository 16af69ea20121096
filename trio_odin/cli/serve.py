"""`trio-odin serve`, and what each of its workers is started as."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

import click
import trio

from trio_odin.cli.common import (
    environment_with,
    flag,
    raise_limit_of_files,
    run,
    settings_from,
    start_logs,
)
from trio_odin.config import Settings
from trio_odin.server.siblings import Siblings
from trio_odin.server.signals import drain_on_signal, end_signals
from trio_odin.server.tree import Server, serve
from trio_odin.server.workers import Parent, WorkerUnfit, serve_with_workers
from trio_odin.telemetry.logs import configure_logs
from trio_odin.telemetry.process import settle_garbage_collector

# Started in a nursery, it gives back what can be drained.
_Start: TypeAlias = Callable[..., Awaitable[None]]


@click.command("serve", short_help="Serve NATS token events to WebSocket clients.")
@flag("--addr")
@flag("--nats")
@flag("--nats-mode")
@flag("--max-connections")
@flag("--workers")
@flag("--log-level")
@flag("--log-format")
@click.option("--as-worker", nargs=2, type=int, hidden=True)  # its number and its link's file
def serve_command(as_worker: tuple[int, int] | None, **flags: str | None) -> None:
    """Serve NATS token events to WebSocket clients.

    Every setting is an environment variable; docs/configuration.md lists them all, and the flags
    here are other spellings of the commonest. SIGTERM or Ctrl-C drains: clients get what waits for
    them and a close frame; a second one stops at once.
    """
    settings = settings_from(flags)
    if as_worker is not None:
        number, file_number = as_worker
        configure_logs(settings.log_level, settings.log_format, worker=number)
        settle_garbage_collector()
        start: _Start = partial(_serve_as_worker, settings, file_number)
    else:
        start_logs(settings)
        raise_limit_of_files(settings, settings.workers)
        if settings.workers > 1:
            start = partial(serve_with_workers, settings, environment_with(flags))
        else:
            settle_garbage_collector()
            start = partial(serve, settings)
    run(partial(_until_signalled, start), WorkerUnfit)


async def _serve_as_worker(
    settings: Settings, file_number: int, *, task_status: trio.TaskStatus[Server]
) -> None:
    await serve(settings, Siblings(file_number), task_status=task_status)


async def _until_signalled(start: _Start) -> None:
    """Run what `start` starts until it has ended by itself, or in order after a signal."""
    with end_signals() as signals:
        async with trio.open_nursery() as nursery:
            serving: Server | Parent = await nursery.start(start)
            stop = nursery.cancel_scope
            nursery.start_soon(partial(drain_on_signal, signals, serving, stop=stop))
            await serving.finished.wait()
            stop.cancel(reason="what served has finished")
