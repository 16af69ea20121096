from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.admin.frames import CONTENT_MAX_BYTES, FrameReader, SentFrame, inflate_z1, text_of
from trio_odin.fanout.publication import Publication
from trio_odin.wire.compression import PLAIN, Z1, Deflate, Encoding
from trio_odin.wire.frames import PING, Opcode, close_frame, frame_head, text_frame

DICTIONARY = b'"type":"price:update","priority":1,"data":{"price":'
ENCODINGS = (PLAIN, Z1(DICTIONARY), Deflate(15))


def frames_in(*parts: bytes) -> list[SentFrame]:
    reader = FrameReader()
    return [frame for part in parts for frame in reader.feed(part)]


def text(frame: SentFrame) -> str:
    return text_of(frame, inflate_z1(DICTIONARY))[0]


@given(
    st.lists(
        st.tuples(st.sampled_from(Opcode), st.binary(max_size=300), st.booleans()), max_size=5
    ),
    st.lists(st.integers(1, 200), max_size=12),
)
def test_frames_are_found_however_the_bytes_are_cut(
    frames: list[tuple[Opcode, bytes, bool]], cuts: list[int]
) -> None:
    data = b"".join(
        frame_head(opcode, len(payload), is_compressed=packed) + payload
        for opcode, payload, packed in frames
    )
    parts, start = [], 0
    for cut in cuts:
        parts.append(data[start : start + cut])
        start += cut
    parts.append(data[start:])
    found = frames_in(*parts)
    assert [(one.opcode, one.payload, one.is_compressed) for one in found] == frames
    assert sum(one.size for one in found) == len(data)


def test_a_long_frame_is_one() -> None:
    (frame,) = frames_in(text_frame(b"x" * 70_000))
    assert (frame.size, frame.name) == (70_010, "text")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("skipped", [0, 3])
@pytest.mark.parametrize("seq", [1, 127, 128, 70_000])
def test_an_event_is_shown_as_the_client_reads_it(
    encoding: Encoding, skipped: int, seq: int
) -> None:
    event = Publication("BTC.trade", b'{"price":1}', offset=5, unix_ms=1000)
    data = b"".join(event.pieces(seq, skipped, skipped, encoding))
    (frame,) = frames_in(data)
    shown = json.loads(text(frame))
    assert (shown["seq"], shown["data"], shown["offset"]) == (seq, {"price": 1}, 5)
    assert shown.get("skipped", 0) == skipped


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_replies_are_shown_too(encoding: Encoding) -> None:
    (frame,) = frames_in(encoding.ready(text_frame(b'{"type":"pong"}')))
    assert text(frame) == '{"type":"pong"}'


def test_control_frames_are_shown() -> None:
    ping, closing, bare = frames_in(PING + close_frame(4002, "Bye") + frame_head(Opcode.CLOSE, 0))
    assert (ping.name, text(ping)) == ("ping", "")
    assert (closing.name, text(closing)) == ("close", "4002 Bye")
    assert text(bare) == ""


def test_a_long_text_is_cut() -> None:
    (frame,) = frames_in(text_frame("é".encode() * CONTENT_MAX_BYTES))
    shown, is_cut = text_of(frame, inflate_z1(b""))
    assert is_cut
    assert len(shown.encode()) <= CONTENT_MAX_BYTES
    assert text_of(frame, inflate_z1(b""), whole=True) == ("é" * CONTENT_MAX_BYTES, False)


@given(st.binary(max_size=50), st.sampled_from([Opcode.TEXT, Opcode.BINARY]), st.booleans())
def test_nothing_that_cannot_be_read_raises(data: bytes, opcode: Any, packed: bool) -> None:
    frame = SentFrame(opcode, packed, data, len(data))
    assert isinstance(text(frame), str)
