"""Who a client is, as far as the log may tell: never a token, never a query string."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

_SHOWN_MAX: Final = 120


class Identity(NamedTuple):
    """Where a client comes from, and what it calls itself; both None or empty if unknown."""

    address: str | None = None
    user_agent: str = ""


UNKNOWN: Final = Identity()


def shown(text: str) -> str:
    """Foreign text as a line of a log may have it: not long, and nothing but printable."""
    text = text[:_SHOWN_MAX]
    return text if text.isprintable() else text.encode("unicode_escape").decode()


@lru_cache(maxsize=256)  # most clients are one of a few browsers: they share the text
def user_agent(header: bytes) -> str:
    """The header User-Agent, as `shown`."""
    return shown(header.decode("latin-1"))
