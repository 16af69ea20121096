"""For how long a JSON Web Token is valid: the client does not check it, but renews it in time."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec

# A token that stays the same, or a function that gives one, which may be asynchronous.
TokenSource: TypeAlias = str | Callable[[], str | Awaitable[str]]


class _Claims(msgspec.Struct):
    exp: float | None = None


def valid_ms(token: str) -> float | None:
    """For how many milliseconds from now `token` is valid; None if it does not say so."""
    _, _, rest = token.partition(".")
    claims = rest.partition(".")[0]
    try:
        text = base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))
        expires_at = msgspec.json.decode(text, type=_Claims).exp
    except (binascii.Error, ValueError):
        return None
    return None if expires_at is None else (expires_at - time.time()) * 1000
