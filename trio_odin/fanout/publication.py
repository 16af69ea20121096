"""A publication, and its bytes on the wire: framed once, numbered per connection.

All subscribers of a publication get the same message but for `seq`, which is its first key. So the
bytes after `seq`, the *tail*, are made once and shared; a frame is put together from three pieces:

    frame head + '{"seq":'   |   "1207"   |   ',"ts":1759027038365,"type":…}'
    one per total length         per seq       one per publication

For a connection with another encoding (`wire/compression.py`) a body made of the tail takes its
place, from the first such connection on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

import msgspec

from trio_odin.wire.compression import PLAIN, Encoding, plain_head, plain_heads
from trio_odin.wire.trace_context import TraceContext

EVENT_TYPE: Final = "price:update"
PRIORITY: Final = 1
_SKIPPED_KEY: Final = b',"skipped":'
_TOTAL_KEY: Final = b',"skipped_total":'
_SNAPSHOT_END: Final = b',"snapshot":true}'


class Kept:
    """What replay buffers hold of a publication; all of them hold the same one.

    Its bytes can be released wherever it is held, without effect on outboxes: see `ReplayBudget`.

    Attributes:
        bodies: what other encodings have made of the tail; of the publication, too.
        on_growth: called when something is added to them.
    """

    __slots__ = ("__weakref__", "_channel", "_tail", "bodies", "on_growth")

    def __init__(
        self, channel: str, tail: bytes, bodies: dict[Hashable, bytes] | None = None
    ) -> None:
        self._channel = channel
        self._tail: bytes | None = tail
        self.bodies = {} if bodies is None else bodies
        self.on_growth: Callable[[Kept], object] | None = None

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        return len(self._tail or b"") + sum(map(len, self.bodies.values()))

    def let_go(self) -> None:
        """Release the bytes."""
        self._tail = self.on_growth = None
        self.bodies = {}  # not cleared: outboxes have the other one

    def publication(self) -> Publication | None:
        """The publication again, sharing its bytes; None if they were released."""
        return None if self._tail is None else Publication._of(self._channel, self._tail, self)  # noqa: SLF001


class Publication:
    """One event of one channel. Immutable; shared by every outbox it is in.

    Attributes:
        channel: the channel of the event; empty for a batch.
        kept: what replay buffers hold of it.
        events: how many events it has.
    """

    __slots__ = ("_bodies", "_heads", "_tail", "channel", "kept")
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
        trace: TraceContext | None = None,
    ) -> None:
        """Build the shared bytes.

        Args:
            channel: the channel of the event.
            payload: what was published: JSON, see `why_invalid`.
            offset: its number in the stream, if that numbers events.
            unix_ms: when NATS stored it.
            prev: the offset of the event before it in its channel, if that is known.
            is_snapshot: whether it is sent as the first value to who subscribes later.
            trace: the span of its fan-out, if it is traced.
        """
        last_keys = b"" if offset is None else b',"offset":%d' % offset
        if prev is not None:
            last_keys += b',"prev":%d' % prev
        if trace is not None:
            last_keys += trace_key(trace)
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

    def _set(
        self, channel: str, tail: bytes, kept: Kept, bodies: dict[Hashable, bytes] | None = None
    ) -> None:
        self.channel, self._tail, self.kept = channel, tail, kept
        # Few batches are as long as another: they would make heads for nothing, and have those of
        # events forgotten.
        self._heads = plain_heads(len(tail)) if bodies is None else None
        self._bodies = kept.bodies if bodies is None else bodies

    def watched(self) -> Publication:
        """The same, sharing all bytes, as an object that nothing else holds: see `traces.py`."""
        return _Watched._of(self.channel, self._tail, self.kept)  # noqa: SLF001

    def again(self) -> Publication:
        """The same, to be kept for replay anew."""
        kept = Kept(self.channel, self._tail, self._bodies)
        return Publication._of(self.channel, self._tail, kept)

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
        tail = self._tail[:-1] + b"%b%d}" % (_SKIPPED_KEY, skipped)
        return Publication._of(self.channel, tail, Kept(self.channel, tail))

    def frame(self, seq: int, encoding: Encoding = PLAIN) -> bytes:
        """The whole WebSocket frame of this publication as message number `seq`."""
        if encoding is PLAIN:
            digits = b"%d" % seq
            if self._heads is None:
                return plain_head(len(self._tail), len(digits)) + digits + self._tail
            return self._heads[len(digits)] + digits + self._tail
        body = self._body(encoding)
        return encoding.start(seq, len(body)) + body

    def pieces(
        self, seq: int, skipped: int = 0, skipped_total: int = 0, encoding: Encoding = PLAIN
    ) -> tuple[bytes, bytes | memoryview, bytes]:
        """The same in pieces, without a copy of what is shared, and with the skipped counts.

        Args:
            seq: the number of the message.
            skipped: how many older messages of its channel gave way to it.
            skipped_total: how many gave way on the connection up to here; 0 is not reported.
            encoding: that of the connection.
        """
        body, end = self._shared(skipped, skipped_total, encoding)
        return encoding.start(seq, len(body) + len(end)), body, end

    def frame_bytes(
        self, seq: int, skipped: int = 0, skipped_total: int = 0, encoding: Encoding = PLAIN
    ) -> int:
        """The length of a frame, without making it."""
        body, end = self._shared(skipped, skipped_total, encoding)
        rest = len(body) + len(end)
        return len(encoding.start(seq, rest)) + rest

    def _shared(
        self, skipped: int, skipped_total: int, encoding: Encoding
    ) -> tuple[bytes | memoryview, bytes]:
        """What follows the number of a message: the body, and the end with the skipped counts."""
        if not skipped and not skipped_total:
            return self._body(encoding), b""
        keys = b"%b%d" % (_SKIPPED_KEY, skipped) if skipped else b""
        keys += b"%b%d" % (_TOTAL_KEY, skipped_total) if skipped_total else b""
        return self._open_body(encoding), encoding.end(keys)

    def _body(self, encoding: Encoding) -> bytes:
        if encoding is PLAIN:
            return self._tail
        return self._bodies.get(encoding) or self._add_body(encoding, encoding.body(self._tail))

    def _open_body(self, encoding: Encoding) -> bytes | memoryview:
        """The body of messages that report what was skipped."""
        if encoding is PLAIN:
            return memoryview(self._tail)[:-1]
        key = (encoding, "open")
        return self._bodies.get(key) or self._add_body(key, encoding.open_body(self._tail))

    def _add_body(self, key: Hashable, body: bytes) -> bytes:
        self._bodies[key] = body
        if self.kept.on_growth is not None:
            self.kept.on_growth(self.kept)
        return body


class _Watched(Publication):
    """A publication with weak references: they cost memory, so that others have none."""

    __slots__ = ("__weakref__",)


def trace_key(trace: TraceContext) -> bytes:
    """The key of an event that names the span of its fan-out, after another key."""
    return b',"trace":"%b"' % trace.traceparent.encode()
