"""Shared by the commands: flags, settings, logs, running under trio, errors and exit codes."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NoReturn, TypeVar

import click
import structlog
import trio
from click.shell_completion import CompletionItem

from trio_odin.net.listening import AddressUnavailable
from trio_odin.overload.process import files_needed, open_files, raise_file_limit, resident_bytes
from trio_odin.settings.extras import install_hint
from trio_odin.settings.reading import (
    read_settings,
    variables,
    warnings_about,
    with_nats_url_file,
    with_reload_file,
)
from trio_odin.settings.setting_field import SettingError
from trio_odin.settings.settings import Settings
from trio_odin.telemetry.logs import configure_logs
from trio_odin.upstream.access import NatsAccess, access_of
from trio_odin.wire.errors import first_error

_FLAGS = {
    "--addr": "WS_ADDR",
    "--nats": "NATS_URL",
    "--nats-mode": "NATS_MODE",
    "--max-connections": "WS_MAX_CONNECTIONS",
    "--workers": "WS_WORKERS",
    "--log-level": "LOG_LEVEL",
    "--log-format": "LOG_FORMAT",
}
_METAVARS = {
    "--nats-mode": "auto|jetstream|core",
    "--log-level": "debug|info|warning|error",
    "--log-format": "json|text|pretty",
    "--workers": "N|auto",
    "--addr": "[HOST]:PORT",
    "--nats": "URL[,URL…]",
}

# What a shell may complete: the words that a flag has to choose from.
_WORDS = {
    option: metavar.removeprefix("N|").split("|")
    for option, metavar in _METAVARS.items()
    if "|" in metavar
}

_F = TypeVar("_F", bound=Callable[..., Any])


class WholeRange(click.IntRange):
    """A whole number from a range, with an error message that says which range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a number.

        Raises:
            click.BadParameter: it is outside the range, or not a whole number.
        """
        try:
            number: int = super().convert(value, param, ctx)
        except click.BadParameter:
            limits = (
                f", {self.min:,} or more"
                if self.max is None
                else (f" from {self.min:,} to {self.max:,}")
            )
            self.fail(f"{str(value)!r}: allowed is a whole number{limits}", param, ctx)
        return number


class NumberRange(click.FloatRange):
    """A number from a range. Click alone accepts `nan`, which no comparison rejects."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read a number.

        Raises:
            click.BadParameter: it is outside the range, or not a number.
        """
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r}: allowed is a number", param, ctx)
        return number


def flag(option: str, *, default: str | None = None) -> Callable[[_F], _F]:
    """Declare a flag that is another spelling of a variable, with its help and default."""
    variable = _FLAGS[option]
    known = {known.name: known for known in variables()}[variable]
    return click.option(
        option,
        variable,
        envvar=variable,
        default=default,
        metavar=_METAVARS.get(option, "TEXT"),
        shell_complete=lambda _, __, begun: [
            CompletionItem(word) for word in _WORDS.get(option, ()) if word.startswith(begun)
        ],
        help=f"{known.help}  [env: {variable}; default: {default or known.default}]",
    )


def settings_from(flags: dict[str, str | None]) -> Settings:
    """Read the settings from the environment and the flags; exit if one is wrong."""
    settings, _ = settings_of(lambda: with_nats_url_file(environment_with(flags)))
    return settings


def settings_of(
    read: Callable[[], Mapping[str, str]],
) -> tuple[Settings, Mapping[str, str]]:
    """Return the settings in the environment that `read` gives, and that; exit if one is wrong."""
    try:
        environment = read()
        return read_settings(environment), environment
    except SettingError as error:
        fail(_as_given(str(error)))


def nats_access_of(settings: Settings) -> NatsAccess:
    """Return how to log in to NATS; exit if a file for that cannot be used."""
    try:
        return access_of(settings)
    except SettingError as error:
        fail(str(error))


def environment_with(flags: Mapping[str, str | None]) -> dict[str, str]:
    """Return the environment, overridden by the flags that were given."""
    return os.environ | {name: text for name, text in flags.items() if text is not None}


def with_reload_file_and(flags: Mapping[str, str | None]) -> dict[str, str]:
    """Return the environment and the flags, overridden by the files that they name.

    Raises:
        SettingError: a file is missing or invalid.
    """
    return with_nats_url_file(with_reload_file(environment_with(flags)))


def _as_given(complaint: str) -> str:
    """Add the flag to an error message about its variable, if the flag was used."""
    variable = complaint.partition("=")[0]
    flag = next((flag for flag, name in _FLAGS.items() if name == variable), None)
    return f"{flag}: {complaint}" if flag is not None and _is_given(flag) else complaint


def _is_given(flag: str) -> bool:
    """Whether the flag itself was given, and not only its variable in the environment."""
    return any(argument.partition("=")[0] == flag for argument in sys.argv[1:])


def start_logs(settings: Settings, environment: Mapping[str, str] | None = None) -> None:
    """Set up the log as the settings say, and first log warnings about the settings.

    Args:
        settings: the settings in force.
        environment: the environment they were read from; default: that of the process.
    """
    configure_logs(settings.log_level, settings.log_format)
    environment = os.environ if environment is None else environment
    _warn(settings, environment)
    if "@" in environment.get("NATS_URL", "") and _is_given("--nats"):
        structlog.get_logger("cli").warning(
            "setting.exposed",
            reason="--nats contains a password, and every user of this machine can read it: "
            "use the variable NATS_URL",
        )


def warned_about(read: Callable[[], Mapping[str, str]]) -> Mapping[str, str]:
    """Return the environment that `read` gives, after logging warnings about it.

    Raises:
        SettingError: a setting is wrong.
    """
    environment = read()
    _warn(read_settings(environment), environment)
    return environment


def _warn(settings: Settings, environment: Mapping[str, str]) -> None:
    log = structlog.get_logger("cli")
    for sentence in warnings_about(settings, environment):
        log.warning("setting.ignored", reason=sentence)


def check_memory_limit(settings: Settings, workers: int = 1) -> None:
    """Exit if the memory limit is below what the processes take without a client."""
    processes = workers + (workers > 1)
    taken = resident_bytes() * processes
    if 0 < settings.memory_limit_bytes < taken:
        fail(
            f"WS_MEMORY_LIMIT={str(settings.memory_limit_bytes)!r}: allowed is 0, for the limit of "
            f"the container, or more bytes than {taken}, which this server takes without a client"
        )


def raise_limit_of_files(settings: Settings, workers: int = 1) -> None:
    """Raise the limit of open files, which child processes inherit; warn if it is too low."""
    files = raise_file_limit()
    needed = files_needed(settings.max_connections, workers)
    if needed > files:
        structlog.get_logger("cli").warning(
            "files.limited",
            limit=files,
            needed=needed,
            reason="the limit of open files is too low for WS_MAX_CONNECTIONS: raise nofile",
        )
    if open_files() is None:
        structlog.get_logger("cli").warning(
            "proc.missing",
            reason="/proc cannot be read: /metrics has no process_open_fds, the limits of a "
            "container are not detected, and memory is reported as its peak",
        )


def run(function: Callable[[], Any], *mistakes: type[Exception]) -> Any:
    """Run under trio; turn a mistake of the user into an error message and exit code 2.

    A lack of memory or threads becomes an error message and exit code 1: the next attempt may
    succeed. If nobody reads the output, the exit code is 1, too, and there is nothing to say.

    Args:
        function: asynchronous; Ctrl-C ends it, unless it handles that itself.
        mistakes: exceptions whose text is the message; an address in use is always one.

    Returns:
        What `function` returns, or "interrupted".
    """
    result = "interrupted"
    complaint = shortage = ""
    is_unread = False
    expected: tuple[type[Exception], ...] = (AddressUnavailable, *mistakes)
    try:
        result = trio.run(function, strict_exception_groups=True)
    except* KeyboardInterrupt:
        pass
    except* SystemExit:
        is_unread = True  # what rich makes of a reader such as `head` that has gone
    except* expected as group:
        complaint = str(first_error(group))  # an exit here would become part of a group
    except* (MemoryError, RuntimeError) as group:
        shortage = _shortage(first_error(group))
        if not shortage:
            raise
    if complaint:
        fail(complaint)
    if shortage:
        fail(shortage, exit_code=1)
    if is_unread:
        sys.exit(1)
    return result


def _shortage(error: BaseException) -> str:
    """Return what the machine lacks, as a sentence; empty if `error` has another cause."""
    if isinstance(error, MemoryError):
        return "out of memory: raise the limit of the container, or of ulimit -v"
    if "start new thread" in str(error):
        return "no further thread: raise the limits of memory (ulimit -v) or processes (ulimit -u)"
    return ""


_PACKAGES = {"hdrh": "hdrhistogram"}


def require_extra(extra: str, *modules: str) -> None:
    """Exit with code 2 if a module is not installed; they come with an extra of the package."""
    missing = [_PACKAGES.get(name, name) for name in modules if not is_installed(name)]
    if missing:
        fail(f"not installed: {', '.join(missing)}; {install_hint(extra)}")


def is_installed(module: str) -> bool:
    """Whether a module can be imported. It is not imported for this."""
    try:
        return find_spec(module) is not None
    except ValueError:  # the module was made unavailable on purpose
        return False


def fail(sentence: str, exit_code: int = 2) -> NoReturn:
    """Print an error that the user can act on, and exit."""
    click.echo(f"trio-odin: {sentence}", err=True)
    sys.exit(exit_code)
