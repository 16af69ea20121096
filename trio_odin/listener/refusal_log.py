"""Logs refused clients whose reason nothing else in the log tells, at a limited rate.

That a reload of settings or a deploy keeps clients out shows in these lines first: they have the
origin, or what is wrong with the token. Overload has lines of its own (`admission.closed`), and bad
requests and timeouts of anybody on the internet are only counted.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import structlog
import trio

from trio_odin.auth.identity import shown, user_agent
from trio_odin.ledger.reasons import Rejection
from trio_odin.net.client_address import IpAddress
from trio_odin.net.token_bucket import TokenBucket
from trio_odin.wire.handshake import Rejected, Upgrade

# Whoever is refused comes back at once: one line names the cause as well as a thousand do.
_SECONDS_BETWEEN_LINES: Final = 10.0
_LOGGED: Final = (
    Rejection.AT_CAPACITY,
    Rejection.PER_ADDRESS,
    Rejection.ORIGIN,
    Rejection.UNAUTHORIZED,
)
_ORIGINS_SHOWN: Final = 3
# An origin of more than one refusal in so many is among those that are kept.
_ORIGINS_KEPT: Final = 16

_log = structlog.get_logger("listener")


class RefusalLog:
    """Logs refusals, and counts those that it leaves out."""

    def __init__(self) -> None:
        now, per_second = trio.current_time(), 1 / _SECONDS_BETWEEN_LINES
        self._not_logged: Counter[Rejection] = Counter()
        self._origins = Origins()
        self._lines: dict[Rejection, TokenBucket] = {
            reason: TokenBucket(burst=1, per_second=per_second, now=now) for reason in _LOGGED
        }

    def write(self, rejected: Rejected, upgrade: Upgrade, address: IpAddress | None) -> None:
        """Log that a client is refused.

        Args:
            rejected: why; its text never quotes a token.
            upgrade: its request, without headers if it was refused before that was read.
            address: of the client; None if it is unknown.
        """
        lines = self._lines.get(rejected.reason)
        if lines is None:
            return
        if rejected.reason is Rejection.ORIGIN:
            self._origins.add(_origin_of(upgrade) or "")
        if not lines.take(trio.current_time()):
            self._not_logged[rejected.reason] += 1
            return
        more = {}
        if rejected.reason is Rejection.ORIGIN:
            more = {"origins": self._origins.most(_ORIGINS_SHOWN)}
            self._origins = Origins()
        _log.info(
            "handshake.refused",
            reason=rejected.reason.label,
            error=rejected.text,
            origin=_origin_of(upgrade),
            address=None if address is None else str(address),
            user_agent=user_agent(upgrade.headers.get(b"user-agent", b"")),
            not_logged=self._not_logged[rejected.reason],
            **more,
        )
        self._not_logged[rejected.reason] = 0


def _origin_of(upgrade: Upgrade) -> str | None:
    """As a log line may show it; None if the request has none, as that of a program."""
    origin = upgrade.headers.get(b"origin")
    return None if origin is None else shown(origin.decode("latin-1"))


class Origins:
    """The most frequent origins of many, in little memory: Misra and Gries's frequent items.

    A site's own page stays among them while a scanner invents an origin for each request.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, origin: str) -> None:
        """Count one more refusal of `origin`."""
        if origin in self._counts or len(self._counts) < _ORIGINS_KEPT:
            self._counts[origin] += 1
        else:
            self._counts = Counter({kept: n - 1 for kept, n in self._counts.items() if n > 1})

    def most(self, limit: int) -> list[str]:
        """The most frequent ones, at most `limit`, the most frequent first."""
        return [origin for origin, _ in self._counts.most_common(limit)]
