"""Compressed messages, against zlib and against other implementations."""

from __future__ import annotations

import zlib
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol

from tests.lab.fleet.wire import DICTIONARY, deflate_payload, deflated, framed, varint, z1_payload
from trio_odin.lab.fleet.encodings import (
    ENCODINGS,
    Z1,
    Deflate,
    Encoding,
    Unreadable,
    announced,
    encoding_of,
    has_id,
)

TAILS = st.binary(max_size=500).map(lambda some: b',"ts":1,"data":' + some)


def z1() -> Z1:
    encoding = Z1()
    encoding.dictionary = DICTIONARY
    return encoding


@given(st.integers(0, 2**64 - 1), TAILS)
def test_a_binary_message_has_its_number_and_the_text_of_all(seq: int, tail: bytes) -> None:
    encoding = z1()
    found, shared = encoding.split(z1_payload(seq, tail))
    assert found == seq
    assert encoding.text(shared) == b"{" + tail[1:]
    assert shared == encoding.split(z1_payload(seq // 3, tail))[1]


@given(st.integers(0, 2**64 - 1), TAILS)
def test_a_stored_block_has_the_number_and_the_rest_is_shared(seq: int, tail: bytes) -> None:
    encoding = Deflate()
    found, shared = encoding.split(deflate_payload(seq, tail))
    assert found == seq
    assert encoding.text(shared) == tail
    assert shared == encoding.split(deflate_payload(seq // 3, tail))[1]


@given(st.integers(0, 10**9), st.text(max_size=300))
def test_another_client_inflates_the_same_frame(seq: int, text: str) -> None:
    extension = PerMessageDeflate(client_no_context_takeover=True, server_no_context_takeover=True)
    extension._enabled = True
    protocol = FrameProtocol(client=True, extensions=[extension])
    protocol.receive_bytes(framed(0xC1, deflate_payload(seq, b',"of":' + text.encode())))
    (message,) = protocol.received_frames()
    assert message.payload == f'{{"seq":{seq},"of":{text}'


@given(st.binary(max_size=300))
def test_a_message_of_another_form_is_inflated_whole(text: bytes) -> None:
    payload = deflated(text)
    with pytest.raises(Unreadable):
        Deflate().split(payload)
    assert Deflate().whole(payload) == text


@given(st.binary(max_size=60), st.sampled_from(ENCODINGS))
def test_any_bytes_are_read_or_refused(payload: bytes, name: str) -> None:
    encoding = encoding_of(name)
    for read in (encoding.split, encoding.text, encoding.whole):
        try:
            read(payload)
        except Unreadable:
            continue


def test_a_body_that_inflates_without_end_is_refused() -> None:
    body = zlib.compress(bytes(80 * 2**20), wbits=-15)
    with pytest.raises(Unreadable, match="too long"):
        Deflate().text(body)


@pytest.mark.parametrize("payload", [b"", b"\x80" * 11, b"\xff"])
def test_a_number_without_an_end_is_refused(payload: bytes) -> None:
    with pytest.raises(Unreadable):
        z1().split(payload)


def test_without_its_dictionary_a_message_cannot_be_read() -> None:
    with pytest.raises(Unreadable):
        Z1().text(deflated(b"{}", DICTIONARY))


@pytest.mark.parametrize(("number", "bytes_"), [(0, b"\0"), (127, b"\x7f"), (300, b"\xac\x02")])
def test_a_varint_is_little_endian_in_sevens(number: int, bytes_: bytes) -> None:
    assert varint(number) == bytes_
    assert Z1().split(bytes_ + b"rest") == (number, b"rest")


def test_plain_text_offers_nothing() -> None:
    plain = encoding_of("plain")
    assert (type(plain), plain.header, plain.head) == (Encoding, "", -1)


def test_the_announcement_names_the_dictionary() -> None:
    text = b'{"type":"dictionary","id":"ab","bytes":4096,"url":"/dictionary/ab"}'
    assert announced(text) == ("ab", "/dictionary/ab")
    assert announced(b'{"type":"subscription_ack","subscribed":[]}') is None
    assert announced(b"{") is None


def test_a_dictionary_is_known_by_its_digest() -> None:
    assert has_id(DICTIONARY, sha256(DICTIONARY).hexdigest()[:16])
    assert not has_id(DICTIONARY + b"x", sha256(DICTIONARY).hexdigest()[:16])
