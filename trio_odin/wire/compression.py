"""The encodings of events: what all connections share is made once, the number goes before it.

    plain     text           {"seq":1207 | ,"ts":1759027038365,…}
    z1        binary         varint 1207 | {"ts":1759027038365,…} deflated with the dictionary
    deflate   text, RSV1     a stored block with {"seq":1207 | ,"ts":…} deflated alone, and flushed
                             one per connection                 one per event

To compress an event costs 10 µs or more, to put a number before it less than 1 µs.

A connection has one encoding for its whole life. Compressed and plain messages are never mixed on a
connection with permessage-deflate: RFC 7692 allows that, but not all clients support it. So on
such a connection also what is too short to gain, and all ready text, has the form of a compressed
message: a stored block, which costs no CPU.
"""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Final

from trio_odin.wire.frames import Opcode, frame_head, payloads_of

SEQ_KEY: Final = b'{"seq":'
_DIGITS_MAX: Final = 20  # 64 bits
# RFC 1951, 3.2.4: a stored block has a length of 16 bits, and its complement.
_STORED_MAX_BYTES: Final = 0xFFFF
_STORED_TYPE: Final = b"\0"
# What a flush ends with: an empty stored block, without its type. RFC 7692, 7.2.1: it is not sent.
_FLUSH_END_BYTES: Final = 4
# A last block without content, in the shortest form that there is.
_LAST_BLOCK: Final = b"\3\0"
_WHOLE_WINDOW: Final = 15
# The state of a compressor, which is copied for each event, is smaller; the output is the same.
_MEMORY_LEVEL: Final = 6
_BEST, _FASTEST = 9, 1
# From this size on time matters more: the best level would hold up the loop for 60 ms a megabyte.
_FAST_FROM_BYTES: Final = 32 * 1024


class Encoding(ABC):
    """How a connection gets its events. Hashable by identity; shared by many connections.

    An event comes as its *tail*: the JSON after `{"seq":1207`, from a comma to the last brace.

    Attributes:
        label: the name in metrics.
    """

    label: str

    @abstractmethod
    def body(self, tail: bytes) -> bytes:
        """What all connections share of an event."""

    @abstractmethod
    def open_body(self, tail: bytes) -> bytes:
        """The same without the last brace: `end` follows."""

    @abstractmethod
    def start(self, seq: int, rest: int) -> bytes:
        """The beginning of message number `seq`, of which `rest` bytes follow: body, and end."""

    @abstractmethod
    def end(self, keys: bytes) -> bytes:
        """What follows an open body: more `keys`, from a comma on, and the last brace."""

    def ready(self, frames: bytes) -> bytes:
        """Whole text frames, as made by `text_frame`, in the form for this encoding."""
        return frames


class Plain(Encoding):
    """Text as it is. `Publication` takes these bodies from its tail, without a copy."""

    label = "plain"

    def body(self, tail: bytes) -> bytes:
        """The tail."""
        return tail

    def open_body(self, tail: bytes) -> bytes:
        """The tail without its last brace."""
        return tail[:-1]

    def start(self, seq: int, rest: int) -> bytes:
        """The head of a text frame, and the key `seq`."""
        digits = b"%d" % seq
        return plain_head(rest, len(digits)) + digits

    def end(self, keys: bytes) -> bytes:
        """The keys and a brace."""
        return keys + b"}"


class Z1(Encoding):
    """The subprotocol `trio-odin.z1`: binary messages against a dictionary that the client has."""

    label = "z1"

    def __init__(self, dictionary: bytes) -> None:
        """Use `dictionary`, of at most 32 KiB."""
        self._dictionary = dictionary
        # To copy it is faster than to have a new one read the dictionary.
        self._fresh = self._compressor(_BEST)

    def _compressor(self, level: int) -> zlib._Compress:
        return zlib.compressobj(
            level,
            zlib.DEFLATED,
            -_WHOLE_WINDOW,
            _MEMORY_LEVEL,
            zlib.Z_DEFAULT_STRATEGY,
            self._dictionary,
        )

    def _deflated(self, data: bytes, flush: int) -> bytes:
        is_large = len(data) >= _FAST_FROM_BYTES
        compressor = self._compressor(_FASTEST) if is_large else self._fresh.copy()
        return compressor.compress(data) + compressor.flush(flush)

    def body(self, tail: bytes) -> bytes:
        """A deflate stream (RFC 1951) of the object without `seq`."""
        return self._deflated(b"{" + tail[1:], zlib.Z_FINISH)

    def open_body(self, tail: bytes) -> bytes:
        """The same, up to the length of a stored block."""
        return self._deflated(b"{" + tail[1:-1], zlib.Z_SYNC_FLUSH)[:-_FLUSH_END_BYTES]

    def start(self, seq: int, rest: int) -> bytes:
        """The head of a binary frame, and `seq` as a varint."""
        number = varint(seq)
        return _binary_head(len(number) + rest) + number

    def end(self, keys: bytes) -> bytes:
        """The content of a stored block, and an empty last block."""
        return _stored_content(keys + b"}") + _LAST_BLOCK


class Deflate(Encoding):
    """permessage-deflate (RFC 7692) without context takeover: each message stands alone."""

    label = "deflate"

    def __init__(self, window_bits: int) -> None:
        """Refer back by at most 2 ** `window_bits` bytes; from 9 to 15."""
        self.window_bits = window_bits

    def _deflated(self, data: bytes) -> bytes:
        level = _FASTEST if len(data) >= _FAST_FROM_BYTES else _BEST
        compressor = zlib.compressobj(level, zlib.DEFLATED, -self.window_bits, _MEMORY_LEVEL)
        flushed = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
        return flushed[:-_FLUSH_END_BYTES]

    def body(self, tail: bytes) -> bytes:
        """Blocks that refer to nothing before them, flushed."""
        return self._deflated(tail)

    def open_body(self, tail: bytes) -> bytes:
        """The same, up to the length of a stored block."""
        return self._deflated(tail[:-1])

    def start(self, seq: int, rest: int) -> bytes:
        """The head of a compressed text frame, and a stored block with the key `seq`."""
        digits = b"%d" % seq
        return _deflate_head(rest, len(digits)) + digits

    def end(self, keys: bytes) -> bytes:
        """The content of a stored block, and the type of an empty one."""
        return _stored_content(keys + b"}") + _STORED_TYPE

    def ready(self, frames: bytes) -> bytes:
        """Stored blocks."""
        return b"".join(map(_stored_frame, payloads_of(frames)))


PLAIN: Final = Plain()


def varint(number: int) -> bytes:
    """`number`, not negative, as an unsigned LEB128: 7 bits a byte, the lowest first."""
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    octets = bytearray()
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def _stored_content(data: bytes) -> bytes:
    """A stored block without its type: the length, its complement, and `data`."""
    return struct.pack("<HH", len(data), len(data) ^ _STORED_MAX_BYTES) + data


def _stored_frame(payload: bytes) -> bytes:
    """A whole text message in stored blocks (RFC 7692, 7.2.3.3), in one frame."""
    starts = range(0, len(payload), _STORED_MAX_BYTES)
    blocks = [
        _STORED_TYPE + _stored_content(payload[start : start + _STORED_MAX_BYTES])
        for start in starts
    ]
    message = b"".join([*blocks, _STORED_TYPE])
    return frame_head(Opcode.TEXT, len(message), is_compressed=True) + message


@lru_cache(maxsize=4096)
def plain_head(rest: int, digits: int) -> bytes:
    """The head of a text frame with `digits` of `seq`, and `rest` bytes after them."""
    return frame_head(Opcode.TEXT, len(SEQ_KEY) + digits + rest) + SEQ_KEY


@lru_cache(maxsize=4096)
def plain_heads(rest: int) -> list[bytes]:
    """The same for each number of digits. For events, many of which are as long as another."""
    return [plain_head(rest, digits) for digits in range(_DIGITS_MAX + 1)]


@lru_cache(maxsize=4096)
def _deflate_head(rest: int, digits: int) -> bytes:
    """The same for a compressed frame: the block with `seq` is a stored one."""
    block = _STORED_TYPE + _stored_content(SEQ_KEY + bytes(digits))[: -digits or None]
    return frame_head(Opcode.TEXT, len(block) + digits + rest, is_compressed=True) + block


@lru_cache(maxsize=4096)
def _binary_head(length: int) -> bytes:
    return frame_head(Opcode.BINARY, length)
