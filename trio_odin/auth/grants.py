"""Grants: what a token whose signature is good allows, and for how long."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import attrs
import msgspec

from trio_odin.auth.credentials import invalid_token
from trio_odin.auth.identity import shown
from trio_odin.wire.handshake import Refusal

# Clocks of those who sign and of those who verify differ a little.
LEEWAY_SECONDS = 5.0

_PART = r"[A-Za-z0-9_-]+"
_PATTERN = re.compile(rf">|(\*|{_PART})\.(\*|>|{_PART})")
_EVERY_CHANNEL = "*.*"


@attrs.frozen
class Grant:
    """What one token allows.

    Attributes:
        expires_at: Unix seconds.
        key: which key has signed it, as `Verifier.keys` has it.
        patterns: of the channels allowed, a `*` for any one part; None is every channel.
        subject: whose it is, as the log may show it; empty if it does not say.
    """

    expires_at: float
    key: str
    patterns: frozenset[str] | None = None
    subject: str = ""

    def has_expired(self, unix_seconds: float) -> bool:
        """Whether its time is over, with some leeway."""
        return unix_seconds >= self.expires_at + LEEWAY_SECONDS

    def allows(self, channel: str) -> bool:
        """Whether its owner may subscribe to `channel`, which is well-formed.

        Three look-ups, however many patterns a token has.
        """
        if self.patterns is None:
            return True
        symbol, event_type = channel.split(".")
        return not self.patterns.isdisjoint((channel, f"{symbol}.*", f"*.{event_type}"))


class _Claims(msgspec.Struct):
    """RFC 7519, 4.1, and `channels`, which is ours. What else is there is not looked at.

    `sub` is for the log alone: whatever it is, it keeps nobody out.
    """

    exp: float
    nbf: float = -math.inf
    iss: str = ""
    aud: str | list[str] = ""
    channels: list[str] | msgspec.UnsetType = msgspec.UNSET
    sub: msgspec.Raw = msgspec.Raw(b'""')


_claims = msgspec.json.Decoder(_Claims)


def grant_of(
    claims: bytes, *, key: str, issuer: str, audience: str, unix_seconds: float
) -> Grant | Refusal:
    """Read the claims of a token whose signature by `key` is good.

    Args:
        claims: JSON, as it was signed.
        key: for the grant.
        issuer: that the token has to name; empty: any.
        audience: that the token has to name; empty: any.
        unix_seconds: the time of day.
    """
    try:
        found = _claims.decode(claims)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        return invalid_token(f"The token's claims are malformed: {error}")
    grant = Grant(found.exp, key, subject=_subject(found.sub))
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
    """Without `>`, which within the two parts of a channel is nothing but `*`."""
    normal = {pattern.replace(".>", ".*") for pattern in patterns}
    return None if normal & {">", _EVERY_CHANNEL} else frozenset(normal)
