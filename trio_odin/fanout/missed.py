"""What a client that resumes has missed, channel by channel.

A channel is complete if it is certain that the client lacks no event of it after these. Its chain
shows that: each event names the one before it (`prev`), and the newest event of a channel is known
for longer than the events between are kept. So a quiet channel is complete after an hour, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Final, NamedTuple

import attrs

from trio_odin.fanout.newest import NewestEvent, NewestEvents
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.resume_buffer import ResumableEvent, ResumeBuffer
from trio_odin.wire.channels import ChannelSet

# Of more channels than this, what the client asked for is named instead.
_NAMED_MAX: Final = 256


class Missed(NamedTuple):
    """What a client has missed, oldest first.

    Attributes:
        publications: the events, as they are to be sent.
        incomplete: the channels of which there may have been more; a pattern stands for all
            channels that it matches.
    """

    publications: list[Publication]
    incomplete: list[str]


@attrs.frozen
class Wanted:
    """Channels that a command adds: those that `added` has and `held` has not."""

    added: ChannelSet
    held: ChannelSet

    def __contains__(self, channel: str) -> bool:
        return channel in self.added and channel not in self.held

    def known(self, newest_events: NewestEvents) -> list[str]:
        """These channels: all that have a name of their own, and of the others those in use."""
        found = dict.fromkeys(self.added.exact)
        for pattern in self.added.patterns:
            found.update(dict.fromkeys(newest_events.matching(pattern)))
        if not self.held.names:
            return list(found)
        return [channel for channel in found if channel not in self.held]


class Most(NamedTuple):
    """How many events a client may get that it has missed.

    Attributes:
        of_each: of one channel.
        in_all: of all channels, besides the newest of each. That one is included in any case, or a
            busy channel would push out the only event of a quiet one, whose old value would stay.
        newest: of these newest ones, which may be many where a client has patterns.
    """

    of_each: int
    in_all: int
    newest: int


def missed(
    after: int,
    wanted: Wanted,
    resume_buffer: ResumeBuffer,
    newest_events: NewestEvents,
    most: Most,
    *,
    with_snapshot: bool = False,
    newest_only: bool = False,
) -> Missed:
    """The newest events of the `wanted` channels after offset `after`.

    Args:
        after: the position of the client; at most that of the server.
        wanted: the channels.
        resume_buffer: the last events.
        newest_events: the newest event of each channel.
        most: how many events at most.
        with_snapshot: whether an incomplete channel gets its newest event only, as a snapshot.
        newest_only: whether each channel gets its newest event only, which says how many gave way
            to it. Of `most`, only `newest` counts then.
    """
    events, cut = _kept(after, wanted, resume_buffer, None if newest_only else most)
    room = most.newest if newest_only else most.in_all + most.newest
    is_all_kept, is_settled = resume_buffer.has_all_after(after), resume_buffer.is_settled
    publications: list[tuple[int, Publication]] = []
    incomplete: list[str] = []
    for channel in dict.fromkeys([*wanted.known(newest_events), *events]):
        mine = events.get(channel, [])
        newest = newest_events.get(channel)
        if not mine and newest is not None and (newest.offset or 0) > after:
            mine = [newest]  # those before it are not kept any more
        has_room = len(publications) < room or not mine
        reached = max(after, mine[0].offset or 0) if mine else after
        is_known = is_settled and reached >= newest_events.known_after
        if (
            has_room
            and channel not in cut
            and (is_all_kept or (is_known and _is_chain(after, mine)))
        ):
            publications += _sent(mine, newest_only=newest_only)
            continue
        incomplete.append(channel)
        if has_room and with_snapshot:
            if newest is not None and (newest.offset or 0) > after:  # else the client has better
                publications.append((newest.offset or 0, newest.snapshot()))
        elif has_room and not with_snapshot:
            publications += _sent(mine, newest_only=newest_only)
    if not is_all_kept and (not is_settled or after < newest_events.known_after):
        incomplete += wanted.added.patterns  # they may match more channels than are known
    if len(incomplete) > _NAMED_MAX:
        incomplete = list(wanted.added.names)
    publications.sort(key=itemgetter(0))
    return Missed([publication for _, publication in publications], incomplete)


def _sent(
    events: Sequence[ResumableEvent | NewestEvent], *, newest_only: bool
) -> list[tuple[int, Publication]]:
    """What is sent of the events of a channel, the newest first, with their offsets."""
    if newest_only and events:
        newest = events[0]
        return [(newest.offset or 0, newest.publication().instead_of(len(events) - 1))]
    return [(event.offset or 0, event.publication()) for event in events]


def _kept(
    after: int, wanted: Wanted, resume_buffer: ResumeBuffer, most: Most | None
) -> tuple[dict[str, list[ResumableEvent | NewestEvent]], set[str]]:
    """The events that are kept, by channel and the newest first; and where there were too many."""
    events: dict[str, list[ResumableEvent | NewestEvent]] = {}
    cut: set[str] = set()
    taken = 0
    for event in resume_buffer.newer_than(after):
        channel = event.channel
        if channel is None or channel not in wanted:
            continue
        mine = events.setdefault(channel, [])
        if mine and most and (len(mine) >= most.of_each or taken >= most.in_all):
            cut.add(channel)
        else:
            mine.append(event)
            taken += 1
    return events, cut


def _is_chain(after: int, events: Sequence[ResumableEvent | NewestEvent]) -> bool:
    """Whether each of `events`, the newest first, follows the next one, and the last `after`."""
    if not events:
        return True
    links = pairwise(events)
    oldest = events[-1].prev
    return oldest is not None and oldest <= after and all(a.prev == b.offset for a, b in links)
