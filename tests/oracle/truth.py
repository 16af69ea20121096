"""The content of the stream: each event's place, from all observations.

The stream has several lives: it is deleted, or comes back empty, and its offsets start again. A
life is recognised by the events, not by a name from NATS or the server: in the order of the times
at which NATS stored them, offsets grow within a life, and decrease only where another one begins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict

import attrs


@attrs.frozen(order=True)
class Place:
    """A point in the stored events of all time: up to `offset` in one life of the stream."""

    life: int
    offset: int


START = Place(-1, 0)
# The time around an event with two places in which other events may have two places, too.
_SPLIT_MS = 1000
# The time around the observed events of a life in which there may be others.
_NEAR_MS = 500


@attrs.frozen
class Sent:
    """A published event with its time in Unix milliseconds."""

    channel: str
    payload: str
    at_ms: float


@attrs.define
class Evidence:
    """All observations, from which the truth is derived at the end.

    Attributes:
        sent: every event that was published, by its number.
        stored: offset of an event in the stream, and the time there in whole milliseconds.
        disputed: the times of events that were observed at several places.
        acknowledged: offset and Unix milliseconds of the acknowledgement.
        epochs: the events received under each epoch.
        heard: the time when an epoch was named first, in Unix milliseconds.
    """

    sent: dict[int, Sent] = attrs.field(factory=dict)
    stored: dict[int, tuple[int, int]] = attrs.field(factory=dict)
    disputed: dict[int, list[int]] = attrs.field(factory=dict)
    acknowledged: dict[int, tuple[int, float]] = attrs.field(factory=dict)
    epochs: dict[str, set[int]] = attrs.field(factory=lambda: defaultdict(set))
    heard: dict[str, float] = attrs.field(factory=dict)

    def saw(self, number: int, offset: int, stored_ms: int) -> None:
        """Record that an event was in the stream. The first observation counts."""
        first_offset, first_ms = self.stored.setdefault(number, (offset, stored_ms))
        if first_offset != offset:
            self.disputed[number] = [first_ms, stored_ms]


class Truth:
    """The places of all events that are known to have been in the stream.

    Attributes:
        places: by the event's number.
        stored_ms: the time when NATS stored it, if that was observed.
        sent: the published events.
        starts: the time of each life's first event, in Unix milliseconds.
        undecided: events whose life is unknown. They include those of a time at which two nodes of
            NATS both owned the stream, for instance when a node returns whose stream was made anew
            meanwhile: then an event has two places.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.places: dict[int, Place] = {}
        self.stored_ms: dict[int, int] = {}
        self.undecided: list[int] = []
        self.sent = evidence.sent
        self.starts: list[int] = []
        self._take_sightings(evidence)
        self._take_acknowledged(evidence)
        self._channels: dict[str, list[Place]] = defaultdict(list)
        self._numbers = {place: number for number, place in self.places.items()}
        for place in sorted(self._numbers):
            self._channels[evidence.sent[self._numbers[place]].channel].append(place)
        self._times = sorted((ms, self.places[number]) for number, ms in self.stored_ms.items())
        self._lives = {
            epoch: Counter(self.places[one].life for one in numbers if one in self.places)
            for epoch, numbers in evidence.epochs.items()
        }
        self._heard = evidence.heard
        self._dated = sorted(
            (self.places[number], evidence.sent[number].at_ms, ms)
            for number, ms in self.stored_ms.items()
        )
        self._unplaced: dict[str, list[float]] = defaultdict(list)
        for number, sent in evidence.sent.items():
            if number not in self.places:
                self._unplaced[sent.channel].append(sent.at_ms)

    @property
    def lives(self) -> int:
        """The number of lives of the stream with events."""
        return len(self.starts)

    def number_at(self, place: Place) -> int:
        return self._numbers[place]

    def between(self, channel: str, after: Place, to: Place) -> list[Place]:
        """The events of a channel after `after`, up to `to`."""
        places = self._channels.get(channel, [])
        return places[bisect_right(places, after) : bisect_right(places, to)]

    def behind(self, channel: str, after: Place) -> list[Place]:
        places = self._channels.get(channel, [])
        return places[bisect_right(places, after) :]

    def lives_of(self, epoch: str) -> list[int]:
        """The lives whose events were received under this epoch: one, if all is well."""
        return sorted(self._lives.get(epoch, ()))

    def life_of(self, epoch: str, at_ms: float) -> int | None:
        """The life of an epoch at a time; None if nobody received an event of it."""
        lives = self.lives_of(epoch)
        begun = [life for life in lives if self.starts[life] <= at_ms]
        return max(begun) if begun else min(lives, default=None)

    def locate(self, epoch: str, offset: int, at_ms: float) -> Place:
        """The place of an offset of an epoch, stated at a time."""
        life = self.life_of(epoch, at_ms)
        if life is None:  # the one that it was named in first, or one before that nobody else names
            heard_ms = min(at_ms, self._heard.get(epoch, at_ms))
            begun = bisect_right(self.starts, heard_ms)
            named = {life for lives in self._lives.values() for life in lives}
            life = max(set(range(begun)) - named, default=max(0, begun - 1))
        return Place(life, offset)

    def place_at(self, at_ms: float) -> Place:
        """The last event that was stored before a time."""
        index = bisect_right(self._times, at_ms, key=lambda entry: entry[0])
        return self._times[index - 1][1] if index else START

    def unplaced(self, channel: str, after: Place, to: Place) -> int:
        """How many more events a channel may have had between two places.

        They were published about then, and it is not known what became of them. NATS that hangs
        stores all at once what was published meanwhile, so one that was stored after another event
        may have been published long before that was stored, but not before it was published: the
        one publisher sends in order.
        """
        times = self._unplaced.get(channel, [])
        (published, _), (_, stored) = self._times_of(after), self._times_of(to)
        return bisect_right(times, stored + _NEAR_MS) - bisect_right(times, published - _NEAR_MS)

    def _times_of(self, place: Place) -> tuple[float, float]:
        """When the last event up to a place was published and stored, as far as that is known."""
        index = bisect_right(self._dated, place, key=lambda entry: entry[0])
        return self._dated[index - 1][1:] if index else (float("-inf"), float("-inf"))

    def was_after(self, place: Place, at_ms: float) -> bool:
        """Whether all events after a place were stored after a time."""
        return self.place_at(at_ms) <= place

    def _take_sightings(self, evidence: Evidence) -> None:
        """Number the lives in the order of the observations."""
        seen = [(ms, offset, number) for number, (offset, ms) in evidence.stored.items()]
        disputed = sorted(ms for times in evidence.disputed.values() for ms in times)
        last = None
        for ms, offset, number in sorted(seen):
            nearest = bisect_right(disputed, ms - _SPLIT_MS)
            if nearest < len(disputed) and disputed[nearest] <= ms + _SPLIT_MS:
                self.undecided.append(number)
                continue
            if last is None or offset <= last:
                self.starts.append(ms)
            last = offset
            self.places[number] = Place(self.lives - 1, offset)
            self.stored_ms[number] = ms

    def _take_acknowledged(self, evidence: Evidence) -> None:
        """Add events known only to their publisher, as when NATS was killed right afterwards.

        An event fits into a life if its neighbours there were stored shortly before and after it;
        there are lives without any observation.
        """
        taken = set(self.places.values())
        seen: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, place in self.places.items():
            seen[place.life].append((place.offset, self.stored_ms[number]))
        for own in seen.values():
            own.sort()
        for number, (offset, acked_ms) in evidence.acknowledged.items():
            if number in evidence.stored:
                continue
            sent_ms = evidence.sent[number].at_ms
            fitting = []
            for life, own in seen.items():
                index = bisect_right(own, (offset, 0))
                before = own[index - 1][1] if index else own[0][1] - _NEAR_MS
                behind = own[index][1] if index < len(own) else own[-1][1] + _NEAR_MS
                is_between = before <= acked_ms and int(sent_ms) <= behind
                is_free = index == len(own) or own[index][0] != offset
                if is_between and is_free:
                    fitting.append(life)
            if len(fitting) == 1 and Place(fitting[0], offset) not in taken:
                self.places[number] = Place(fitting[0], offset)
                taken.add(self.places[number])
            else:
                self.undecided.append(number)
