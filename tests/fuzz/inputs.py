"""Inputs for the targets: bytes in the grammar of each, with mistakes."""

from __future__ import annotations

import json
import struct
import zlib

from hypothesis import strategies as st

from tests.server_rig import UPGRADE
from trio_odin.lab.fleet.dialects import masked_frame

_FIN, _RSV1 = 0x80, 0x40


def _deflated(text: bytes) -> bytes:
    """As a client sends it with permessage-deflate."""
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def _finished(text: bytes) -> bytes:
    """The same with a block that is marked as the last."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(text) + compressor.flush()


_EMPTY_BLOCK, _EMPTY_LAST_BLOCK = b"\0\0\0\xff\xff", b"\3\0"

_ATTACKS = [
    '{"type":"subscribe","channels":' + "[" * 5000,
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"type":"subscribe","data":' + '{"a":' * 2000 + "1" + "}" * 2001,
    '{"type":"replay","data":{"since":' + "9" * 5000 + "}}",
    '{"type":"replay","data":{"from":-9223372036854775808,"to":9223372036854775807}}',
    '{"type":"replay","data":{"since":1e400}}',
    '{"type":"replay","data":{"since":NaN}}',
    '{"type":"heartbeat","id":NaN}',
    '{"type":"heartbeat","id":-Infinity}',
    '{"type":"heartbeat","id":' + "9" * 400 + "}",
    '{"type":"heartbeat","id":1,"id":2,"type":"subscribe"}',
    '{"type":"heartbeat","id":"\\ud800"}',
    '{"type":"\\ud800"}',
    '{"type":"subscribe","channels":["\\udfff.trade","a\\r\\nPUB x 1","*.trade",">"]}',
    '{"type":"subscribe","channels":[' + ",".join(f'"{n}"' for n in range(3000)) + "]}",
    '{"type":"subscribe","channels":["' + "x" * 16_000 + '"]}',
    "\ufeff{}",
    "\0",
]
_words = st.sampled_from(["subscribe", "unsubscribe", "replay", "heartbeat", "x"])
_channels = st.lists(
    st.one_of(st.sampled_from(["BTC.trade", "a.b", "*.x", ">"]), st.text(max_size=20)), max_size=12
)
_numbers = st.one_of(
    st.integers(), st.integers(-3, 10), st.floats(), st.none(), st.text(max_size=5)
)
_objects = st.fixed_dictionaries(
    {"type": _words},
    optional={
        "id": st.one_of(_numbers, st.lists(st.integers(), max_size=2)),
        "channels": st.one_of(_channels, _numbers),
        "data": st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {},
                optional={
                    "channels": _channels,
                    "from": _numbers,
                    "to": _numbers,
                    "since": _numbers,
                },
            ),
        ),
    },
).map(json.dumps)
_texts = st.one_of(_objects, st.sampled_from(_ATTACKS), st.text())
_lines = st.lists(_texts, max_size=5).map(lambda texts: "\n".join(texts).encode(errors="replace"))


@st.composite
def _mutated(draw: st.DrawFn, base: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of `base` with a few of them changed, cut out or put in."""
    data = bytearray(draw(base))
    for _ in range(draw(st.integers(0, 3))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        end = at + draw(st.integers(0, 3))
        data[at:end] = draw(st.binary(max_size=3))
    return bytes(data)


_payloads = st.one_of(
    st.binary(max_size=140),
    st.text(max_size=40).map(lambda text: text.encode(errors="replace")),
    st.sampled_from([b"x" * 125, b"x" * 126, b"x" * 513, "\N{ELEPHANT}".encode() * 129]),
    _objects.map(str.encode),
)
_closes = st.builds(
    lambda code, reason: struct.pack("!H", code) + reason,
    st.one_of(st.sampled_from([1000, 1001, 1002, 1005, 1006, 3000, 4999]), st.integers(0, 65535)),
    _payloads.map(lambda payload: payload[:123]),
)
_frames = st.one_of(
    st.builds(masked_frame, st.sampled_from([_FIN | 1, _FIN | 2, 1, 2, 0, _FIN]), _payloads),
    st.builds(masked_frame, st.sampled_from([_FIN | 9, _FIN | 10]), _payloads),
    st.builds(masked_frame, st.just(_FIN | 8), _closes),
    st.builds(masked_frame, st.integers(0, 255), _payloads),
    st.binary(max_size=20),
)
_blocks = st.one_of(
    _payloads.map(lambda text: _deflated(text) + b"\0\0\xff\xff"),
    _payloads.map(_finished),
    st.sampled_from([b"\0" * 100_000]).map(_deflated),
    st.builds(
        lambda block, times: block * times,
        st.sampled_from([_EMPTY_BLOCK, _EMPTY_LAST_BLOCK]),
        st.integers(1, 900),
    ),
    st.binary(max_size=4),
)
_deflated_messages = st.lists(_blocks, max_size=6).map(b"".join)
_deflated_frames = st.builds(
    masked_frame,
    st.sampled_from([_FIN | _RSV1 | 1, _FIN | _RSV1 | 2, _RSV1 | 1, _RSV1, _FIN | _RSV1 | 9]),
    st.one_of(_payloads.map(_deflated), _deflated_messages),
)
_deflated_streams = st.lists(st.one_of(_frames, _deflated_frames), max_size=12).map(b"".join)
_streams = st.lists(_frames, max_size=12).map(b"".join)
_in_pieces = st.builds(
    lambda size, data: bytes([size]) + data, st.integers(0, 255), _mutated(_streams)
)

_deflated_in_pieces = st.builds(
    lambda size, data: bytes([size]) + data, st.integers(0, 255), _mutated(_deflated_streams)
)

_names = st.sampled_from(
    [
        "Host", "Connection", "Upgrade", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "X", "",
        "Content-Length", "Transfer-Encoding", "Expect", "Origin", "Sec-WebSocket-Protocol",
        "Sec-WebSocket-Extensions",
    ]
)  # fmt: skip
_values = st.one_of(
    st.sampled_from(
        [
            "a",
            "Upgrade",
            "websocket",
            "13",
            "dGhlIHNhbXBsZSBub25jZQ==",
            "chunked",
            "5",
            " " * 3000,
            "trio-odin.z1, bearer.x",
            "permessage-deflate; client_max_window_bits",
        ]
    ),
    st.text(st.characters(max_codepoint=255), max_size=20),
)
_header_lines = st.builds(
    lambda name, value: f"{name}:{value}\r\n".encode("latin-1"), _names, _values
)
_good_lines = st.permutations(UPGRADE.split(b"\r\n")[1:-2]).map(
    lambda lines: b"".join(line + b"\r\n" for line in lines)
)
_heads = st.builds(
    lambda good, more, end: good + b"".join(more) + end,
    st.one_of(_good_lines, st.just(b"")),
    st.lists(_header_lines, max_size=6),
    st.sampled_from([b"\r\n", b"", b"\n\n"]),
)
_targets = st.sampled_from(
    [
        b"GET /ws HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\n",
        b"POST /ws HTTP/1.1\r\n",
        b"GET /ws HTTP/1.0\r\n",
    ]
)
_requests = st.builds(
    lambda size, target, head: bytes([size]) + target + head,
    st.integers(0, 255),
    _targets,
    _mutated(_heads),
)

INPUTS: dict[str, st.SearchStrategy[bytes]] = {
    "commands": st.one_of(_lines, _mutated(_lines), st.binary()),
    "head": st.one_of(_heads, _mutated(_heads), st.binary()),
    "frames": st.one_of(_in_pieces, st.binary()),
    "deflated": st.one_of(
        _deflated_in_pieces, _payloads.map(_deflated), _mutated(_deflated_messages), st.binary()
    ),
    "whole": st.one_of(_requests, _in_pieces, st.binary()),
}
SEEDS: dict[str, list[bytes]] = {
    "commands": [text.encode(errors="replace") for text in _ATTACKS],
    "head": [UPGRADE.partition(b"\r\n")[2]],
    "frames": [b"\xff" + masked_frame(0x81, b'{"type":"heartbeat"}') + masked_frame(0x89, b"x")],
    "deflated": [
        b"\xff" + masked_frame(0xC1, _deflated(b'{"type":"heartbeat"}')),
        b"\xff" + masked_frame(0xC1, _deflated(b"\0" * 1_000_000)),
        _deflated(b"\0" * 1_000_000),
        _finished(b"Hello ") + _deflated(b"World"),
        _finished(b"Hello ") + b"garbage",
        _EMPTY_LAST_BLOCK * 63 + b"\0",
        _EMPTY_LAST_BLOCK * 64 + b"\0",
        _EMPTY_BLOCK * 1000,
        b"\xff" + masked_frame(0xC1, _EMPTY_BLOCK * 1000),
        b"\xff" + masked_frame(0xC1, _finished(b"Hello ") + b"x" * 5000),
    ],
    "whole": [b"\xff" + UPGRADE, b"\xff" + masked_frame(0x01, b"a") + masked_frame(0x80, b"b")],
}
