"""The dictionary of the subprotocol `trio-odin.z1`: what clients have before the first event.

It is public: everybody may read it at /dictionary/ID. The one in the package is that of the
simulated market, made by `trio-odin dictionary --market --out trio_odin/wire/dictionary.bin`.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from importlib.resources import files
from typing import Final

import attrs
import msgspec

from trio_odin.wire.messages import DictionaryNotice

# RFC 1951, 2: no distance is larger, so what is before that is never referred to.
DICTIONARY_MAX_BYTES: Final = 32 * 1024
_ID_DIGITS: Final = 16
_BUILT_IN: Final = "dictionary.bin"


@attrs.frozen(slots=False)
class Dictionary:
    """A dictionary: what is most common is at its end.

    Raises:
        ValueError: it is empty or too large.
    """

    content: bytes

    def __attrs_post_init__(self) -> None:
        if not self.content:
            raise ValueError("it is empty")
        if len(self.content) > DICTIONARY_MAX_BYTES:
            raise ValueError(f"it has more than {DICTIONARY_MAX_BYTES:,} bytes")

    @cached_property
    def id(self) -> str:
        """The first digits of its SHA-256: the same content has the same id everywhere."""
        return hashlib.sha256(self.content).hexdigest()[:_ID_DIGITS]

    @property
    def path(self) -> str:
        """Where clients get it."""
        return f"/dictionary/{self.id}"

    def announcement(self) -> bytes:
        """The first message on a connection that uses it, as JSON."""
        return msgspec.json.encode(DictionaryNotice(self.id, len(self.content), self.path))


def built_in() -> Dictionary:
    """The dictionary of the package."""
    return Dictionary(files("trio_odin.wire").joinpath(_BUILT_IN).read_bytes())
