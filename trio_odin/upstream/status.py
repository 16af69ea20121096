"""What the server knows of NATS, as plain data: written by the bridge, read by all others."""

from __future__ import annotations

import attrs

from trio_odin.ledger.snapshot import NatsStats, Trouble


@attrs.define
class NatsStatus:
    """The state of the way from NATS to this server.

    Attributes:
        is_connected: whether events can flow now.
        was_connected: whether they ever could.
        mode: `jetstream` or `core`; `none` before the first connection.
        reconnects: connections after the first.
        trouble: why events cannot flow, in NATS' own sentence where it gave one; None while they
            can.
    """

    is_connected: bool = False
    was_connected: bool = False
    mode: str = "none"
    reconnects: int = 0
    trouble: str | None = None
    _trouble_at: float | None = None
    _heard_at: float | None = None
    _event_at: float | None = None

    def fail(self, trouble: str, now: float) -> None:
        """Note that events cannot flow because of `trouble`; the first of several sets the time."""
        self.trouble = trouble
        if self._trouble_at is None:
            self._trouble_at = now

    def recover(self) -> None:
        """Note that events can flow again."""
        self.trouble = self._trouble_at = None

    def heard(self, now: float) -> None:
        """Note that NATS has answered: it is alive, and so is the way to it."""
        self._heard_at = now

    def heard_event(self, now: float) -> None:
        """Note that an event has come."""
        self._heard_at = self._event_at = now

    def age_seconds(self, now: float) -> float | None:
        """How long ago anything last came from NATS; None: nothing ever did."""
        return None if self._heard_at is None else now - self._heard_at

    def event_age_seconds(self, now: float) -> float | None:
        """How long ago an event last came; None: none ever did."""
        return None if self._event_at is None else now - self._event_at

    def stats(self, now: float) -> NatsStats:
        """The state at `now`, for metrics and health."""
        began = now if self._trouble_at is None else self._trouble_at
        return NatsStats(
            is_connected=self.is_connected,
            was_connected=self.was_connected,
            mode=self.mode,
            reconnects=self.reconnects,
            age_seconds=self.age_seconds(now),
            trouble=None if self.trouble is None else Trouble(self.trouble, now - began),
        )
