"""The events of a load: the number of deliveries of each, and their completeness. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from trio_odin.lab.fleet.batches import Tally
from trio_odin.lab.fleet.books import Deliveries


class Completeness(NamedTuple):
    """The deliveries of some events to counted subscribers.

    Args:
        publications: number of these events.
        expected: deliveries that were due.
        delivered: of these, those that came.
        lost: those that did not come, and were not reported as skipped either.
        skipped: those that were reported as skipped.
    """

    publications: int
    expected: int
    delivered: int
    lost: int
    skipped: int = 0


def with_rates(
    subscribers: Mapping[str, int],
    tallies: Sequence[Tally],
    published: Collection[tuple[str, int]] | None,
) -> Completeness:
    """What holds with rates: of each channel, each connection received or skipped all events.

    Args:
        subscribers: counted subscribers of each channel.
        tallies: what the connections account for, after the last tick.
        published: all events by channel and number. If they are not known, those of a channel are
            the most that any connection accounts for.

    Returns:
        `lost` has what a connection accounts for too much as well.
    """
    counts: Counter[str] = Counter(channel for channel, _ in published or ())
    if published is None:
        for tally in tallies:
            counts[tally.channel] = max(counts[tally.channel], tally.received + tally.skipped)
    wanted = {channel: count for channel, count in counts.items() if subscribers.get(channel)}
    absent = {channel: subscribers[channel] for channel in wanted}
    lost = delivered = skipped = 0
    for channel, received, passed_over, connections in tallies:
        delivered += received * connections
        skipped += passed_over * connections
        lost += abs(wanted.get(channel, 0) - received - passed_over) * connections
        if channel in absent:
            absent[channel] -= connections
    # A connection that has ended accounts for nothing.
    lost += sum(wanted[channel] * max(0, count) for channel, count in absent.items())
    return Completeness(
        publications=sum(wanted.values()),
        expected=sum(count * subscribers[name] for name, count in wanted.items()),
        delivered=delivered,
        lost=lost,
        skipped=skipped,
    )


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
