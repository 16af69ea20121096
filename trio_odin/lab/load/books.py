"""The books: numbering, foreign channels, completeness, latency. Pure: no I/O, no clock.

Theory of operation. A publication's envelopes differ between subscribers in nothing but `seq`,
which is the first key. So a frame costs one slice for `seq` and one dict look-up of the bytes
behind it: the first frame with those bytes is decoded in full by msgspec, all others are known to
say the same, because they are equal to it. A server that makes those bytes per connection is read
just as truly, only slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs
import msgspec


class Histogram:
    """Milliseconds, one bucket each; what lies above the last bucket counts as the maximum."""

    __slots__ = ("_counts", "max_ms")

    SIZE: Final = 10_000

    def __init__(self) -> None:
        self._counts = [0] * (self.SIZE + 1)
        self.max_ms = 0

    def add(self, ms: int) -> None:
        """Count one value. Below zero (a clock that was set back) is zero."""
        if ms > self.max_ms:
            self.max_ms = ms
        self._counts[0 if ms < 0 else min(self.SIZE, ms)] += 1

    @property
    def count(self) -> int:
        """How many values were added."""
        return sum(self._counts)

    def percentile(self, fraction: float) -> int:
        """The smallest value that at least `fraction` of all values do not exceed; 0 if empty."""
        rank = max(1.0, fraction * self.count)
        seen = 0
        for ms, count in enumerate(self._counts[: self.SIZE]):
            seen += count
            if seen >= rank:
                return ms
        return self.max_ms

    def latency(self) -> Latency | None:
        """The figures of the report, None if there is no value."""
        if not self.count:
            return None
        return Latency(
            count=self.count,
            p50_ms=self.percentile(0.5),
            p99_ms=self.percentile(0.99),
            max_ms=self.max_ms,
        )


@attrs.frozen(kw_only=True)
class Latency:
    """How long deliveries took, by the machine's clock in whole milliseconds."""

    count: int
    p50_ms: int
    p99_ms: int
    max_ms: int


class Envelope(msgspec.Struct):
    """The envelope on the wire. `channel` and `offset` are absent on older servers."""

    seq: int
    ts: int
    data: msgspec.Raw
    channel: str | None = None
    offset: int | None = None


class _Payload(msgspec.Struct):
    """What a publisher may tell: when it published, in Unix milliseconds."""

    timestamp: float | None = None


class Reply(msgspec.Struct):
    """Any answer to a command; only what a load looks at."""

    type: str
    subscribed: list[str] = []  # msgspec copies it for every instance


_read_envelope = msgspec.json.Decoder(Envelope).decode
_read_payload = msgspec.json.Decoder(_Payload).decode
read_reply = msgspec.json.Decoder(Reply).decode


class Publication:
    """One event as its receivers see it, and how often it was delivered."""

    __slots__ = ("channel", "deliveries", "offset", "published_ms", "stamped_ms")

    def __init__(self, envelope: Envelope) -> None:
        self.channel = envelope.channel
        self.offset = envelope.offset
        self.stamped_ms = envelope.ts
        self.published_ms = _published_ms(envelope.data)
        self.deliveries = 0


def _published_ms(data: msgspec.Raw) -> int | None:
    try:
        timestamp = _read_payload(data).timestamp
    except msgspec.DecodeError:
        return None
    return None if timestamp is None else int(timestamp)


class Numbering:
    """What one connection has received so far, and what it subscribed to."""

    __slots__ = ("channels", "offset", "seq")

    def __init__(self, channels: Iterable[str] = ()) -> None:
        self.channels = frozenset(channels)
        self.seq = 0
        self.offset = -1


@attrs.frozen(kw_only=True)
class Completeness:
    """Whether each subscriber got each of the publications stamped inside the window."""

    publications: int = 0
    expected: int = 0
    received: int = 0
    lost: int = 0
    duplicated: int = 0


class Books:
    """What all connections received, and every breach of the rules of the wire.

    A publication is kept (about 300 bytes) until the end: one that is delivered late, to a slow
    connection, must still find its counter.
    """

    # After the first envelopes of a connection every 100th is decoded in full as well.
    _FIRST_CHECKED: Final = 3
    _CHECK_EVERY: Final = 100
    # Bounds the memory for the bytes behind `seq`; forgotten ones are decoded again.
    _KNOWN_MAX: Final = 8192
    _SEQ_KEY: Final = b'{"seq":'
    _SEQ_AT: Final = len(_SEQ_KEY)

    def __init__(self) -> None:
        self.received = 0
        self.gaps = 0
        self.duplicates = 0
        self.foreign = 0
        self.offsets_backwards = 0
        self._known: dict[bytes, Publication] = {}
        self._publications: dict[tuple[str | None, int], Publication] = {}
        self.restart_latency()

    def restart_latency(self) -> None:
        """Forget the latencies so far."""
        self.since_published = Histogram()
        self.since_stamped = Histogram()

    def take(self, numbering: Numbering, payload: bytes, unix_ms: int) -> bool:
        """Enter one text frame into the books.

        Args:
            numbering: of the connection it came on; is moved forward.
            payload: the whole message.
            unix_ms: when it was received.

        Returns:
            False if it is not an envelope (a reply, or nothing at all): the books are as they were.
        """
        publication = None
        seq = 0
        if payload.startswith(self._SEQ_KEY):
            comma = payload.find(b",")
            try:
                seq = int(payload[self._SEQ_AT : comma])
            except ValueError:
                return False
            if seq > self._FIRST_CHECKED and seq % self._CHECK_EVERY:
                publication = self._known.get(payload[comma:])
        if publication is None:
            envelope = _decoded(payload)
            if envelope is None:
                return False
            seq = envelope.seq
            publication = self._publication_of(envelope, payload)
        self._enter(numbering, seq, publication, unix_ms)
        return True

    def _enter(
        self, numbering: Numbering, seq: int, publication: Publication, unix_ms: int
    ) -> None:
        self.received += 1
        if seq == numbering.seq + 1:
            numbering.seq = seq
        else:
            self._jump(numbering, seq)
        offset = publication.offset
        if offset is not None:
            if offset > numbering.offset:
                numbering.offset = offset
            else:
                self.offsets_backwards += 1
        if publication.channel in numbering.channels:
            publication.deliveries += 1
        elif publication.channel is not None:
            self.foreign += 1
        self.since_stamped.add(unix_ms - publication.stamped_ms)
        if publication.published_ms is not None:
            self.since_published.add(unix_ms - publication.published_ms)

    def _jump(self, numbering: Numbering, seq: int) -> None:
        if seq > numbering.seq:
            self.gaps += seq - numbering.seq - 1
            numbering.seq = seq
        else:
            self.duplicates += 1

    def completeness(
        self, subscribers: Mapping[str, int], *, first_ms: float, last_ms: float
    ) -> Completeness:
        """Compare the deliveries of each publication with the subscribers of its channel.

        The window is over the server's stamps, which are the same for all receivers. A publication
        that nobody received cannot be seen here; it shows as gaps.

        Args:
            subscribers: how many connections each channel had during the whole window.
            first_ms: stamps below it are outside.
            last_ms: stamps above it are outside.
        """
        publications = expected = received = lost = duplicated = 0
        for publication in self._publications.values():
            wanted = subscribers.get(publication.channel or "", 0)
            if not wanted or not first_ms <= publication.stamped_ms <= last_ms:
                continue
            publications += 1
            expected += wanted
            received += publication.deliveries
            lost += max(0, wanted - publication.deliveries)
            duplicated += max(0, publication.deliveries - wanted)
        return Completeness(
            publications=publications,
            expected=expected,
            received=received,
            lost=lost,
            duplicated=duplicated,
        )

    def _publication_of(self, envelope: Envelope, payload: bytes) -> Publication:
        # Without a stream there is no offset: then the payload says which publication it is. Not
        # the stamp, which differs between servers.
        offset = envelope.offset
        identity = hash(bytes(envelope.data)) if offset is None else offset
        key = (envelope.channel, identity)
        publication = self._publications.get(key)
        if publication is None:
            publication = self._publications[key] = Publication(envelope)
        if len(self._known) >= self._KNOWN_MAX:
            self._known.clear()
        if payload.startswith(self._SEQ_KEY):
            self._known[payload[payload.find(b",") :]] = publication
        return publication


def _decoded(payload: bytes) -> Envelope | None:
    try:
        return _read_envelope(payload)
    except msgspec.DecodeError:
        return None
