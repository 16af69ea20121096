"""What an encoding saves: bytes on the wire for an event, of samples. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from trio_odin.demo.samples import Sample
from trio_odin.fanout.batch import Batch
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.updates import Updates
from trio_odin.net.segments import with_headers
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.compression import Encoding
from trio_odin.wire.shapes import make_dictionary

# Numbers of a connection and a stream that have been there for a while.
_SEQ: Final = 10_000
_OFFSET: Final = 1_000_000
_START_MS: Final = 1_759_027_038_365
_MS_BETWEEN: Final = 33
_BATCH: Final = 5


def texts_of(samples: Sequence[Sample], batch: int = 1) -> list[bytes]:
    """The messages with these events, `batch` of them in each, as z1 deflates them."""
    messages = messages_of(samples, batch)
    return [b"{" + bytes(message.pieces(_SEQ)[1])[1:] for message in messages]


def dictionary_of(samples: Sequence[Sample], size: int) -> bytes:
    """What messages with these events have in common, one by one and in batches."""
    return make_dictionary(texts_of(samples), size, texts_of(samples, _BATCH))


def bytes_an_event(samples: Sequence[Sample], encoding: Encoding, batch: int) -> float:
    """The mean over `samples`, if `batch` of them are in one message, with all headers."""
    whole = events = 0
    for message in messages_of(samples, batch):
        whole += with_headers(message.frame_bytes(_SEQ, encoding=encoding))
        events += message.events
    return whole / events


def messages_of(samples: Sequence[Sample], batch: int) -> Iterator[Publication]:
    """The messages with these events, `batch` of them in each: with one, every event."""
    updates, sent = Updates(), 0
    before: dict[str, int] = {}
    for number, (channel, payload) in enumerate(samples):
        offset, unix_ms = _OFFSET + number, _START_MS + number * _MS_BETWEEN
        prev = before.get(channel)
        before[channel] = offset
        if batch == 1:
            yield Publication(channel, payload, offset=offset, unix_ms=unix_ms, prev=prev)
            continue
        message = NatsMessage(f"odin.token.{channel}", payload, offset, 0.0, unix_ms)
        updates.add(channel, message, prev)
        changed = updates.after(sent).updates.values()
        if len(changed) == batch or number == len(samples) - 1:
            yield Batch.of((update, sent) for update in changed)
            sent = updates.number
