"""The frames in the bytes that went out to a client, and their text."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from trio_odin.wire.frames import RSV1, Opcode

CONTENT_MAX_BYTES: Final = 4096
_NAMES: Final = {opcode.value: opcode.name.lower() for opcode in Opcode}
_FLUSH_END: Final = b"\0\0\xff\xff"
_16_BITS, _64_BITS = 126, 127


class SentFrame(NamedTuple):
    """A whole frame: its opcode, whether it is compressed, its payload, and all its bytes."""

    opcode: int
    is_compressed: bool
    payload: bytes
    size: int

    @property
    def name(self) -> str:
        """The name of the opcode."""
        return _NAMES.get(self.opcode, str(self.opcode))


class FrameReader:
    """Finds frames of this server, which are never masked and never fragmented.

    It has to begin between two frames.
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[SentFrame]:
        """Take bytes; yields the frames that they complete."""
        self._rest += data
        while (frame := self._take()) is not None:
            yield frame

    def _take(self) -> SentFrame | None:
        rest = self._rest
        if len(rest) < 2:
            return None
        extra = {_16_BITS: 2, _64_BITS: 8}.get(rest[1], 0)
        start = 2 + extra
        if len(rest) < start:
            return None
        length = int.from_bytes(rest[2:start], "big") if extra else rest[1]
        if len(rest) < start + length:
            return None
        frame = SentFrame(
            rest[0] & 0x0F,
            bool(rest[0] & RSV1),
            bytes(rest[start : start + length]),
            start + length,
        )
        del rest[: start + length]
        return frame


def text_of(
    frame: SentFrame, inflated_z1: Callable[[bytes], bytes], *, whole: bool = False
) -> tuple[str, bool]:
    """The text of a frame, at most `CONTENT_MAX_BYTES` of it, and whether it was cut.

    Args:
        frame: the frame.
        inflated_z1: returns the JSON in the payload of `trio-odin.z1`; raises zlib.error.
        whole: return all of it.
    """
    try:
        data = _data(frame, inflated_z1)
    except zlib.error:
        return f"{len(frame.payload)} bytes that cannot be read", True
    most = len(data) if whole else CONTENT_MAX_BYTES
    return data[:most].decode(errors="ignore"), len(data) > most


def _data(frame: SentFrame, inflated_z1: Callable[[bytes], bytes]) -> bytes:
    if frame.opcode == Opcode.CLOSE:
        if len(frame.payload) < 2:
            return b""
        (code,) = struct.unpack("!H", frame.payload[:2])
        return b"%d %b" % (code, frame.payload[2:])
    if frame.is_compressed:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame.payload + _FLUSH_END)
    if frame.opcode == Opcode.BINARY:
        return inflated_z1(frame.payload)
    return frame.payload


def inflate_z1(dictionary: bytes) -> Callable[[bytes], bytes]:
    """Return a function from the payload of a binary message to its JSON, `seq` first."""

    def inflated(payload: bytes) -> bytes:
        seq = digits = 0
        for octet in payload:
            seq |= (octet & 0x7F) << 7 * digits
            digits += 1
            if octet < 0x80:
                break
        rest = payload[digits:]
        data = zlib.decompressobj(-zlib.MAX_WBITS, zdict=dictionary).decompress(rest)
        return b'{"seq":%d,%b' % (seq, data[1:])

    return inflated
