"""One line in the log for each connection that is closed by force, but never a flood of them."""

from __future__ import annotations

import structlog
import trio

from trio_odin.core.closing import CloseReason
from trio_odin.core.ratelimit import TokenBucket
from trio_odin.server.outlet import Outlet

# A thousand clients that stop reading at once are one event, not a thousand lines.
_LINES_AT_ONCE = 20
_LINES_PER_SECOND = 20.0

_log = structlog.get_logger("connection")


class EvictionLog:
    """Says why and how connections were closed. What it leaves out is counted, and said later."""

    def __init__(self) -> None:
        self._lines = TokenBucket(
            burst=_LINES_AT_ONCE, per_second=_LINES_PER_SECOND, now=trio.current_time()
        )
        self._not_logged = 0

    def write(self, number: int, reason: CloseReason, outlet: Outlet) -> None:
        """Connection `number` is about to be closed for `reason`; its outlet is as it was."""
        if not self._lines.take(trio.current_time()):
            self._not_logged += 1
            return
        report = outlet.report()
        if self._not_logged:
            report["evictions_not_logged"], self._not_logged = self._not_logged, 0
        _log.info("connection.evicted", connection=number, reason=reason.label, **report)

    def write_rest(self) -> None:
        """Say how many were left out, if no later line has."""
        if self._not_logged:
            _log.info("connection.evicted", evictions_not_logged=self._not_logged)
            self._not_logged = 0
