"""A publication, and its bytes on the wire: framed once, numbered per connection.

Every subscriber of a publication gets the same envelope but for `seq`, which is the first key. So
the bytes behind `seq` are made once and shared; a connection's frame is three pieces put together:

    frame head + '{"seq":'   |   "1207"   |   ',"ts":1759027038365,"type":…}'
    one per total length         per seq       one per publication
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from trio_odin.core.frame import Opcode, frame_head

EVENT_TYPE: Final = "price:update"
PRIORITY: Final = 1
_SEQ_KEY: Final = b'{"seq":'
_SKIPPED_KEY: Final = b',"skipped":'


class NatsMessage(NamedTuple):
    """What the bridge puts into the feed.

    Attributes:
        offset: the stream's sequence, None in core mode.
        arrived_at: monotonic seconds.
        unix_ms: when NATS stored it; in core mode, when it arrived.
        is_past: it was published before we came, so it is no news to anybody connected.
    """

    subject: str
    payload: bytes
    offset: int | None
    arrived_at: float
    unix_ms: int = 0
    is_past: bool = False


class InvalidPayload(Exception):
    """The payload is not JSON in UTF-8, so no browser could read the envelope."""


class Kept:
    """What replay histories hold of a publication, all of them the same one.

    It can be let go of wherever it is held, and outboxes do not notice: see `ReplayBudget`.
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
        """Hold nothing from now on."""
        self._tail = None

    def publication(self) -> Publication | None:
        """The publication again, which shares its bytes; None if they were let go."""
        return None if self._tail is None else Publication._of(self._channel, self._tail, self)  # noqa: SLF001


class Publication:
    """One event of one channel. Immutable; shared by every outbox it is in.

    Attributes:
        channel: whose event it is.
        kept: what to hold of it for replay.
    """

    __slots__ = ("_tail", "channel", "kept")

    def __init__(self, channel: str, payload: bytes, *, offset: int | None, unix_ms: int) -> None:
        """Build the shared bytes.

        Raises:
            InvalidPayload: `payload` is not JSON, or not UTF-8.
        """
        _require_json(payload)
        self.channel = channel
        offset_key = b"" if offset is None else b',"offset":%d' % offset
        self._tail = b',"ts":%d,"type":"%b","priority":%d,"data":%b,"channel":%b%b}' % (
            unix_ms,
            EVENT_TYPE.encode(),
            PRIORITY,
            payload,
            msgspec.json.encode(channel),
            offset_key,
        )
        self.kept = Kept(channel, self._tail)

    @classmethod
    def _of(cls, channel: str, tail: bytes, kept: Kept) -> Publication:
        self = cls.__new__(cls)
        self.channel, self._tail, self.kept = channel, tail, kept
        return self

    def frame(self, seq: int) -> bytes:
        """The whole WebSocket frame of this publication as envelope number `seq`."""
        digits = b"%d" % seq
        tail = self._tail
        return _head(len(digits) + len(tail)) + digits + tail

    def conflated_frame(self, seq: int, skipped: int) -> bytes:
        """The frame as of an envelope to which `skipped` older ones of its channel gave way."""
        behind = b"%d%b%b%d}" % (seq, self._tail[:-1], _SKIPPED_KEY, skipped)
        return _head(len(behind)) + behind

    def frame_bytes(self, seq: int, skipped: int = 0) -> int:
        """The length of a frame, without making it."""
        length = len(str(seq)) + len(self._tail)
        if skipped:
            length += len(_SKIPPED_KEY) + len(str(skipped))
        return len(_head(length)) + length


@lru_cache(maxsize=4096)
def _head(length_behind: int) -> bytes:
    return frame_head(Opcode.TEXT, len(_SEQ_KEY) + length_behind) + _SEQ_KEY


def _require_json(payload: bytes) -> None:
    try:
        msgspec.json.decode(payload, type=msgspec.Raw)  # checks the grammar, keeps huge numbers
        payload.decode()  # the check above lets bad UTF-8 in strings pass
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidPayload(str(error)) from error
