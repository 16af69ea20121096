from __future__ import annotations

import json
from typing import Any, TypeAlias

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.connection.client import as_sent, objects_of, texts_of
from tests.fanout.buffers import entered
from trio_odin.auth.grants import Grant
from trio_odin.connection.session import Session, SessionLimits
from trio_odin.fanout.newest import UNKNOWN, NewestEvents
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.registry import Registry
from trio_odin.fanout.replay_buffer import ReplayBuffer
from trio_odin.fanout.resume_buffer import ResumeBuffer
from trio_odin.ledger.counters import Traffic
from trio_odin.ledger.reasons import GapReason, Rejection
from trio_odin.upstream.gaps import Gap, Mark
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.upstream.status import NatsStatus
from trio_odin.wire.channels import CHANNEL_RULE
from trio_odin.wire.commands import ErrorCode
from trio_odin.wire.handshake import reject

CommandId: TypeAlias = str | int | None

GOOD = ["BTC.trade", "BTC.social", "ETH.trade", "SOL.trade", "X-_9.balances", "DOGE.creation"]
BAD = ["BTC", "", ".", "*", "B*.trade", ">.trade", "BTC.trade.x", "BTC.trade\r\n", "É.trade"]
UNIX_MS = 1759027038365

# --- a model of the conversation, in plain lists and dicts


@attrs.define
class Model:
    """The messages that one client must see, modelled without our code."""

    max_channels: int
    replay_capacity: int
    channels: list[str] = attrs.field(factory=list)
    published: list[bytes] = attrs.field(factory=list)  # frames; the first has seq 1

    def subscribe(self, asked: list[str]) -> tuple[list[str], list[str], list[str]]:
        """The allowed channels, the malformed ones, and those over the limit."""
        allowed, bad, excess = [], [], []
        for channel in asked:
            if channel in BAD:
                bad.append(channel)
            elif channel in self.channels:
                allowed.append(channel)
            elif len(self.channels) < self.max_channels:
                self.channels.append(channel)
                allowed.append(channel)
            else:
                excess.append(channel)
        return allowed, bad, excess

    def replay(self, first: int, last: int) -> tuple[list[bytes], int]:
        """The frames still kept, and how many of the requested numbers were ever used."""
        asked = [n for n in range(1, len(self.published) + 1) if first <= n <= last]
        oldest_kept = len(self.published) - self.replay_capacity + 1
        return [self.published[n - 1] for n in asked if n >= oldest_kept], len(asked)


IDS = st.none() | st.text(max_size=5) | st.integers(-(2**63), 2**64 - 1)
REQUESTS = st.lists(st.sampled_from(GOOD), max_size=6) | st.lists(
    st.sampled_from(GOOD + BAD), max_size=8
)
WHO = st.integers(0, 2)


class Conversations(RuleBasedStateMachine):
    """Three clients share a registry; each must get the messages of its model."""

    registry: Registry[int]
    sessions: list[Session[int]]
    models: list[Model]

    @initialize(max_channels=st.integers(1, 5), replay_capacity=st.integers(0, 4))
    def start(self, max_channels: int, replay_capacity: int) -> None:
        self.limits = SessionLimits(
            max_channels=max_channels, replay_capacity=replay_capacity, commands_per_second=0
        )
        self.registry = Registry()
        self.sessions = [self.new_session(who) for who in range(3)]
        self.models = [self.new_model() for _ in range(3)]
        self.time = UNIX_MS

    def new_session(self, who: int) -> Session[int]:
        return Session(
            who,
            self.registry,
            replay_buffer=ReplayBuffer(self.limits.replay_capacity),
            resume_buffer=ResumeBuffer(max_age_seconds=30.0),
            limits=self.limits,
            traffic=Traffic(),
            nats_status=NatsStatus(),
            now=0.0,
        )

    def new_model(self) -> Model:
        return Model(self.limits.max_channels, self.limits.replay_capacity)

    def say(self, who: int, command_id: CommandId, **content: Any) -> list[bytes]:
        if command_id is not None:
            content["id"] = command_id
        session = self.sessions[who]
        answers = session.receive(json.dumps(content), now=0.0, unix_ms=self.time)
        return as_sent(answers, session.replay_buffer)

    @rule(who=WHO, asked=REQUESTS, flat=st.booleans(), command_id=IDS)
    def subscribe(self, who: int, asked: list[str], flat: bool, command_id: CommandId) -> None:
        allowed, bad, excess = self.models[who].subscribe(asked)
        form = {"channels": asked} if flat else {"data": {"channels": asked}}
        replies = objects_of(self.say(who, command_id, type="subscribe", **form))
        count = len(self.models[who].channels)
        ack: dict[str, Any] = {"type": "subscription_ack", "subscribed": allowed, "count": count}
        refusals = (("INVALID_CHANNEL", bad), ("TOO_MANY_CHANNELS", excess))
        if command_id is not None:
            named = [{"channel": one, "code": code} for code, names in refusals for one in names]
            refused_too = {"refused": named} if named else {}
            assert replies == [ack | refused_too | {"id": command_id}], "one answer to one id"
            return
        if allowed or not asked:
            assert replies.pop(0) == ack
        for code, refused in refusals:
            if refused:
                error = replies.pop(0)
                message = error.pop("message")
                assert error == {"type": "error", "code": code}
                assert all(repr(channel) in message for channel in refused[:8])
                assert not any(repr(channel) in message for channel in allowed)
        assert replies == []

    @rule(who=WHO, asked=REQUESTS, flat=st.booleans(), command_id=IDS)
    def unsubscribe(self, who: int, asked: list[str], flat: bool, command_id: CommandId) -> None:
        model = self.models[who]
        model.channels = [channel for channel in model.channels if channel not in asked]
        form = {"channels": asked} if flat else {"data": {"channels": asked}}
        replies = objects_of(self.say(who, command_id, type="unsubscribe", **form))
        count = len(model.channels)
        ack = {"type": "unsubscription_ack", "unsubscribed": asked, "count": count}
        assert replies == [ack | ({} if command_id is None else {"id": command_id})]

    @rule(channel=st.sampled_from(GOOD), data=st.integers(), offset=st.none() | st.integers(1, 99))
    def publish(self, channel: str, data: int, offset: int | None) -> None:
        """Publish as the hub does."""
        self.time += 1
        payload = json.dumps({"price": data}).encode()
        publication = Publication(channel, payload, offset=offset, unix_ms=self.time)
        concerned = set(self.registry.subscribers(channel))
        assert concerned == {who for who in range(3) if channel in self.models[who].channels}
        for who in concerned:
            frame = publication.frame(self.sessions[who].replay_buffer.append(publication))
            self.models[who].published.append(frame)
            expected: dict[str, Any] = {
                "seq": len(self.models[who].published),
                "ts": self.time,
                "type": "price:update",
                "priority": 1,
                "data": {"price": data},
                "channel": channel,
            }
            assert objects_of([frame]) == [
                expected if offset is None else expected | {"offset": offset}
            ]

    @rule(who=WHO, first=st.integers(-2, 12), length=st.integers(-2, 12), command_id=IDS)
    def replay_range(self, who: int, first: int, length: int, command_id: CommandId) -> None:
        last = first + length
        frames = self.say(who, command_id, type="replay", data={"from": first, "to": last})
        self.check_replay(who, frames, first, last, command_id)

    @rule(who=WHO, since=st.integers(-2, 12) | st.just(2**70), command_id=IDS)
    def replay_since(self, who: int, since: int, command_id: CommandId) -> None:
        frames = self.say(who, command_id, type="replay", data={"since": since})
        self.check_replay(who, frames, since + 1, 10**9, command_id)

    def check_replay(
        self, who: int, frames: list[bytes], first: int, last: int, command_id: CommandId
    ) -> None:
        kept, asked = self.models[who].replay(first, last)
        assert frames[: len(kept)] == kept, "the original bytes"
        rest = objects_of(frames[len(kept) :])
        echo = {} if command_id is None else {"id": command_id}
        counts = {"sent": len(kept), "total": asked}
        if len(kept) < asked:
            incomplete = rest.pop(0)
            assert incomplete.pop("message")
            assert incomplete == {"type": "replay_incomplete", **counts} | echo
        done = {"type": "replay_done", **counts} | echo
        assert rest == ([] if command_id is None else [done])

    @rule(who=WHO, command_id=IDS)
    def heartbeat(self, who: int, command_id: CommandId) -> None:
        (pong,) = objects_of(self.say(who, command_id, type="heartbeat"))
        echo = {} if command_id is None else {"id": command_id}
        assert pong == {"type": "pong", "ts": self.time} | echo

    @rule(who=WHO, command_id=IDS)
    def say_something_unknown(self, who: int, command_id: CommandId) -> None:
        replies = objects_of(self.say(who, command_id, type="ping", channels=GOOD))
        errors = [] if command_id is None else [("error", "INVALID_COMMAND", command_id)]
        assert [(one["type"], one["code"], one["id"]) for one in replies] == errors

    @rule(who=WHO)
    def come_back_as_someone_new(self, who: int) -> None:
        self.registry.remove(who)
        self.sessions[who] = self.new_session(who)
        self.models[who] = self.new_model()

    @invariant()
    def everyone_has_the_channels_and_the_number_of_its_model(self) -> None:
        if hasattr(self, "registry"):
            for who in range(3):
                assert list(self.registry.channels(who)) == self.models[who].channels
                assert self.sessions[who].replay_buffer.seq == len(self.models[who].published)


TestConversations = Conversations.TestCase
TestConversations.settings = settings(max_examples=80, stateful_step_count=40)


# --- every row of the wire document


def unproven() -> NewestEvents:
    """Newest events from which nothing follows for a resume: the resume buffer alone decides."""
    newest_events = NewestEvents(channels_max=1000, max_bytes=10**6)
    newest_events.forget_all(UNKNOWN)
    return newest_events


@attrs.define
class Client:
    """One session, and a client's way to talk with it."""

    limits: SessionLimits = attrs.field(factory=SessionLimits)
    registry: Registry[str] = attrs.field(factory=Registry)
    traffic: Traffic = attrs.field(factory=Traffic)
    nats_status: NatsStatus = attrs.field(factory=lambda: NatsStatus(is_connected=True))
    now: float = 1000.0
    resume_buffer: ResumeBuffer = attrs.field(factory=entered)
    newest_events: NewestEvents = attrs.field(factory=unproven)
    session: Session[str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.session = Session(
            "me",
            self.registry,
            replay_buffer=ReplayBuffer(self.limits.replay_capacity),
            resume_buffer=self.resume_buffer,
            newest_events=self.newest_events,
            limits=self.limits,
            traffic=self.traffic,
            nats_status=self.nats_status,
            now=self.now,
        )

    def say(self, text: str) -> list[dict[str, Any]]:
        return objects_of(self.frames(text))

    def frames(self, text: str, *, most: int = 10**9, unix_ms: int = UNIX_MS) -> list[bytes]:
        answers = self.session.receive(text, now=self.now, unix_ms=unix_ms)
        return as_sent(answers, self.session.replay_buffer, most=most)

    def subscribe(self, *channels: str) -> list[dict[str, Any]]:
        return self.say(json.dumps({"type": "subscribe", "channels": channels}))

    def publish(self, count: int) -> list[bytes]:
        """Address `count` envelopes to the client; returns their frames."""
        frames = []
        for number in range(count):
            publication = Publication(
                "BTC.trade", json.dumps(number).encode(), offset=None, unix_ms=UNIX_MS + number
            )
            frames.append(publication.frame(self.session.replay_buffer.append(publication)))
        return frames


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"subscribe","data":{"channels":["BTC.trade","ETH.trade"]}}',
        '{"type":"subscribe","channels":["BTC.trade","ETH.trade"]}',
    ],
)
def test_both_forms_of_subscribe_are_acked_as_asked(client: Client, text: str) -> None:
    assert client.say(text) == [
        {"type": "subscription_ack", "subscribed": ["BTC.trade", "ETH.trade"], "count": 2}
    ]
    assert list(client.registry.subscribers("ETH.trade")) == ["me"]


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"unsubscribe","data":{"channels":["BTC.trade","no.such","nonsense"]}}',
        '{"type":"unsubscribe","channels":["BTC.trade","no.such","nonsense"]}',
    ],
)
def test_both_forms_of_unsubscribe_are_acked_as_asked(client: Client, text: str) -> None:
    client.subscribe("BTC.trade", "ETH.trade")
    asked = ["BTC.trade", "no.such", "nonsense"]
    assert client.say(text) == [{"type": "unsubscription_ack", "unsubscribed": asked, "count": 1}]
    assert list(client.registry.channels("me")) == ["ETH.trade"]


def test_the_count_covers_the_whole_set(client: Client) -> None:
    counts = [client.subscribe(*channels)[0]["count"] for channels in (GOOD[:2], GOOD[1:3], [])]
    assert counts == [2, 3, 3]


def test_an_ack_repeats_a_channel_that_was_asked_for_twice(client: Client) -> None:
    (ack,) = client.subscribe("BTC.trade", "BTC.trade")
    assert ack["subscribed"] == ["BTC.trade", "BTC.trade"]
    assert ack["count"] == 1


def test_replies_have_no_seq_and_take_none(client: Client) -> None:
    replies = client.subscribe("BTC.trade", "BTC")
    replies += client.say('{"type":"heartbeat"}') + client.say("nonsense")
    replies += client.say('{"type":"unsubscribe","channels":[]}')
    assert len(replies) == 5
    assert not any("seq" in reply for reply in replies)
    assert client.session.replay_buffer.seq == 0


def test_the_bytes_of_an_ack_are_those_of_the_wire_document(client: Client) -> None:
    frames = client.frames('{"type":"subscribe","channels":["BTC.trade"]}')
    expected = '{"type":"subscription_ack","subscribed":["BTC.trade"],"count":1}'
    assert texts_of(frames) == [expected]


def test_a_heartbeat_is_answered_with_the_time(client: Client) -> None:
    assert client.say('{"type":"heartbeat"}') == [{"type": "pong", "ts": UNIX_MS}]


@pytest.mark.parametrize("kind", ["ping", "pong", "auth", "SUBSCRIBE", ""])
def test_an_unknown_type_is_counted_and_not_answered(client: Client, kind: str) -> None:
    assert client.say(json.dumps({"type": kind, "channels": ["BTC.trade"]})) == []
    assert client.traffic.commands == {"unknown": 1}
    assert not client.traffic.errors
    assert client.registry.channel_count() == 0


@pytest.mark.parametrize("kind", ["ping", "SUBSCRIBE", ""])
def test_an_unknown_type_with_an_id_is_answered_with_an_error(client: Client, kind: str) -> None:
    (error,) = client.say(json.dumps({"type": kind, "id": 1, "channels": ["BTC.trade"]}))
    assert error.pop("message").startswith(f"Unknown type {kind!r}: ")
    assert error == {"type": "error", "code": "INVALID_COMMAND", "id": 1}
    assert client.registry.channel_count() == 0


# --- replay


def test_a_range_is_inclusive_and_brings_the_original_bytes(client: Client) -> None:
    frames = client.publish(5)
    got = client.frames('{"type":"replay","data":{"from":2,"to":4}}', unix_ms=UNIX_MS + 10**6)
    assert got == frames[1:4]
    assert client.traffic.replayed == 3


def test_since_is_exclusive(client: Client) -> None:
    client.publish(5)
    assert [e["seq"] for e in client.say('{"type":"replay","data":{"since":3}}')] == [4, 5]
    assert client.say('{"type":"replay","data":{"since":5}}') == []


def test_a_replay_takes_no_number(client: Client) -> None:
    client.publish(3)
    client.say('{"type":"replay","data":{"since":0}}')
    (frame,) = client.publish(1)
    assert objects_of([frame])[0]["seq"] == 4


def test_a_replay_beyond_the_last_100_envelopes_reports_its_limit(client: Client) -> None:
    client.publish(250)
    *messages, incomplete = client.say('{"type":"replay","data":{"from":101,"to":160}}')
    assert [message["seq"] for message in messages] == list(range(151, 161))
    assert incomplete == {
        "type": "replay_incomplete",
        "sent": 10,
        "total": 60,
        "message": "Only the last 100 messages are kept",
    }


def test_the_total_leaves_out_numbers_that_were_never_used(client: Client) -> None:
    client.publish(120)
    replies = client.say('{"type":"replay","data":{"from":-5,"to":1000000000000}}')
    assert (replies[-1]["sent"], replies[-1]["total"]) == (100, 120)
    assert len(replies) == 101


@pytest.mark.parametrize("most", [0, 3])
def test_a_cut_replay_reports_how_many_came(client: Client, most: int) -> None:
    frames = client.publish(5)
    got = client.frames('{"type":"replay","data":{"since":0}}', most=most)
    assert got[:-1] == frames[:most]
    (end,) = objects_of(got[-1:])
    assert "read" in end.pop("message")
    assert end == {"type": "replay_incomplete", "sent": most, "total": 5}
    assert client.traffic.replayed == most


def test_a_replay_of_everything_kept_is_complete(client: Client) -> None:
    client.publish(100)
    replies = client.say('{"type":"replay","data":{"from":1,"to":100}}')
    assert [reply["seq"] for reply in replies] == list(range(1, 101))


def test_without_a_history_a_replay_reports_that_nothing_was_sent() -> None:
    client = Client(SessionLimits(replay_capacity=0))
    client.publish(3)
    (incomplete,) = client.say('{"type":"replay","data":{"since":1}}')
    assert (incomplete["sent"], incomplete["total"]) == (0, 2)


# --- ids


@pytest.mark.parametrize("command_id", ["a", "", "7", 'é\0"', 0, 7, -1, 2**53 + 1, 2**64])
@pytest.mark.parametrize(
    "content",
    [
        {"type": "subscribe", "channels": ["BTC.trade", "bad"]},
        {"type": "unsubscribe", "channels": ["BTC.trade"]},
        {"type": "heartbeat"},
        {"type": "replay", "data": {"from": 1, "to": 3}},
        {"type": "replay"},
        {"type": 5},
    ],
    ids=json.dumps,
)
def test_an_id_comes_back_unchanged(content: dict[str, Any], command_id: str | int) -> None:
    client = Client(SessionLimits(replay_capacity=1))
    client.publish(3)
    replies = client.say(json.dumps(content | {"id": command_id}))
    answers = [reply for reply in replies if "seq" not in reply]
    assert answers
    for answer in answers:
        assert answer["id"] == command_id
        assert type(answer["id"]) is type(command_id)


def test_resent_envelopes_have_no_id(client: Client) -> None:
    client.publish(2)
    replies = client.say('{"type":"replay","data":{"since":0},"id":7}')
    assert len(replies) == 3
    assert ["id" in reply for reply in replies] == [False, False, True]


def test_without_an_id_the_answer_has_none(client: Client) -> None:
    replies = client.subscribe("BTC.trade", "bad") + client.say("x")
    replies += client.say('{"type":"heartbeat","id":null}')
    assert len(replies) == 4
    assert not any("id" in reply for reply in replies)


@pytest.mark.parametrize("command_id", ["[]", "{}", "true", "1.5"])
def test_a_command_with_a_bad_id_is_refused_without_effect(client: Client, command_id: str) -> None:
    text = '{"type":"subscribe","channels":["BTC.trade"],"id":ID}'.replace("ID", command_id)
    (error,) = client.say(text)
    assert error.pop("message").startswith("`id` has to be")
    assert error == {"type": "error", "code": "INVALID_COMMAND"}
    assert client.registry.channel_count() == 0


# --- answers for programs


def test_all_that_is_refused_is_in_the_one_answer_to_an_id() -> None:
    limits = SessionLimits(max_channels=3, max_patterns=1)
    client = Client(limits)
    client.session.grant = Grant(2e9, "k", frozenset({"BTC.*", "ETH.*", "*.trade"}))
    asked = ["BTC.trade", "no", "SOL.social", "BTC.*", "ETH.*", "ETH.trade", "X.trade", ">"]
    (ack,) = client.say(json.dumps({"type": "subscribe", "channels": asked, "id": "i"}))
    assert ack["subscribed"] == ["BTC.trade", "BTC.*", "ETH.trade"]
    assert {one["channel"]: one["code"] for one in ack["refused"]} == {
        "no": "INVALID_CHANNEL",
        "SOL.social": "FORBIDDEN_CHANNEL",
        ">": "FORBIDDEN_CHANNEL",
        "ETH.*": "TOO_MANY_PATTERNS",
        "X.trade": "TOO_MANY_CHANNELS",
    }
    assert client.traffic.errors.total() == 4, "one for each code"


def test_refused_names_are_bounded() -> None:
    (ack,) = Client().say(json.dumps({"type": "subscribe", "channels": ["x"] * 1000, "id": 1}))
    assert (len(ack["refused"]), ack["refused_total"]) == (256, 1000)


def test_a_server_may_take_no_patterns() -> None:
    client = Client(SessionLimits(max_patterns=0))
    (error,) = client.subscribe("BTC.*")
    assert (error["code"], error["message"]) == (
        "TOO_MANY_PATTERNS",
        "Not subscribed to 'BTC.*': this server takes no patterns",
    )


def test_channels_are_listed_page_by_page_and_only_those_that_are_allowed() -> None:
    client = Client()
    for number in range(600):
        offset = number + 1
        channel = f"T{number:03}.trade" if number % 2 else f"T{number:03}.social"
        message = NatsMessage(f"odin.token.{channel}", b"1", offset, 0.0)
        client.newest_events.add(channel, message)
    client.session.grant = Grant(2e9, "k", frozenset({"*.trade"}))
    seen: list[str] = []
    command: dict[str, Any] = {"type": "channels", "id": 1}
    while command:
        (page,) = client.say(json.dumps(command))
        assert page["id"] == 1
        assert len(page["channels"]) <= 256
        seen += [one["channel"] for one in page["channels"]]
        assert all(one["offset"] for one in page["channels"])
        command = {**command, "after": page["next"]} if "next" in page else {}
    assert seen == [f"T{number:03}.trade" for number in range(1, 600, 2)]
    (page,) = client.say('{"type":"channels","data":{"prefix":"T01"}}')
    expected = [f"T{number:03}.trade" for number in range(11, 20, 2)]
    assert [one["channel"] for one in page["channels"]] == expected
    (page,) = client.say('{"type":"channels","prefix":"nobody"}')
    assert page == {"type": "channels", "channels": []}


def test_without_tokens_a_new_one_changes_nothing(client: Client) -> None:
    client.subscribe("BTC.trade")
    assert client.say('{"type":"token","token":"x","id":1}') == [
        {"type": "token_ack", "expires_at": None, "unsubscribed": [], "count": 1, "id": 1}
    ]
    (error,) = client.say('{"type":"token","id":2}')
    assert (error["code"], error["id"]) == ("INVALID_COMMAND", 2)


def test_a_snapshot_that_cannot_wait_says_how_much_was_sent() -> None:
    client = Client(SessionLimits(snapshot_events=3))
    for offset in range(1, 6):
        channel = f"T{offset}.trade"
        message = NatsMessage(f"odin.token.{channel}", b"1", offset, 0.0)
        client.newest_events.add(channel, message)
    command = '{"type":"subscribe","channels":[">"],"snapshot":true}'
    ack, *events, done = objects_of(client.frames(command, most=2))
    assert ack["subscribed"] == [">"]
    assert [one["seq"] for one in events] == [1, 2]
    assert "read" in done.pop("message")
    assert done == {"type": "snapshot_done", "sent": 2, "total": 5}
    assert client.session.replay_buffer.seq == 2, "what did not fit takes no number"
    assert client.traffic.snapshots == 2
    other = Client(client.limits, newest_events=client.newest_events)
    _, *events, done = other.say(command)
    assert [one["offset"] for one in events] == [3, 4, 5], "the ones with news"
    assert "more channels" in done["message"]


def test_looking_at_very_many_channels_counts_as_several_commands() -> None:
    client = Client()
    for offset in range(1, 1001):
        channel = f"T{offset}.trade"
        message = NatsMessage(f"odin.token.{channel}", b"1", offset, 0.0)
        client.newest_events.add(channel, message)
    for command in (
        '{"type":"subscribe","channels":[">"],"snapshot":true}',
        '{"type":"subscribe","channels":["*.*"],"after":1}',
        '{"type":"channels","id":"of those that a token allows"}',
    ):
        other = Client(newest_events=client.newest_events)
        other.session.grant = Grant(
            2e9, "k", frozenset({"*.trade"}) if "token" in command else None
        )
        happen(other, "BTC.trade")
        other.say(command)
        allowed = 0
        while outcome(other.say('{"type":"heartbeat"}')) == "pong":
            allowed += 1
        assert 90 < allowed < 99


def test_a_client_that_asks_for_notices_learns_that_nats_is_gone_once() -> None:
    client = Client(nats_status=NatsStatus())
    command = '{"type":"subscribe","channels":["BTC.trade"],"notices":true}'
    assert [one["type"] for one in client.say(command)] == ["subscription_ack", "upstream"]
    assert [one["type"] for one in client.say(command)] == ["subscription_ack"]
    assert [one["type"] for one in client.subscribe("ETH.trade")] == ["subscription_ack"]


# --- errors: every code


def error_invalid_json(client: Client) -> dict[str, Any]:
    (error,) = client.say("no json")
    return error


def error_invalid_command(client: Client) -> dict[str, Any]:
    (error,) = client.say('{"type":"subscribe","channels":"BTC.trade"}')
    return error


def error_invalid_channel(client: Client) -> dict[str, Any]:
    (error,) = client.subscribe("BTC")
    return error


def error_forbidden_channel(client: Client) -> dict[str, Any]:
    client.session.grant = Grant(0.0, "k", frozenset({"BTC.*"}))
    (error,) = client.subscribe("ETH.trade")
    return error


def error_too_many_channels(client: Client) -> dict[str, Any]:
    _, error = client.subscribe(*(f"T{number}.trade" for number in range(257)))
    return error


def error_too_many_patterns(client: Client) -> dict[str, Any]:
    _, error = client.subscribe(*(f"T{number}.*" for number in range(17)))
    return error


def error_invalid_token(client: Client) -> dict[str, Any]:
    refuse = attrs.evolve(client.limits, verify=lambda _: reject(Rejection.UNAUTHORIZED))
    client.session._limits = refuse
    (error,) = client.say('{"type":"token","token":"x"}')
    return error


def error_rate_limit_exceeded(client: Client) -> dict[str, Any]:
    for _ in range(100):
        client.say('{"type":"heartbeat"}')
    (error,) = client.say('{"type":"heartbeat"}')
    return error


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_has_its_code_and_a_message_and_is_counted(
    client: Client, code: ErrorCode
) -> None:
    error = globals()[f"error_{code.value.lower()}"](client)
    assert error.keys() == {"type", "code", "message"}
    assert error["type"] == "error"
    assert error["code"] == code.value
    assert error["message"]
    assert client.traffic.errors == {code.value: 1}


def test_after_any_error_the_conversation_goes_on() -> None:
    for provoke in (error_invalid_json, error_invalid_command, error_invalid_channel):
        client = Client()
        provoke(client)
        assert client.subscribe("BTC.trade")[0]["count"] == 1


def test_good_channels_are_subscribed_and_bad_ones_named(client: Client) -> None:
    ack, error = client.subscribe("BTC.trade", "BTC", "ETH.trade", "*")
    assert ack == {
        "type": "subscription_ack",
        "subscribed": ["BTC.trade", "ETH.trade"],
        "count": 2,
    }
    assert error["code"] == "INVALID_CHANNEL"
    assert error["message"] == f"Not subscribed to 'BTC', '*': {CHANNEL_RULE}"


def test_if_all_channels_are_bad_there_is_no_ack(client: Client) -> None:
    assert [reply["type"] for reply in client.subscribe("BTC", ">.>")] == ["error"]
    assert client.registry.subscription_counts() == []


def test_an_error_does_not_repeat_all_of_a_bad_command(client: Client) -> None:
    (error,) = client.subscribe(*["\0" * 5000] * 3, *(f"bad{number}" for number in range(1000)))
    assert len(error["message"]) < 4000
    assert "and 995 more" in error["message"]


# --- the limit of channels


def limited(max_channels: int) -> Client:
    return Client(SessionLimits(max_channels=max_channels))


def test_channels_over_the_limit_are_named_and_the_others_subscribed() -> None:
    client = limited(3)
    client.subscribe("A.x")
    ack, error = client.subscribe("B.x", "C.x", "D.x", "E.x")
    assert (ack["subscribed"], ack["count"]) == (["B.x", "C.x"], 3)
    assert error["code"] == "TOO_MANY_CHANNELS"
    assert error["message"] == "Not subscribed to 'D.x', 'E.x': at most 3 channels a connection"


def test_a_full_set_accepts_channels_it_already_has() -> None:
    client = limited(2)
    client.subscribe("A.x", "B.x")
    (ack,) = client.subscribe("B.x", "A.x", "B.x")
    assert (ack["subscribed"], ack["count"]) == (["B.x", "A.x", "B.x"], 2)


def test_duplicates_in_a_request_do_not_count_against_the_limit() -> None:
    client = limited(2)
    (ack,) = client.subscribe("A.x", "A.x", "A.x", "B.x", "B.x")
    assert ack["count"] == 2
    assert list(client.registry.channels("me")) == ["A.x", "B.x"]


def test_overlap_and_duplicates_and_excess_in_one_request() -> None:
    client = limited(3)
    client.subscribe("A.x", "B.x")
    ack, bad, excess = client.subscribe("C.x", "D.x", "B.x", "C.x", "nonsense", "D.x", "A.x")
    assert (ack["subscribed"], ack["count"]) == (["C.x", "B.x", "C.x", "A.x"], 3)
    assert bad["code"] == "INVALID_CHANNEL"
    assert excess["message"].startswith("Not subscribed to 'D.x', 'D.x':")


def test_if_nothing_fits_there_is_no_ack() -> None:
    client = limited(1)
    client.subscribe("A.x")
    (error,) = client.subscribe("B.x")
    assert error["code"] == "TOO_MANY_CHANNELS"
    assert list(client.registry.channels("me")) == ["A.x"]


def test_bad_channels_do_not_count_against_the_limit() -> None:
    client = limited(1)
    ack, error = client.subscribe("nonsense", "A.x")
    assert ack["count"] == 1
    assert error["code"] == "INVALID_CHANNEL"


def test_unsubscribing_makes_room() -> None:
    client = limited(1)
    client.subscribe("A.x")
    client.say('{"type":"unsubscribe","channels":["A.x"]}')
    (ack,) = client.subscribe("B.x")
    assert ack["count"] == 1


def test_by_default_a_connection_has_at_most_256_channels(client: Client) -> None:
    ack, error = client.subscribe(*(f"T{number}.trade" for number in range(300)))
    assert ack["count"] == len(ack["subscribed"]) == 256
    assert "and 36 more" in error["message"]


# --- the rate limit


def outcome(replies: list[dict[str, Any]]) -> str:
    return str(replies[0].get("code", replies[0]["type"]))


def test_a_burst_of_100_is_taken_then_10_a_second(client: Client) -> None:
    def beat() -> str:
        return outcome(client.say('{"type":"heartbeat"}'))

    assert [beat() for _ in range(102)] == ["pong"] * 100 + ["RATE_LIMIT_EXCEEDED"] * 2
    client.now += 0.125
    assert [beat() for _ in range(2)] == ["pong", "RATE_LIMIT_EXCEEDED"]
    client.now += 1.0
    assert [beat() for _ in range(12)] == ["pong"] * 10 + ["RATE_LIMIT_EXCEEDED"] * 2
    client.now += 3600.0
    assert [beat() for _ in range(101)] == ["pong"] * 100 + ["RATE_LIMIT_EXCEEDED"]
    assert client.traffic.rate_limited == 6
    assert client.traffic.errors == {"RATE_LIMIT_EXCEEDED": 6}
    assert client.traffic.commands == {"heartbeat": 211}


def test_a_message_over_the_rate_has_no_effect(client: Client) -> None:
    for _ in range(100):
        client.say("nonsense")
    assert outcome(client.subscribe("BTC.trade")) == "RATE_LIMIT_EXCEEDED"
    assert client.registry.channel_count() == 0


def test_the_error_for_a_message_over_the_rate_has_its_id(client: Client) -> None:
    for _ in range(100):
        client.say('{"type":"heartbeat"}')
    (error,) = client.say('{"type":"subscribe","channels":["BTC.trade"],"id":"mine"}')
    assert (error["code"], error["id"]) == ("RATE_LIMIT_EXCEEDED", "mine")
    (error,) = client.say("hello")
    assert "id" not in error


def test_messages_that_are_not_answered_count_against_the_rate(client: Client) -> None:
    for _ in range(100):
        assert client.say('{"type":"ping"}') == []
    assert outcome(client.say('{"type":"ping"}')) == "RATE_LIMIT_EXCEEDED"


def test_a_rate_of_0_is_no_limit() -> None:
    client = Client(SessionLimits(commands_per_second=0))
    outcomes = {outcome(client.say('{"type":"heartbeat"}')) for _ in range(1000)}
    assert outcomes == {"pong"}


def test_one_client_does_not_use_up_the_rate_of_another(client: Client) -> None:
    other = Client(registry=client.registry)
    for _ in range(101):
        client.say('{"type":"heartbeat"}')
    assert outcome(other.say('{"type":"heartbeat"}')) == "pong"


# --- the counters


def test_every_message_is_counted_by_its_command(client: Client) -> None:
    for text in (
        '{"type":"subscribe","channels":[]}',
        '{"type":"unsubscribe","channels":[]}',
        '{"type":"replay","data":{"since":0}}',
        '{"type":"heartbeat"}',
        '{"type":"ping"}',
        "nonsense",
    ):
        client.say(text)
    counted = ["subscribe", "unsubscribe", "replay", "heartbeat", "unknown", "malformed"]
    assert client.traffic.commands == dict.fromkeys(counted, 1)


# --- coming back


def happen(client: Client, *channels: str) -> None:
    """Add events that this client did not get to the stream, from offset 1 on."""
    for offset, channel in enumerate(channels, start=1):
        payload = json.dumps(offset).encode()
        message = NatsMessage(f"odin.token.{channel}", payload, offset, 0.0)
        client.resume_buffer.add(message, channel)


def come_back(client: Client, after: int, *channels: str, **more: Any) -> list[dict[str, Any]]:
    command = {"type": "subscribe", "channels": channels, "after": after}
    return client.say(json.dumps(command | more))


def leave(client: Client) -> None:
    client.registry.remove("me")


def test_missed_events_follow_the_ack_and_are_numbered_on() -> None:
    client = Client()
    happen(client, "BTC.trade", "ETH.trade", "BTC.trade", "SOL.trade")
    client.publish(2)
    ack, *missed, end = come_back(client, 1, "BTC.trade", "SOL.trade", id=7)
    assert ack["type"] == "subscription_ack"
    assert ack["epoch"] == "e"
    assert "offset" not in ack, "no position before the events up to it"
    assert [(one["seq"], one["channel"], one["data"], one["offset"]) for one in missed] == [
        (3, "BTC.trade", 3, 3),
        (4, "SOL.trade", 4, 4),
    ]
    assert end == {"type": "resumed", "sent": 2, "offset": 4, "id": 7}
    assert client.traffic.resumed == 2
    assert client.traffic.resumed_incompletely == 0
    assert [one["seq"] for one in client.say('{"type":"replay","data":{"since":2}}')] == [3, 4]


@pytest.mark.parametrize("most", [0, 2])
def test_resumed_events_that_cannot_wait_take_no_number(most: int) -> None:
    client = Client()
    happen(client, *["BTC.trade"] * 4)
    command = '{"type":"subscribe","channels":["BTC.trade"],"after":0}'
    _, *missed, incomplete, end = objects_of(client.frames(command, most=most))
    assert [one["seq"] for one in missed] == list(range(1, most + 1))
    assert (incomplete["type"], incomplete["after"]) == ("resume_incomplete", 0)
    assert "read" in incomplete["message"]
    assert end == {"type": "resumed", "sent": most, "offset": 4}
    assert incomplete["sent"] == most
    assert (client.traffic.resumed, client.traffic.resumed_incompletely) == (most, 1)
    (frame,) = client.publish(1)
    assert objects_of([frame])[0]["seq"] == most + 1
    assert len(client.say('{"type":"replay","data":{"since":0}}')) == most + 1


def test_a_channel_that_is_already_subscribed_is_not_resumed() -> None:
    client = Client()
    client.subscribe("BTC.trade")
    happen(client, "BTC.trade", "ETH.trade")
    _, only, _ = come_back(client, 0, "BTC.trade", "ETH.trade")
    assert only["channel"] == "ETH.trade"


def test_an_oversized_resume_is_cut_to_the_newest_and_reported() -> None:
    client = Client(SessionLimits(resume_channel_events=2))
    happen(client, *["BTC.trade"] * 5)
    _, *missed, incomplete, end = come_back(client, 1, "BTC.trade")
    assert [one["offset"] for one in missed] == [4, 5]
    assert (incomplete["type"], incomplete["after"]) == ("resume_incomplete", 1)
    assert incomplete["sent"] == end["sent"] == 2
    assert (end["type"], end["offset"]) == ("resumed", 5)
    assert client.traffic.resumed_incompletely == 1


def test_a_resume_at_a_rate_is_complete_however_many_events_it_skips() -> None:
    """The newest event of each channel is what a client with a rate lacks."""
    client = Client(SessionLimits(resume_channel_events=2, resume_events=3))
    happen(client, "ETH.trade", *["BTC.trade"] * 9)
    _, *missed, end = come_back(client, 0, "BTC.trade", "ETH.trade", every_ms=1000)
    assert [(one["channel"], one["offset"], one.get("skipped", 0)) for one in missed] == [
        ("ETH.trade", 1, 0),
        ("BTC.trade", 10, 8),
    ]
    assert end == {"type": "resumed", "sent": 2, "offset": 10}
    assert client.traffic.resumed_incompletely == 0


def test_a_resume_at_a_rate_has_as_many_channels_as_a_snapshot() -> None:
    client = Client(SessionLimits(snapshot_events=2))
    happen(client, "A.trade", "B.trade", "C.trade", "A.trade")
    names = ["A.trade", "B.trade", "C.trade"]
    _, *missed, incomplete, end = come_back(client, 0, *names, every_ms=1000)
    assert len(missed) == end["sent"] == 2
    assert sorted([*incomplete["channels"], *(one["channel"] for one in missed)]) == names


def test_a_chatty_channel_does_not_displace_a_quiet_one() -> None:
    client = Client(SessionLimits(resume_events=3))
    happen(client, "ETH.trade", *["BTC.trade"] * 9)
    _, *missed, incomplete, _ = come_back(client, 0, "BTC.trade", "ETH.trade")
    assert [(one["channel"], one["offset"]) for one in missed][:2] == [
        ("ETH.trade", 1),
        ("BTC.trade", 8),
    ]
    assert incomplete["type"] == "resume_incomplete"


def test_a_resume_before_the_backfill_is_complete_reports_it() -> None:
    client = Client()
    client.resume_buffer.note(Mark("e", 0, backfill_end=3))
    happen(client, "BTC.trade", "BTC.trade")
    _, incomplete, end = come_back(client, 2, "BTC.trade")
    assert incomplete["type"] == "resume_incomplete", "3 is kept when it comes, but not sent"
    assert end["offset"] == 3, "what comes from then on is sent"
    leave(client)
    client.resume_buffer.add(NatsMessage("odin.token.ETH.trade", b"3", 3, 0.0), "ETH.trade")
    assert [one["type"] for one in come_back(client, 2, "BTC.trade")][1:] == ["resumed"]


def test_a_resume_before_a_position_is_answered_with_the_id() -> None:
    client = Client(resume_buffer=ResumeBuffer(max_age_seconds=30.0))
    ack, incomplete, end = come_back(client, 10, "BTC.trade", id="x")
    assert ack["epoch"] is None
    assert (incomplete["type"], incomplete["sent"]) == ("resume_incomplete", 0)
    assert (end["type"], end["offset"]) == ("resumed", None)
    assert ack["id"] == incomplete["id"] == end["id"] == "x"


def test_a_server_that_lags_sends_nothing_again() -> None:
    client = Client()
    happen(client, "BTC.trade")
    _, end = come_back(client, 3, "BTC.trade", epoch="e")
    assert end == {"type": "resumed", "sent": 0, "offset": 3}
    for offset, expected in [(2, []), (3, []), (4, ["me"]), (5, ["me"])]:
        assert list(client.registry.subscribers_from("BTC.trade", offset)) == expected


def test_without_the_epoch_an_offset_ahead_may_be_of_an_older_stream() -> None:
    client = Client()
    happen(client, "BTC.trade")
    _, incomplete, end = come_back(client, 3, "BTC.trade")
    assert incomplete["type"] == "resume_incomplete"
    assert end["offset"] == 1
    assert list(client.registry.subscribers_from("BTC.trade", 2)) == ["me"]


def test_a_client_that_sends_an_offset_gets_notices_unless_it_declines() -> None:
    client = Client()
    come_back(client, 0, "BTC.trade")
    assert list(client.registry.audience) == ["me"]
    come_back(client, 0, "BTC.trade", notices=False)
    assert not client.registry.audience


# --- grants


def test_only_the_channels_that_the_token_allows_are_subscribed() -> None:
    client = Client(SessionLimits(max_channels=2))
    client.session.grant = Grant(0.0, "k", frozenset({"BTC.*", "*.social"}))
    replies = client.subscribe("BTC.trade", "ETH.trade", "bad", "ETH.social", "SOL.trade", "BTC.x")
    assert [reply.get("code") for reply in replies] == [
        None,
        "INVALID_CHANNEL",
        "FORBIDDEN_CHANNEL",
        "TOO_MANY_CHANNELS",
    ]
    assert replies[0]["subscribed"] == ["BTC.trade", "ETH.social"]
    assert replies[2]["message"] == (
        "Not subscribed to 'ETH.trade', 'SOL.trade': the token does not allow it"
    )
    assert list(client.registry.channels(client.session._subscriber)) == replies[0]["subscribed"]


def test_a_grant_of_every_channel_is_like_none(client: Client) -> None:
    client.session.grant = Grant(0.0, "k")
    (ack,) = client.subscribe("BTC.trade", "ETH.trade")
    assert ack["count"] == 2


# --- the NATS status in heartbeats


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"heartbeat"}',
        '{"type":"heartbeat","data":{}}',
        '{"type":"heartbeat","data":null}',
        '{"type":"heartbeat","data":"x","nats":true}',
        '{"type":"heartbeat","data":{"nats":1}}',
        '{"type":"heartbeat","nats":false}',
        '{"type":"heartbeat","data":{"nats":false},"nats":true}',
    ],
)
def test_a_plain_heartbeat_is_answered_as_before(client: Client, text: str) -> None:
    client.nats_status.heard(1.0)
    frames = client.frames(text)
    assert texts_of(frames) == [f'{{"type":"pong","ts":{UNIX_MS}}}']


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"heartbeat","data":{"nats":true},"id":4}',
        '{"type":"heartbeat","nats":true,"id":4}',
    ],
)
def test_a_heartbeat_can_tell_a_quiet_market_from_a_lost_nats(client: Client, text: str) -> None:
    client.nats_status.is_connected = False
    asked = {"type": "pong", "ts": UNIX_MS, "id": 4}
    never = {"nats": "disconnected", "age_ms": None, "event_age_ms": None, "offset": 0}
    assert client.say(text) == [asked | never]
    client.nats_status.is_connected = True
    client.nats_status.heard_event(client.now - 60)
    client.nats_status.heard(client.now - 0.25)
    quiet = {"nats": "connected", "age_ms": 250, "event_age_ms": 60_000, "offset": 0}
    assert client.say(text) == [asked | quiet]
    client.nats_status.is_connected = False
    client.now += 10
    broken = {"nats": "disconnected", "age_ms": 10_250, "event_age_ms": 70_000, "offset": 0}
    assert client.say(text) == [asked | broken]


@given(
    st.floats(1000, 1e9),
    st.none() | st.floats(0, 1e6),
    st.booleans(),
)
def test_an_age_is_a_whole_number_of_milliseconds(
    now: float, age: float | None, is_connected: bool
) -> None:
    client = Client()
    client.nats_status.is_connected = is_connected
    if age is not None:
        client.nats_status.heard(now - age)
    client.now = now
    (pong,) = client.say('{"type":"heartbeat","nats":true}')
    assert pong["nats"] == ("connected" if is_connected else "disconnected")
    assert pong["event_age_ms"] is None
    if age is None:
        assert pong["age_ms"] is None
    else:
        assert isinstance(pong["age_ms"], int)
        assert pong["age_ms"] == pytest.approx(age * 1000, abs=1)


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"subscribe","channels":["BTC.trade"],"notices":true}',
        '{"type":"subscribe","data":{"channels":["BTC.trade"],"notices":true}}',
    ],
)
def test_a_client_that_asks_for_notices_gets_them_and_the_epoch(client: Client, text: str) -> None:
    ack = {"type": "subscription_ack", "subscribed": ["BTC.trade"], "count": 1}
    assert client.say(text) == [ack | {"epoch": "e", "offset": 0}]
    assert list(client.registry.audience) == ["me"]
    client.resume_buffer.note(Mark("63fc2bd2a9d40", 7))
    assert client.subscribe("BTC.trade") == [ack | {"epoch": "63fc2bd2a9d40", "offset": 7}]
    owed = client.registry.audience["me"] = {GapReason.CORE: Gap(GapReason.CORE)}
    assert client.say(text) == [ack | {"epoch": "63fc2bd2a9d40", "offset": 7}]
    assert client.registry.audience == {"me": owed}, "asking again takes nothing back"


def test_notices_are_opt_in_and_can_be_ended(client: Client) -> None:
    (ack,) = client.subscribe("BTC.trade")
    assert "epoch" not in ack
    client.say('{"type":"subscribe","channels":[],"notices":true}')
    client.say('{"type":"unsubscribe","channels":["BTC.trade"],"notices":false}')
    assert list(client.registry.audience) == ["me"], "only a subscription says"
    (ack,) = client.say('{"type":"subscribe","channels":[],"notices":false}')
    assert "epoch" not in ack
    assert not client.registry.audience


def test_a_notices_field_that_is_not_boolean_is_an_error(client: Client) -> None:
    (error,) = client.say('{"type":"subscribe","channels":["BTC.trade"],"notices":"yes"}')
    assert error["code"] == "INVALID_COMMAND"
    assert not client.registry.audience
    assert not client.registry.channels("me")


def test_an_offset_of_another_epoch_brings_nothing_and_reports_it() -> None:
    client = Client()
    happen(client, "BTC.trade", "BTC.trade")
    ack, incomplete, end = come_back(client, 1, "BTC.trade", epoch="then")
    assert (ack["epoch"], incomplete["type"], end["offset"]) == ("e", "resume_incomplete", 2)
    leave(client)
    _, missed, _ = come_back(client, 1, "BTC.trade", epoch="e")
    assert missed["offset"] == 2


def test_without_filtering_nothing_is_resumed_and_that_is_reported() -> None:
    client = Client(SessionLimits(can_resume=False))
    happen(client, "BTC.trade", "BTC.trade")
    _, incomplete, end = come_back(client, 1, "BTC.trade")
    assert (incomplete["type"], incomplete["sent"]) == ("resume_incomplete", 0)
    assert end["offset"] == 2


def test_a_position_of_another_epoch_is_never_taken_over() -> None:
    """Else events of the new epoch up to it would be held back later."""
    client = Client()
    happen(client, *["BTC.trade"] * 3)
    *_, end = come_back(client, 500, epoch="another")
    assert end == {"type": "resumed", "sent": 0, "offset": 3}
    *_, end = come_back(client, 500, "BTC.trade", epoch="e")
    assert end == {"type": "resumed", "sent": 0, "offset": 500}, "this one is ahead of us"


def test_a_position_that_may_be_newer_than_ours_gets_no_snapshot() -> None:
    client = Client()
    happen(client, *["BTC.trade"] * 3)
    message = NatsMessage("odin.token.BTC.trade", b"3", 3, 0.0)
    client.newest_events.add("BTC.trade", message)
    _, incomplete, end = come_back(client, 500, "BTC.trade", snapshot=True)
    assert incomplete["channels"] == ["BTC.trade"]
    assert end["sent"] == 0


def test_only_channels_that_are_added_are_named_as_incomplete() -> None:
    client = Client()
    happen(client, *["BTC.trade"] * 3)
    client.subscribe("ETH.trade")
    names = ["BTC.trade", "ETH.trade", "bad", "BTC.trade"]
    incomplete = come_back(client, 1, *names, epoch="another")[-2]
    assert incomplete["channels"] == ["BTC.trade"]


# --- rates


@pytest.mark.parametrize(
    ("asked", "granted"),
    [("0", 0), ("1", 100), ("100", 100), ("101", 200), ("999", 1000), ("1e3", None),
     ("86400000", 60_000), ("null", None)],
)  # fmt: skip
def test_the_ack_says_which_rate_was_granted(
    client: Client, asked: str, granted: int | None
) -> None:
    text = f'{{"type":"subscribe","channels":["A.x"],"every_ms":{asked}}}'
    (ack,) = client.say(text)
    if asked == "1e3":
        assert ack["code"] == "INVALID_COMMAND"
        return
    assert ack["every_ms"] == granted
    assert list(client.registry.subscribers("A.x")) == (["me"] if granted == 0 else [])
    assert list(client.registry.channels("me")) == ["A.x"]


def test_who_asks_for_no_rate_is_told_of_none(client: Client) -> None:
    assert client.subscribe("A.x") == [
        {"type": "subscription_ack", "subscribed": ["A.x"], "count": 1}
    ]


@pytest.mark.parametrize("bad", ["-1", "1.5", '"1000"', "true", "[]", "{}"])
@pytest.mark.parametrize("place", ["top", "data"])
def test_a_bad_rate_is_explained(client: Client, bad: str, place: str) -> None:
    inner = f'"channels":["A.x"],"every_ms":{bad}'
    text = f'"data":{{{inner}}}' if place == "data" else inner
    (error,) = client.say(f'{{"type":"subscribe",{text},"id":5}}')
    assert (error["code"], error["id"]) == ("INVALID_COMMAND", 5)
    assert "a whole number of milliseconds, 0 for every event, or null to pause" in error["message"]
    assert client.registry.count("me") == 0


@pytest.mark.parametrize("text", ['"everyMs":1000', '"data":{"channels":["A.x"],"everyMs":0}'])
def test_a_rate_as_javascript_would_spell_it_is_explained(client: Client, text: str) -> None:
    (error,) = client.say(f'{{"type":"subscribe","channels":["A.x"],{text}}}')
    assert error["code"] == "INVALID_COMMAND"
    assert error["message"] == "Unknown key `everyMs`: did you mean `every_ms`?"


def test_a_rate_of_no_channels_is_not_granted(client: Client) -> None:
    (ack,) = client.say('{"type":"subscribe","channels":[],"every_ms":500}')
    assert ack == {"type": "subscription_ack", "subscribed": [], "count": 0}


def test_the_rate_in_data_wins(client: Client) -> None:
    text = '{"type":"subscribe","every_ms":0,"data":{"channels":["A.x"],"every_ms":null}}'
    assert client.say(text)[0]["every_ms"] is None


def test_where_everybody_gets_everything_there_are_no_rates() -> None:
    client = Client(limits=SessionLimits(can_resume=False))
    (ack,) = client.say('{"type":"subscribe","channels":["A.x"],"every_ms":1000}')
    assert ack["every_ms"] == 0
    assert list(client.registry.subscribers("A.x")) == ["me"]


def test_channels_at_a_rate_count_towards_the_limit() -> None:
    client = Client(limits=SessionLimits(max_channels=2))
    client.subscribe("A.x")
    ack, error = client.say('{"type":"subscribe","channels":["A.y","A.z","A.x"],"every_ms":1000}')
    assert (ack["subscribed"], ack["count"]) == (["A.y", "A.x"], 2)
    assert error["code"] == "TOO_MANY_CHANNELS"
    (ack,) = client.say('{"type":"unsubscribe","channels":["A.y"]}')
    assert ack["count"] == 1


def event_at(client: Client, offset: int, channel: str = "A.x") -> None:
    message = NatsMessage(f"odin.token.{channel}", b"%d" % offset, offset, 0.0, 1)
    client.resume_buffer.add(message, channel)
    client.newest_events.add(channel, message)
    if client.registry.rates.wants(channel):
        client.registry.rates.add(channel, message, None)


def test_a_position_stays_below_what_still_waits_for_a_tick(client: Client) -> None:
    event_at(client, 1)
    client.say('{"type":"subscribe","channels":["A.x"],"every_ms":1000}')
    for offset in (2, 3, 4):
        event_at(client, offset, "A.y" if offset == 2 else "A.x")
    (pong,) = client.say('{"type":"heartbeat","nats":true}')
    assert pong["offset"] == 2
    (ack,) = client.say('{"type":"subscribe","channels":["B.x"],"notices":true}')
    assert ack["offset"] == 2
    due, ack = client.say('{"type":"subscribe","channels":["A.x"],"notices":true}')
    assert [one["offset"] for one in due["events"]] == [4]
    assert ack["offset"] == 4, "that was sent"


def test_no_position_is_stated_while_a_loss_cannot_be_seen(client: Client) -> None:
    event_at(client, 1)
    buffer = client.session.replay_buffer
    buffer.seq = buffer.dropped = 7  # as when the outbox is full
    (pong,) = client.say('{"type":"heartbeat","nats":true}')
    assert pong["offset"] is None
    (ack,) = client.say('{"type":"subscribe","channels":["B.x"],"notices":true}')
    assert ack["offset"] is None
    buffer.seq = 8  # its number shows the client that 7 is missing
    (pong,) = client.say('{"type":"heartbeat","nats":true}')
    assert pong["offset"] == 1


@pytest.mark.parametrize("more", ['"snapshot":true', '"after":0'])
def test_what_is_due_is_numbered_before_what_follows(client: Client, more: str) -> None:
    event_at(client, 1, "B.x")
    client.say('{"type":"subscribe","channels":["A.x"],"every_ms":null}')
    event_at(client, 2)
    text = '{"type":"subscribe","channels":["A.x","B.x"],"every_ms":0,"epoch":"e",' + more + "}"
    answers = client.say(text)
    assert [one["seq"] for one in answers if "seq" in one] == [1, 2]
    assert client.session.replay_buffer.seq == 2


def test_commands_that_look_at_many_channels_are_charged_for_it() -> None:
    client = Client(limits=SessionLimits(command_burst=10, commands_per_second=0.001))
    client.say('{"type":"subscribe","channels":[">"],"every_ms":60000}')
    for number in range(1, 1001):
        event_at(client, number, f"T{number}.x")
    client.say('{"type":"unsubscribe","channels":[]}')
    client.say('{"type":"unsubscribe","channels":["not.held"]}')
    assert client.say('{"type":"heartbeat","nats":true}')[0]["offset"] == 0, "the first waits"
    assert client.say('{"type":"heartbeat","nats":true}')[0]["type"] == "pong"
    (error,) = client.say('{"type":"heartbeat"}')
    assert error["code"] == "RATE_LIMIT_EXCEEDED"


def test_nothing_is_held_back_for_ever(client: Client) -> None:
    text = '{"type":"subscribe","channels":["A.x"],"epoch":"e","after":%d}'
    assert [one["type"] for one in client.say(text % 2**40)] == [
        "subscription_ack",
        "resume_incomplete",
        "resumed",
    ]
    event_at(client, 1)
    assert "me" in client.registry.subscribers_from("A.x", 1)


def test_a_pause_does_not_hold_the_position_back(client: Client) -> None:
    client.say('{"type":"subscribe","channels":["A.x"],"every_ms":null}')
    event_at(client, 1)
    (pong,) = client.say('{"type":"heartbeat","nats":true}')
    assert pong["offset"] == 1


def test_a_resume_at_a_rate_brings_the_newest_of_each_channel(client: Client) -> None:
    for offset, channel in enumerate(["A.x", "A.x", "A.y", "A.x", "A.y"], start=1):
        event_at(client, offset, channel)
    ack, *events, resumed = client.say(
        '{"type":"subscribe","channels":["A.x","A.y"],"every_ms":1000,"after":1}'
    )
    assert ack["every_ms"] == 1000
    assert [(one["channel"], one["offset"], one["skipped"]) for one in events] == [
        ("A.x", 4, 1),
        ("A.y", 5, 1),
    ]
    assert resumed["sent"] == 2
    assert not client.registry.rates.owed("me"), "nothing comes again at the next tick"


def test_events_that_another_server_sent_do_not_come_at_a_tick(client: Client) -> None:
    event_at(client, 1)
    client.say('{"type":"subscribe","channels":["A.x"],"every_ms":1000,"after":3,"epoch":"e"}')
    event_at(client, 2)
    event_at(client, 3)
    assert not client.registry.rates.owed("me")
    event_at(client, 4)
    (owed,) = client.registry.rates.owed("me")
    (content,) = objects_of([owed.frame(1)])
    ((event,),) = [content["events"]]
    assert (event["offset"], event.get("skipped")) == (4, None)
