"""SIGHUP: the settings are read again, and those that can change do, all of them or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import structlog

from trio_odin.settings.reading import changes, read_settings, reloaded
from trio_odin.settings.setting_field import SettingError
from trio_odin.settings.settings import Settings

Environment: TypeAlias = Mapping[str, str]
# Raises SettingError, as whoever reads settings does.
ReadEnvironment: TypeAlias = Callable[[], Environment]
Apply: TypeAlias = Callable[[Settings], None]

_log = structlog.get_logger("reload")


def reload_settings(
    running: Settings, read: ReadEnvironment, *, apply: Sequence[Apply], results: Counter[str]
) -> Settings:
    """Read and check all settings, apply those that can change, and return what now holds.

    Args:
        running: what holds until now, and goes on to hold if anything is wrong.
        read: gives the environment as it is now.
        apply: who has to know. The first may refuse with a `SettingError`, such as for a bad file
            of keys; nobody has taken on anything by then. The others may not.
        results: counts how it went.
    """
    try:
        wanted = read_settings(read())
        settings = reloaded(running, wanted)
        for take_on in apply:
            take_on(settings)
    except SettingError as error:
        results["failed"] += 1
        log_failed_reload(error)
        return running
    results["ok"] += 1
    log_reload(running, settings, later=changes(settings, wanted))
    return settings


def log_failed_reload(error: SettingError) -> None:
    """Say what is wrong."""
    _log.error("reload.failed", reason=str(error), kept="all settings are unchanged")


def log_reload(before: Settings, after: Settings, *, later: Sequence[str] = ()) -> None:
    """Say what has changed, and what will have to wait."""
    if later:
        _log.warning("reload.later", reason=f"takes effect at the next start: {', '.join(later)}")
    _log.info("reload.done", changed=changes(before, after))
