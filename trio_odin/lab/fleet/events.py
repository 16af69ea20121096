"""The events that a load follows, and their identity. Pure: bytes in, events out.

There are two kinds. The bench publishes its own, with all the facts in the payload:

    {"n":17,"t":81234567890123,"c":"BTC.trade","pad":"…"}

`n` counts the publications of a run, `t` is the monotonic nanosecond at which it was meant to be
published, `c` its channel. All others come in trio_odin's envelope (docs/protocol.md); the
payload's `timestamp`, if there is one, is the time at which it was meant to be published.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Final, NamedTuple

import attrs
import msgspec

_MARKS = re.compile(rb'"n":(\d+),"t":(\d+),"c":"([^"]+)"')
# The bench's own payload has no such key.
_SKIPPED = re.compile(rb',"skipped":(\d+)')
_NS_PER_MS: Final = 1_000_000
_MS_MAX: Final = 2**50  # far beyond any date, and no overflow in nanoseconds
_DIGEST_BYTES: Final = 6


class Event(NamedTuple):
    """The facts about a publication.

    Args:
        number: its identity among the events of its channel.
        due_ns: planned time of publishing, by the clock of its kind.
        channel: its channel.
        is_ordered: numbers rise with the order of publishing.
        skipped: older events of its channel that gave way to it, as the server reports.
    """

    number: int
    due_ns: int
    channel: str
    is_ordered: bool = True
    skipped: int = 0


def payload_of(event: Event, size_bytes: int) -> bytes:
    """The payload of an event of the bench, padded to `size_bytes`."""
    head = b'{"n":%d,"t":%d,"c":"%b","pad":"' % (event.number, event.due_ns, event.channel.encode())
    return head + b"x" * max(0, size_bytes - len(head) - 2) + b'"}'


def bench_event(unit: bytes) -> Event | None:
    """The bench's event in `unit`, any bytes around a payload."""
    found = _MARKS.search(unit)
    if found is None:
        return None
    skipped = _SKIPPED.search(unit)
    return Event(
        number=int(found[1]),
        due_ns=int(found[2]),
        channel=found[3].decode(errors="replace"),
        skipped=0 if skipped is None else int(skipped[1]),
    )


class _Envelope(msgspec.Struct):
    """The envelope on the wire. `channel` and `offset` are absent on older servers."""

    ts: int
    data: msgspec.Raw
    channel: str = ""
    offset: int | None = None
    skipped: int = 0


class _Payload(msgspec.Struct):
    timestamp: float | None = None


_read_envelope = msgspec.json.Decoder(_Envelope).decode
_read_payload = msgspec.json.Decoder(_Payload).decode


def market_event(unit: bytes) -> Event | None:
    """The event in an envelope, or in one whose `seq` was cut off."""
    try:
        envelope = _read_envelope(b'{"seq":0' + unit if unit.startswith(b",") else unit)
    except msgspec.DecodeError:
        return None
    due_ms = _due_ms(envelope.data) or envelope.ts
    # Without a stream there is no offset; then the payload identifies the publication. The stamp
    # does not, as it differs between servers.
    has_offset = envelope.offset is not None
    number = envelope.offset if has_offset else _digest(envelope.data)
    due_ns = int(due_ms * _NS_PER_MS)
    return Event(number or 0, due_ns, envelope.channel, has_offset, envelope.skipped)


def _digest(data: msgspec.Raw) -> int:
    # Not hash(): it differs between processes, and an event reaches several fleets.
    return int.from_bytes(blake2b(data, digest_size=_DIGEST_BYTES).digest(), "big")


def _due_ms(data: msgspec.Raw) -> float | None:
    try:
        due_ms = _read_payload(data).timestamp
    except msgspec.DecodeError:
        return None
    return due_ms if due_ms is not None and abs(due_ms) < _MS_MAX else None


@attrs.frozen
class Kind:
    """How to find an event in bytes, and the clock of its `due_ns`."""

    event_in: Callable[[bytes], Event | None]
    now_ns: Callable[[], int]


KINDS: Final[dict[str, Kind]] = {
    "bench": Kind(bench_event, time.monotonic_ns),
    "market": Kind(market_event, time.time_ns),
}
