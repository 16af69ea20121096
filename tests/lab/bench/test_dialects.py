from __future__ import annotations

import json
from base64 import b64decode
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, TextMessage
from wsproto.events import Event as WsprotoEvent

from trio_odin.core.handshake import answer, is_websocket_request
from trio_odin.lab.bench.dialects import (
    DIALECTS,
    Centrifugo,
    Dialect,
    Event,
    Nats,
    Odin,
    event_in,
    masked_frame,
    payload_of,
    upgrade_request,
)

CHANNEL = st.from_regex(r"[A-Z0-9]{1,10}\.[a-z]{1,10}", fullmatch=True)
EVENTS = st.builds(Event, st.integers(0, 10**9), st.integers(0, 10**18), CHANNEL)

AROUND = st.binary(max_size=30).map(lambda some: some.replace(b'"', b"'"))


def as_server(frames: bytes) -> list[WsprotoEvent]:
    """What a server makes of the frames of a client."""
    connection = Connection(ConnectionType.SERVER)
    connection.receive_data(frames)
    return list(connection.events())


def message_in(frame: bytes) -> str | bytes:
    (event,) = as_server(frame)
    assert isinstance(event, TextMessage | BytesMessage)
    return event.data if isinstance(event.data, str) else bytes(event.data)


# --- payloads


@given(EVENTS, st.integers(0, 500), AROUND, AROUND)
def test_a_payload_says_which_event_it_is_whatever_is_around_it(
    event: Event, size: int, before: bytes, behind: bytes
) -> None:
    payload = payload_of(event, size)
    assert event_in(payload) == event
    assert event_in(before + payload + behind) == event
    said = json.loads(payload)
    assert (said["n"], said["t"], said["c"]) == event


@given(EVENTS, st.integers(100, 5_000))
def test_a_payload_has_exactly_the_size_asked_for(event: Event, size: int) -> None:
    assert len(payload_of(event, size)) == size


def test_a_payload_is_never_cut_short() -> None:
    event = Event(17, 42, "BTC.trade")
    assert payload_of(event, 0) == b'{"n":17,"t":42,"c":"BTC.trade","pad":""}'
    assert payload_of(event, 43) == b'{"n":17,"t":42,"c":"BTC.trade","pad":"xxx"}'


@pytest.mark.parametrize(
    "unit", [b"", b"{}", b"PING\r\n", b'{"n":1,"t":2}', b'"n":x,"t":2,"c":"C"']
)
def test_in_anything_else_there_is_no_event(unit: bytes) -> None:
    assert event_in(unit) is None


# --- frames


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535])
def test_a_server_understands_a_frame_of_any_size(size: int) -> None:
    assert message_in(masked_frame(0x82, b"x" * size)) == b"x" * size


def test_a_server_understands_the_upgrade_request() -> None:
    request = upgrade_request("127.0.0.1:3002", "/ws")
    assert is_websocket_request(request)
    response = answer(request)
    assert isinstance(response, bytes)
    keys = {upgrade_request("a", "/").split(b"Key: ")[1].split(b"\r\n")[0] for _ in range(10)}
    assert len(keys) == 10
    assert {len(b64decode(key)) for key in keys} == {16}


@pytest.mark.parametrize("name", DIALECTS)
def test_no_dialect_takes_an_event_for_an_acknowledgement_or_a_ping(name: str) -> None:
    payload = payload_of(Event(2, 3, "BTC.trade"), 100)
    units = {
        "odin": b'{"seq":1,"data":' + payload + b"}",
        "nats": b"MSG odin.token.BTC.trade BTC.trade 100\r\n" + payload + b"\r\n",
        "centrifugo": b'{"push":{"channel":"BTC.trade","pub":{"data":' + payload + b"}}}",
    }
    dialect = DIALECTS[name]
    assert not dialect.is_acknowledgement(units[name])
    assert dialect.answer(units[name]) is None
    assert dialect.units(units[name]) == ([units[name]], b"")


# --- trio_odin's


def test_odin_subscribes_with_one_command_and_knows_the_reply() -> None:
    message = message_in(Odin().greeting(["BTC.trade", "ETH.social"]))
    assert json.loads(message) == {"type": "subscribe", "channels": ["BTC.trade", "ETH.social"]}
    assert Odin().is_acknowledgement(b'{"type":"subscription_ack","subscribed":[]}')
    assert not Odin().is_acknowledgement(b'{"type":"error","code":"INVALID_CHANNEL"}')


@given(st.integers(1, 10**12), st.binary())
def test_what_is_behind_the_number_is_the_same_for_all_subscribers(seq: int, rest: bytes) -> None:
    assert Odin().seq_and_rest(b'{"seq":%d,' % seq + rest) == (seq, b"," + rest)


def test_an_envelope_without_a_number_has_number_0() -> None:
    for payload in (b'{"channel":"BTC.trade","data":{}}', b"", b'{"type":"pong","seq":5}'):
        assert Odin().seq_and_rest(payload) == (0, payload)


# --- that of NATS

PAYLOADS = st.lists(
    st.sampled_from([b"\r\n", b"PING\r\n", b"MSG a b 5\r\n", b"\r", b"\n", b"x"]) | st.binary(),
    max_size=5,
).map(b"".join)


@st.composite
def nats_messages(draw: st.DrawFn) -> bytes:
    payload = draw(PAYLOADS)
    reply = draw(st.sampled_from(["", "_INBOX.1 "]))
    return (
        f"MSG odin.token.BTC.trade BTC.trade {reply}{len(payload)}\r\n".encode()
        + payload
        + (b"\r\n")
    )


UNITS = nats_messages() | st.sampled_from(
    [b'INFO {"server_id":"X","max_payload":1048576}\r\n', b"PING\r\n", b"PONG\r\n", b"+OK\r\n"]
)


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in pairwise(places)]


def units_of(dialect: Dialect, pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    """The units of a stream that comes in pieces, and what is left over."""
    units: list[bytes] = []
    rest = b""
    for piece in pieces:
        found, rest = dialect.units(rest + piece)
        units += found
    return units, rest


@given(st.lists(UNITS, max_size=6), st.lists(st.integers(0, 10_000), max_size=8))
def test_nats_units_are_the_same_wherever_the_stream_is_cut(
    units: list[bytes], cuts: list[int]
) -> None:
    assert units_of(Nats(), split(b"".join(units), cuts)) == (units, b"")


@given(st.lists(UNITS, max_size=3), UNITS, st.integers(1, 10_000))
def test_half_a_nats_unit_waits_for_its_other_half(
    units: list[bytes], last: bytes, kept: int
) -> None:
    half = last[: kept % len(last)]
    assert Nats().units(b"".join(units) + half) == (units, half)


def test_nats_subscribes_line_by_line_and_asks_for_a_sign_that_it_is_done() -> None:
    message = message_in(Nats().greeting(["BTC.trade", "ETH.social"]))
    assert isinstance(message, bytes)
    connect, *lines = message.split(b"\r\n")
    assert connect.startswith(b"CONNECT {")
    assert json.loads(connect.removeprefix(b"CONNECT "))["verbose"] is False
    assert lines == [
        b"SUB odin.token.BTC.trade BTC.trade",
        b"SUB odin.token.ETH.social ETH.social",
        b"PING",
        b"",
    ]
    assert Nats().is_acknowledgement(b"PONG\r\n")
    units, _ = Nats().units(b"+OK\r\nPONG\r\n")
    assert [Nats().is_acknowledgement(unit) for unit in units] == [False, True]
    assert not Nats().is_acknowledgement(b'INFO {"pong":1}\r\n')


def test_nats_is_answered_its_ping_and_has_no_numbers() -> None:
    pong = Nats().answer(b"PING\r\n")
    assert pong is not None
    assert message_in(pong) == b"PONG\r\n"
    assert Nats().answer(b"+OK\r\n") is None
    assert Nats().seq_and_rest(b'{"seq":1,') == (0, b'{"seq":1,')


# --- that of Centrifugo


def test_centrifugo_is_greeted_with_a_line_each_and_the_last_one_has_number_2() -> None:
    message = message_in(Centrifugo().greeting(["A.trade", "B.trade", "C.trade"]))
    commands = [json.loads(line) for line in str(message).split("\n")]
    assert commands[0] == {"id": 1, "connect": {}}
    assert [command["subscribe"]["channel"] for command in commands[1:]] == [
        "A.trade",
        "B.trade",
        "C.trade",
    ]
    assert [command["id"] == 2 for command in commands[1:]] == [False, False, True]


@pytest.mark.parametrize(
    ("reply", "is_it"),
    [
        (b'{"id":2,"subscribe":{}}', True),
        (b'{"id":1,"connect":{"client":"x"}}', False),
        (b'{"id":3,"subscribe":{}}', False),
        (b'{"id":22,"subscribe":{}}', False),
        (b'{"id":2,"error":{"code":103,"message":"permission denied"}}', False),
    ],
)
def test_centrifugo_has_acknowledged_when_the_last_subscribe_is_answered(
    reply: bytes, is_it: bool
) -> None:
    assert Centrifugo().is_acknowledgement(reply) is is_it


def test_an_empty_object_is_centrifugos_ping_and_pong() -> None:
    for ping in (b"{}", b"{}\n"):
        pong = Centrifugo().answer(ping)
        assert pong is not None
        assert message_in(pong) == "{}"
    assert Centrifugo().answer(b'{"push":{}}') is None


def test_a_frame_of_centrifugo_holds_replies_a_line_each_without_numbers() -> None:
    frame = b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{}}'
    assert Centrifugo().units(frame) == (
        [b'{"id":1,"connect":{}}', b'{"id":2,"subscribe":{}}'],
        b"",
    )
    assert Centrifugo().seq_and_rest(frame) == (0, frame)
