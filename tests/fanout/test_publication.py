from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.connection.client import frames_of, objects_of, texts_of
from trio_odin.fanout.batch import Batch
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.updates import Update
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.compression import plain_heads
from trio_odin.wire.payload import why_invalid

KEYS = ["seq", "ts", "type", "priority", "data", "channel", "offset"]
# On both sides of each number of digits.
POWERS = [10**power for power in range(19)]
SEQS = st.integers(1, 2**63) | st.sampled_from(
    [seq for power in POWERS for seq in (power - 1, power, power + 1) if seq]
)

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """JSON as different publishers would write it."""
    text = json.dumps(
        draw(JSON_VALUES),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 0, 2])),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,", " :\t")])),
    )
    space = st.text(st.sampled_from(" \t\r\n"), max_size=2)
    return (draw(space) + text + draw(space)).encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """JSON with some bytes put in, left out or changed."""
    data = bytearray(draw(payloads()))
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(data)))
        end = begin + draw(st.integers(0, 2))
        data[begin:end] = draw(st.binary(max_size=2) | st.sampled_from([b'"', b"\\", b",", b"0"]))
    return bytes(data)


def message(seq: int, ts: int, payload: bytes, channel: str, offset: int | None) -> str:
    """The message of the wire document, letter for letter."""
    end = "" if offset is None else f',"offset":{offset}'
    return (
        f'{{"seq":{seq},"ts":{ts},"type":"price:update","priority":1,'
        f'"data":{payload.decode()},"channel":"{channel}"{end}}}'
    )


@given(
    payload=payloads(),
    seq=SEQS,
    ts=st.integers(0, 2**53),
    offset=st.none() | st.integers(0, 2**64 - 1),
)
def test_an_envelope_contains_the_payload_byte_for_byte(
    payload: bytes, seq: int, ts: int, offset: int | None
) -> None:
    publication = Publication("BTC.trade", payload, offset=offset, unix_ms=ts)
    frame = publication.frame(seq)
    assert texts_of([frame]) == [message(seq, ts, payload, "BTC.trade", offset)]
    (content,) = objects_of([frame])
    assert list(content) == (KEYS if offset is not None else KEYS[:-1])
    assert content["seq"] == seq
    assert content["data"] == json.loads(payload)


@pytest.mark.parametrize("size", [124, 125, 126, 127, 128, 65534, 65535, 65536, 65537, 200_000])
@pytest.mark.parametrize("seq", [9, 10, 99, 100, 999_999, 1_000_000])
def test_an_envelope_of_any_length_arrives_at_any_number(size: int, seq: int) -> None:
    overhead = len(message(seq, 1, b'""', "A.b", 7).encode())
    payload = b'"' + b"x" * (size - overhead) + b'"'
    frame = Publication("A.b", payload, offset=7, unix_ms=1).frame(seq)
    assert texts_of([frame]) == [message(seq, 1, payload, "A.b", 7)]
    assert len(texts_of([frame])[0]) == size


@pytest.mark.parametrize("power", [10**k for k in range(1, 20)])
def test_one_more_digit_makes_a_frame_one_byte_longer(power: int) -> None:
    publication = Publication("A.b", b"1", offset=None, unix_ms=1)
    before, after = publication.frame(power - 1), publication.frame(power)
    assert [content["seq"] for content in objects_of([before, after])] == [power - 1, power]
    assert len(texts_of([after])[0]) == len(texts_of([before])[0]) + 1


def test_publications_of_many_lengths_have_their_own_heads() -> None:
    # More lengths than the cache of heads holds, and each a second time.
    for size in [*range(5000), *range(0, 5000, 7)]:
        frame = Publication("A.b", b'"%b"' % (b"x" * size), offset=None, unix_ms=1).frame(1)
        (parsed,) = frames_of(frame)
        assert parsed.payload == message(1, 1, b'"%b"' % (b"x" * size), "A.b", None)


def test_batches_leave_the_heads_of_events_alone() -> None:
    before = plain_heads.cache_info()
    for size in range(100):
        update = Update("A.b")
        update.take(1, NatsMessage("odin.token.A.b", b"1" * (size + 1), None, 0.0, 1), None)
        batch = Batch.of([(update, 0)])
        for seq in (9, 10):
            (content,) = objects_of([batch.frame(seq)])
            assert content["seq"] == seq
    assert plain_heads.cache_info() == before


def test_the_same_publication_serves_any_number_of_connections() -> None:
    publication = Publication("BTC.trade", b'{"price":"1.5"}', offset=41, unix_ms=1759027038365)
    assert publication.channel == "BTC.trade"
    assert publication.frame(7) == publication.frame(7)
    first, second = objects_of([publication.frame(1), publication.frame(2**40)])
    assert first | {"seq": 0} == second | {"seq": 0}
    assert first == {
        "seq": 1,
        "ts": 1759027038365,
        "type": "price:update",
        "priority": 1,
        "data": {"price": "1.5"},
        "channel": "BTC.trade",
        "offset": 41,
    }


@pytest.mark.parametrize("channel", ['A"b', "A\\b", "A\nb", "é.trade", "A.b"])
def test_a_channel_cannot_break_out_of_its_string(channel: str) -> None:
    (content,) = objects_of([Publication(channel, b"1", offset=None, unix_ms=1).frame(1)])
    assert content["channel"] == channel


@pytest.mark.parametrize(
    "payload",
    [
        b"", b" ", b"hello", b"1 2", b"{}{}", b"{} x", b"[1,]", b'{"a":1,}', b'{"a"}', b"{1:2}",
        b"'a'", b'{"a":1', b'"a', b"]", b"tru", b"True", b"None", b"NaN", b"Infinity", b"-Infinity",
        b"[NaN]", b"01", b"-01", b"1.", b".5", b"+1", b"-", b"1e", b"0x10", b"1_000", b"1\x00",
        b"\x00", b'"\x01"', b'"a\nb"', b'{"a\x01":1}', b'"\\q"', b'"\\u12"', b'"\\u00zz"',
        b"// c\n1", b"\x0b1", b"\xc2\xa01", b"\xef\xbb\xbf1", b"\xff\xfe1\x00", b'"\xff"',
        b'"\xc3"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xf5\x80\x80\x80"', b'{"\xff":1}',
        pytest.param(b"[" * 100_000, id="deep and open"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="deep and closed"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="deep objects"),
    ],
)  # fmt: skip
def test_a_payload_that_no_client_can_read_is_invalid(payload: bytes) -> None:
    assert why_invalid(payload)


@given(damaged() | st.binary() | st.text().map(str.encode))
@example(b'{"a":1}]')
@example(b'1,"channel":"B.c"')
@example(b'1} {"x":1')
def test_a_payload_is_accepted_exactly_if_it_is_json_in_utf_8(payload: bytes) -> None:
    try:
        expected = json.loads(payload.decode(), parse_constant=_no_constant)
        is_json = True
        json.dumps(expected, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair, in escapes: the grammar allows it, either answer is fine
    except ValueError:
        is_json = False
    assert (why_invalid(payload) is None) == is_json
    if not is_json:
        return
    publication = Publication("A.b", payload, offset=None, unix_ms=1)
    (content,) = objects_of([publication.frame(1)])
    assert content["data"] == expected
    assert content["channel"] == "A.b"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@pytest.mark.parametrize(
    "payload",
    [
        b"1" * 5000,
        b"-0",
        b"1e400",
        b"1E+5",
        b"0.1234567890123456789012345678901234567890",
        b'{"a":1,"a":2}',
        b"\r\n\t {} \n",
        '"\N{ROCKET}\N{LINE SEPARATOR}"'.encode(),
        b'"\\ud83d\\ude80\\u0000\\/"',
    ],
)
def test_unusual_json_is_passed_on_untouched(payload: bytes) -> None:
    frame = Publication("A.b", payload, offset=None, unix_ms=1).frame(1)
    assert texts_of([frame]) == [message(1, 1, payload, "A.b", None)]


def test_nesting_is_refused_or_passed_on_but_never_fails() -> None:
    for depth in [*range(900, 1100), 5000, 20_000]:
        payload = b"[" * depth + b"]" * depth
        if why_invalid(payload) is None:
            publication = Publication("A.b", payload, offset=None, unix_ms=1)
            assert payload in publication.frame(1)
