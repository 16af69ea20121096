"""What an encoding saves: bytes on the wire for an event, of samples. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

import msgspec

from trio_odin.demo.samples import Sample
from trio_odin.fanout.publication import Publication
from trio_odin.wire.compression import Encoding

# IPv4 and TCP with timestamps, for each packet of an Ethernet.
_HEADER_BYTES: Final = 20 + 32
_PACKET_BYTES: Final = 1448
# Numbers of a connection and a stream that have been there for a while.
_SEQ: Final = 10_000
_OFFSET: Final = 1_000_000
_START_MS: Final = 1_759_027_038_365
_MS_BETWEEN: Final = 33
_BATCH: Final = 5


def texts_of(samples: Sequence[Sample]) -> list[bytes]:
    """The messages with these events, one by one and in batches, as z1 deflates them."""
    tails = [*tails_of(samples, 1), *tails_of(samples, _BATCH)]
    return [b"{" + tail[1:] for tail in tails]


def bytes_an_event(samples: Sequence[Sample], encoding: Encoding, batch: int) -> float:
    """The mean over `samples`, if `batch` of them are in one message, with all headers."""
    whole = 0
    for tail in tails_of(samples, batch):
        body = encoding.body(tail)
        frame = len(encoding.start(_SEQ, len(body))) + len(body)
        whole += frame + _HEADER_BYTES * -(-frame // _PACKET_BYTES)
    return whole / len(samples)


def tails_of(samples: Sequence[Sample], batch: int) -> Iterator[bytes]:
    """The tails of the messages with these events: see `wire/compression.py`."""
    elements: list[bytes] = []
    before: dict[str, int] = {}
    for number, (channel, payload) in enumerate(samples):
        offset, unix_ms = _OFFSET + number, _START_MS + number * _MS_BETWEEN
        prev = before.get(channel)
        before[channel] = offset
        if batch == 1:
            publication = Publication(channel, payload, offset=offset, unix_ms=unix_ms, prev=prev)
            yield bytes(publication.pieces(_SEQ)[1])
            continue
        last = b"" if prev is None else b'"prev":%d,' % prev
        elements.append(
            b'{"channel":%b,"offset":%d,%b"ts":%d,"data":%b}'
            % (msgspec.json.encode(channel), offset, last, unix_ms, payload)
        )
    rest = iter(elements)
    while group := list(islice(rest, batch)):
        yield b',"ts":%d,"type":"price:batch","events":[%b]}' % (_START_MS, b",".join(group))
