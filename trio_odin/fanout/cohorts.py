"""Cohorts: the connections that get the same bytes at the same tick.

A connection is a member of one cohort for each of its rates. A cohort has the channels, a slot the
rate and the tick:

    slot (1000 ms, tick 8 of 20) ── cohort {BTC.trade, ETH.trade} ── member, member, member …
                                 └─ cohort {BTC.*} ── member
"""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from operator import attrgetter
from typing import Final, Generic, TypeAlias, TypeVar

from trio_odin.fanout.updates import Changes, Update, Updates
from trio_odin.wire.channels import ChannelSet, is_pattern, overlap, patterns_for

S = TypeVar("S", bound=Hashable)

# A sum of digests stands for a set of names: it changes by as much as the set does. Nobody outside
# can find two sets with the same sum, as the key is of this process.
_KEY: Final = os.urandom(16)
_DIGESTS: Final = 1 << 128
_BY_NUMBER: Final = attrgetter("number")
_NOTHING: Final = ChannelSet(())
_Key: TypeAlias = tuple[int, frozenset[str]]


@lru_cache(maxsize=8192)
def _digest(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), key=_KEY, digest_size=16).digest(), "big")


class Member(Generic[S]):
    """A connection at one of its rates.

    Attributes:
        subscriber: the connection.
        cohort: where it belongs.
        since: it was sent everything up to the event of this number; None: as its cohort.
        late: the number that counts instead for names that it has only since then, by name.
        other: the number that counts whatever the others are, by channel: what it was sent at
            another rate, or by another server, or was not sent before a change of the rate.
    """

    __slots__ = ("cohort", "late", "other", "since", "subscriber")

    def __init__(self, subscriber: S, cohort: Cohort[S], since: int) -> None:
        self.subscriber = subscriber
        self.cohort = cohort
        self.since: int | None = since
        self.late: dict[str, int] | None = None
        self.other: dict[str, int] | None = None

    @property
    def is_like_its_cohort(self) -> bool:
        """Whether it gets what its cohort gets."""
        return self.since is None and self.late is None and self.other is None

    def sent_all(self, number: int) -> None:
        """Note that it has everything up to the event of this number."""
        self.since = None if self.cohort.since == number else number
        self.late = self.other = None

    @property
    def reached(self) -> int:
        """It was sent everything up to the event of this number, but for `late` and `other`."""
        if self.since is not None:
            return self.since
        cohort = self.cohort
        return cohort.before if self in cohort.unserved else cohort.since

    @property
    def oldest(self) -> int:
        """It was sent everything up to the event of this number, of any channel."""
        return min((self.reached, *(self.late or {}).values(), *(self.other or {}).values()))

    def since_of(self, channel: str) -> int:
        """The number up to which it was sent everything of `channel`, which its cohort covers."""
        if self.other is not None and channel in self.other:
            return self.other[channel]
        late = self.late
        if late is None:
            return self.reached
        names = {channel, *patterns_for(channel)}.intersection(self.cohort.names())
        return min(late.get(name, self.reached) for name in names)

    def note_other(self, channel: str, number: int) -> None:
        """Let `number` count for `channel` until the next tick."""
        if self.other is None:
            self.other = {}
            self.cohort.slot.settle(self)
        self.other[channel] = number

    def forget_uncovered(self) -> None:
        """Forget the numbers of channels that are not its own any longer."""
        if self.other is not None:
            covers = self.cohort.covers
            self.other = {one: at for one, at in self.other.items() if covers(one)} or None
            self.cohort.slot.settle(self)

    def changed(self, updates: Updates) -> list[tuple[Update, int]]:
        """What it was not sent yet, oldest first, each with the number that counts for it."""
        found = self.cohort.changed(updates.after(self.oldest))
        dated = ((update, self.since_of(update.channel)) for update in found)
        return [(update, since) for update, since in dated if update.number > since]


class Cohort(Generic[S]):
    """The members with the same channels at the same tick.

    Attributes:
        slot: the tick.
        exact: channels by their names.
        patterns: patterns.
        excluded: names whose events do not belong to it: its members have them at a faster rate.
        since: those of its members that have no other number were sent everything up to this one.
        before: the number before that one, which counts for the `unserved`.
        members: who is in it.
        unserved: those to whom the tick that is under way has not come yet.
        odd: those of them that do not get what the others get at the next tick.
    """

    __slots__ = (
        "_digest",
        "_faster",
        "before",
        "exact",
        "excluded",
        "members",
        "odd",
        "patterns",
        "since",
        "slot",
        "unserved",
    )

    def __init__(
        self, slot: Slot[S], names: Iterable[str], digest: int, excluded: frozenset[str], since: int
    ) -> None:
        self.slot = slot
        self.exact: set[str] = set()
        self.patterns: set[str] = set()
        self._exclude(excluded)
        self.since = self.before = since
        self.members: dict[Member[S], None] = {}
        self.unserved: dict[Member[S], None] = {}
        self.odd: dict[Member[S], None] = {}
        self._digest = digest
        self._add(names)

    def _add(self, names: Iterable[str]) -> None:
        for name in names:
            (self.patterns if is_pattern(name) else self.exact).add(name)

    def change(
        self, added: Collection[str], removed: Collection[str], excluded: frozenset[str]
    ) -> None:
        """Become the cohort of other names, for its only member."""
        self.exact.difference_update(removed)
        self.patterns.difference_update(removed)
        self._add(added)
        self._digest = self.digest_with(added, removed)
        self._exclude(excluded)

    def _exclude(self, names: frozenset[str]) -> None:
        self.excluded = names
        self._faster = ChannelSet(names) if names else _NOTHING

    @property
    def key(self) -> _Key:
        """What it is found by within its slot."""
        return self._digest, self.excluded

    def digest_with(self, added: Iterable[str], removed: Iterable[str]) -> int:
        """The digest of its names with these changes."""
        change = sum(map(_digest, added)) - sum(map(_digest, removed))
        return (self._digest + change) % _DIGESTS

    def names(self) -> Iterator[str]:
        """Its channels and patterns."""
        yield from self.exact
        yield from self.patterns

    def __len__(self) -> int:
        return len(self.exact) + len(self.patterns)

    def __contains__(self, name: str) -> bool:
        return name in self.exact or name in self.patterns

    def covers(self, channel: str) -> bool:
        """Whether events of `channel` belong to it."""
        is_named = channel in self.exact or (
            bool(self.patterns) and not self.patterns.isdisjoint(patterns_for(channel))
        )
        return is_named and channel not in self._faster

    def pass_over(self, updates: Updates) -> bool:
        """Whether there is nothing to send. Then everybody was sent everything there is."""
        if self.odd or not updates.after(self.since).are_apart(self.exact, self.patterns):
            return False
        self.before = self.since = updates.number
        return True

    def begin_tick(self, number: int, *, is_quiet: bool) -> None:
        """Have everybody be sent everything up to the event of this number: `unserved`, then `odd`.

        `is_quiet`: whether that is nothing, except for odd members.
        """
        for member in self.odd:
            member.since = member.reached
        self.before, self.since = self.since, number
        if not is_quiet:
            self.unserved = {one: None for one in self.members if one not in self.odd}

    def overlaps(self, name: str) -> bool:
        """Whether some channel belongs to it and to `name`, of which one is a pattern."""
        if is_pattern(name):
            return any(overlap(name, one) for one in self.names())
        return not self.patterns.isdisjoint(patterns_for(name))

    def changed(self, changes: Changes) -> list[Update]:
        """Those of `changes` that belong to it, oldest first."""
        names = changes.matching(self.exact, self.patterns)
        if self.excluded:
            names = {name for name in names if name not in self._faster}
        return sorted(map(changes.updates.__getitem__, names), key=_BY_NUMBER)


class Slot(Generic[S]):
    """A tick of a rate, and its cohorts.

    Attributes:
        every_ms: the rate; None is the slot of those that have paused, which has no tick.
        cohorts: by key; none is empty.
    """

    __slots__ = ("cohorts", "every_ms", "tick")

    def __init__(self, every_ms: int | None, tick: int) -> None:
        self.every_ms = every_ms
        self.tick = tick
        self.cohorts: dict[_Key, Cohort[S]] = {}

    def join(
        self, subscriber: S, names: Collection[str], excluded: frozenset[str], number: int
    ) -> Member[S]:
        """Make a member that has everything up to the event of this number. `names`: not empty."""
        digest = sum(map(_digest, names)) % _DIGESTS
        cohort = self._cohort(names, digest, excluded, number)
        member = Member(subscriber, cohort, number)
        cohort.members[member] = None
        member.sent_all(number)
        self.settle(member)
        return member

    def move(
        self,
        member: Member[S],
        added: Collection[str],
        removed: Collection[str],
        excluded: frozenset[str],
    ) -> None:
        """Change the names of a member, of which some are left, or what is excluded from them."""
        old = member.cohort
        key = old.digest_with(added, removed), excluded
        if key == old.key:
            return
        if len(old.members) == 1 and not old.unserved and key not in self.cohorts:
            del self.cohorts[old.key]
            old.change(added, removed, excluded)
            self.cohorts[key] = old
            return
        new = self.cohorts.get(key)
        if new is None:
            names = {*old.names(), *added}.difference(removed)
            new = self._cohort(names, key[0], excluded, old.since)
        since = member.reached
        self.leave(member)
        member.cohort = new
        new.members[member] = None
        member.since = None if since == new.since else since
        self.settle(member)

    def _cohort(
        self, names: Collection[str], digest: int, excluded: frozenset[str], since: int
    ) -> Cohort[S]:
        cohort = self.cohorts.get((digest, excluded))
        if cohort is None:
            cohort = Cohort(self, names, digest, excluded, since)
            self.cohorts[cohort.key] = cohort
        return cohort

    def leave(self, member: Member[S]) -> None:
        """Remove a member."""
        cohort = member.cohort
        del cohort.members[member]
        cohort.odd.pop(member, None)
        cohort.unserved.pop(member, None)
        if not cohort.members:
            del self.cohorts[cohort.key]

    @staticmethod
    def settle(member: Member[S]) -> None:
        """Note whether the member gets what its cohort gets, after a change of that."""
        if member.is_like_its_cohort:
            member.cohort.odd.pop(member, None)
        else:
            member.cohort.odd[member] = None
