from __future__ import annotations

import json
import random
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from tests.connection.client import frames_of
from trio_odin.wire.compression import PLAIN, Z1, Deflate, Encoding, varint
from trio_odin.wire.frames import FIN, RSV1, text_frame

DICTIONARY = b',"type":"price:update","priority":1,"data":{"price":{"ts":17'
Z = Z1(DICTIONARY)
DEFLATES = [Deflate(bits) for bits in (9, 12, 15)]
ENCODINGS: list[Encoding] = [PLAIN, Z, *DEFLATES]
SEQS = st.integers(0, 2**64 - 1) | st.sampled_from(
    [edge for bits in range(7, 64, 7) for edge in (2**bits - 1, 2**bits)]
)
JSON_TEXTS = st.text(max_size=300) | st.integers(0, 200_000).map(lambda size: "ab1-" * (size // 4))


def tail_of(text: str) -> bytes:
    return b',"data":' + json.dumps(text).encode() + b"}"


def frame_end(data: bytes) -> int:
    """Where the frame ends that `data` begins with, which may be incomplete."""
    if len(data) < 10:
        data = data.ljust(10, b"\xff")  # too far, until its length is there
    length, extra = data[1], 0
    if length > 125:
        extra = 2 if length == 126 else 8
        length = int.from_bytes(data[2 : 2 + extra], "big")
    return 2 + extra + length


def message(frame: bytes) -> tuple[int, bytes]:
    """The first byte and the payload of the one frame in `frame`."""
    assert frame_end(frame) == len(frame)
    return frame[0], frame[{126: 4, 127: 10}.get(frame[1], 2) :]


def text_in(encoding: Encoding, frame: bytes) -> tuple[int, str]:
    """What a client finds in a frame: `seq`, and the object without it."""
    first, payload = message(frame)
    if isinstance(encoding, Z1):
        assert first == FIN | 2
        seq = shift = used = 0
        while True:
            seq |= (payload[used] & 0x7F) << shift
            used, shift = used + 1, shift + 7
            if payload[used - 1] < 0x80:
                break
        inflate = zlib.decompressobj(-15, zdict=DICTIONARY)
        content = inflate.decompress(payload[used:])
        assert inflate.eof
        assert not inflate.unused_data
        return seq, content.decode()
    if isinstance(encoding, Deflate):
        assert first == FIN | RSV1 | 1
        inflate = zlib.decompressobj(-encoding.window_bits)
        content = inflate.decompress(payload + b"\0\0\xff\xff")
        assert not inflate.eof
    else:
        assert first == FIN | 1
        content = payload
    whole = content.decode()
    seq = json.loads(whole)["seq"]
    return seq, "{" + whole.removeprefix(f'{{"seq":{seq},')


def framed(encoding: Encoding, seq: int, tail: bytes, keys: bytes = b"") -> bytes:
    body = encoding.open_body(tail) if keys else encoding.body(tail)
    end = encoding.end(keys) if keys else b""
    return encoding.start(seq, len(body) + len(end)) + body + end


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(seq=SEQS, text=JSON_TEXTS, keys=st.sampled_from([b"", b',"skipped":7']))
def test_every_encoding_carries_the_same_object(
    encoding: Encoding, seq: int, text: str, keys: bytes
) -> None:
    tail = tail_of(text)
    found, content = text_in(encoding, framed(encoding, seq, tail, keys))
    assert found == seq
    assert content.encode() == b"{" + tail[1:-1] + keys + b"}"


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("edge", [125, 126, 65535, 65536])
def test_a_frame_may_have_any_length(encoding: Encoding, edge: int) -> None:
    frames = {}
    # Random digits do not compress by much: all lengths around the edge occur.
    noise = random.Random(edge).randbytes(edge).hex()
    for size in range(max(2, edge - 120), edge + 20):
        tail = tail_of(noise[:size])
        frame = framed(encoding, 1000, tail)
        frames[len(frame)] = frame, tail
    assert len(frames) > 20
    for frame, tail in frames.values():
        assert text_in(encoding, frame) == (1000, "{" + tail[1:].decode())


@given(SEQS)
def test_a_varint_has_seven_bits_a_byte(number: int) -> None:
    encoded = varint(number)
    assert sum((octet & 0x7F) << 7 * place for place, octet in enumerate(encoded)) == number
    assert all(octet & 0x80 for octet in encoded[:-1])
    assert encoded[-1] < 0x80
    assert len(encoded) == max(1, -(-number.bit_length() // 7))


@pytest.mark.parametrize("encoding", DEFLATES)
@given(seqs=st.lists(SEQS, min_size=1, max_size=5), text=JSON_TEXTS)
def test_a_client_library_reads_deflated_frames_in_a_row(
    encoding: Deflate, seqs: list[int], text: str
) -> None:
    """`websockets` keeps no window either, and knows nothing of stored blocks."""
    client = PerMessageDeflate(True, True, encoding.window_bits, 15)
    tail = tail_of(text)
    for seq in seqs:
        for keys in (b"", b',"skipped":1'):
            first, payload = message(framed(encoding, seq, tail, keys))
            frame = Frame(Opcode(first & 0xF), payload, fin=True, rsv1=bool(first & RSV1))
            decoded: dict[str, Any] = json.loads(bytes(client.decode(frame).data))
            assert decoded.pop("seq") == seq
            assert decoded.pop("skipped", None) == (1 if keys else None)
            assert decoded == {"data": text}


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65534, 65535, 65536, 131_070, 131_071, 200_000])
def test_ready_text_is_stored_where_nothing_may_be_plain(size: int) -> None:
    payloads = [b"x" * size, b'{"type":"pong"}']
    frames = b"".join(map(text_frame, payloads))
    stored = DEFLATES[0].ready(frames)
    client = PerMessageDeflate(True, True, 9, 15)
    found = []
    while stored:
        end = frame_end(stored)
        first, payload = message(stored[:end])
        assert first == FIN | RSV1 | 1
        found.append(bytes(client.decode(Frame(Opcode.TEXT, payload, rsv1=True)).data))
        stored = stored[end:]
    assert found == payloads
    assert DEFLATES[0].ready(b"") == b""


@pytest.mark.parametrize("encoding", [PLAIN, Z])
def test_ready_text_is_plain_elsewhere(encoding: Encoding) -> None:
    frames = text_frame(b"{}") + text_frame(b"x" * 500)
    assert encoding.ready(frames) == frames
    assert len(frames_of(frames)) == 2


def test_what_is_common_to_events_is_not_sent_again() -> None:
    tail = b',"type":"price:update","priority":1,"data":{"price":1}}'
    assert len(Z.body(tail)) < 20
    assert len(DEFLATES[1].body(tail)) > len(tail) - 10
