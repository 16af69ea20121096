"""The newest message of each channel, from JetStream: the first value for new subscribers.

The stream keeps a message for seconds only, but the price of a token that nobody trades is as old
as its last trade. So a second stream mirrors the first one and keeps one message of each subject.
A mirror has the same offsets as its origin.

What is read from the mirror is a value and proves nothing: a mirror may have been behind for longer
than its origin keeps messages, or may have been emptied. What is read from the stream itself proves
that no channel had a newer message.

Runs under asyncio, called by the bridge.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js.api import RetentionPolicy, StreamConfig, StreamInfo, StreamSource
from nats.js.errors import NotFoundError

from trio_odin.settings.settings import Settings
from trio_odin.upstream.consumer import OrderedConsumer
from trio_odin.upstream.metadata import MessageMetadata
from trio_odin.upstream.nats_client import TotalClient
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.upstream.stream import (
    EPOCH,
    MADE,
    SUBJECT,
    change,
    info_after_doubt,
    state_of,
    stored_at,
)

_REQUEST_SECONDS = 1.0

_log = structlog.get_logger("bridge")


class Found(NamedTuple):
    """What was found in the stream itself.

    Attributes:
        messages: in the order of their offsets.
        known_after: of each channel that had a message after this offset, the newest one is here;
            None: one may be missing.
    """

    messages: Sequence[NatsMessage]
    known_after: int | None


async def newest_in_stream(
    client: TotalClient, settings: Settings, stream: str, epoch: str, *, position: int
) -> Found:
    """Read the newest message of each channel that the stream still has.

    Args:
        client: a connected client.
        settings: the bounds in number and bytes.
        stream: the stream of the feed.
        epoch: what its offsets have to belong to, before and after the reading.
        position: an offset that it has had.

    Raises:
        nats.errors.Error: NATS refuses or does not answer, or the stream is another one.
    """
    jetstream = client.jetstream(timeout=_REQUEST_SECONDS)
    before = await jetstream.stream_info(stream)
    messages, dropped = await _newest_in(client, settings, stream)
    after = await jetstream.stream_info(stream)
    is_same = state_of(before).epoch == state_of(after).epoch == epoch
    if not (is_same and position <= before.state.last_seq <= after.state.last_seq):
        raise nats.errors.Error(f"stream {stream} has changed while it was read")
    is_replicated = after.cluster is not None and bool(after.cluster.replicas)
    last = messages[-1].offset or 0 if messages else 0
    # A consumer is made on any replica, and that one may be behind.
    is_behind = is_replicated and last < before.state.last_seq
    # What a stream has lost is older than all that it has, unless somebody has deleted messages.
    keeps_newest = (after.config.max_msgs_per_subject or 0) > 0
    has_holes = bool(after.state.num_deleted) and not keeps_newest
    known_after = max(after.state.first_seq - 1, dropped, 0)
    return Found(messages, None if is_behind or has_holes else known_after)


async def newest_in_mirror(
    client: TotalClient, settings: Settings, origin: str, epoch: str
) -> Sequence[NatsMessage]:
    """Read the newest message of each channel from the mirror of `origin`, which is made if needed.

    `epoch` is what the offsets of the origin belong to.

    Raises:
        nats.errors.Error: NATS refuses or does not answer.
    """
    jetstream = client.jetstream(timeout=_REQUEST_SECONDS)
    name = f"{origin}_NEWEST"
    mirror: StreamInfo | None = None
    with suppress(NotFoundError):
        mirror = await jetstream.stream_info(name)
    feed = await jetstream.stream_info(origin)
    if mirror is not None and not _is_mirror(mirror, origin):
        _log.warning("nats.newest_unkept", stream=name, reason="it is no mirror made here")
        return []
    if mirror is not None and await _is_of(client, mirror, feed, epoch):
        if mirror.config.max_msgs != settings.snapshot_channels:
            await change(client, name, max_msgs=settings.snapshot_channels)
        messages, _ = await _newest_in(client, settings, name)
        return messages
    if mirror is not None:
        with suppress(NotFoundError):  # the request is sent again if no answer comes in time
            await jetstream.delete_stream(name)
    is_ours = all(pattern == SUBJECT for pattern in feed.config.subjects or [])
    await jetstream.add_stream(
        StreamConfig(
            name=name,
            mirror=StreamSource(name=origin, filter_subject=None if is_ours else SUBJECT),
            retention=RetentionPolicy.LIMITS,
            max_msgs_per_subject=1,
            max_msgs=settings.snapshot_channels,
            storage=feed.config.storage,
            num_replicas=feed.config.num_replicas,
            metadata={MADE: "yes", EPOCH: epoch},
        )
    )
    _log.info("nats.newest_kept", stream=name, mirrors=origin)
    return []


def _is_mirror(info: StreamInfo, origin: str) -> bool:
    mirror: Any = info.config.mirror
    is_made_here = bool((info.config.metadata or {}).get(MADE))
    return is_made_here and mirror is not None and mirror.name == origin


async def _is_of(client: TotalClient, mirror: StreamInfo, origin: StreamInfo, epoch: str) -> bool:
    """Whether the mirror has offsets of this life of its origin.

    A stream in memory can come back empty under the same epoch, and counts anew.
    """
    last = mirror.state.last_seq
    if (mirror.config.metadata or {}).get(EPOCH) != epoch:
        return False
    origin = await info_after_doubt(client, origin, is_lost=lambda state: state.last < last)
    if last > origin.state.last_seq:
        return False
    if not last or last < origin.state.first_seq:
        return True  # there is nothing in both to compare
    here = await stored_at(client, str(origin.config.name), last)
    there = await stored_at(client, str(mirror.config.name), last)
    return here is None or there is None or here == there


async def _newest_in(
    client: TotalClient, settings: Settings, stream: str
) -> tuple[Sequence[NatsMessage], int]:
    """Read the newest message of each subject, and keep as many as there is room for.

    Returns the messages, and the largest offset of those for which there was none; 0: for all.
    """
    kept: deque[NatsMessage] = deque()
    size = dropped = 0
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(message: Msg, metadata: MessageMetadata) -> None:
        nonlocal size, dropped
        kept.append(
            NatsMessage(
                message.subject,
                message.data,
                metadata.offset,
                0.0,
                metadata.unix_ns // 1_000_000,
                is_backfill=True,
            )
        )
        size += len(message.data)
        while len(kept) > settings.snapshot_channels or size > settings.snapshot_bytes:
            oldest = kept.popleft()
            size -= len(oldest.payload)
            dropped = oldest.offset or 0
        if metadata.pending == 0 and not ended.done():
            ended.set_result(None)

    def fail(reason: str) -> None:
        if not ended.done():
            ended.set_exception(nats.errors.Error(reason))

    consumer = OrderedConsumer(client, take, fail)
    info = await consumer.start(stream, SUBJECT, after=None)
    if info.num_pending:
        try:
            await consumer.listen()
            await ended
        finally:
            await consumer.leave()
    return list(kept), dropped
