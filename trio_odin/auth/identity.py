"""The identity of a client, as far as logs may show it: never a token, never a query string."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

_SHOWN_MAX: Final = 120


class Identity(NamedTuple):
    """The address and the user agent of a client; None or empty if unknown."""

    address: str | None = None
    user_agent: str = ""


UNKNOWN: Final = Identity()


def shown(text: str) -> str:
    """Return foreign text as a log line may show it: short, and of printable characters only."""
    text = text[:_SHOWN_MAX]
    return text if text.isprintable() else text.encode("unicode_escape").decode()


@lru_cache(maxsize=256)  # most clients are one of a few browsers, and share the text
def user_agent(header: bytes) -> str:
    """Return the header User-Agent as `shown` does."""
    return shown(header.decode("latin-1"))
