"""Compares one client's conclusions with the truth, and finds silent losses.

A client's journal is a list of the entries below, in the client's order. For each channel the
judge keeps the place up to which everything is settled: delivered, declared missing, or not owed.
A later event or stated position settles the events in between, if none is missing, or if the
missing ones are declared, by the rules of docs/protocol.md. Everything else is a finding.

At a rate an event stands for the older ones that it `skipped`. That number has to be exact: it is
compared with the events of the channel since the last one of it on the same connection.
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
    """A connection has subscribed; with a position, it is owed its channels from there on.

    `later`: channels that it will request from another position; see `Resuming`.
    """

    channels: Channels
    epoch: str | None = None
    offset: int | None = None
    at_a_rate: bool = False
    later: Channels = frozenset()


@attrs.frozen(kw_only=True)
class Resuming(Entry):
    """Further channels are requested from the position on."""

    channels: Channels
    epoch: str
    offset: int
    at_a_rate: bool = False


@attrs.frozen(kw_only=True)
class Began(Entry):
    """Channels are acknowledged, and owed from the client's position on; None: from now on.

    `behind_at`: the server has stated this lower position, and may send the events in between, too.
    `is_at_least`: it may have been further when it stated that, as an event waited for its tick.
    """

    channels: Channels
    epoch: str | None
    offset: int | None
    behind_at: int | None = None
    is_at_least: bool = False


@attrs.frozen(kw_only=True)
class Paused(Entry):
    """A pause of channels is acknowledged; or its end is requested."""

    channels: Channels
    is_over: bool = False


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
    `skipped`: how many older ones gave way to it. `batch_to`: the largest offset of its batch.
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
    skipped: int | None = 0
    batch_to: int | None = None


@attrs.frozen(kw_only=True)
class OfGoneStream(Entry):
    """A batch with nothing but events of a stream that has gone, which have no offset.

    What a client lacked when the stream went is declared, so nothing follows from them.
    """

    seq: int


@attrs.frozen(kw_only=True)
class Stated(Entry):
    """A position: all events up to there have been sent, of these channels; None: of all."""

    epoch: str
    offset: int
    channels: Channels | None = None


@attrs.frozen(kw_only=True)
class Incomplete(Entry):
    """A resume is declared incomplete, in these channels."""

    channels: Channels


@attrs.frozen(kw_only=True)
class Resumed(Entry):
    """A resume has ended, at a position if the server knows one.

    `channels`: to which the position applies; None: to all. `is_at_least`: as of `Began`.
    """

    epoch: str | None
    offset: int | None
    channels: Channels | None = None
    is_at_least: bool = False


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
    """The sum over clients. `declared` events are missing with a notice, `skipped` ones counted.

    `needless`: resumes that were incomplete, although the server must keep the missed events.
    """

    delivered: int = 0
    skipped: int = 0
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
    at_a_rate: bool = False
    incomplete: Channels = frozenset()


@attrs.frozen
class _Claim:
    """What an event says about older ones: how many of them it skipped.

    Attributes:
        event: the event.
        skipped: the number.
        older: those that there were since the last one of its channel on this connection.
        unknown: how many more there may have been, as the fate of some events is not known.
        is_resumed: whether it came in a resume.
    """

    event: Event
    skipped: int
    older: list[Place]
    unknown: int
    is_resumed: bool


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
        self._skipped: set[int] = set()
        self._paused: set[str] = set()
        # The place up to which this connection has sent a channel, for the count of `skipped`; and
        # the last event of a channel on it.
        self._sent_to: dict[str, Place] = {}
        self._last: dict[str, Place] = {}
        # What events whose place is unknown have skipped.
        self._carried: dict[str, int] = {}
        # Counts that are wrong, unless a declaration follows that explains them.
        self._claims: list[_Claim] = []
        # The events received on this connection, and their life by epoch.
        self._came: set[int] = set()
        self._came_of: dict[str | None, int] = {}
        self._covers: list[_Cover] = []
        self._seq = 0
        self._batch_to: int | None = None
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
            Resuming: self._ask,
            Began: self._begin,
            Paused: self._pause,
            Left: self._leave,
            Event: self._receive,
            OfGoneStream: lambda one: self._check_seq(one.seq, None, one.at_ms),
            Stated: lambda one: self._state(self._locate(one), one.at_ms, one.channels),
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
        self._batch_to = None
        self._notice_ms = float("-inf")
        self._reached = START
        self._is_open = False
        for of_the_connection in (self._came, self._came_of, self._leaving, self._paused):
            of_the_connection.clear()
        for by_channel in (self._sent_to, self._last, self._carried):
            by_channel.clear()
        kept, later = entry.channels | entry.later, entry.later
        if entry.epoch is None:  # nothing is owed from before
            kept = later
            self._vague &= later
            self._unresumed = {at: one for at, one in self._unresumed.items() if one in later}
        self._settled = {channel: at for channel, at in self._settled.items() if channel in kept}
        if entry.epoch is not None:
            after = self._locate(entry)
            self._early = {
                channel: place
                for channel, place in self._early.items()
                if after < place or channel in later
            }
            self._ask(entry)

    def _ask(self, entry: Opened | Resuming) -> None:
        channels, after = entry.channels, self._locate(entry)
        self._resume = _Resume(channels, after, entry.at_a_rate)
        for channel in channels:
            if channel in self._vague:
                self._settled[channel] = min(after, self._settled[channel])
            settled = self._settled.setdefault(channel, after)
            if after < settled:  # what it did not want then may come now
                self._early[channel] = max(settled, self._early.get(channel, START))
            self._sent_to[channel] = after
        self._vague -= channels

    def _begin(self, entry: Began) -> None:
        if entry.epoch is None or entry.offset is None:
            place = self._truth.place_at(entry.at_ms)
            self._vague |= entry.channels - self._settled.keys()
        else:
            place = self._locate(entry)
        if entry.is_at_least:
            place = max(place, self._truth.place_at(entry.at_ms))
            self._early |= dict.fromkeys(entry.channels, place)
        elif entry.epoch is not None and entry.offset is not None:
            behind_at = entry.offset if entry.behind_at is None else entry.behind_at
            sent_to = Place(place.life, behind_at)
            self._sent_to |= dict.fromkeys(entry.channels, sent_to)
        for channel in entry.channels:
            self._settled.setdefault(channel, place)
            if entry.behind_at is not None:
                self._early[channel] = place

    def _pause(self, entry: Paused) -> None:
        if entry.is_over:
            self._paused -= entry.channels
        else:
            self._paused |= entry.channels

    def _leave(self, entry: Left) -> None:
        self._vague -= entry.channels
        self._paused -= entry.channels
        for channel in entry.channels:
            self._settled.pop(channel, None)
            for of_channel in (self._early, self._sent_to, self._last, self._carried):
                of_channel.pop(channel, None)
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
        if event.channel in self._paused and not self._is_resuming(event.channel):
            self._find("paused", event.at_ms, f"{event.channel}: #{event.number} in a pause")
        place = self._truth.places.get(event.number)
        is_backwards = place is not None and place < self._last.get(event.channel, START)
        self._take_skipped(event, place)
        if event.is_ignored:
            self.verdict.ignored += 1
            if is_repeat or is_backwards:
                kind = "repeat" if is_repeat else "reorder"
                text = f"{event.channel}: #{event.number}, ignored, again on one connection"
                self._find(kind, event.at_ms, text)
        else:
            self._take_live(event, place, is_backwards=is_backwards)

    def _take_live(self, event: Event, place: Place | None, *, is_backwards: bool) -> None:
        settled = self._wanted(event)
        if settled is None or place is None:  # its place is unknown
            return
        if place.life > self._came_of.setdefault(event.epoch, place.life):
            text = f"{event.channel}: {self._name(place)}, under the epoch of another one"
            self._find("unannounced", event.at_ms, text)
        self._came_of[event.epoch] = place.life
        if event.epoch is not None:
            self._life_in[event.epoch] = place.life
        is_due = settled < place or place <= self._early.get(event.channel, START)
        if event.number in self._delivered:
            self._find("repeat", event.at_ms, f"{event.channel}: {self._name(place)}")
        elif is_backwards or not is_due:
            text = f"{event.channel}: {self._name(place)}, though all up to {settled} was sent"
            self._find("reorder", event.at_ms, text)
        self._delivered.add(event.number)
        self.verdict.delivered += 1
        # The older events of a batch may be from before the loss.
        if event.batch_to is None or event.batch_to == event.offset:
            self._reach(Place(place.life, place.offset - 1))
        self._settle([event.channel], place, event.at_ms)

    def _is_resuming(self, channel: str) -> bool:
        return self._resume is not None and channel in self._resume.channels

    def _take_skipped(self, event: Event, place: Place | None) -> None:
        """Check how many events gave way to this one, and take these as accounted for."""
        channel = event.channel
        if event.skipped is None:
            self._find("unknown skipped", event.at_ms, f"{channel}: #{event.number}")
        skipped = (event.skipped or 0) + self._carried.pop(channel, 0)
        if place is None:
            self._carried[channel] = skipped
            return
        sent_to = self._sent_to.get(channel)
        self._sent_to[channel] = place
        self._last[channel] = max(place, self._last.get(channel, START))
        self.verdict.skipped += skipped
        resume = self._resume if self._is_resuming(channel) else None
        is_at_a_rate = event.batch_to is not None or (resume is not None and resume.at_a_rate)
        if sent_to is None:  # what it is counted from is not known
            older = self._truth.between(channel, self._settled.get(channel, place), place)[:-1]
            self._account_for(older[max(0, len(older) - skipped) :])
        elif sent_to < place and (is_at_a_rate or skipped):
            older = self._truth.between(channel, sent_to, place)[:-1]
            unknown = self._truth.unplaced(channel, sent_to, place)
            claim = _Claim(event, skipped, older, unknown, is_resumed=resume is not None)
            self._account_for(older)
            if not self._is_true(claim):
                self._claims.append(claim)
                self._end_of_patience(event.at_ms)

    def _account_for(self, places: Iterable[Place]) -> None:
        self._skipped.update(map(self._truth.number_at, places))

    def _is_true(self, claim: _Claim) -> bool:
        """Whether so many were skipped. Those that are declared lost may be counted, or not."""
        channel = claim.event.channel
        owed = [place for place in claim.older if not self._is_covered(channel, place)]
        return len(owed) <= claim.skipped <= len(claim.older) + claim.unknown

    def _refute(self, claim: _Claim) -> None:
        event, count = claim.event, len(claim.older)
        kind = "silent loss" if claim.skipped < count else "wrong skipped"
        text = f"{event.channel}: #{event.number} has skipped {claim.skipped}, but there were"
        self._find(kind, event.at_ms, f"{text} {count}")

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

    def _check_seq(self, seq: int, batch_to: int | None, at_ms: float) -> None:
        is_same_batch = batch_to is not None and batch_to == self._batch_to
        if seq != self._seq + 1 and not (is_same_batch and seq == self._seq):
            self._find("seq hole", at_ms, f"{seq} after {self._seq}")
        self._seq, self._batch_to = seq, batch_to

    def _check(self, event: Event) -> None:
        """Check that the event is as it was published and stored."""
        self._check_seq(event.seq, event.batch_to, event.at_ms)
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

    def _state(self, place: Place, at_ms: float, channels: Channels | None = None) -> None:
        self._reach(place)
        of = self._settled if channels is None else self._settled.keys() & channels
        self._settle(list(of), place, at_ms)

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
        number = self._truth.number_at(place)
        if number in self._delivered or number in self._skipped:
            return False
        if self._is_covered(channel, place):
            self.verdict.declared += 1
            return False
        return True

    def _is_covered(self, channel: str, place: Place) -> bool:
        return any(cover.covers(channel, place) for cover in self._covers)

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
            self._resume.incomplete = entry.channels & self._resume.channels

    def _end_resume(self, entry: Resumed) -> None:
        resume, self._resume = self._resume, None
        if resume is None:
            self._find("foreign", entry.at_ms, "resumed, without a command")
            return
        place = None
        if entry.epoch is not None and entry.offset is not None:
            place = self._locate(entry)
        if resume.incomplete:
            self._declare_incomplete(resume, entry, place)
        if place is not None and not entry.is_at_least:
            self._sent_to |= dict.fromkeys(resume.channels, place)
        for channel in resume.incomplete if entry.is_at_least else ():
            self._sent_to.pop(channel, None)
        self._claims = [
            attrs.evolve(one, is_resumed=False) for one in self._claims if not self._is_true(one)
        ]
        self._end_of_patience(entry.at_ms)
        missing, self._unresumed = self._unresumed, {}
        for lost, channel in missing.items():
            if channel in self._settled and self._is_missing(channel, lost):
                self._miss(channel, lost, entry.at_ms)
        if place is not None:
            self._state(place, entry.at_ms, entry.channels)

    def _declare_incomplete(self, resume: _Resume, entry: Resumed, place: Place | None) -> None:
        """Declare what the client loads anew: the state includes everything before."""
        if place is not None and self._is_kept(resume, place, entry.at_ms):
            self.verdict.needless += 1
        to = place or START
        if place is None or entry.is_at_least:  # up to this answer
            to = max(to, self._truth.place_at(entry.at_ms))
        lives = self._truth.lives_of(entry.epoch) if entry.epoch else []
        latest = Place(max(to.life, *lives), to.offset) if lives else to
        self._declare(_Cover(START, latest, resume.incomplete))

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
            begin = START if life is None else Place(life, 0)
            # A server that had a part of the old stream waiting for a tick may count that, too.
            self._sent_to = {channel: min(at, begin) for channel, at in self._sent_to.items()}
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
        self._claims = [one for one in self._claims if not self._is_true(one)]
        for place, (channel, _) in list(self._untold.items()):
            if cover.covers(channel, place):
                del self._untold[place]
                self.verdict.declared += 1

    def _break(self, entry: Broke) -> None:
        self._resume = None
        self._forget_resumed_claims()
        if entry.at_ms - self._notice_ms <= _SUMMED_UP_MS + _LATE_MS:
            # "Take a loss for possible, too, when a connection breaks within a second".
            self._declare(_Cover(self._noticed, self._reached))
        self._end_of_patience(float("inf"))

    def _forget_resumed_claims(self) -> None:
        """A broken resume declares nothing, and its events come again, or newer ones."""
        for claim in [one for one in self._claims if one.is_resumed]:
            self._claims.remove(claim)
            for place in claim.older:
                self._skipped.discard(self._truth.number_at(place))
                self._unresumed[place] = claim.event.channel

    def _end_of_patience(self, now_ms: float) -> None:
        """The second in which a notice could have declared a loss is over."""
        for claim in [one for one in self._claims if not one.is_resumed]:
            at_ms = claim.event.at_ms
            is_told = at_ms - self._notice_ms <= _SUMMED_UP_MS + _LATE_MS
            if not is_told or now_ms - at_ms > _SUMMED_UP_MS + _LATE_MS:
                self._claims.remove(claim)
                self._refute(claim)
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
