"""First values, patterns and resumes of several clients, against a plain model.

Each event of each channel that a client wants comes exactly once, as a snapshot, live or resumed,
or is declared missing, also while channels are added and dropped in the middle of the stream.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.connection.client import as_sent, objects_of
from trio_odin.connection.session import Session, SessionLimits
from trio_odin.fanout.feed import Feed
from trio_odin.fanout.registry import Registry
from trio_odin.fanout.replay_buffer import ReplayBuffer
from trio_odin.ledger.counters import Traffic
from trio_odin.ledger.reasons import GapReason
from trio_odin.upstream.gaps import Gap, Mark
from trio_odin.upstream.nats_message import NatsMessage, Newest
from trio_odin.upstream.status import NatsStatus

CHANNELS = ["A.trade", "A.social", "B.trade", "B.social", "C.trade"]
NAMES = [*CHANNELS, "A.*", "B.>", "*.trade", "*.social", "*.*", ">", "D.trade"]
WHO = st.integers(0, 2)
_AGE_SECONDS = 30.0


def stands_for(name: str, channel: str) -> bool:
    """NATS' rule, word by word, for a channel of two parts."""
    wanted, parts = name.split("."), channel.split(".")
    for position, word in enumerate(wanted):
        if word == ">":
            return True
        if position == len(parts) or word not in {"*", parts[position]}:
            return False
    return len(wanted) == len(parts)


def matched(names: list[str]) -> set[str]:
    return {one for one in CHANNELS if any(stands_for(name, one) for name in names)}


@attrs.define
class Published:
    """An event of the stream; one that was shed never reaches a client."""

    offset: int
    channel: str
    prev: int | None
    at: float
    is_shed: bool = False
    is_invalid: bool = False


@attrs.define
class Client:
    session: Session[int]
    names: list[str] = attrs.field(factory=list)
    seq: int = 0


class FirstValues(RuleBasedStateMachine):
    """Three clients of one feed, which sheds events and forgets old ones."""

    @initialize(channels_max=st.integers(1, 6), of_each=st.integers(1, 4))
    def start(self, channels_max: int, of_each: int) -> None:
        self.limits = SessionLimits(
            commands_per_second=0, resume_channel_events=of_each, resume_events=8, max_patterns=99
        )
        self.of_each, self.channels_max = of_each, channels_max
        self.registry: Registry[int] = Registry()
        self.now = 0.0
        self.has_restarted, self.kept_after = False, 0
        # By channel, the event that this server itself has brought last, unless one was shed since.
        self.shown: dict[str, Published] = {}
        self.new_feed()
        self.feed.note(Mark("e", 0))
        self.events: list[Published] = []
        self.clients = [self.connect(who) for who in range(3)]

    def new_feed(self) -> None:
        self.feed = Feed(
            max_age_seconds=_AGE_SECONDS, channels_max=self.channels_max, max_bytes=10**6
        )

    def connect(self, who: int) -> Client:
        return Client(
            Session(
                who,
                self.registry,
                replay_buffer=ReplayBuffer(100),
                resume_buffer=self.feed.resume_buffer,
                newest_events=self.feed.newest_events,
                limits=self.limits,
                traffic=Traffic(),
                nats_status=NatsStatus(is_connected=True),
                now=0.0,
            )
        )

    def of(self, channel: str) -> list[Published]:
        return [one for one in self.events if one.channel == channel]

    def add(self, channel: str, *, is_shed: bool, is_invalid: bool = False) -> Published:
        before = [one for one in self.of(channel) if not one.is_invalid]
        prev = before[-1].offset if before else None
        event = Published(len(self.events) + 1, channel, prev, self.now, is_shed, is_invalid)
        self.events.append(event)
        return event

    def message(self, event: Published, *, is_backfill: bool = False) -> NatsMessage:
        payload = b"not JSON" if event.is_invalid else b"%d" % event.offset
        subject = f"odin.token.{event.channel}"
        return NatsMessage(subject, payload, event.offset, self.now, 1, is_backfill)

    @rule(channel=st.sampled_from(CHANNELS))
    def publish_what_no_client_can_read(self, channel: str) -> None:
        event = self.add(channel, is_shed=False, is_invalid=True)
        assert self.feed.add(self.message(event)).why_invalid

    @rule(backfill=st.integers(0, 4), window=st.integers(0, 6), mirrored=st.integers(0, 8))
    def the_server_restarts(self, backfill: int, window: int, mirrored: int) -> None:
        """The stream has the last events, and a mirror, that may be behind, some older ones."""
        last = len(self.events)
        first = max(0, last - window)
        reached = max(last - backfill, first, 0)
        self.new_feed()
        self.feed.note(Mark("e", reached, backfill_end=last, is_newest_coming=True))
        for event in self.events[reached:]:
            self.feed.add(self.message(event, is_backfill=True))
        older = self.newest_of(self.events[: max(0, last - mirrored)])
        for event in older:
            event_message = self.message(event, is_backfill=True)
            self.feed.add_newest(Newest([event_message], reached, None))
        for event in self.newest_of(self.events[first:]):
            event_message = self.message(event, is_backfill=True)
            self.feed.add_newest(Newest([event_message], reached, first))
        self.feed.add_newest(Newest((), reached, first, is_last=True))
        self.has_restarted, self.kept_after, self.shown = True, reached, {}
        for event in self.events:
            event.is_shed = False  # this server has shed nothing yet
        for who in range(3):
            self.registry.remove(who)
            self.clients[who] = self.connect(who)

    def newest_of(self, events: list[Published]) -> list[Published]:
        """The last message of each channel, as NATS has it: invalid and shed ones too."""
        last: dict[str, Published] = {}
        for event in events:
            last.pop(event.channel, None)
            last[event.channel] = event
        return list(last.values())

    @rule(channel=st.sampled_from(CHANNELS))
    def publish(self, channel: str) -> None:
        event = self.add(channel, is_shed=False)
        taken = self.feed.add(self.message(event))
        assert taken.resumable is not None
        subscribers = list(self.registry.subscribers_from(channel, event.offset))
        assert len(subscribers) == len(set(subscribers)), "an event comes once"
        wanting = [who for who in range(3) if channel in matched(self.clients[who].names)]
        assert sorted(subscribers) == wanting
        self.shown.pop(channel, None)
        self.shown[channel] = event
        publication = taken.resumable.publication()
        for who in subscribers:
            seq = self.clients[who].session.replay_buffer.append(publication)
            self.take(who, objects_of([publication.frame(seq)]))

    @rule(channel=st.sampled_from(CHANNELS))
    def shed(self, channel: str) -> None:
        event = self.add(channel, is_shed=True)
        gap = Gap(GapReason.SHED, 1, event.offset, event.offset)
        mark = Mark("e", event.offset, gaps=(gap,), shed={channel: event.offset})
        self.feed.note(mark)
        self.shown.pop(channel, None)

    @rule(seconds=st.sampled_from([1.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(who=WHO, names=st.lists(st.sampled_from(NAMES), max_size=4), snapshot=st.booleans())
    def subscribe(self, who: int, names: list[str], snapshot: bool) -> None:
        added, answers = self.ask(who, names, snapshot=snapshot)
        got = self.take(who, [one for one in answers if one["type"] == "price:update"])
        assert [one["snapshot"] for one in got] == [True] * len(got)
        offsets = [one["offset"] for one in got]
        if self.has_restarted:  # a mirror that was behind has older ones
            assert snapshot or not got
            assert len({one["channel"] for one in got}) == len(got)
            assert offsets == sorted(offsets)
            assert {one["channel"] for one in got} <= added
            for event in self.shown.values():
                if snapshot and event.channel in added and self.channels_max >= len(CHANNELS):
                    assert event.offset in offsets
        else:
            expected = [one for one in self.newest() if one.channel in added] if snapshot else []
            assert offsets == [one.offset for one in expected]
        ends = [one for one in answers if one["type"] == "snapshot_done"]
        counts = {"sent": len(got), "total": len(got)}
        assert ends == ([{"type": "snapshot_done", **counts, "id": 1}] if snapshot else [])

    @rule(
        who=WHO,
        names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4),
        back=st.integers(0, 12),
        snapshot=st.booleans(),
        is_new=st.booleans(),
    )
    def resume(self, who: int, names: list[str], back: int, snapshot: bool, is_new: bool) -> None:
        if is_new:
            self.registry.remove(who)
            self.clients[who] = self.connect(who)
        after = max(0, len(self.events) - back)
        added, answers = self.ask(who, names, snapshot=snapshot, after=after, epoch="e")
        got = self.take(who, [one for one in answers if one["type"] == "price:update"])
        reports = [one for one in answers if one["type"] == "resume_incomplete"]
        assert answers[-1] == {
            "type": "resumed",
            "sent": len(got),
            "offset": len(self.events),
            "id": 1,
        }
        incomplete = [name for one in reports for name in one["channels"]]
        assert bool(reports) == bool(incomplete)
        for channel in CHANNELS:
            mine = [one for one in got if one["channel"] == channel]
            if channel not in added:
                assert mine == []
                continue
            missed = [one for one in self.of(channel) if one.offset > after and not one.is_invalid]
            is_declared = any(stands_for(name, channel) for name in incomplete)
            self.check_missed(mine, missed, is_declared=is_declared, snapshot=snapshot)

    def check_missed(
        self,
        mine: list[dict[str, Any]],
        missed: list[Published],
        *,
        is_declared: bool,
        snapshot: bool,
    ) -> None:
        offsets = [one["offset"] for one in mine]
        if not is_declared:
            assert offsets == [one.offset for one in missed]
            assert not any(one.is_shed for one in missed)
            assert not any("snapshot" in one for one in mine)
            return
        assert offsets == sorted(offsets)
        assert set(offsets) <= {one.offset for one in missed if not one.is_shed}, (
            "newer than `after`"
        )
        if any("snapshot" in one for one in mine):
            assert snapshot
            assert len(mine) == 1, "only the newest"

    @rule(who=WHO, after=st.integers(0, 5))
    def nothing_is_needlessly_incomplete(self, who: int, after: int) -> None:
        """Few events, none of them old or shed: then everything is there."""
        after = max(0, len(self.events) - after)
        recent = [one for one in self.events if one.offset > after]
        if after < self.kept_after:
            return
        if any(one.is_shed or self.now - one.at > _AGE_SECONDS / 2 for one in recent):
            return
        recent = [one for one in recent if not one.is_invalid]
        if any(len([1 for r in recent if r.channel == c]) > self.of_each for c in CHANNELS):
            return
        self.registry.remove(who)
        self.clients[who] = self.connect(who)
        _, answers = self.ask(who, CHANNELS, after=after, epoch="e")
        got = self.take(who, [one for one in answers if one["type"] == "price:update"])
        assert [one["offset"] for one in got] == [one.offset for one in recent]
        assert [one["type"] for one in answers[1 + len(got) :]] == ["resumed"]

    @rule(who=WHO, names=st.lists(st.sampled_from(NAMES), max_size=4))
    def unsubscribe(self, who: int, names: list[str]) -> None:
        client = self.clients[who]
        client.names = [name for name in client.names if name not in names]
        (ack,) = self.say(who, type="unsubscribe", channels=names)
        assert ack["count"] == len(client.names)

    def newest(self) -> list[Published]:
        """The newest event of each channel that the feed has to know, in order.

        One that was shed takes the one before it away: an old price is not shown as the newest.
        """
        kept: dict[str, Published] = {}
        for event in self.events:
            if event.is_invalid:
                continue
            kept.pop(event.channel, None)
            if not event.is_shed:
                kept[event.channel] = event
                if len(kept) > self.channels_max:
                    del kept[next(iter(kept))]
        return list(kept.values())

    def ask(
        self, who: int, names: list[str], *, snapshot: bool = False, **more: Any
    ) -> tuple[set[str], list[dict[str, Any]]]:
        client = self.clients[who]
        held = matched(client.names)
        if snapshot:
            more["snapshot"] = True
        ack, *answers = self.say(who, type="subscribe", channels=names, id=1, **more)
        client.names = list(dict.fromkeys([*client.names, *names]))
        assert (ack["subscribed"], ack["count"]) == (names, len(client.names))
        assert "refused" not in ack
        return matched(names) - held, [ack, *answers]

    def say(self, who: int, **command: Any) -> list[dict[str, Any]]:
        session = self.clients[who].session
        answers = session.receive(json.dumps(command), now=0.0, unix_ms=1)
        return objects_of(as_sent(answers, session.replay_buffer))

    def take(self, who: int, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Check what holds of every event, however it came."""
        client = self.clients[who]
        for event in events:
            client.seq += 1
            assert event["seq"] == client.seq
            published = self.events[event["offset"] - 1]
            assert (published.channel, published.is_shed) == (event["channel"], False)
            assert event["data"] == event["offset"]
            if "prev" in event:
                assert event["prev"] == published.prev
        return events


TestFirstValues = FirstValues.TestCase
TestFirstValues.settings = settings(max_examples=300, stateful_step_count=40)
