"""Counts the events of each channel, while somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.channels import channel_of_subject

# Names that publishers make up must not pile up.
_CHANNELS_MAX: Final = 100_000
_WINDOW_SECONDS: Final = 5.0


class Counted:
    """The events of one channel in a window, and the newest of them."""

    __slots__ = ("bytes", "events", "offset", "unix_ms")

    def __init__(self) -> None:
        self.events = self.bytes = self.unix_ms = 0
        self.offset: int | None = None


class ChannelWatch:
    """Counts over the last five to ten seconds, in two windows, from `began_at` on.

    Pure: it is given the messages and the time. A message is seen with `see`, which is cheap.
    """

    def __init__(self, now: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._before: dict[str, Counted] = {}
        self._current: dict[str, Counted] = {}
        self._before_at = self._current_at = now

    def see(self, message: NatsMessage) -> None:
        """Count a message, if it is an event of a channel and not from before the start."""
        if message.is_backfill:
            return
        if self._clock() - self._current_at >= _WINDOW_SECONDS:
            self._before, self._current = self._current, {}
            self._before_at, self._current_at = self._current_at, self._clock()
        channel = channel_of_subject(message.subject)
        if channel is None:
            return
        counted = self._current.get(channel)
        if counted is None:
            if len(self._current) >= _CHANNELS_MAX:
                return
            counted = self._current[channel] = Counted()
        counted.events += 1
        counted.bytes += len(message.payload)
        counted.offset, counted.unix_ms = message.offset, message.unix_ms

    def seconds(self) -> float:
        """Over how many seconds it has counted."""
        return max(self._clock() - self._before_at, 1e-3)

    def channels(self) -> set[str]:
        """The channels that had events."""
        return self._before.keys() | self._current.keys()

    def of(self, channel: str) -> Iterator[Counted]:
        """What was counted of a channel, the later window first."""
        for window in (self._current, self._before):
            if channel in window:
                yield window[channel]
