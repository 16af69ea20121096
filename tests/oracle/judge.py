"""Compares one client's conclusions with the truth, and finds silent losses.

A client's journal is a list of the entries below, in the client's order. For each channel the
judge keeps the place up to which everything is settled: delivered, declared missing, or not owed.
A later event or stated position settles the events in between, if none is missing, or if the
missing ones are declared, by the rules of docs/protocol.md. Everything else is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import attrs

from tests.oracle.truth import START, Place, Truth

# "Losses that follow a notice within a second are summed up, and the next notice tells of them".
_SUMMED_UP_MS = 1000.0
# The delay of this process in reading messages that came in time.
_LATE_MS = 1500.0

# The size of a resume, and its greatest age, with a good margin.
_OF_EACH_MAX, _IN_ALL_MAX = 100, 500
_KEPT_MS = 15_000.0

Channels: TypeAlias = frozenset[str]


@attrs.frozen(kw_only=True)
class Entry:
    """An entry of a client's journal, at a time in Unix milliseconds."""

    at_ms: float


@attrs.frozen(kw_only=True)
class Opened(Entry):
    """A connection has subscribed; with a position, it is owed its channels from there on."""

    channels: Channels
    epoch: str | None = None
    offset: int | None = None


@attrs.frozen(kw_only=True)
class Resuming(Entry):
    """Further channels are requested from the position on."""

    channels: Channels
    epoch: str
    offset: int


@attrs.frozen(kw_only=True)
class Began(Entry):
    """Channels are acknowledged, and owed from the client's position on; None: from now on.

    `is_behind`: the server has stated a lower position, and may send the events in between, too.
    """

    channels: Channels
    epoch: str | None
    offset: int | None
    is_behind: bool = False


@attrs.frozen(kw_only=True)
class Left(Entry):
    """Channels were dropped: once with the command, and again with its acknowledgement."""

    channels: Channels
    is_acknowledged: bool


@attrs.frozen(kw_only=True)
class Event(Entry):
    """An event.

    `is_ignored`: it came again, where the page says that it may. `prev`: the offset of the event
    before it in its channel. `is_snapshot`: it is the newest of its channel, for a new subscriber.
    """

    epoch: str | None
    channel: str
    number: int
    offset: int
    stored_ms: int
    payload: str
    seq: int
    is_ignored: bool = False
    prev: int | None = None
    is_snapshot: bool = False


@attrs.frozen(kw_only=True)
class Stated(Entry):
    """A position: all events of the channels up to there have been sent."""

    epoch: str
    offset: int


@attrs.frozen(kw_only=True)
class Incomplete(Entry):
    """A resume is declared incomplete, in these channels."""

    channels: Channels


@attrs.frozen(kw_only=True)
class Resumed(Entry):
    """A resume has ended, at a position if the server knows one."""

    epoch: str | None
    offset: int | None


@attrs.frozen(kw_only=True)
class Gap(Entry):
    """A notice of lost events."""

    reason: str
    epoch: str | None
    first: int | None
    last: int | None


@attrs.frozen(kw_only=True)
class Broke(Entry):
    """The connection has ended, in any way."""

    why: str = ""


@attrs.frozen(kw_only=True)
class Finding:
    """A violation of the page."""

    kind: str
    client: str
    at_ms: float
    detail: str


@attrs.define
class Verdict:
    """The sum over clients. `declared` events are missing with a notice.

    `needless`: resumes that were incomplete, although the server must keep the missed events.
    """

    delivered: int = 0
    declared: int = 0
    ignored: int = 0
    notices: int = 0
    incomplete: int = 0
    needless: int = 0
    connections: int = 0
    snapshots: int = 0
    findings: list[Finding] = attrs.field(factory=list)

    def add(self, other: Verdict) -> None:
        for field in attrs.fields(Verdict):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def count(self, *kinds: str) -> int:
        """The number of findings of these kinds."""
        return sum(1 for one in self.findings if one.kind in kinds)


@attrs.frozen
class _Cover:
    """A declaration: events after `after`, up to `to`, may be missing."""

    after: Place
    to: Place
    channels: Channels | None = None  # all of them

    def covers(self, channel: str, place: Place) -> bool:
        is_its = self.channels is None or channel in self.channels
        return is_its and self.after < place <= self.to


@attrs.define
class _Resume:
    """A running resume: its channels, and the missing events until its end is known."""

    channels: Channels
    after: Place
    incomplete: Channels = frozenset()


def judge(client: str, journal: Sequence[Entry], truth: Truth) -> Verdict:
    """Judge the whole journal of a client."""
    case = _Case(client, truth)
    for entry in journal:
        case.take(entry)
    case.close(journal[-1].at_ms if journal else 0.0)
    return case.verdict


class _Case:
    def __init__(self, client: str, truth: Truth) -> None:
        self.verdict = Verdict()
        self._client = client
        self._truth = truth
        self._settled: dict[str, Place] = {}
        self._leaving: set[str] = set()
        # Channels acknowledged without a position: owed from the client's one on, if it resumes.
        self._vague: set[str] = set()
        # The places up to which a server that lagged may still send settled events.
        self._early: dict[str, Place] = {}
        # The life of an epoch that can stand for two; see `_place`.
        self._life_in: dict[str, int] = {}
        self._delivered: set[int] = set()
        # The events received on this connection, and their life by epoch.
        self._came: set[int] = set()
        self._came_of: dict[str | None, int] = {}
        self._covers: list[_Cover] = []
        self._seq = 0
        self._resume: _Resume | None = None
        # Missing events of a resume that may still be declared incomplete.
        self._unresumed: dict[Place, str] = {}
        # Events missing within a second after a notice: the next one may declare them.
        self._untold: dict[Place, tuple[str, float]] = {}
        self._notice_ms = float("-inf")
        # The progress of this connection, now and at the last notice.
        self._reached = self._noticed = START
        # A declaration without numbers extends to the next event or position.
        self._is_open = False
        self._handlers: dict[type[Entry], Callable[[Any], None]] = {
            Opened: self._open,
            Resuming: lambda entry: self._ask(entry.channels, self._locate(entry)),
            Began: self._begin,
            Left: self._leave,
            Event: self._receive,
            Stated: lambda entry: self._state(self._locate(entry), entry.at_ms),
            Incomplete: self._take_incomplete,
            Resumed: self._end_resume,
            Gap: self._notice,
            Broke: self._break,
        }

    def take(self, entry: Entry) -> None:
        self._end_of_patience(entry.at_ms)
        self._handlers[type(entry)](entry)

    def close(self, at_ms: float) -> None:
        """End the journal: owed events that have not come by now are missing."""
        for channel, settled in self._settled.items():
            for place in self._truth.behind(channel, settled):
                if self._is_missing(channel, place):
                    self._find("never came", at_ms, f"{channel}: {self._name(place)}")
        self._unresumed.clear()
        self._end_of_patience(float("inf"))

    def _open(self, entry: Opened) -> None:
        self.verdict.connections += 1
        self._seq = 0
        self._notice_ms = float("-inf")
        self._reached = START
        self._is_open = False
        self._came.clear()
        self._came_of.clear()
        self._leaving.clear()
        if entry.epoch is None:  # nothing is owed from before
            self._settled.clear()
            self._vague.clear()
            self._unresumed.clear()
        else:
            self._settled = {
                channel: place
                for channel, place in self._settled.items()
                if channel in entry.channels
            }
            after = self._locate(entry)
            self._early = {
                channel: place for channel, place in self._early.items() if after < place
            }
            self._ask(entry.channels, after)

    def _ask(self, channels: Channels, after: Place) -> None:
        self._resume = _Resume(channels, after)
        for channel in channels:
            if channel in self._vague:
                self._settled[channel] = min(after, self._settled[channel])
            self._settled.setdefault(channel, after)
        self._vague -= channels

    def _begin(self, entry: Began) -> None:
        if entry.epoch is None or entry.offset is None:
            place = self._truth.place_at(entry.at_ms)
            self._vague |= entry.channels - self._settled.keys()
        else:
            place = self._locate(entry)
        for channel in entry.channels:
            self._settled.setdefault(channel, place)
            if entry.is_behind:
                self._early[channel] = place

    def _leave(self, entry: Left) -> None:
        self._vague -= entry.channels
        for channel in entry.channels:
            self._settled.pop(channel, None)
            self._early.pop(channel, None)
        if entry.is_acknowledged:
            self._leaving -= entry.channels
        else:
            self._leaving |= entry.channels

    def _receive(self, event: Event) -> None:
        self._check(event)
        is_repeat = event.number in self._came
        self._came.add(event.number)
        if event.is_snapshot:
            self._take_snapshot(event)
            return
        if event.is_ignored:
            self.verdict.ignored += 1
            if is_repeat:
                text = f"{event.channel}: #{event.number} twice on one connection"
                self._find("repeat", event.at_ms, text)
            return
        settled, place = self._wanted(event), self._truth.places.get(event.number)
        if settled is None or place is None:  # its place is unknown
            return
        if place.life > self._came_of.setdefault(event.epoch, place.life):
            text = f"{event.channel}: {self._name(place)}, under the epoch of another one"
            self._find("unannounced", event.at_ms, text)
        self._came_of[event.epoch] = place.life
        if event.epoch is not None:
            self._life_in[event.epoch] = place.life
        if event.number in self._delivered:
            self._find("repeat", event.at_ms, f"{event.channel}: {self._name(place)}")
        elif place <= settled and place > self._early.get(event.channel, START):
            text = f"{event.channel}: {self._name(place)}, though all up to {settled} was sent"
            self._find("reorder", event.at_ms, text)
        self._delivered.add(event.number)
        self.verdict.delivered += 1
        self._reach(Place(place.life, place.offset - 1))
        self._settle([event.channel], place, event.at_ms)

    def _wanted(self, event: Event) -> Place | None:
        """Up to where its channel is settled; None if the client does not want it."""
        settled = self._settled.get(event.channel)
        if settled is None and event.channel not in self._leaving:
            self._find("foreign", event.at_ms, f"{event.channel} is not subscribed to")
        return settled

    def _take_snapshot(self, event: Event) -> None:
        """Check the newest event of a channel, which the client may have had before."""
        self.verdict.snapshots += 1
        settled, place = self._wanted(event), self._truth.places.get(event.number)
        if settled is None or place is None:
            return
        newer = self._truth.between(event.channel, place, settled)
        came_later = [one for one in newer if self._truth.number_at(one) in self._came]
        if came_later:
            text = f"{event.channel}: {self._name(place)} after {self._name(came_later[-1])}"
            self._find("old snapshot", event.at_ms, text)
        self._delivered.add(event.number)

    def _check_prev(self, event: Event, place: Place) -> None:
        """Check that `prev` is the event before, wherever it is stated."""
        if event.prev is None:
            return
        before = self._truth.between(event.channel, Place(place.life, 0), place)[:-1]
        if event.prev >= event.offset or (before and before[-1].offset > event.prev):
            last = before[-1].offset if before else None
            text = f"{self._name(place)} has prev {event.prev}, but there was {last}"
            self._find("wrong prev", event.at_ms, text)

    def _check(self, event: Event) -> None:
        """Check that the event is as it was published and stored."""
        if event.seq != self._seq + 1:
            text = f"{event.seq} after {self._seq}"
            self._find("seq hole", event.at_ms, text)
        self._seq = event.seq
        truth, number = self._truth, event.number
        sent = truth.sent.get(number)
        if sent is None or sent.channel != event.channel or sent.payload != event.payload:
            self._find("wrong data", event.at_ms, f"{event.channel} #{number}: {event.payload}")
            return
        place = truth.places.get(number)
        if place is not None:
            self._check_prev(event, place)
        if place is not None and place.offset != event.offset:
            text = f"#{number} has the offset {event.offset} instead of {place.offset}"
            self._find("wrong offset", event.at_ms, text)
        stored_ms = truth.stored_ms.get(number, event.stored_ms)
        if stored_ms != event.stored_ms:
            text = f"#{number} has the ts {event.stored_ms} instead of {stored_ms}"
            self._find("wrong ts", event.at_ms, text)

    def _reach(self, place: Place) -> None:
        """End an open declaration without numbers here."""
        if self._is_open:
            self._is_open = False
            self._declare(_Cover(START, place))

    def _state(self, place: Place, at_ms: float) -> None:
        self._reach(place)
        self._settle(self._settled, place, at_ms)

    def _settle(self, channels: Iterable[str], to: Place, at_ms: float) -> None:
        """Settle these channels up to `to`: each event has come, or is missing."""
        self._reached = max(self._reached, to)
        for channel in channels:
            settled = self._settled[channel]
            for place in self._truth.between(channel, settled, to):
                if self._is_missing(channel, place):
                    self._miss(channel, place, at_ms)
            self._settled[channel] = max(settled, to)

    def _is_missing(self, channel: str, place: Place) -> bool:
        """Whether the event neither came nor is declared; a declared one is counted."""
        if self._truth.number_at(place) in self._delivered:
            return False
        if any(cover.covers(channel, place) for cover in self._covers):
            self.verdict.declared += 1
            return False
        return True

    def _miss(self, channel: str, place: Place, at_ms: float) -> None:
        if self._resume is not None and channel in self._resume.channels:
            self._unresumed[place] = channel
        elif at_ms - self._notice_ms <= _SUMMED_UP_MS + _LATE_MS:
            self._untold[place] = (channel, at_ms)
        else:
            self._find("silent loss", at_ms, f"{channel}: {self._name(place)}")

    def _take_incomplete(self, entry: Incomplete) -> None:
        self.verdict.incomplete += 1
        if self._resume is None:
            self._find("foreign", entry.at_ms, "resume_incomplete, without a command")
        else:
            self._resume.incomplete = entry.channels

    def _end_resume(self, entry: Resumed) -> None:
        resume, self._resume = self._resume, None
        if resume is None:
            self._find("foreign", entry.at_ms, "resumed, without a command")
            return
        place = None
        if entry.epoch is not None and entry.offset is not None:
            place = self._locate(entry)
        if resume.incomplete:
            if place is not None and self._is_kept(resume, place, entry.at_ms):
                self.verdict.needless += 1
            to = place or self._truth.place_at(entry.at_ms)
            # "Load the state anew": the state includes everything before.
            lives = self._truth.lives_of(entry.epoch) if entry.epoch else []
            latest = Place(max(to.life, *lives), to.offset) if lives else to
            self._declare(_Cover(START, latest, resume.incomplete))
        missing, self._unresumed = self._unresumed, {}
        for lost, channel in missing.items():
            if channel in self._settled and self._is_missing(channel, lost):
                self._miss(channel, lost, entry.at_ms)
        if place is not None:
            self._state(place, entry.at_ms)

    def _is_kept(self, resume: _Resume, to: Place, at_ms: float) -> bool:
        """Whether a server that has reached NATS has all missed events, and may send them."""
        truth = self._truth
        missed = [truth.between(channel, resume.after, to) for channel in resume.channels]
        return (
            resume.after.life == to.life
            and all(len(places) < _OF_EACH_MAX for places in missed)
            and sum(map(len, missed)) < _IN_ALL_MAX
            and truth.was_after(resume.after, at_ms - _KEPT_MS)
        )

    def _notice(self, gap: Gap) -> None:
        self.verdict.notices += 1
        if gap.reason == "stream" or gap.first == 1:
            self._came_of.clear()
        life = None if gap.epoch is None else self._truth.life_of(gap.epoch, gap.at_ms)
        if gap.reason == "stream":
            # Everything before the new stream; if nobody saw an event of that, until now.
            now = self._truth.place_at(gap.at_ms)
            self._declare(_Cover(START, now if life is None else Place(life, 0)))
            # The client may know the stream from a server that saw it earlier.
            self._early |= {
                channel: place for channel, place in self._settled.items() if place.life == life
            }
        if gap.last is not None and gap.epoch is not None:
            if gap.first == 1:
                self._life_in.pop(gap.epoch, None)
            to = self._place(gap.epoch, gap.last, gap.at_ms)
            # A stream may have been emptied unnoticed: then these offsets belong to both lives.
            for life in {to.life, *self._truth.lives_of(gap.epoch)}:
                after = Place(life, gap.first - 1) if gap.first is not None else START
                self._declare(_Cover(after, Place(life, gap.last)))
        elif gap.reason != "stream":
            self._is_open = True
        self._notice_ms, self._noticed = gap.at_ms, self._reached

    def _declare(self, cover: _Cover) -> None:
        self._covers.append(cover)
        for place, (channel, _) in list(self._untold.items()):
            if cover.covers(channel, place):
                del self._untold[place]
                self.verdict.declared += 1

    def _break(self, entry: Broke) -> None:
        self._resume = None
        if entry.at_ms - self._notice_ms <= _SUMMED_UP_MS + _LATE_MS:
            # "Take a loss for possible, too, when a connection breaks within a second".
            self._declare(_Cover(self._noticed, self._reached))
        self._end_of_patience(float("inf"))

    def _end_of_patience(self, now_ms: float) -> None:
        """The second in which a notice could have declared a loss is over."""
        for place, (channel, at_ms) in list(self._untold.items()):
            if now_ms - at_ms > _SUMMED_UP_MS + _LATE_MS:
                del self._untold[place]
                self._find("silent loss", at_ms, f"{channel}: {self._name(place)}")

    def _locate(self, entry: Opened | Resuming | Began | Stated | Resumed) -> Place:
        assert entry.epoch is not None
        assert entry.offset is not None
        return self._place(entry.epoch, entry.offset, entry.at_ms)

    def _place(self, epoch: str, offset: int, at_ms: float) -> Place:
        """The place of an offset that a server states.

        A stream that was emptied unnoticed keeps its epoch. Then the server means the life that it
        knew, until it declares that all may be missing from the first offset on.
        """
        if len(self._truth.lives_of(epoch)) > 1 and epoch in self._life_in:
            return Place(self._life_in[epoch], offset)
        place = self._truth.locate(epoch, offset, at_ms)
        self._life_in[epoch] = place.life
        return place

    def _name(self, place: Place) -> str:
        number = self._truth.number_at(place)
        return f"#{number} at {place.offset} of life {place.life}"

    def _find(self, kind: str, at_ms: float, detail: str) -> None:
        self.verdict.findings.append(
            Finding(kind=kind, client=self._client, at_ms=at_ms, detail=detail)
        )
