"""The bytes of events on the wire, by encoding, single or in the batch of a tick. Pure arithmetic.

A single event of plain text is computed from the wire itself. Everything else is measured, with
the payloads of the simulated market: `trio-odin bench --only compression` counts the bytes that
clients read, in batches of two sizes, so that those of a batch and of each event in it are known:

    bytes of a batch = batch + batch_event × events

Events of another size are taken to compress alike: all figures grow with that of plain text.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from trio_odin.fanout.publication import Publication
from trio_odin.net.segments import with_headers

ENCODINGS: Final[tuple[str, ...]] = ("plain", "deflate", "z1")

# A TLS 1.3 record (RFC 8446, 5.2): its header, its content type, the tag of AES-GCM.
_RECORD_BYTES = 16_384
_RECORD_OVERHEAD_BYTES = 5 + 1 + 16
MEASURED_PAYLOAD_BYTES: Final = 200
"""The events of the lab and of the bench."""

_SIZES_MIN = 2


@attrs.frozen(kw_only=True)
class Frames:
    """The costs of one encoding.

    Args:
        event: bytes of a single event, with TCP/IP headers, without TLS.
        batch: the same of a batch without its events.
        batch_event: the same of each event in it.
        added_us: CPU that a write costs more than in plain text.
    """

    event: float
    batch: float
    batch_event: float
    added_us: float = 0.0


@attrs.frozen(kw_only=True)
class Wire:
    """The costs of all encodings.

    Args:
        batch_event_us: CPU of an event in a batch, beside that of the write.
        source: source of the figures, for people.
        date: of the measurement, YYYY-MM-DD.
    """

    plain: Frames
    deflate: Frames
    z1: Frames
    batch_event_us: float
    source: str
    date: str

    def of(self, encoding: str) -> Frames:
        """The costs of that encoding."""
        return {"plain": self.plain, "deflate": self.deflate, "z1": self.z1}[encoding]

    def bytes_of_singles(self, encoding: str, payload_bytes: int, count: float) -> float:
        """The bytes of single events, each one write, with TCP/IP headers and in TLS."""
        if encoding == "plain":
            return count * _packet_bytes(payload_bytes)
        each = self.of(encoding).event * _scale(payload_bytes)
        return count * (each + _RECORD_OVERHEAD_BYTES)

    def bytes_of_batches(
        self, encoding: str, payload_bytes: int, count: float, events: float
    ) -> float:
        """The bytes of so many batches with so many events in all, as above."""
        frames = self.of(encoding)
        sent = (frames.batch * count + frames.batch_event * events) * _scale(payload_bytes)
        return sent + _RECORD_OVERHEAD_BYTES * (count + sent / _RECORD_BYTES)

    def added_cores(self, encoding: str, writes: float, batch_events: float) -> float:
        """CPU by time beside that of the writes in plain text; both are per second."""
        return (writes * self.of(encoding).added_us + batch_events * self.batch_event_us) / 1e6


FIRST_WIRE: Final = Wire(
    plain=Frames(event=371.0, batch=118.0, batch_event=300.0),
    deflate=Frames(event=274.0, batch=228.9, batch_event=53.26, added_us=0.6),
    z1=Frames(event=137.0, batch=137.4, batch_event=50.16, added_us=0.6),
    batch_event_us=0.7,
    source=(
        "3,000 trades of the simulated market, compressed with zlib; plain batches and CPU are "
        "estimates"
    ),
    date="2026-11-28",
)
"""Until the bench has measured them on the server."""


def _packet_bytes(payload_bytes: int) -> int:
    frame = _frame_bytes(payload_bytes)
    sent = frame + math.ceil(frame / _RECORD_BYTES) * _RECORD_OVERHEAD_BYTES
    return with_headers(sent)


def _frame_bytes(payload_bytes: int) -> int:
    payload = b'"%b"' % (b"x" * (payload_bytes - 2))
    publication = Publication("TOKEN.trade", payload, offset=1_000_000, unix_ms=10**12)
    return len(publication.frame(1000))


def _scale(payload_bytes: int) -> float:
    return _frame_bytes(payload_bytes) / _frame_bytes(MEASURED_PAYLOAD_BYTES)


# ---- from a measurement


@attrs.frozen(kw_only=True)
class Sample:
    """The figures of one load of home users with events of the market.

    Args:
        is_batched: its events came in batches.
        bytes_of_event: with TCP/IP headers.
        events_of_write: 1, or those of a batch on average.
        us_of_event: CPU of the server; None if unknown.
    """

    encoding: str
    is_batched: bool
    bytes_of_event: float
    events_of_write: float
    us_of_event: float | None = None


def fit_wire(samples: Iterable[Sample], *, source: str, date: str) -> Wire | None:
    """Find the costs of each encoding; None without a single event and two sizes of batches each.

    Least squares, for the bytes of a write by its number of events. CPU of single events comes
    from the loads of single events, that of an event in a batch from those of plain batches.
    """
    found = list(samples)
    frames = {encoding: _fit_frames(found, encoding) for encoding in ENCODINGS}
    plain, deflate, z1 = (frames[encoding] for encoding in ENCODINGS)
    if plain is None or deflate is None or z1 is None:
        return None
    return Wire(
        plain=plain,
        deflate=deflate,
        z1=z1,
        batch_event_us=_batch_event_us(found),
        source=source,
        date=date,
    )


def _fit_frames(samples: Sequence[Sample], encoding: str) -> Frames | None:
    own = [sample for sample in samples if sample.encoding == encoding]
    singles = [sample for sample in own if not sample.is_batched]
    sizes = {s.events_of_write: s.bytes_of_event * s.events_of_write for s in own if s.is_batched}
    if not singles or len(sizes) < _SIZES_MIN:
        return None
    slope, intercept = statistics.linear_regression(list(sizes), list(sizes.values()))
    us, plain_us = _single_us(own), _single_us([s for s in samples if s.encoding == "plain"])
    return Frames(
        event=statistics.median(sample.bytes_of_event for sample in singles),
        batch=max(0.0, intercept),
        batch_event=max(0.0, slope),
        added_us=0.0 if us is None or plain_us is None else max(0.0, us - plain_us),
    )


def _single_us(samples: Iterable[Sample]) -> float | None:
    known = [s.us_of_event for s in samples if not s.is_batched and s.us_of_event is not None]
    return statistics.median(known) if known else None


def _batch_event_us(samples: Sequence[Sample]) -> float:
    """CPU of an event in a plain batch, without that of the write: the least of all sizes.

    The more events, the less of the cost is that of a process that waits.
    """
    plain = [sample for sample in samples if sample.encoding == "plain"]
    write_us = _single_us(plain)
    if write_us is None:
        return FIRST_WIRE.batch_event_us
    each = [
        max(0.0, sample.us_of_event - write_us / sample.events_of_write)
        for sample in plain
        if sample.is_batched and sample.us_of_event is not None
    ]
    return min(each, default=FIRST_WIRE.batch_event_us)
