"""`trio-odin serve`, and the entry point of its workers."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias

import click
import structlog
import trio

from trio_odin.cli.common import (
    check_memory_limit,
    fail,
    flag,
    raise_limit_of_files,
    run,
    settings_from,
    settings_of,
    start_logs,
    warned_about,
    with_reload_file_and,
)
from trio_odin.ledger.snapshot import Build
from trio_odin.overload.process import settle_garbage_collector
from trio_odin.overload.watchdog import Notify, prove_life, systemd_notify, tell_nobody
from trio_odin.server import Server, serve
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


@click.command("serve", short_help="Serve NATS token events to WebSocket clients.")
@flag("--addr")
@flag("--nats")
@flag("--nats-mode")
@flag("--max-connections")
@flag("--workers")
@flag("--log-level")
@flag("--log-format")
@click.option(
    "--check",
    "is_check",
    is_flag=True,
    help="Check settings, files, ports, limits and NATS, print a line about each, and exit.",
)
@click.option("--json", "is_json", is_flag=True, help="With --check: print one JSON object.")
# Its number, and the file number of its link.
@click.option("--as-worker", nargs=2, type=int, hidden=True)
# The sockets that it inherits: the number of their worker, and their file number.
@click.option("--socket", "sockets", multiple=True, nargs=2, type=int, hidden=True)
def serve_command(
    as_worker: tuple[int, int] | None,
    sockets: tuple[tuple[int, int], ...],
    *,
    is_check: bool,
    is_json: bool,
    **flags: str | None,
) -> None:
    """Serve NATS token events to WebSocket clients.

    Every setting is an environment variable; docs/configuration.md lists them all. The flags here
    are other spellings of the most common ones. The file that WS_RELOAD_FILE names overrides both.

    SIGTERM or Ctrl-C drains: the server tells each client when to come back, sends what waits for
    it, and closes the connection. A second signal stops immediately. SIGHUP reads the file and the
    keys again; started from a terminal, SIGHUP drains, because a terminal sends it when it closes.
    SIGUSR2 replaces the workers one after the other and refuses no client. SIGUSR1 is ignored.

    --check tells whether a server could serve here: exit code 0 if it could, 1 if a check has
    failed, 2 if a setting is wrong. It changes nothing, neither here nor in NATS. The port of a
    server that runs already is not free.
    """
    if is_json and not is_check:
        fail("--json needs --check")
    faulthandler.enable()  # write the stack also if a signal ends the process
    if is_check:
        _check(partial(with_reload_file_and, flags), is_json=is_json)
    elif as_worker is not None:
        _serve_as_worker(settings_from(flags), *as_worker, sockets)
    else:
        _serve(partial(with_reload_file_and, flags))


def _check(read: ReadEnvironment, *, is_json: bool) -> None:
    # Imported here: a server that serves does not need it.
    from trio_odin.check import Finding, check  # noqa: PLC0415

    settings, environment = settings_of(read)
    check_memory_limit(settings, settings.workers)
    # What goes wrong is in the findings; a log between them would not be JSON.
    configure_logs("critical", settings.log_format)
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if not is_json:
            click.echo(f"{finding.result.value:8} {finding.what:17} {finding.text}")

    is_good = run(partial(check, settings, environment, tell))
    if is_good == "interrupted":
        sys.exit(130)
    if is_json:
        checks = [
            {"check": one.what, "result": one.result.value, "text": one.text} for one in findings
        ]
        click.echo(json.dumps({"ok": is_good, "checks": checks}, indent=2, ensure_ascii=False))
    sys.exit(0 if is_good else 1)


def _serve(read: ReadEnvironment) -> None:
    settings, environment = settings_of(read)
    check_memory_limit(settings, settings.workers)
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
        start = partial(serve, settings)
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


def _serve_as_worker(
    settings: Settings, number: int, file_number: int, sockets: Sequence[tuple[int, int]]
) -> None:
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
    await serve(settings, link, inherited=inherited, worker=number, task_status=task_status)


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
