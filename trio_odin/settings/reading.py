"""Reads the settings from the environment, and compares those of two environments."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import environ

from trio_odin.settings.assignments import parse_assignments
from trio_odin.settings.setting_field import ALLOWED, RELOADS, SHOW, SettingError, shown_path
from trio_odin.settings.settings import Settings

# Variables that begin so are ours; an unknown one is probably a typing error.
_OWN_PREFIXES = ("WS_", "JS_")
# Of those that begin so OpenTelemetry's library reads many, and they are alike.
_LIBRARY_PREFIX = "OTEL_"
# How alike a name has to be to one of the others. Nothing but a typing error is like a long one.
_LIKENESS, _LIKENESS_OF_LONG, _LONG = 0.9, 0.7, 20
_RELOAD_FILE = "WS_RELOAD_FILE"
_NATS_URL, _NATS_URL_FILE = "NATS_URL", "NATS_URL_FILE"
# How to reach one NATS. For another one, none of them holds.
NATS_ACCESS = (
    _NATS_URL, _NATS_URL_FILE, "NATS_USER", "NATS_PASSWORD_FILE", "NATS_TOKEN_FILE",
    "NATS_NKEY_FILE", "NATS_CREDS_FILE", "NATS_TLS_CA", "NATS_TLS_CERT", "NATS_TLS_KEY",
    "NATS_TLS_FIRST",
)  # fmt: skip

# Known to the server this one replaces, without a meaning in this design.
IGNORED = {
    "WS_WORKER_POOL_SIZE": "there is no worker pool; one loop does the fan-out",
    "JS_CONSUMER_NAME": "each process has its own ordered consumer, which has no shared name",
}


@attrs.frozen
class Variable:
    """One variable as the documentation shows it; `allowed` is empty where its help says it."""

    name: str
    default: str
    allowed: str
    help: str
    reloads: bool


def variables() -> list[Variable]:
    """All variables of `Settings`, in order."""
    return [
        Variable(
            name=entry.name,
            default=entry.default,
            allowed=field.metadata[ALLOWED],
            help=entry.help,
            reloads=field.metadata[RELOADS],
        )
        for field, entry in _entries()
    ]


def _entries() -> list[tuple[Any, Any]]:
    """Each field of `Settings`, and what the environment knows of it."""
    fields = attrs.fields(cast("Any", Settings))
    return [(field, field.metadata["environ_config"]) for field in fields]


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings from `environment`; an empty variable counts as unset.

    Raises:
        SettingError: a value is not allowed.
    """
    given = {name: text for name, text in environment.items() if text.strip()}
    return environ.to_config(Settings, given)


def effective(environment: Mapping[str, str]) -> dict[str, str]:
    """The text of every variable in force, from `environment`, without what is secret in it."""
    return {
        entry.name: field.metadata[SHOW](_text_of(entry.name, environment) or entry.default)
        for field, entry in _entries()
    }


def differing(environment: Mapping[str, str]) -> dict[str, str]:
    """Those of them that are not what they are by default.

    Raises:
        SettingError: a value is not allowed.
    """
    names = changes(read_settings({}), read_settings(environment))
    return {name: text for name, text in effective(environment).items() if name in names}


def _text_of(name: str, environment: Mapping[str, str]) -> str:
    return environment.get(name, "").strip()


def with_nats_url_file(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, with the NATS_URL that is in the file that NATS_URL_FILE names.

    A password in a variable is in the output of `docker inspect`, and in each process' environment.

    Raises:
        SettingError: the file cannot be read.
    """
    path = environment.get(_NATS_URL_FILE, "").strip()
    if not path:
        return dict(environment)
    try:
        return {**environment, _NATS_URL: Path(path).read_text("utf-8-sig").strip()}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingError(
            f"{_NATS_URL_FILE}={shown_path(path)!r}: allowed is a file with a NATS_URL in it "
            f"({reason})"
        ) from None


def with_reload_file(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, with what the file that WS_RELOAD_FILE names says in place of it.

    Raises:
        SettingError: there is no such file, or something else is in it.
    """
    path = environment.get(_RELOAD_FILE, "").strip()
    if not path:
        return dict(environment)
    try:
        given = parse_assignments(Path(path).read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingError(
            f"{_RELOAD_FILE}={shown_path(path)!r}: allowed is a file of NAME=value lines ({reason})"
        ) from None
    if _RELOAD_FILE in given:
        raise SettingError(f"{_RELOAD_FILE} cannot be set by the file that it names")
    return {**environment, **given}


def reloaded(running: Settings, wanted: Settings) -> Settings:
    """The settings of a running server with those of `wanted` that can change while it runs."""
    both = copy.copy(running)
    for field, _ in _entries():
        if field.metadata[RELOADS]:
            # Not attrs.evolve, which would convert again what was converted from text.
            object.__setattr__(both, field.name, getattr(wanted, field.name))
    return both


def changes(before: Settings, after: Settings) -> list[str]:
    """The names of the variables in which the two differ, in order."""
    return [
        entry.name
        for field, entry in _entries()
        if getattr(before, field.name) != getattr(after, field.name)
    ]


def warnings_about(settings: Settings, environment: Mapping[str, str]) -> Iterable[str]:
    """A sentence for each variable that is ours but has no effect, or not the one it should.

    `settings` are those in force, which flags may have changed.
    """
    if settings.ping_interval_seconds >= settings.keepalive_seconds:
        yield (
            f"WS_PING_INTERVAL of {settings.ping_interval_seconds:g} s is not below "
            f"WS_KEEPALIVE_TIMEOUT of {settings.keepalive_seconds:g} s: quiet clients are closed"
        )
    if settings.nats_user and settings.nats_password_file is None:
        yield "NATS_USER has no effect without NATS_PASSWORD_FILE"
    if settings.admin_address == "off" and settings.admin_token_file is not None:
        yield "WS_ADMIN_TOKEN_FILE has no effect with WS_ADMIN_ADDR=off"
    known = {variable.name for variable in variables()}
    for name in sorted(environment):
        if name in IGNORED:
            yield f"{name} has no effect: {IGNORED[name]}"
        elif name not in known and (nearest := _meant_by(name, known, environment)):
            yield f"{name} is unknown and has no effect; the nearest known one is {nearest}"


def _meant_by(name: str, known: Collection[str], environment: Mapping[str, str]) -> str | None:
    """The variable of ours that was meant by an unknown `name`, if one was.

    One that begins like most of ours was. Any other may be of another program, so it has to be a
    typing error away from one that is not set: letters swapped, a few too many or too few.
    """
    if name.startswith(_LIBRARY_PREFIX):
        return None
    if name.startswith(_OWN_PREFIXES):
        return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    for candidate in known:
        if candidate.startswith(_OWN_PREFIXES) or candidate in environment:
            continue
        least = _LIKENESS_OF_LONG if len(candidate) > _LONG else _LIKENESS
        is_like = difflib.get_close_matches(name, [candidate], cutoff=least)
        if is_like or sorted(name) == sorted(candidate):
            return candidate
    return None
