"""Log lines about single connections: each at debug, and those that lost something at info.

Lines at info are limited in rate: a thousand clients that stop reading at once are one event.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import structlog
import trio

from trio_odin.ledger.reasons import CloseReason
from trio_odin.net.token_bucket import TokenBucket

if TYPE_CHECKING:
    from trio_odin.connection.connection import Connection

_LINES_AT_ONCE = 20
_LINES_PER_SECOND = 20.0

_log = structlog.get_logger("connection")


class ConnectionLog:
    """Logs who connects and leaves, and why connections were closed forcibly and in which state.

    Lines that are left out at info are counted; a later line has their number.
    """

    def __init__(self) -> None:
        self._lines = TokenBucket(
            burst=_LINES_AT_ONCE, per_second=_LINES_PER_SECOND, now=trio.current_time()
        )
        self._not_logged = 0

    def opened(self, connection: Connection) -> None:
        """Log that `connection` was accepted."""
        if _is_debug():
            _log.debug("connection.opened", **_who(connection))

    def evicted(self, connection: Connection, reason: CloseReason) -> None:
        """Log that `connection` is about to be closed forcibly; `outbound` is still as it was."""
        if self._may_write():
            facts = _who(connection) | connection.outbound.report() | self._left_out()
            _log.info("connection.evicted", reason=reason.label, **facts)

    def closed(self, connection: Connection, reason: CloseReason, *, is_told: bool) -> None:
        """Log that `connection` has ended. `is_told`: an earlier line reports what it lost."""
        has_lost = connection.outbound.dropped > 0 and not is_told
        if has_lost and self._may_write():
            facts = _who(connection) | connection.outbound.counts() | self._left_out()
            _log.info("connection.closed", reason=reason.label, **facts)
        elif _is_debug():
            facts = _who(connection) | connection.outbound.counts()
            _log.debug("connection.closed", reason=reason.label, **facts)

    def write_rest(self) -> None:
        """Log how many lines were left out, if no later line has."""
        if self._not_logged:
            _log.info("connection.evicted", **self._left_out())

    def _may_write(self) -> bool:
        if self._lines.take(trio.current_time()):
            return True
        self._not_logged += 1
        return False

    def _left_out(self) -> dict[str, Any]:
        not_logged, self._not_logged = self._not_logged, 0
        return {"not_logged": not_logged} if not_logged else {}


def _who(connection: Connection) -> dict[str, Any]:
    address, user_agent = connection.identity
    grant = connection.session.grant
    return {
        "connection": connection.number,
        "address": address,
        "sub": None if grant is None else grant.subject,
        "user_agent": user_agent,
    }


def _is_debug() -> bool:
    """Whether lines at debug are written.

    To ask is cheaper than to make a line that is dropped, and thousands of clients may come and go
    within a second.
    """
    return logging.getLogger().isEnabledFor(logging.DEBUG)
