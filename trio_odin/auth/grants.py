"""Grants: what a token with a good signature allows, and for how long."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from hashlib import sha256

import attrs
import msgspec

from trio_odin.auth.credentials import invalid_token
from trio_odin.auth.identity import shown
from trio_odin.wire.handshake import Rejected

# The clocks that sign and verify tokens differ a little.
LEEWAY_SECONDS = 5.0

_PART = r"[A-Za-z0-9_-]+"
_PATTERN = re.compile(rf">|(\*|{_PART})\.(\*|>|{_PART})")
_EVERY_CHANNEL = "*.*"


@attrs.frozen
class Grant:
    """What one token allows.

    Attributes:
        expires_at: end of its time, in Unix seconds.
        key: digest of the key that has signed it; see `Verifier.keys`.
        patterns: channels allowed, with a `*` for any one part; None allows every channel.
        subject: owner, as the log may show it; empty if the token has none.
        owner: digest of the owner, to compare; empty if the token has none.
    """

    expires_at: float
    key: str
    patterns: frozenset[str] | None = None
    subject: str = ""
    owner: bytes = b""

    def has_expired(self, unix_seconds: float) -> bool:
        """Whether the token has expired, with some leeway."""
        return unix_seconds >= self.expires_at + LEEWAY_SECONDS

    def allows(self, name: str) -> bool:
        """Whether its owner may subscribe to the channel or pattern `name`, which is well-formed.

        A pattern is allowed if one of the token's matches everything that it matches. This takes
        three look-ups, however many patterns a token has.
        """
        if self.patterns is None:
            return True
        if name == ">":
            return False
        symbol, event_type = name.replace(".>", ".*").split(".")
        names = (f"{symbol}.{event_type}", f"{symbol}.*", f"*.{event_type}")
        return not self.patterns.isdisjoint(names)


class _Claims(msgspec.Struct):
    """The claims of RFC 7519, 4.1, and `channels`, which is ours. Other claims are ignored.

    `sub` is only for the log: no value of it is a reason to refuse a token.
    """

    exp: float
    nbf: float = -math.inf
    iss: str = ""
    aud: str | list[str] = ""
    channels: list[str] | msgspec.UnsetType = msgspec.UNSET
    sub: msgspec.Raw = msgspec.Raw(b"")


_claims = msgspec.json.Decoder(_Claims)


def grant_of(
    claims: bytes, *, key: str, issuer: str, audience: str, unix_seconds: float
) -> Grant | Rejected:
    """Read the claims of a token whose signature by `key` is good.

    Args:
        claims: JSON that was signed.
        key: digest of the key, for the grant.
        issuer: issuer that the token has to name; any if empty.
        audience: audience that the token has to name; any if empty.
        unix_seconds: time now.
    """
    try:
        found = _claims.decode(claims)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        return invalid_token(f"The token's claims are malformed: {error}")
    owner = sha256(found.sub).digest() if found.sub else b""
    grant = Grant(found.exp, key, subject=_subject(found.sub), owner=owner)
    if grant.has_expired(unix_seconds):
        return invalid_token("The token has expired")
    if found.nbf > unix_seconds + LEEWAY_SECONDS:
        return invalid_token("The token is not valid yet")
    if issuer and found.iss != issuer:
        return invalid_token("The token is of another issuer")
    if audience and audience not in ([found.aud] if isinstance(found.aud, str) else found.aud):
        return invalid_token("The token is for another audience")
    if found.channels is msgspec.UNSET:
        return grant
    if not all(map(_PATTERN.fullmatch, found.channels)):
        return invalid_token("The token's claim channels has to be a list like BTC.trade, BTC.*")
    return attrs.evolve(grant, patterns=_normal(found.channels))


def _subject(sub: msgspec.Raw) -> str:
    try:
        return shown(msgspec.json.decode(sub, type=str))
    except (msgspec.DecodeError, UnicodeError):
        return ""


def _normal(patterns: Iterable[str]) -> frozenset[str] | None:
    """Replace `>`, which in a channel of two parts means `*`. None if every channel is allowed."""
    normal = {pattern.replace(".>", ".*") for pattern in patterns}
    return None if normal & {">", _EVERY_CHANNEL} else frozenset(normal)
