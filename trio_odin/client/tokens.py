"""JSON Web Tokens: whether one can be sent, and for how long it is valid.

The client does not check a token's signature, but renews it in time.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import msgspec

from trio_odin.client.errors import ClientError

# A token that stays the same, or a function that gives one, which may be asynchronous.
TokenSource: TypeAlias = str | Callable[[], str | Awaitable[str]]

# Whatever this machine's clock says, a token is not asked for more often than twice a minute.
_VALID_LEAST_MS: Final = 60_000
# Those of `Authorization: Bearer`, see RFC 6750. A line break would begin another header.
_TOKEN = re.compile(r"[\x21-\x7e]+")


class TokenUnusable(ClientError):
    """It cannot be sent as a token. The message does not show it."""


class _Claims(msgspec.Struct):
    exp: float | None = None


def usable(token: object) -> str:
    """Return the token as it is.

    Raises:
        TokenUnusable: it is another type than `str`, empty, or has characters that no token has.
    """
    if not isinstance(token, str):
        raise TokenUnusable(f"the token is of the type {type(token).__name__}: allowed is str")
    if not token:
        raise TokenUnusable("the token is empty: leave it out, or give a JSON Web Token")
    if _TOKEN.fullmatch(token) is None:
        raise TokenUnusable(
            "the token has a line break, a space or another character that is not allowed: "
            "allowed are the printable characters of ASCII without the space"
        )
    return token


def valid_ms(token: str) -> float | None:
    """For how many milliseconds from now `token` is valid; None if it does not say so.

    It is a minute at least: by a clock that is ahead, each new token would be about to expire.
    """
    _, _, rest = token.partition(".")
    claims = rest.partition(".")[0]
    try:
        text = base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))
        expires_at = msgspec.json.decode(text, type=_Claims).exp
    except (binascii.Error, ValueError):
        return None
    if expires_at is None or expires_at <= 0:
        return None
    return max((expires_at - time.time()) * 1000, _VALID_LEAST_MS)
