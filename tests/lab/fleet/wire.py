"""Frames of ticks and of compressed connections, made from the description of the wire."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import attrs

from trio_odin.lab.fleet.events import Event, payload_of
from trio_odin.wire.frames import text_frame

DICTIONARY = (
    b'"data":{"n":,"t":,"c":".trade","pad":"xxxx","ts":17,"type":"price:update","channel":"'
)
NS_PER_MS = 1_000_000


@attrs.frozen
class Sent:
    """An event in a batch. `number` is also its offset."""

    number: int
    channel: str
    prev: int = 0
    skipped: int = 0
    due_ms: int = 0

    def text(self) -> bytes:
        payload = payload_of(Event(self.number, self.due_ms * NS_PER_MS, self.channel), 60)
        prev = b',"prev":%d' % self.prev if self.prev else b""
        skipped = b',"skipped":%d' % self.skipped if self.skipped else b""
        return b'{"channel":"%b","offset":%d%b%b,"ts":%d,"data":%b}' % (
            self.channel.encode(), self.number, prev, skipped, self.due_ms, payload,
        )  # fmt: skip


def batch_tail(events: Sequence[Sent]) -> bytes:
    """A batch without its `{"seq":N`."""
    return b',"ts":1759027038365,"type":"price:batch","events":[%b]}' % b",".join(
        event.text() for event in events
    )


def batch(seq: int, *events: Sent) -> bytes:
    return b'{"seq":%d%b' % (seq, batch_tail(events))


def deflated(text: bytes, dictionary: bytes = b"") -> bytes:
    """A body that is compressed alone and flushed; its last four bytes are cut off."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 8, zdict=dictionary)
    body = compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert body.endswith(b"\0\0\xff\xff")
    return body[:-4]


def varint(number: int) -> bytes:
    found = b""
    while number > 0x7F:
        found += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return found + bytes((number,))


def z1_payload(seq: int, tail: bytes, dictionary: bytes = DICTIONARY) -> bytes:
    return varint(seq) + deflated(b"{" + tail.removeprefix(b","), dictionary)


def deflate_payload(seq: int, tail: bytes) -> bytes:
    prefix = b'{"seq":%d' % seq
    head = struct.pack("<BHH", 0, len(prefix), len(prefix) ^ 0xFFFF)
    return head + prefix + deflated(tail)


def framed(head: int, payload: bytes) -> bytes:
    return bytes((head,)) + text_frame(payload)[1:]
