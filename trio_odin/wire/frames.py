"""Server-side WebSocket frames as bytes (RFC 6455, section 5.2): unmasked, never fragmented."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

# RFC 6455, 5.2: a length up to 125 is its own field, 126 announces 16 bits, 127 announces 64 bits.
_LENGTH_7_BITS_MAX = 125
_LENGTH_16_BITS_MAX = 0xFFFF
FIN = 0x80
RSV1 = 0x40  # RFC 7692, 6: the message is compressed
_MASK_BYTES = 4
_LONGEST_HEAD_BYTES = 10
# RFC 6455, 5.5: a control frame carries at most 125 bytes, two of which are the close code.
_CLOSE_REASON_MAX_BYTES = 123


class Opcode(IntEnum):
    """The opcodes that this server itself sends or looks for (RFC 6455, 5.2)."""

    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


def frame_head(opcode: Opcode, length: int, *, is_compressed: bool = False) -> bytes:
    """The head of a frame with a payload of `length` bytes."""
    first = FIN | opcode | RSV1 * is_compressed
    if length <= _LENGTH_7_BITS_MAX:
        return bytes((first, length))
    if length <= _LENGTH_16_BITS_MAX:
        return struct.pack("!BBH", first, 126, length)
    return struct.pack("!BBQ", first, 127, length)


def text_frame(payload: bytes) -> bytes:
    """A whole text message in one frame. `payload` must be UTF-8."""
    return frame_head(Opcode.TEXT, len(payload)) + payload


def payloads_of(frames: bytes) -> Iterator[bytes]:
    """The payloads of whole frames of this server, one after the other."""
    start = 0
    while start < len(frames):
        length, extra = frames[start + 1], 0
        if length > _LENGTH_7_BITS_MAX:
            extra = 2 if length == _LENGTH_7_BITS_MAX + 1 else 8
            length = int.from_bytes(frames[start + 2 : start + 2 + extra], "big")
        start += 2 + extra
        yield frames[start : start + length]
        start += length


def close_frame(code: int, reason: str) -> bytes:
    """A close frame. A `reason` that is too long is cut at a character boundary."""
    text = reason.encode()[:_CLOSE_REASON_MAX_BYTES].decode(errors="ignore").encode()
    return frame_head(Opcode.CLOSE, 2 + len(text)) + struct.pack("!H", code) + text


def missing_after(data: bytes, missing: int) -> int:
    """How many bytes of a client's frame are missing after `data`; 0 if it ends with a frame.

    Args:
        data: the bytes received, not empty.
        missing: the result for the bytes before, 0 at the beginning.

    Returns:
        The number of bytes; -1 from the moment the head of a frame was cut in two, as the ends of
        frames are not known from then on.
    """
    if missing < 0:
        return -1
    end = missing
    while end < len(data):
        head = data[end : end + _LONGEST_HEAD_BYTES]
        length = _client_frame_length(head)
        if length is None:
            return -1
        end += length
    return end - len(data)


def _client_frame_length(head: bytes) -> int | None:
    """The length of a masked frame, from its first bytes; None if these are too few."""
    if len(head) < 2:
        return None
    announced = head[1] & 0x7F
    extra = {126: 2, 127: 8}.get(announced, 0)
    if len(head) < 2 + extra:
        return None
    length = int.from_bytes(head[2 : 2 + extra], "big") if extra else announced
    return 2 + extra + _MASK_BYTES + length


PING = frame_head(Opcode.PING, 0)
# How a client answers `PING`: masked, with the same empty payload.
PONG_HEAD = bytes((FIN | Opcode.PONG, 0x80))
PONG_BYTES = len(PONG_HEAD) + _MASK_BYTES
