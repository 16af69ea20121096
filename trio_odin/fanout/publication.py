"""A publication, and its bytes on the wire: framed once, numbered per connection.

All subscribers of a publication get the same message but for `seq`, which is its first key. So the
bytes after `seq` are made once and shared; a connection's frame is put together from three pieces:

    frame head + '{"seq":'   |   "1207"   |   ',"ts":1759027038365,"type":…}'
    one per total length         per seq       one per publication
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec

from trio_odin.wire.frames import Opcode, frame_head

EVENT_TYPE: Final = "price:update"
PRIORITY: Final = 1
_SEQ_KEY: Final = b'{"seq":'
_DIGITS_MAX: Final = 20  # 64 bits
_SKIPPED_KEY: Final = b',"skipped":'
_TOTAL_KEY: Final = b',"skipped_total":'
_SNAPSHOT_END: Final = b',"snapshot":true}'


class Kept:
    """What replay buffers hold of a publication; all of them hold the same one.

    Its bytes can be released wherever it is held, without effect on outboxes: see `ReplayBudget`.
    """

    __slots__ = ("__weakref__", "_channel", "_tail")

    def __init__(self, channel: str, tail: bytes) -> None:
        self._channel = channel
        self._tail: bytes | None = tail

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        return len(self._tail or b"")

    def let_go(self) -> None:
        """Release the bytes."""
        self._tail = None

    def publication(self) -> Publication | None:
        """The publication again, sharing its bytes; None if they were released."""
        return None if self._tail is None else Publication._of(self._channel, self._tail, self)  # noqa: SLF001


class Publication:
    """One event of one channel. Immutable; shared by every outbox it is in.

    Attributes:
        channel: the channel of the event.
        kept: what replay buffers hold of it.
        events: how many events it has.
    """

    __slots__ = ("_heads", "_tail", "channel", "kept")
    events: int = 1

    def __init__(
        self,
        channel: str,
        payload: bytes,
        *,
        offset: int | None,
        unix_ms: int,
        prev: int | None = None,
        is_snapshot: bool = False,
    ) -> None:
        """Build the shared bytes.

        Args:
            channel: the channel of the event.
            payload: what was published: JSON, see `why_invalid`.
            offset: its number in the stream, if that numbers events.
            unix_ms: when NATS stored it.
            prev: the offset of the event before it in its channel, if that is known.
            is_snapshot: whether it is sent as the first value to who subscribes later.
        """
        last_keys = b"" if offset is None else b',"offset":%d' % offset
        if prev is not None:
            last_keys += b',"prev":%d' % prev
        if is_snapshot:
            last_keys += _SNAPSHOT_END[:-1]
        tail = b',"ts":%d,"type":"%b","priority":%d,"data":%b,"channel":%b%b}' % (
            unix_ms,
            EVENT_TYPE.encode(),
            PRIORITY,
            payload,
            msgspec.json.encode(channel),
            last_keys,
        )
        self._set(channel, tail, Kept(channel, tail))

    @classmethod
    def _of(cls, channel: str, tail: bytes, kept: Kept) -> Publication:
        self = cls.__new__(cls)
        self._set(channel, tail, kept)
        return self

    def _set(self, channel: str, tail: bytes, kept: Kept) -> None:
        self.channel, self._tail, self.kept = channel, tail, kept
        self._heads = _heads(len(tail))

    def again(self) -> Publication:
        """The same, to be kept for replay anew."""
        return Publication._of(self.channel, self._tail, Kept(self.channel, self._tail))

    def as_published(self) -> Publication:
        """The same event, not as a snapshot."""
        if not self._tail.endswith(_SNAPSHOT_END):
            return self
        tail = self._tail.removesuffix(_SNAPSHOT_END) + b"}"
        return Publication._of(self.channel, tail, Kept(self.channel, tail))

    def instead_of(self, skipped: int) -> Publication:
        """The same event, which says that so many older ones of its channel gave way to it."""
        if not skipped:
            return self
        tail = self._tail[:-1] + _ending(skipped, 0)
        return Publication._of(self.channel, tail, Kept(self.channel, tail))

    def frame(self, seq: int) -> bytes:
        """The whole WebSocket frame of this publication as message number `seq`."""
        digits = b"%d" % seq
        return self._heads[len(digits)] + digits + self._tail

    def pieces(
        self, seq: int, skipped: int = 0, skipped_total: int = 0
    ) -> tuple[bytes, memoryview, bytes]:
        """The same in pieces, without a copy of what is shared, and with the skipped counts.

        Args:
            seq: the number of the message.
            skipped: how many older messages of its channel gave way to it.
            skipped_total: how many gave way on the connection up to here; 0 is not reported.
        """
        digits, end = b"%d" % seq, _ending(skipped, skipped_total)
        tail = memoryview(self._tail)[: -1 if end else None]
        return _head(len(digits) + len(tail) + len(end)) + digits, tail, end

    def frame_bytes(self, seq: int, skipped: int = 0, skipped_total: int = 0) -> int:
        """The length of a frame, without making it."""
        end = _ending(skipped, skipped_total)
        length = len(str(seq)) + len(self._tail) - bool(end) + len(end)
        return len(_head(length)) + length


def _ending(skipped: int, skipped_total: int) -> bytes:
    """The end of a message that reports what was skipped; empty if nothing is to be reported."""
    if not skipped and not skipped_total:
        return b""
    keys = b"%b%d" % (_SKIPPED_KEY, skipped) if skipped else b""
    keys += b"%b%d" % (_TOTAL_KEY, skipped_total) if skipped_total else b""
    return keys + b"}"


@lru_cache(maxsize=4096)
def _heads(tail_bytes: int) -> Sequence[bytes]:
    """The heads of a frame with a tail of this length, by the number of digits of its `seq`."""
    return [_head(digits + tail_bytes) for digits in range(_DIGITS_MAX + 1)]


@lru_cache(maxsize=4096)
def _head(length_behind: int) -> bytes:
    return frame_head(Opcode.TEXT, len(_SEQ_KEY) + length_behind) + _SEQ_KEY
