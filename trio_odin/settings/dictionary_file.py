"""The dictionary that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trio_odin.settings.setting_field import SettingError
from trio_odin.settings.settings import Settings
from trio_odin.wire.dictionary import DICTIONARY_MAX_BYTES, Dictionary, built_in

_OFF: Final = Path("off")


def dictionary_of(settings: Settings) -> Dictionary | None:
    """Return the dictionary of the subprotocol `trio-odin.z1`; None: it is switched off.

    Raises:
        SettingError: the file cannot be read, is empty or is too large.
    """
    path = settings.dictionary
    if path is None:
        return built_in()
    if path == _OFF:
        return None
    try:
        with path.open("rb") as file:
            return Dictionary(file.read(DICTIONARY_MAX_BYTES + 1))
    except OSError as error:
        reason = error.strerror
    except ValueError as error:
        reason = str(error)
    raise SettingError(
        f"WS_DICTIONARY={str(path)!r}: allowed is off, or a file of at most "
        f"{DICTIONARY_MAX_BYTES:,} bytes ({reason})"
    )
