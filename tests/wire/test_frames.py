from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import Opcode as WsprotoOpcode

from tests.connection.client import frames_of, texts_of
from trio_odin.lab.fleet.dialects import masked_frame
from trio_odin.ledger.reasons import CloseReason
from trio_odin.wire.frames import (
    FIN,
    PING,
    Opcode,
    close_frame,
    frame_head,
    missing_after,
    text_frame,
)

# On both sides of each point at which the length needs another form.
BOUNDARIES = [0, 1, 124, 125, 126, 127, 128, 255, 256, 65534, 65535, 65536, 65537, 300_000]
# RFC 6455, 7.4: codes that may be in a frame.
CODES = st.sampled_from([1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011]) | st.integers(
    3000, 4999
)


@pytest.mark.parametrize("size", BOUNDARIES)
def test_a_text_of_any_length_arrives_whole(size: int) -> None:
    text = "é" * (size // 2) + "x" * (size % 2)
    assert len(text.encode()) == size
    assert texts_of([text_frame(text.encode())]) == [text]


@given(st.text())
def test_any_text_arrives_unchanged(text: str) -> None:
    assert texts_of([text_frame(text.encode())]) == [text]


@given(st.lists(st.text(max_size=200), max_size=5))
def test_consecutive_frames_stay_separate(texts: list[str]) -> None:
    joined = b"".join(text_frame(text.encode()) for text in texts)
    assert [frame.payload for frame in frames_of(joined)] == texts


@pytest.mark.parametrize(
    ("length", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65535, b"\x81\x7e\xff\xff"),
        (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_the_head_has_the_shortest_form_of_the_length(length: int, head: bytes) -> None:
    assert frame_head(Opcode.TEXT, length) == head


@given(st.integers(0, 2**63 - 1))
def test_no_length_takes_more_bytes_than_necessary(length: int) -> None:
    head = frame_head(Opcode.TEXT, length)
    assert len(head) == (2 if length < 126 else 4 if length < 2**16 else 10)
    assert head[0] == 0x81
    assert head[1] < 128, "a server does not mask"
    assert (head[1] if len(head) == 2 else int.from_bytes(head[2:], "big")) == length


@given(code=CODES, reason=st.text() | st.text(min_size=100, max_size=200))
def test_a_close_frame_fits_and_keeps_whole_characters(code: int, reason: str) -> None:
    data = close_frame(code, reason)
    assert len(data) <= 2 + 125
    (frame,) = frames_of(data)
    assert frame.opcode is WsprotoOpcode.CLOSE
    assert isinstance(frame.payload, tuple)
    got_code, got_reason = frame.payload
    assert got_code == code
    assert reason.startswith(got_reason)
    lost = reason[len(got_reason) :]
    assert not lost or len((got_reason + lost[0]).encode()) > 123, "cut only as far as needed"


@given(st.integers(0, 0xFFFF), st.text())
def test_no_code_makes_a_close_frame_too_long(code: int, reason: str) -> None:
    data = close_frame(code, reason)
    assert len(data) == 2 + data[1] <= 127
    assert int.from_bytes(data[2:4], "big") == code


@pytest.mark.parametrize("reason", [r for r in CloseReason if r.code is not None])
def test_every_close_reason_reaches_the_client_uncut(reason: CloseReason) -> None:
    (frame,) = frames_of(close_frame(reason.code or 0, reason.text))
    assert frame.payload == (reason.code, reason.text)


def test_a_ping_has_no_payload() -> None:
    (frame,) = frames_of(PING)
    assert frame.opcode is WsprotoOpcode.PING
    assert frame.payload == b""


CLIENT_FRAMES = st.lists(
    st.builds(
        lambda size, opcode: masked_frame(FIN | opcode, b"x" * size),
        st.sampled_from([0, 1, 125, 126, 300, 30_000]),
        st.sampled_from([Opcode.TEXT, Opcode.PONG]),
    ),
    max_size=5,
)


@given(CLIENT_FRAMES, st.lists(st.integers(0, 200_000), max_size=6))
def test_a_boundary_is_found_only_between_two_frames(frames: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frames)
    ends = {0, *accumulate(map(len, frames))}
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    missing = 0
    for start, end in pairwise(places):
        missing = missing_after(stream[start:end], missing)
        if missing >= 0:
            assert end + missing in ends
            assert (missing == 0) == (end in ends)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_head_cut_in_two_is_not_guessed(cut: int) -> None:
    frame = masked_frame(0x81, b"x" * 300)
    missing = missing_after(frame[:cut], 0)
    assert missing == -1
    assert missing_after(frame[cut:], missing) == -1
    assert missing_after(frame[:4], 0) == len(frame) - 4
