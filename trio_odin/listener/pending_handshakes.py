"""Sockets that have been accepted and have not asked for anything yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from trio_odin.ledger.counters import Traffic


class PendingHandshakes:
    """Knows those whose request is not complete, oldest first, and lets only so many be.

    One more than `most` ends the oldest: who opens thousands to say nothing on them ends his own
    ones, while a client that has something to say needs far less time than it takes to be oldest.
    """

    def __init__(self, most: int, traffic: Traffic) -> None:
        self.most = most
        self._traffic = traffic
        self._scopes: dict[trio.CancelScope, None] = {}

    def __len__(self) -> int:
        return len(self._scopes)

    @contextmanager
    def one(self, seconds: float) -> Iterator[trio.CancelScope]:
        """A scope for one of them, which ends after `seconds`, or by the arrival of others."""
        if len(self._scopes) >= self.most:
            oldest = next(iter(self._scopes))
            del self._scopes[oldest]
            self._traffic.rejected["half_open"] += 1
            oldest.cancel(reason="too many pending handshakes")
        with trio.move_on_after(seconds) as scope:
            self._scopes[scope] = None
            try:
                yield scope
            finally:
                self._scopes.pop(scope, None)
