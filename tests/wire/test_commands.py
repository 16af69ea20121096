from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.connection.client import as_sent, objects_of
from trio_odin.connection.session import Session, SessionLimits
from trio_odin.fanout.registry import Registry
from trio_odin.fanout.replay_buffer import ReplayBuffer
from trio_odin.fanout.resume_buffer import ResumeBuffer
from trio_odin.ledger.counters import Traffic
from trio_odin.upstream.status import NatsStatus
from trio_odin.wire.commands import (
    Command,
    ErrorCode,
    Heartbeat,
    Malformed,
    Replay,
    Subscribe,
    Unknown,
    Unsubscribe,
    id_in,
    parse_command,
)

KINDS = ["subscribe", "unsubscribe", "replay", "heartbeat", "ping", "anything"]
KEYS = ["type", "data", "channels", "id", "from", "to", "since", "after", "x"]
HUGE = [2**63, 2**64, -(2**63) - 1, 10**400, -(10**4000)]


def receive(text: str) -> list[dict[str, Any]]:
    """The answers of a new session; every frame must be one JSON object."""
    session = Session(
        "me",
        Registry(),
        replay_buffer=ReplayBuffer(100),
        resume_buffer=ResumeBuffer(max_age_seconds=30.0),
        limits=SessionLimits(commands_per_second=0),
        traffic=Traffic(),
        nats_status=NatsStatus(),
        now=0.0,
    )
    return objects_of(as_sent(session.receive(text, now=0.0, unix_ms=1), session.replay_buffer))


def check_any_answer(text: str) -> None:
    """Check that nothing raises, parts and whole agree, and a client can read the answers."""
    command = parse_command(text)
    replies = receive(text)
    assert all(reply["type"] for reply in replies)
    match command:
        case Malformed(code, message):
            assert [reply["type"] for reply in replies] == ["error"]
            assert replies[0]["code"] == code.value
            assert replies[0]["message"] == message
        case Unknown():
            assert replies == []
        case Heartbeat():
            assert [reply["type"] for reply in replies] == ["pong"]
        case Unsubscribe(channels):
            assert [reply["unsubscribed"] for reply in replies] == [channels]
        case Subscribe():
            kinds = {"subscription_ack", "error", "resume_incomplete", "resumed"}
            assert {reply["type"] for reply in replies} <= kinds
            assert replies
        case Replay():
            assert replies == [], "a new session has nothing to send again"


# --- any text at all

ANY_CHARACTER = st.characters(exclude_categories=())  # half surrogate pairs too


@given(st.text() | st.text(ANY_CHARACTER))
def test_any_text_is_answered_or_ignored(text: str) -> None:
    check_any_answer(text)


@given(st.text(st.sampled_from('{}[]",:\\ue0dtypsubcrhanl123.-'), max_size=60))
def test_any_text_made_of_json_letters_is_answered_or_ignored(text: str) -> None:
    check_any_answer(text)


# --- JSON of any shape

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.sampled_from(HUGE) | st.floats() | st.text()
    | st.sampled_from([*KINDS, "BTC.trade", "BTC", "*.trade", "\ud800", "\udfff.trade", "\0", ""])
)  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=4)
    ),
    max_leaves=10,
)


@st.composite
def objects(draw: st.DrawFn) -> str:
    """An object close to a command: known keys, some twice, with any values."""
    pairs = draw(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=5))
    if draw(st.booleans()):
        pairs.insert(draw(st.integers(0, len(pairs))), ("type", draw(st.sampled_from(KINDS))))
    ascii_only = draw(st.booleans())
    written = [
        f"{json.dumps(key)}:{json.dumps(value, ensure_ascii=ascii_only)}" for key, value in pairs
    ]
    return "{" + ",".join(written) + "}"


@settings(max_examples=300)
@given(objects() | VALUES.map(json.dumps))
@example('{"type":"heartbeat","type":5}')
@example('{"type":"subscribe","channels":["A.b"],"channels":null}')
@example('{"type":"heartbeat","id":"\\ud800"}')
@example('{"type":"unsubscribe","channels":["\\udc00\\ud800"]}')
@example('{"type":"unsubscribe","channels":["\ud800"]}')
@example('{"type":"replay","data":{"since":1e400}}')
@example('{"type":"replay","data":{"from":-1e300,"to":NaN}}')
def test_any_json_is_answered_or_ignored(text: str) -> None:
    check_any_answer(text)


@given(objects(), st.data())
def test_a_message_cut_short_is_answered_or_ignored(text: str, data: st.DataObject) -> None:
    check_any_answer(text[: data.draw(st.integers(0, len(text)))])


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize(
    "form",
    [
        '{"type":"heartbeat","id":%d}',
        '{"type":"subscribe","channels":["A.b"],"id":%d}',
        '{"type":"replay","data":{"since":%d}}',
        '{"type":"replay","data":{"from":%d,"to":%d}}',
        '{"type":%d}',
        '{"type":"subscribe","channels":[%d]}',
        '{"type":"heartbeat","x":%d}',
        "%d",
    ],
)
def test_huge_numbers_do_no_harm_anywhere(form: str, number: int) -> None:
    check_any_answer(form.replace("%d", str(number)))


# --- deep nesting

FORMS = [
    '{"type":"KIND","x":DEEP}',
    '{"x":DEEP,"type":"KIND"}',
    '{"type":"KIND","channels":["A.b"],"x":DEEP}',
    '{"type":"KIND","channels":["A.b"],"id":DEEP}',
    '{"type":"KIND","channels":DEEP}',
    '{"type":"KIND","data":DEEP}',
    '{"type":"KIND","data":{"channels":["A.b"],"x":DEEP}}',
    '{"type":"KIND","data":{"since":0},"x":DEEP}',
    '{"type":"KIND","data":{"since":DEEP}}',
    '{"type":DEEP}',
    "DEEP",
]


def nested(form: str, kind: str, depth: int) -> str:
    return form.replace("KIND", kind).replace("DEEP", "[" * depth + "]" * depth)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_nesting_of_any_depth_is_answered_or_ignored(form: str, kind: str) -> None:
    for depth in (1, 10, 100, 5000, 100_000):
        check_any_answer(nested(form, kind, depth))
    check_any_answer(nested(form, kind, 100_000).replace("]", ""))
    check_any_answer(nested(form, kind, 20_000).replace("[", '{"a":').replace("]", "}"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_nesting_at_the_limit_of_the_decoder_does_no_harm(form: str, kind: str) -> None:
    # The next decoder, called from a slightly deeper frame, may fail where this one works.
    limit = sys.getrecursionlimit()
    for depth in range(max(limit - 120, 1), limit + 20):
        text = nested(form, kind, depth)
        parse_command(text)
        receive(text)


# --- the meaning of commands

CHANNELS = st.lists(st.text(), max_size=4)
IDS = st.none() | st.text() | st.integers(-(2**63), 2**64 - 1)
# Unknown keys: existing clients send some.
EXTRA = st.dictionaries(st.text(min_size=6, max_size=7).filter(lambda k: k not in KEYS), VALUES)


def written(content: dict[str, Any], command_id: str | int | None) -> str:
    return json.dumps(content | ({} if command_id is None else {"id": command_id}))


@given(channels=CHANNELS, command_id=IDS)
def test_both_forms_of_a_request_for_channels_mean_the_same(
    channels: list[str], command_id: str | int | None
) -> None:
    for kind, command in (
        ("subscribe", Subscribe(channels, command_id)),
        ("unsubscribe", Unsubscribe(channels, command_id)),
    ):
        flat = {"type": kind, "channels": channels}
        in_data = {"type": kind, "data": {"channels": channels}}
        assert parse_command(written(flat, command_id)) == command
        assert parse_command(written(in_data, command_id)) == command


@given(first=st.integers(-(2**63), 2**64), last=st.integers(-(2**63), 2**64), command_id=IDS)
def test_a_replay_names_a_range_or_the_last_known_number(
    first: int, last: int, command_id: str | int | None
) -> None:
    bounded = {"type": "replay", "data": {"from": first, "to": last}}
    assert parse_command(written(bounded, command_id)) == Replay(first, last, command_id)
    open_ended = {"type": "replay", "data": {"since": first}}
    assert parse_command(written(open_ended, command_id)) == Replay(first + 1, None, command_id)


@given(IDS)
def test_a_heartbeat_needs_nothing_but_its_type(command_id: str | int | None) -> None:
    assert parse_command(written({"type": "heartbeat"}, command_id)) == Heartbeat(command_id)


@given(st.text().filter(lambda kind: kind not in KINDS), EXTRA)
def test_an_object_of_any_other_type_is_unknown(kind: str, extra: dict[str, Any]) -> None:
    try:
        text = json.dumps(extra | {"type": kind}, allow_nan=False)
        text.encode()
        json.loads(text)
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except ValueError:
        return  # not JSON after all: NaN, half a surrogate pair, more digits than Python reads
    assert parse_command(text) == Unknown()


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ('{"type":"ping"}', Unknown()),
        ('{"type":"Subscribe","channels":["A.b"]}', Unknown()),
        ('{"type":"","channels":["A.b"]}', Unknown()),
        ('{"type":"heartbeat","data":{"sent":1},"x":[1]}', Heartbeat()),
        ('{"type":"heartbeat","id":true}', Heartbeat()),
        ('{"type":"subscribe","data":null,"channels":["A.b"]}', Subscribe(["A.b"])),
        ('{"type":"subscribe","data":{"channels":["A.b"],"x":1}}', Subscribe(["A.b"])),
        ('{"type":"subscribe","channels":["A.b"],"after":7}', Subscribe(["A.b"], after=7)),
        (
            '{"type":"subscribe","data":{"channels":["A.b"],"after":7},"after":8}',
            Subscribe(["A.b"], after=7),
        ),
        (' {"channels":["A.b"],"type":"subscribe"}\n', Subscribe(["A.b"])),
        ('{"type":"heartbeat","type":"unsubscribe","channels":[]}', Unsubscribe([])),
    ],
)
def test_the_examples_of_commands_are_read(text: str, command: Command) -> None:
    assert parse_command(text) == command


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "hello", "{", "}", '{"type":}', '{"type":"heartbeat"} x', '{"type":"heartbeat"}{}',
        "{'type':'heartbeat'}", '{"type":"heartbeat",}', "NaN", '{"type":"heartbeat","x":NaN}',
        '{"type":"heartbeat","x":Infinity}', '{"type":"heartbeat","x":"a\nb"}',
        '\ufeff{"type":"heartbeat"}', '{"type":"heartbeat","x":"\\ud800"}', "\ud800",
        '{"type":"\udc00"}', "[]", "null", '"subscribe"', "5", "true", " [{}] ",
    ],
)  # fmt: skip
def test_a_message_that_is_not_a_json_object_is_reported_as_such(text: str) -> None:
    command = parse_command(text)
    assert isinstance(command, Malformed)
    assert command.code is ErrorCode.INVALID_JSON
    assert command.message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("{}", "type"),
        ('{"Type":"heartbeat"}', "type"),
        ('{"type":null}', "type"),
        ('{"type":["subscribe"]}', "type"),
        ('{"type":"subscribe"}', "channels"),
        ('{"type":"subscribe","data":{}}', "channels"),
        ('{"type":"subscribe","data":{"channels":null}}', "channels"),
        ('{"type":"subscribe","channels":"A.b"}', "channels"),
        ('{"type":"subscribe","channels":{"A.b":1}}', "channels"),
        ('{"type":"unsubscribe","channels":["A.b",5]}', "channels"),
        ('{"type":"unsubscribe","data":["A.b"]}', "data"),
        ('{"type":"subscribe","channels":["A.b"],"id":{}}', "id"),
        ('{"type":"subscribe","channels":["A.b"],"id":true}', "id"),
        ('{"type":"replay"}', "since"),
        ('{"type":"replay","data":{}}', "since"),
        ('{"type":"replay","data":{"from":1}}', "since"),
        ('{"type":"replay","data":{"to":1}}', "since"),
        ('{"type":"replay","data":{"from":1,"to":2,"since":3}}', "since"),
        ('{"type":"replay","data":{"from":1,"since":3}}', "since"),
        ('{"type":"replay","data":{"since":"3"}}', "since"),
        ('{"type":"replay","data":{"since":true}}', "since"),
        ('{"type":"replay","data":{"from":1.5,"to":2}}', "from"),
        ('{"type":"replay","data":5}', "data"),
    ],
)
def test_unknown_json_is_reported_with_the_place_of_the_fault(text: str, hint: str) -> None:
    command = parse_command(text)
    assert isinstance(command, Malformed)
    assert command.code is ErrorCode.INVALID_COMMAND
    assert hint in command.message


@pytest.mark.parametrize(
    ("text", "command_id"),
    [
        ('{"id":7}', 7),
        ('{"id":"a","type":5}', "a"),
        ('{"type":"subscribe","id":"a"}', "a"),
        ('{"type":"replay","data":{},"id":-3}', -3),
        ('{"type":"replay","data":{},"id":[]}', None),
        ("[7]", None),
        ('{"id":7', None),
    ],
)
def test_a_malformed_command_is_answered_with_its_readable_id(
    text: str, command_id: str | int | None
) -> None:
    command = parse_command(text)
    assert isinstance(command, Malformed)
    assert command.id == command_id


# --- errors that name the fault


def message_of(text: str) -> str:
    command = parse_command(text)
    assert isinstance(command, Malformed)
    return command.message


@pytest.mark.parametrize(
    ("kind", "nearest"),
    [
        ("subscrbe", "subscribe"),
        ("Subscribe", "subscribe"),
        ("unsubcribe", "unsubscribe"),
        ("heart_beat", "heartbeat"),
        ("replays", "replay"),
    ],
)
def test_a_misspelt_type_with_an_id_is_named_with_the_nearest_one(kind: str, nearest: str) -> None:
    text = json.dumps({"type": kind, "channels": ["A.b"], "id": 7})
    expected = f"Unknown type '{kind}': did you mean '{nearest}'?"
    assert parse_command(text) == Malformed(ErrorCode.INVALID_COMMAND, expected, 7)


@pytest.mark.parametrize("kind", ["ping", "", "auth", "x" * 5000, "\u0000\n", "é" * 64])
@pytest.mark.parametrize("command_id", ["a", 0, ""])
def test_any_other_type_with_an_id_is_answered_with_the_known_types(
    kind: str, command_id: str | int
) -> None:
    command = parse_command(json.dumps({"id": command_id, "type": kind}))
    assert isinstance(command, Malformed)
    assert (command.code, command.id) == (ErrorCode.INVALID_COMMAND, command_id)
    assert command.message.endswith(
        ": expected subscribe, unsubscribe, replay, heartbeat, channels or token"
    )
    assert len(command.message) < 250
    assert command.message.isprintable()


@pytest.mark.parametrize(
    "text", ['{"type":"pong"}', '{"type":"x","id":null}', '{"type":"x","id":1.5}']
)
def test_without_a_usable_id_another_type_is_ignored(text: str) -> None:
    assert parse_command(text) == Unknown()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"type":"subscribe","channel":"A.b"}',
            "Unknown key `channel`: did you mean `channels`, a list of names?",
        ),
        (
            '{"type":"subscribe","data":{"Channels":["A.b"],"x":1}}',
            "Unknown key `data.Channels`: did you mean `data.channels`, a list of names?",
        ),
        (
            '{"type":"unsubscribe","chanels":["A.b"],"id":"x"}',
            "Unknown key `chanels`: did you mean `channels`, a list of names?",
        ),
        ('{"type":"subscribe"}', "subscribe needs `channels`, a list of names"),
        ('{"type":"subscribe","data":null,"x":1}', "subscribe needs `channels`, a list of names"),
        ('{"type":"unsubscribe","data":{}}', "unsubscribe needs `data.channels`, a list of names"),
        (
            '{"type":"replay","since":5}',
            'replay needs its numbers in `data`: {"from":N,"to":M} or {"since":N}',
        ),
        (
            '{"type":"replay","data":{"sinse":5}}',
            "Unknown key `data.sinse`: did you mean `data.since`?",
        ),
    ],
)
def test_a_missing_or_misspelt_key_is_named_as_the_client_wrote_it(text: str, message: str) -> None:
    assert message_of(text) == message


@pytest.mark.parametrize("number", ["1.0", "1e2", "true", "[]", "{}", "1.5"])
def test_an_id_that_cannot_be_returned_is_named(number: str) -> None:
    for text in ('{"type":"subscribe","channels":["A.b"],"id":%s}', '{"id":%s,"type":"replay"}'):
        assert message_of(text % number) == "`id` has to be a string or a whole number"


@pytest.mark.parametrize("between", ["", " ", "\n", "\r\n\t"])
def test_two_objects_in_a_message_are_reported(between: str) -> None:
    one = '{"type":"heartbeat","id":"é"}'
    assert message_of(one + between + one) == "More than one JSON object: send each by itself"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "Not a JSON object"),
        ("[]", "Not a JSON object"),
        ('{"type":"heartbeat"', "Not a JSON object"),
        ('{"type":"heartbeat"} x', "Not a JSON object: trailing characters"),
        ("{'type':'heartbeat'}", "Not a JSON object: object keys must be strings"),
        ('{"type":"heartbeat",}', "Not a JSON object: trailing comma in object"),
    ],
)
def test_the_fault_in_the_json_is_reported(text: str, message: str) -> None:
    assert message_of(text).partition(" (byte")[0] == message


@pytest.mark.parametrize(
    ("text", "command_id"),
    [
        ('{"type":"subscribe","channels":["A.b"],"id":7}', 7),
        ('{"id":"a"}', "a"),
        ('{"id":1.0}', None),
        ('{"type":"heartbeat"}', None),
        ("hello", None),
        ("\ud800", None),
        ('{"id":7,"x":' + "[" * 5000 + "]" * 5000 + "}", None),
        ('{"id":7,"x":"' + "x" * 3000 + '"}', 7),
        ('{"id":7,"x":"' + "x" * 5000 + '"}', None),  # this would take too long
    ],
)
def test_the_id_of_a_command_is_read_if_that_is_cheap(
    text: str, command_id: str | int | None
) -> None:
    assert id_in(text) == command_id


def test_only_a_few_of_many_unknown_keys_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[str] = []

    def matches(word: str, *_: object, **__: object) -> list[str]:
        compared.append(word)
        return []

    monkeypatch.setattr("trio_odin.wire.commands.get_close_matches", matches)
    text = json.dumps({"type": "subscribe", **{f"key{n}": 0 for n in range(1000)}})
    command = parse_command(text)
    assert isinstance(command, Malformed)
    assert "needs `channels`" in command.message
    assert 0 < len(compared) < 10
