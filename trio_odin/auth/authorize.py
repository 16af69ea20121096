"""Permits: who may come in, from which page and with which token, and who may stay."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from trio_odin.auth.credentials import insufficient_scope, origin_refusal, token_in
from trio_odin.auth.grants import Grant
from trio_odin.ledger.reasons import CloseReason
from trio_odin.settings.settings import SettingError, Settings, shown_path
from trio_odin.wire.handshake import Refusal, Upgrade

if TYPE_CHECKING:
    from trio_odin.auth.tokens import Verifier

_log = structlog.get_logger("permits")

_ONE_FOR_ALL = insufficient_scope(
    "The token is for some channels only, and this server sends every event to everyone"
)


class Authorizer:
    """The rules in force: origins and keys. Without either of them everyone may come in."""

    def __init__(self, settings: Settings) -> None:
        """Read the keys, if there are any.

        Raises:
            SettingError: as `reload` does.
        """
        self._is_filtering = settings.is_filtering
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Put the origins and the keys of `settings` in force.

        Connections that came in by a key which is no more there are ended by `objection`.

        Raises:
            SettingError: the keys cannot be used; all stays as it was.
        """
        verifier = verifier_of(settings)
        self._verifier = verifier
        self._origins = frozenset(origin.encode() for origin in settings.allowed_origins)
        if verifier is not None:
            _log.info("keys.loaded", keys=len(verifier.keys))

    def authorize(self, upgrade: Upgrade) -> Grant | Refusal | None:
        """What the request allows its client, a refusal, or None where no token is needed."""
        refusal = origin_refusal(upgrade, self._origins)
        if refusal is not None or self._verifier is None:
            return refusal
        token = token_in(upgrade)
        if isinstance(token, Refusal):
            return token
        grant = self._verifier.verify(token, time.time())
        if isinstance(grant, Grant) and grant.patterns is not None and not self._is_filtering:
            return _ONE_FOR_ALL
        return grant

    def why_ended(self, grant: Grant | None) -> CloseReason | None:
        """Why a connection with `grant` may not go on; None if it may."""
        if grant is None or self._verifier is None:
            return None
        if grant.has_expired(time.time()):
            return CloseReason.TOKEN_EXPIRED
        return None if grant.key in self._verifier.keys else CloseReason.TOKEN_REVOKED


def verifier_of(settings: Settings) -> Verifier | None:
    """What verifies tokens by the keys of `settings`; None where there are none.

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
        raise SettingError(
            f"{given}: tokens need PyJWT: pip install '.[auth]' (the extra auth)"
        ) from None
    try:
        return Verifier(
            path,
            algorithms=settings.jwt_algorithms,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
        )
    except KeysUnusable as error:
        raise SettingError(f"{given}: {error}") from None
