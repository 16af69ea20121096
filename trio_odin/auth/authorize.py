"""Authorization: which clients may connect, by origin and token, and which may stay connected."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from trio_odin.auth.credentials import check_origin, excess_of, insufficient_scope, token_in
from trio_odin.auth.grants import Grant
from trio_odin.ledger.reasons import CloseReason
from trio_odin.settings.extras import install_hint
from trio_odin.settings.setting_field import SettingError, shown_path
from trio_odin.settings.settings import Settings
from trio_odin.wire.handshake import Rejected, Upgrade
from trio_odin.wire.negotiation import Encodings

if TYPE_CHECKING:
    from trio_odin.auth.tokens import Verifier

_log = structlog.get_logger("auth")

_ONE_FOR_ALL = insufficient_scope(
    "The token is for some channels only, and this server sends every event to everyone"
)


class Authorizer:
    """Applies the rules in force: origins and keys. Without rules every client is authorized."""

    def __init__(self, settings: Settings) -> None:
        """Read the keys, if there are any.

        Raises:
            SettingError: the keys cannot be used.
        """
        self._is_filtering = settings.is_filtering
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Put the origins and the keys of `settings` in force.

        For a connection whose key is no longer there, `why_ended` gives a reason from now on.

        Raises:
            SettingError: the keys cannot be used. The rules in force stay as they were.
        """
        verifier = verifier_of(settings)
        self._verifier = verifier
        self._origins = frozenset(origin.encode() for origin in settings.allowed_origins)
        if verifier is not None:
            _log.info("keys.loaded", keys=len(verifier.keys))

    def authorize(self, upgrade: Upgrade, encodings: Encodings) -> Grant | Rejected | None:
        """Return the grant of the request, or reject it; None if no token is needed.

        `encodings` is what the server can use, see `token_in`.
        """
        rejected = check_origin(upgrade, self._origins)
        if rejected is not None or self._verifier is None:
            return rejected
        token = token_in(upgrade, encodings)
        return token if isinstance(token, Rejected) else self.verify(token)

    def verify(self, token: bytes) -> Grant | Rejected | None:
        """Return what `token` grants, or why it does not; None if no token is needed."""
        if self._verifier is None:
            return None
        if (too_long := excess_of(token)) is not None:
            return too_long
        grant = self._verifier.verify(token, time.time())
        if isinstance(grant, Grant) and grant.patterns is not None and not self._is_filtering:
            return _ONE_FOR_ALL
        return grant

    def why_ended(self, grant: Grant | None) -> CloseReason | None:
        """Return why a connection with `grant` has to be closed; None if it may stay."""
        if grant is None or self._verifier is None:
            return None
        if grant.has_expired(time.time()):
            return CloseReason.TOKEN_EXPIRED
        return None if grant.key in self._verifier.keys else CloseReason.TOKEN_REVOKED


def verifier_of(settings: Settings) -> Verifier | None:
    """Return the verifier of tokens for the keys of `settings`; None if there are no keys.

    Raises:
        SettingError: the keys cannot be used.
    """
    path = settings.jwt_keys
    if path is None:
        return None
    given = f"WS_JWT_KEYS='{shown_path(str(path))}'"
    try:
        from trio_odin.auth.tokens import KeysUnusable, Verifier  # noqa: PLC0415 - of an extra
    except ImportError:
        raise SettingError(f"{given}: tokens need PyJWT: {install_hint('auth')}") from None
    try:
        return Verifier(
            path,
            algorithms=settings.jwt_algorithms,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
        )
    except KeysUnusable as error:
        raise SettingError(f"{given}: {error}") from None
