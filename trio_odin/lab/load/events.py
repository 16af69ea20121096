"""The events of a load: the number of deliveries of each, and their completeness. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from trio_odin.lab.fleet.books import Deliveries


class Completeness(NamedTuple):
    """The deliveries of some events to counted subscribers: those due, and those that came."""

    publications: int
    expected: int
    delivered: int
    lost: int


class Events:
    """The events that a subscriber received, by channel and number."""

    def __init__(self) -> None:
        self._times: Counter[tuple[str, int]] = Counter()
        self._due_ns: dict[tuple[str, int], int] = {}

    def __len__(self) -> int:
        return len(self._due_ns)

    @property
    def channels(self) -> set[str]:
        """The channels with a received event."""
        return {channel for channel, _ in self._due_ns}

    def take(self, deliveries: Iterable[Deliveries]) -> None:
        """Count the deliveries to a fleet."""
        for entry in deliveries:
            key = (entry.channel, entry.number)
            self._times[key] += entry.times
            self._due_ns[key] = entry.due_ns

    def completeness(
        self,
        subscribers: Mapping[str, int],
        windows: Sequence[tuple[int, int]],
        published: Collection[tuple[str, int]] | None,
    ) -> Completeness:
        """Compare the deliveries that came with those that were due.

        Args:
            subscribers: counted subscribers of each channel.
            windows: ranges of due times whose events should have reached all subscribers.
            published: the events that should have, if known, in place of the windows.
        """
        if published is None:
            due = self._due_ns.items()
            published = [
                key for key, at in due if any(first <= at <= last for first, last in windows)
            ]
        wanted = {key: subscribers.get(key[0], 0) for key in published}
        return Completeness(
            publications=sum(1 for count in wanted.values() if count),
            expected=sum(wanted.values()),
            delivered=sum(min(count, self._times[key]) for key, count in wanted.items()),
            lost=sum(max(0, count - self._times[key]) for key, count in wanted.items()),
        )
