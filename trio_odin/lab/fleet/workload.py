"""The subscriptions of a load, as data. Pure; the same seed gives the same subscriptions."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import attrs

# Spreads the seeds of neighbouring connections; any odd number would do.
_SEED_STEP = 1_000_003


@attrs.frozen(kw_only=True)
class Workload:
    """The subscriptions of a load's connections.

    Args:
        channels: all channels, one for each token.
        channels_per_connection: number of channels that each connection samples, if `home_share`
            is None.
        home_share: the share of the users that have the home page open. All of them hold the same
            `home_tokens` channels, each of the others holds one, at random.
        seed: of the samples.
        is_filtered: False: nobody subscribes, and everybody should receive everything.
        every_ms: the rate that each connection asks for: at most one update of a channel in so
            many milliseconds; 0: every event.
    """

    channels: Sequence[str]
    channels_per_connection: int = 1
    home_share: float | None = None
    home_tokens: int = 30
    seed: int = 0
    is_filtered: bool = True
    every_ms: int = 0

    @property
    def home_channels(self) -> list[str]:
        """The channels of the home page, spread over all, as a publisher takes them in turn."""
        count = min(self.home_tokens, len(self.channels))
        return [self.channels[n * len(self.channels) // count] for n in range(count)]

    @property
    def mean_subscriptions(self) -> float:
        """Channels that a connection holds, on average."""
        if not self.is_filtered:
            return float(len(self.channels))
        if self.home_share is None:
            return float(self.channels_per_connection)
        return self.home_share * len(self.home_channels) + (1 - self.home_share)

    def of(self, first: int, count: int) -> Iterator[list[str]]:
        """The channels of the connections `first`, `first` + 1, …, whatever other fleets make."""
        home = self.home_channels
        for number in range(first, first + count):
            if not self.is_filtered:
                yield list(self.channels)
            elif self.home_share is None:
                yield self._chance(number).sample(self.channels, self.channels_per_connection)
            elif self._is_home(number):
                yield home
            else:
                yield [self._chance(number).choice(self.channels)]

    def _chance(self, number: int) -> random.Random:
        return random.Random(self.seed * _SEED_STEP + number)

    def _is_home(self, number: int) -> bool:
        # Evenly mixed and exact: among any first n connections n times the share, rounded down.
        share = self.home_share or 0.0
        return int((number + 1) * share + 1e-9) > int(number * share + 1e-9)
