"""What `trio-odin serve` runs: the server in this process, with workers, or as one of them."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import structlog
import trio

from trio_odin import server
from trio_odin.cli.common import raise_limit_of_files, run, start_logs, warned_about
from trio_odin.ledger.snapshot import Build
from trio_odin.overload.process import settle_garbage_collector
from trio_odin.overload.watchdog import Notify, prove_life, systemd_notify, tell_nobody
from trio_odin.server import Server
from trio_odin.settings.reading import differing
from trio_odin.settings.reload import ReadEnvironment
from trio_odin.settings.setting_field import SettingError
from trio_odin.settings.settings import Settings
from trio_odin.signals import (
    Signals,
    drain_on_signal,
    end_signals,
    has_terminal,
    leave_changes_to_parent,
    obey_signals,
    serve_signals,
)
from trio_odin.telemetry.logs import configure_logs
from trio_odin.workers.parent_link import ParentLink
from trio_odin.workers.supervisor import Supervisor, WorkerUnfit, serve_with_workers

# Started in a nursery; reports the server, which can be drained.
_Start: TypeAlias = Callable[..., Awaitable[None]]
# Carries out signals on that server.
_Obey: TypeAlias = Callable[..., Awaitable[None]]
# Proves that the loop turns.
_Live: TypeAlias = Callable[[], Awaitable[None]]


def serve(settings: Settings, environment: Mapping[str, str], read: ReadEnvironment) -> None:
    """Serve until a signal ends it, in this process or with workers.

    Args:
        settings: the settings of the server.
        environment: the variables that they were read from.
        read: reads these again, for a reload.

    Raises:
        SystemExit: with 2 and a sentence, where a port, a file or a worker cannot be had.
    """
    start_logs(settings, environment)
    build = Build.here(settings.revision)
    structlog.get_logger("server").info(
        "server.starting",
        version=build.version,
        revision=build.revision,
        python=build.python,
        settings=differing(environment),
    )
    raise_limit_of_files(settings, settings.workers)
    if settings.workers > 1:
        start: _Start = partial(serve_with_workers, settings, environment)
    else:
        settle_garbage_collector()
        start = partial(server.serve, settings)
    notify = systemd_notify(os.environ)
    obey: _Obey = partial(
        obey_signals,
        read=partial(warned_about, read),
        hangup_ends=has_terminal(),
        notify=notify,
    )
    live: _Live = partial(prove_life, settings.watchdog_seconds, notify)
    run(
        partial(_until_ended, start, serve_signals(), obey, live, notify), WorkerUnfit, SettingError
    )


def serve_as_worker(
    settings: Settings, number: int, file_number: int, sockets: Sequence[tuple[int, int]]
) -> None:
    """Serve as a worker until its parent ends it.

    Args:
        settings: the settings of the server.
        number: this worker's number.
        file_number: the file number of the link to the parent.
        sockets: the sockets that it inherits: the number of their worker, and their file number.
    """
    leave_changes_to_parent()
    configure_logs(settings.log_level, settings.log_format, worker=number)
    settle_garbage_collector()
    start = partial(_work, settings, number, file_number, sockets)
    # Only the parent reports to systemd.
    live: _Live = partial(prove_life, settings.watchdog_seconds, tell_nobody)
    run(
        partial(_until_ended, start, end_signals(), drain_on_signal, live, tell_nobody),
        SettingError,
    )


async def _work(
    settings: Settings,
    number: int,
    file_number: int,
    sockets: Sequence[tuple[int, int]],
    *,
    task_status: trio.TaskStatus[Server],
) -> None:
    inherited: dict[int, list[int]] = {}
    for queue, socket_file in sockets:
        inherited.setdefault(queue, []).append(socket_file)
    link = ParentLink(file_number, number=number)
    await server.serve(settings, link, inherited=inherited, worker=number, task_status=task_status)


async def _until_ended(
    start: _Start, signals: Signals, obey: _Obey, live: _Live, notify: Notify
) -> None:
    """Run what `start` starts until it ends, by itself or by a drain after a signal."""
    with signals as received:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live, name="watchdog")
            serving: Server | Supervisor = await nursery.start(start)
            notify("READY=1")
            stop = nursery.cancel_scope
            nursery.start_soon(partial(obey, received, serving, stop=stop))
            await serving.finished.wait()
            stop.cancel(reason="the server has finished")
