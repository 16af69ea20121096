from __future__ import annotations

import json
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, TextMessage
from wsproto.events import Event as WsprotoEvent

from tests.lab.fleet.rig import split
from trio_odin.lab.fleet.dialects import (
    DIALECTS,
    Centrifugo,
    Dialect,
    Nats,
    Odin,
    masked_frame,
    upgrade_request,
)
from trio_odin.lab.fleet.events import Event, payload_of
from trio_odin.wire.handshake import Upgrade, is_websocket_request, parse


def as_server(frames: bytes) -> list[WsprotoEvent]:
    """The frames of a client, as a server reads them."""
    connection = Connection(ConnectionType.SERVER)
    connection.receive_data(frames)
    return list(connection.events())


def message_in(frame: bytes) -> str | bytes:
    (event,) = as_server(frame)
    assert isinstance(event, TextMessage | BytesMessage)
    return event.data if isinstance(event.data, str) else bytes(event.data)


# --- frames


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535])
def test_a_server_accepts_a_frame_of_any_size(size: int) -> None:
    assert message_in(masked_frame(0x82, b"x" * size)) == b"x" * size


def test_a_server_accepts_the_upgrade_request() -> None:
    request = upgrade_request("127.0.0.1:3002", "/ws")
    assert is_websocket_request(request)
    parsed = parse(request)
    assert isinstance(parsed, Upgrade)
    response = parsed.response()
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
    assert dialect.subscribed(units[name], 1) is None
    assert not dialect.is_error(units[name])
    assert dialect.answer(units[name]) is None
    assert dialect.units(units[name]) == ([units[name]], b"")


# --- trio_odin's


def test_odin_subscribes_with_one_command_and_reads_the_reply() -> None:
    message = message_in(Odin().greeting(["BTC.trade", "ETH.social"]))
    assert json.loads(message) == {"type": "subscribe", "channels": ["BTC.trade", "ETH.social"]}
    reply = b'{"type":"subscription_ack","subscribed":["BTC.trade","ETH.social"],"count":2}'
    assert Odin().subscribed(reply, 2) == 2


@pytest.mark.parametrize(
    ("reply", "count"),
    [
        (b'{"type":"subscription_ack","subscribed":["A.b"],"count":1}', 1),
        (b'{"type":"subscription_ack","subscribed":["A.b","C.d"],"count":7,"id":"x"}', 7),
        (b'{"type":"subscription_ack","subscribed":["A.b","C.d"]}', 2),
        (b'{"type":"subscription_ack","subscribed":[]}', 0),
        (b'{"type":"unsubscription_ack","unsubscribed":["A.b"],"count":1}', None),
        (b'{"type":"error","message":"no \\"subscription_ack\\""}', None),
        (b'{"type":"subscription_ack","count":"many"}', None),
        (b'"subscription_ack"', None),
        (b"subscription_ack", None),
        (b"{}", None),
        (b"", None),
    ],
)
def test_an_odin_reply_has_the_number_of_channels(reply: bytes, count: int | None) -> None:
    assert Odin().subscribed(reply, 2) == count


@pytest.mark.parametrize(
    ("message", "is_known"),
    [
        (b'{"type":"server:draining","reconnect_in_ms":1250}', True),
        (b'{"type":"pong","ts":1}', True),
        (b'{"type":"replay_incomplete","sent":1}', True),
        (b'{"no":"type"}', False),
        (b'{"seq":1,"type":"price:update"}', False),
        (b"hello", False),
        (b"", False),
    ],
)
def test_an_odin_reply_names_its_type_and_is_not_an_envelope(
    message: bytes, is_known: bool
) -> None:
    assert Odin().is_known(message) is is_known


def test_an_odin_error_is_recognised() -> None:
    assert Odin().is_error(b'{"type":"error","code":"INVALID_CHANNEL","message":"x"}')
    assert not Odin().is_error(b'{"type":"subscription_ack","subscribed":["error"],"count":1}')


@given(st.integers(1, 10**12), st.binary())
def test_the_bytes_after_the_number_are_the_same_for_all_subscribers(seq: int, rest: bytes) -> None:
    assert Odin().seq_and_rest(b'{"seq":%d,' % seq + rest) == (seq, b"," + rest)


def test_an_envelope_without_a_number_has_number_0() -> None:
    no_number = b'{"seq":x,"ts":1}', b'{"seq":"7","ts":1}', b'{"seq":', b'{"seq":,'
    for payload in (
        b'{"channel":"BTC.trade","data":{}}',
        b"",
        b'{"type":"pong","seq":5}',
        *no_number,
    ):
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


def units_of(dialect: Dialect, pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    """The units of a stream that comes in pieces, and the rest."""
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
def test_half_a_nats_unit_waits_for_the_rest(units: list[bytes], last: bytes, kept: int) -> None:
    half = last[: kept % len(last)]
    assert Nats().units(b"".join(units) + half) == (units, half)


def test_nats_subscribes_line_by_line_and_ends_with_a_ping() -> None:
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
    units, _ = Nats().units(b"+OK\r\nPONG\r\n")
    assert [Nats().subscribed(unit, 2) for unit in units] == [None, 2]
    assert Nats().subscribed(b'INFO {"pong":1}\r\n', 2) is None


def test_nats_errors_are_recognised_and_every_message_is_a_line() -> None:
    refusal = b"-ERR 'Authorization Violation'\r\n"
    assert Nats().is_error(refusal)
    assert not Nats().is_error(b"+OK\r\n")
    assert all(map(Nats().is_known, (refusal, b"+OK\r\n", b"INFO {}\r\n")))
    assert not Nats().is_known(b"HTTP")


def test_a_nats_ping_is_answered_and_there_are_no_numbers() -> None:
    pong = Nats().answer(b"PING\r\n")
    assert pong is not None
    assert message_in(pong) == b"PONG\r\n"
    assert Nats().answer(b"+OK\r\n") is None
    assert Nats().seq_and_rest(b'{"seq":1,') == (0, b'{"seq":1,')


# --- that of Centrifugo


def test_centrifugo_gets_a_line_per_command_and_the_last_id_counts() -> None:
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
    ("reply", "count"),
    [
        (b'{"id":2,"subscribe":{}}', 4),
        (b'{"id":1,"connect":{"client":"x"}}', None),
        (b'{"id":3,"subscribe":{}}', None),
        (b'{"id":22,"subscribe":{}}', None),
        (b'{"id":2,"error":{"code":103,"message":"permission denied"}}', None),
    ],
)
def test_centrifugo_has_acknowledged_after_the_last_reply(reply: bytes, count: int | None) -> None:
    assert Centrifugo().subscribed(reply, 4) == count


def test_centrifugo_answers_with_errors_and_a_line_may_be_empty() -> None:
    refusal = b'{"id":3,"error":{"code":103,"message":"permission denied"}}'
    assert Centrifugo().is_error(refusal)
    assert not Centrifugo().is_error(b'{"id":3,"subscribe":{}}')
    assert all(map(Centrifugo().is_known, (refusal, b"", b'{"push":{}}')))
    assert not Centrifugo().is_known(b"hello")


def test_an_empty_object_is_the_ping_and_pong_of_centrifugo() -> None:
    for ping in (b"{}", b"{}\n"):
        pong = Centrifugo().answer(ping)
        assert pong is not None
        assert message_in(pong) == "{}"
    assert Centrifugo().answer(b'{"push":{}}') is None


def test_a_centrifugo_frame_has_one_reply_a_line_without_numbers() -> None:
    frame = b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{}}'
    assert Centrifugo().units(frame) == (
        [b'{"id":1,"connect":{}}', b'{"id":2,"subscribe":{}}'],
        b"",
    )
    assert Centrifugo().seq_and_rest(frame) == (0, frame)
