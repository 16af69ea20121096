"""Server-side WebSocket frames as bytes (RFC 6455, section 5.2): unmasked, never fragmented."""

from __future__ import annotations

import struct
from enum import IntEnum

# RFC 6455, 5.2: a length up to 125 is its own field, 126 announces 16 bits, 127 announces 64 bits.
_LENGTH_7_BITS_MAX = 125
_LENGTH_16_BITS_MAX = 0xFFFF
FIN = 0x80
# RFC 6455, 5.5: a control frame carries at most 125 bytes, two of which are the close code.
_CLOSE_REASON_MAX_BYTES = 123


class Opcode(IntEnum):
    """RFC 6455, 5.2: the opcodes that this server sends on its own."""

    TEXT = 0x1
    CLOSE = 0x8
    PING = 0x9


def frame_head(opcode: Opcode, length: int) -> bytes:
    """The head of a frame with a payload of `length` bytes."""
    if length <= _LENGTH_7_BITS_MAX:
        return bytes((FIN | opcode, length))
    if length <= _LENGTH_16_BITS_MAX:
        return struct.pack("!BBH", FIN | opcode, 126, length)
    return struct.pack("!BBQ", FIN | opcode, 127, length)


def text_frame(payload: bytes) -> bytes:
    """A whole text message. `payload` has to be UTF-8."""
    return frame_head(Opcode.TEXT, len(payload)) + payload


def close_frame(code: int, reason: str) -> bytes:
    """A close frame; a long `reason` is cut at a character boundary."""
    text = reason.encode()[:_CLOSE_REASON_MAX_BYTES].decode(errors="ignore").encode()
    return frame_head(Opcode.CLOSE, 2 + len(text)) + struct.pack("!H", code) + text


PING = frame_head(Opcode.PING, 0)
