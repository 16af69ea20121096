"""Rates: subscriptions that get the newest event of a channel now and then instead of every one.

Of several names of a connection that match an event, the fastest counts. So a channel belongs to
one rate of a connection, and what changes that moves what was not sent yet to the other rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from itertools import count
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

import attrs

from trio_odin.fanout.batch import Batch
from trio_odin.fanout.cohorts import Member, Slot
from trio_odin.fanout.updates import Update, Updates
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.channels import ChannelSet, is_pattern, patterns_for
from trio_odin.wire.rates import EVERY_EVENT, TICK_MS, Rate

S = TypeVar("S", bound=Hashable)

# The members of a rate are spread over as many ticks. More would tear cohorts apart, and the fewer
# sockets are written to in a row, the more each write costs, for want of warm caches.
_TICKS_MAX: Final = 5
# Connections that came one after the other lie side by side in memory, and share a tick.
_NEIGHBOURS: Final = 64
# Multiples of it are spread evenly, wherever one stops.
_GOLDEN_RATIO: Final = 0.618034


def _speed(rate: Rate) -> float:
    return float("inf") if rate is None else rate


def _nothing_woken() -> None:
    pass


@attrs.define(eq=False)
class _Own(Generic[S]):
    """The memberships of one connection, by rate. Its rank spreads connections over the ticks."""

    rank: int
    members: dict[Rate, Member[S]] = attrs.field(factory=dict)

    def has_all(self, names: Iterable[str], rate: Rate) -> bool:
        """Whether it has all `names` at `rate` already, or at `EVERY_EVENT` none of them here."""
        at_rate = self.members.get(rate)
        others = [member.cohort for other, member in self.members.items() if other != rate]
        return all(
            (rate == EVERY_EVENT or (at_rate is not None and name in at_rate.cohort))
            and not any(name in cohort for cohort in others)
            for name in names
        )

    def covering(self, channel: str) -> tuple[Rate, Member[S]] | None:
        """The rate that `channel` has, and the membership; None if it has none here."""
        return next((one for one in self.in_order() if one[1].cohort.covers(channel)), None)

    def in_order(self) -> list[tuple[Rate, Member[S]]]:
        """The fastest rate first."""
        return sorted(self.members.items(), key=lambda one: _speed(one[0]))

    @property
    def has_patterns(self) -> bool:
        return any(member.cohort.patterns for member in self.members.values())


# An update, and the number up to which somebody was sent everything of its channel.
Unsent: TypeAlias = tuple[Update, int]


class _Position(NamedTuple):
    """A channel at `rate`: the subscriber was sent everything up to the number `since`."""

    rate: Rate
    update: Update
    since: int


class Rates(Generic[S]):
    """The subscriptions at a rate, by tick and by connection.

    To find a cohort takes as long as the command is, whoever else is subscribed.

    Args:
        wake: called when there is a slot that is to tick and was not there before.
        max_batch_bytes: about as much goes into one message, and always one event.

    Attributes:
        updates: the newest event of each channel that is wanted here.
        slots: those that tick and have members, by rate and tick.
        looked_at: how many updates were looked at for single subscribers so far.
    """

    def __init__(
        self, wake: Callable[[], None] = _nothing_woken, *, max_batch_bytes: int = 1024 * 1024
    ) -> None:
        self.updates = Updates()
        self.looked_at = 0
        self._max_batch_bytes = max_batch_bytes
        self.slots: dict[tuple[int, int], Slot[S]] = {}
        self._paused: Slot[S] = Slot(None, 0)
        self._wake = wake
        self._own: dict[S, _Own[S]] = {}
        self._names: Counter[str] = Counter()
        self._patterns: set[str] = set()
        self._ranks = count()
        self._floors: dict[str, dict[S, int]] = {}

    def __contains__(self, subscriber: S) -> bool:
        return subscriber in self._own

    # ---- events

    def wants(self, channel: str) -> bool:
        """Whether anyone is to get the events of `channel` at a rate."""
        return channel in self._names or (
            bool(self._patterns) and not self._patterns.isdisjoint(patterns_for(channel))
        )

    def add(self, channel: str, message: NatsMessage, prev: int | None) -> None:
        """Take in the next event of a channel that is wanted."""
        number = self.updates.add(channel, message, prev)
        if self._floors and message.offset is not None:
            names = {channel, *patterns_for(channel)}.intersection(self._names)
            if not names.isdisjoint(self._floors):
                self._hold_back(names, channel, message.offset, number)

    def _hold_back(self, names: set[str], channel: str, offset: int, number: int) -> None:
        """Skip the event for those to whom another server has sent it.

        That holds if it is held back under each of the `names` by which it belongs to its rate.
        """
        held: set[S] = set()
        for name in names.intersection(self._floors):
            floors = self._floors[name]
            for subscriber in [one for one, floor in floors.items() if floor < offset]:
                del floors[subscriber]
            held.update(floors)
            if not floors:
                del self._floors[name]
        for subscriber in held:
            if (at := self._own[subscriber].covering(channel)) is not None:
                _, member = at
                own = [name for name in names if name in member.cohort]
                if all(subscriber in self._floors.get(name, ()) for name in own):
                    member.note_other(channel, number)

    def forget_floors(self) -> None:
        """Hold nothing back from now on, because offsets count anew."""
        self._floors.clear()

    # ---- subscriptions

    def names(self, subscriber: S) -> Iterator[str]:
        """The channels and patterns of `subscriber` here."""
        own = self._own.get(subscriber)
        for member in own.members.values() if own else ():
            yield from member.cohort.names()

    def named(self, subscriber: S) -> dict[str, Rate]:
        """The same, with the rate of each."""
        own = self._own.get(subscriber)
        members = own.members if own else {}
        return {name: rate for rate, one in members.items() for name in one.cohort.names()}

    def count_of(self, name: str) -> int:
        """How many subscribers have `name` here."""
        return self._names[name]

    def has_any(self, subscriber: S, names: Collection[str]) -> bool:
        """Whether `subscriber` has one of `names` here."""
        own = self._own.get(subscriber)
        members = own.members.values() if own else ()
        return any(name in member.cohort for member in members for name in names)

    def count(self, subscriber: S) -> int:
        """How many these are."""
        own = self._own.get(subscriber)
        return sum(len(member.cohort) for member in own.members.values()) if own else 0

    def all_names(self) -> Collection[str]:
        """The channels and patterns that have a subscriber here."""
        return self._names.keys()

    def subscribers(self) -> Collection[S]:
        """Who is subscribed here."""
        return self._own.keys()

    def change(
        self,
        subscriber: S,
        names: Collection[str],
        rate: Rate,
        *,
        every_event: tuple[Collection[str], Collection[str]] = ((), ()),
    ) -> list[Batch]:
        """Have `subscriber` get `names` at `rate` from now on.

        Args:
            subscriber: the connection.
            names: channels and patterns, each once.
            rate: a granted rate. At `EVERY_EVENT` they are not here any longer.
            every_event: the names of which the subscriber got every event before this change, and
                those of which it does after it.

        Returns:
            What has to be sent before anything else: the newest of what was not sent yet, where
            every event is sent from now on, or a pause ends. Mostly one batch or none.
        """
        before, after = every_event
        own = self._own.get(subscriber)
        if own is None:
            if rate == EVERY_EVENT:
                return []
            own = self._own[subscriber] = _Own(next(self._ranks))
        elif len(before) == len(after) and own.has_all(names, rate):
            return []
        positions = self._positions(own, names, before)
        self._apply(subscriber, own, names, rate)
        self._exclude(own, after)
        for member in own.members.values():
            member.forget_uncovered()
        due = self._pass_on(own, positions, after)
        if not own.members:
            del self._own[subscriber]
        return self._batches(due)

    def remove(self, subscriber: S) -> None:
        """Remove a subscriber, if it is here."""
        own = self._own.pop(subscriber, None)
        for member in own.members.values() if own else ():
            self._release(subscriber, list(member.cohort.names()))
            self._leave(member)

    def owed(self, subscriber: S) -> list[Batch]:
        """What `subscriber` was not sent yet, except for what it has paused."""
        return self._batches(self._unsent(subscriber))

    def _batches(self, changed: list[Unsent]) -> list[Batch]:
        batches = []
        while changed:
            batch, changed = self.batch_of(changed)
            batches.append(batch)
        return batches

    def batch_of(self, changed: list[Unsent]) -> tuple[Batch, list[Unsent]]:
        """The batch of the oldest of `changed`, not empty, and those for which it has no room."""
        changed.sort(key=lambda one: one[0].number)
        size = 0
        for fitting, (update, _) in enumerate(changed):
            size += update.size
            if size > self._max_batch_bytes and fitting:
                return Batch.of(changed[:fitting]), changed[fitting:]
        return Batch.of(changed), []

    def _unsent(self, subscriber: S) -> list[Unsent]:
        own = self._own.get(subscriber)
        members = own.members if own else {}
        running = [member for rate, member in members.items() if rate is not None]
        unsent = [one for member in running for one in member.changed(self.updates)]
        self.looked_at += len(unsent)
        return unsent

    def reached(self, subscriber: S, position: int) -> int:
        """Up to this offset, at most `position`, `subscriber` lacks nothing that is not paused."""
        offsets = (update.first_offset(since) for update, since in self._unsent(subscriber))
        return min([position, *(offset - 1 for offset in offsets if offset is not None)])

    def _positions(
        self, own: _Own[S], names: Collection[str], every_event: Collection[str]
    ) -> dict[str, _Position]:
        """How far the subscriber is with the channels that may have another rate after a change.

        Without patterns these are the channels that the change names. A pattern may leave channels
        to another one, or take them over: then it is every channel that has changed lately.
        """
        if own.has_patterns or any(map(is_pattern, names)):
            oldest = min((member.oldest for member in own.members.values()), default=None)
            changes = None if oldest is None else self.updates.after(oldest)
            updates = list(changes.updates.values()) if changes else []
        else:
            updates = [update for name in names if (update := self.updates.get(name))]
        self.looked_at += len(updates)
        fastest = ChannelSet(every_event)
        positions: dict[str, _Position] = {}
        for update in updates:
            channel = update.channel
            if channel in fastest:
                positions[channel] = _Position(EVERY_EVENT, update, self.updates.number)
            elif (at := own.covering(channel)) is not None:
                rate, member = at
                positions[channel] = _Position(rate, update, member.since_of(channel))
        return positions

    def _pass_on(
        self, own: _Own[S], positions: dict[str, _Position], every_event: Collection[str]
    ) -> list[Unsent]:
        """Let each channel go on from its position at the rate that it has now; see `change`."""
        due: list[Unsent] = []
        fastest = ChannelSet(every_event)
        for channel, (before, update, since) in positions.items():
            at = own.covering(channel)
            if at is None and channel not in fastest:
                continue  # it was unsubscribed
            rate = EVERY_EVENT if at is None else at[0]
            if rate != before and (rate == EVERY_EVENT or before is None):
                if update.number > since:
                    due.append((update, since))
                since = update.number
            if at is not None:
                _continue_from(at[1], update, since)
        return due

    def _apply(self, subscriber: S, own: _Own[S], names: Collection[str], rate: Rate) -> None:
        added = list(names) if rate != EVERY_EVENT else []
        removed: dict[Rate, list[str]] = {}
        for before, member in own.members.items():
            here = [name for name in names if name in member.cohort]
            if before == rate:
                added = [name for name in added if name not in member.cohort]
            elif here:
                removed[before] = here
        self._claim(added)  # first: what nobody wants is forgotten
        for before, gone in removed.items():
            self._release(subscriber, gone)
            self._shrink(own, before, gone)
        if added:
            self._grow(subscriber, own, added, rate)

    def _shrink(self, own: _Own[S], rate: Rate, gone: Collection[str]) -> None:
        member = own.members[rate]
        cohort = member.cohort
        if len(gone) == len(cohort):
            self._leave(member)
            del own.members[rate]
        else:
            if member.late is not None:
                for name in gone:
                    member.late.pop(name, None)
            cohort.slot.move(member, (), gone, cohort.excluded)

    def _grow(self, subscriber: S, own: _Own[S], added: Collection[str], rate: Rate) -> None:
        number = self.updates.number
        member = own.members.get(rate)
        if member is None:
            slot = self._slot(rate, own.rank)
            own.members[rate] = slot.join(subscriber, added, frozenset(), number)
        else:
            slot = member.cohort.slot
            slot.move(member, added, (), member.cohort.excluded)
            member.late = (member.late or {}) | dict.fromkeys(added, number)
            slot.settle(member)

    def _exclude(self, own: _Own[S], every_event: Collection[str]) -> None:
        """Leave to the faster rates what patterns of the slower ones match, or the reverse."""
        faster = set(every_event)
        mixes = own.has_patterns or any(map(is_pattern, faster))
        for _, member in own.in_order():
            cohort = member.cohort
            if mixes:
                cohort.slot.move(member, (), (), frozenset(filter(cohort.overlaps, faster)))
                faster.update(cohort.names())
            elif cohort.excluded:
                cohort.slot.move(member, (), (), frozenset())

    # ---- slots

    def _slot(self, rate: Rate, rank: int) -> Slot[S]:
        if rate is None:
            return self._paused
        ticks = min(rate // TICK_MS, _TICKS_MAX)
        block = rank // _NEIGHBOURS
        tick = int(block * _GOLDEN_RATIO % 1 * ticks) * (rate // TICK_MS) // ticks
        slot = self.slots.get((rate, tick))
        if slot is None:
            slot = self.slots[rate, tick] = Slot(rate, tick)
            self._wake()
        return slot

    def _leave(self, member: Member[S]) -> None:
        slot = member.cohort.slot
        slot.leave(member)
        if not slot.cohorts and slot.every_ms is not None:
            self.slots.pop((slot.every_ms, slot.tick), None)

    # ---- names

    def _claim(self, names: Iterable[str]) -> None:
        for name in names:
            self._names[name] += 1
            if is_pattern(name):
                self._patterns.add(name)

    def _release(self, subscriber: S, names: Collection[str]) -> None:
        for name in names:
            self._names[name] -= 1
            if name in self._floors:
                self._floors[name].pop(subscriber, None)
        gone = [name for name in names if not self._names[name]]
        for name in gone:
            del self._names[name]
            self._floors.pop(name, None)
        self._patterns.difference_update(gone)
        if not self._names:
            self.updates.clear()
        for name in gone:
            if not is_pattern(name) and not self.wants(name):
                self.updates.forget(name)

    def forget_needless(self) -> None:
        """Forget the updates that nobody is owed now. This looks at all members.

        Until the next call it keeps those that everybody has got, and those of names without
        subscribers.
        """
        members = (member for own in self._own.values() for member in own.members.values())
        oldest = min((member.oldest for member in members), default=0)
        self.updates.forget_where(
            lambda update: update.number <= oldest or not self.wants(update.channel)
        )

    def hold_back(self, subscriber: S, names: Iterable[str], offset: int) -> None:
        """Skip the events of `names`, which are here, up to `offset`: see `Registry.hold_back`."""
        for name in names:
            self._floors.setdefault(name, {})[subscriber] = offset

    def held_back(self, subscriber: S, names: Iterable[str]) -> dict[str, int]:
        """Up to which offset the events of `names` are skipped, for those that are."""
        return held_back(self._floors, subscriber, names)


def held_back(
    floors: dict[str, dict[S, int]], subscriber: S, names: Iterable[str]
) -> dict[str, int]:
    """What `floors` have of `subscriber`, by name."""
    some = ((name, floors[name]) for name in names if name in floors)
    return {name: here[subscriber] for name, here in some if subscriber in here}


def _continue_from(member: Member[S], update: Update, since: int) -> None:
    """Have `member` get all of a channel after the number `since`, and nothing before."""
    newest = update.number
    if min(since, newest) != min(member.since_of(update.channel), newest):
        member.note_other(update.channel, since)
