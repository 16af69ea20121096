"""Pending handshakes: accepted sockets that have not sent a complete request yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from trio_odin.ledger.counters import Traffic
from trio_odin.ledger.reasons import Rejection


class PendingHandshakes:
    """Limits to `most` the sockets without a complete request, or with a page under way.

    At the limit the oldest socket is closed, so an attacker evicts its own idle sockets. A client
    that sends a request needs far less time for it than it takes to become the oldest.
    """

    def __init__(self, most: int, traffic: Traffic) -> None:
        self.most = most
        self._traffic = traffic
        self._scopes: dict[trio.CancelScope, None] = {}

    def __len__(self) -> int:
        return len(self._scopes)

    @contextmanager
    def one(self, seconds: float) -> Iterator[trio.CancelScope]:
        """Yield a scope for one socket. It ends after `seconds`, or when others need its place."""
        if len(self._scopes) >= self.most:
            oldest = next(iter(self._scopes))
            del self._scopes[oldest]
            self._traffic.rejected[Rejection.HALF_OPEN.label] += 1
            oldest.cancel(reason="too many pending handshakes")
        with trio.move_on_after(seconds) as scope:
            self._scopes[scope] = None
            try:
                yield scope
            finally:
                self._scopes.pop(scope, None)
