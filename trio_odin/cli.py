"""The command line: the only place with print, exit, the environment and trio.run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TypeVar

import click
import structlog
import trio

from trio_odin import __version__
from trio_odin.config import SettingError, Settings, read_settings, variables, warnings_about
from trio_odin.net.address import AddressUnavailable
from trio_odin.server.tree import Server, serve
from trio_odin.telemetry.logs import configure_logs
from trio_odin.telemetry.process import raise_file_limit

# Files beside the connections: listeners, NATS, logs, requests to /metrics.
_FILES_BESIDE = 64

_F = TypeVar("_F", bound=Callable[..., Any])


def _flag(option: str, variable: str) -> Callable[[_F], _F]:
    """A flag that is another spelling of a variable, with the variable's own help and default."""
    known = {known.name: known for known in variables()}[variable]
    return click.option(
        option,
        variable,
        metavar="TEXT",
        help=f"{known.help}  [env: {variable}; default: {known.default}]",
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="trio-odin")
def main() -> None:
    """Token events from NATS, over WebSocket, to whom they concern.

    Start with `trio-odin up`: a NATS server, a publisher and the WebSocket server in one go.
    """


@main.command("serve")
@_flag("--addr", "WS_ADDR")
@_flag("--nats", "NATS_URL")
@_flag("--nats-mode", "NATS_MODE")
@_flag("--max-connections", "WS_MAX_CONNECTIONS")
@_flag("--log-level", "LOG_LEVEL")
@_flag("--log-format", "LOG_FORMAT")
def serve_command(**flags: str | None) -> None:
    """Serve NATS token events to WebSocket clients.

    Every setting is an environment variable; docs/configuration.md lists them all, and the flags
    here are other spellings of the commonest. SIGTERM or Ctrl-C drains: clients get what waits for
    them and a close frame; a second one stops at once.
    """
    settings = _settings(flags)
    _start_logs(settings)
    _run(partial(_serve_until_signalled, settings))


def _settings(flags: dict[str, str | None]) -> Settings:
    given = {name: text for name, text in flags.items() if text is not None}
    try:
        return read_settings({**os.environ, **given})
    except SettingError as error:
        _fail(str(error))


def _start_logs(settings: Settings) -> None:
    configure_logs(settings.log_level, settings.log_format)
    log = structlog.get_logger("cli")
    for sentence in warnings_about(os.environ):
        log.warning("setting.ignored", reason=sentence)
    files = raise_file_limit()
    if settings.max_connections + _FILES_BESIDE > files:
        log.warning(
            "files.limited",
            limit=files,
            needed=settings.max_connections + _FILES_BESIDE,
            reason="the limit of open files is below WS_MAX_CONNECTIONS: raise nofile",
        )


async def _serve_until_signalled(settings: Settings) -> None:
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(serve, settings)
        nursery.start_soon(drain_on_signal, server, nursery.cancel_scope)
        await server.finished.wait()
        nursery.cancel_scope.cancel(reason="the server has finished")


async def drain_on_signal(server: Server, scope: trio.CancelScope) -> None:
    """The first SIGTERM or SIGINT drains `server`, the second cancels `scope`."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if server.is_draining:
                scope.cancel(reason="second signal")
                return
            server.drain()


def _run(function: Callable[[], Any]) -> None:
    """Run under trio; a person's mistake becomes a sentence and exit code 2."""
    try:
        with suppress(KeyboardInterrupt):
            trio.run(function, strict_exception_groups=True)
    except* AddressUnavailable as group:
        _fail(str(_first(group)))


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(sentence: str) -> NoReturn:
    click.echo(f"trio-odin: {sentence}", err=True)
    sys.exit(2)
