"""Logs events that cannot be published, at a limited rate."""

from __future__ import annotations

import structlog
import trio

from trio_odin.ledger.reasons import Invalid
from trio_odin.net.token_bucket import TokenBucket
from trio_odin.upstream.nats_message import NatsMessage

# A broken source sends nothing but invalid events: one line names it as well as a thousand do.
_SECONDS_BETWEEN_LINES = 10.0
_SHOWN_CHARS = 200

_log = structlog.get_logger("hub")


class InvalidEventLog:
    """Logs invalid events, and counts those that it leaves out."""

    def __init__(self) -> None:
        now = trio.current_time()
        per_second = 1 / _SECONDS_BETWEEN_LINES
        self._lines = {r: TokenBucket(burst=1, per_second=per_second, now=now) for r in Invalid}
        self._not_logged = dict.fromkeys(Invalid, 0)

    def write(self, message: NatsMessage, reason: Invalid, error: str) -> None:
        """Log that `message` is invalid for `reason`; `error` is the sentence that explains it."""
        if not self._lines[reason].take(trio.current_time()):
            self._not_logged[reason] += 1
            return
        _log.warning(
            "event.invalid",
            reason=reason.value,
            subject=_shown(message.subject),
            offset=message.offset,
            error=_shown(error),
            not_logged=self._not_logged[reason],
        )
        self._not_logged[reason] = 0


def _shown(text: str) -> str:
    """The beginning of a text from anybody, without anything that a terminal obeys."""
    cut = text[:_SHOWN_CHARS]
    more = "…" if len(text) > len(cut) else ""
    return cut.encode("unicode_escape").decode("ascii") + more
