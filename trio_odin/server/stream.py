"""Which JetStream stream the bridge consumes: one that is there, or one that it makes.

Runs under asyncio, called by the bridge.
"""

from __future__ import annotations

import json
import secrets
from http import HTTPStatus
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.errors import APIError, NotFoundError

from trio_odin.config import Settings
from trio_odin.core.gaps import StreamState
from trio_odin.core.names import covers
from trio_odin.core.place import unix_ns_of
from trio_odin.net.nats_client import TotalClient

SUBJECT = "odin.token.>"

# NATS server error codes: JetStream is not enabled for this account, or not at all.
_NOT_ENABLED = {10039, 10076}

_GENERATION = "trio_odin_generation"
_REQUEST_SECONDS = 5.0

_log = structlog.get_logger("bridge")


class StreamUnsuitable(Exception):
    """There is a stream in the way that cannot be consumed and is not ours to change."""


async def has_jetstream(client: TotalClient, *, request_seconds: float) -> bool:
    """Whether the server has JetStream for us. False only on a definite answer.

    Raises:
        nats.errors.Error: no definite answer, such as from a cluster that elects its leader.
    """
    try:
        await client.jetstream(timeout=request_seconds).account_info()
    except APIError as error:
        # nats-py turns "nobody answers on the API's subjects" into an error without a code.
        is_definite = error.err_code in _NOT_ENABLED
        if is_definite or (error.code is None and not client.says_it_has_jetstream):
            return False
        raise
    return True


async def ensure_stream(jetstream: JetStreamContext, settings: Settings) -> StreamInfo:
    """Find the stream for our subject, or make it.

    A stream that exists keeps what its makers chose. Only the one of the configured name gains our
    subject where it is missing; another one is used if its subjects cover ours as they are.

    Raises:
        StreamUnsuitable: says why.
        nats.errors.Error: NATS refuses, or does not answer.
    """
    try:
        info = await jetstream.stream_info(settings.stream_name)
    except NotFoundError:
        info = await _find_or_make(jetstream, settings)
    name, retention = info.config.name, info.config.retention
    if retention == RetentionPolicy.WORK_QUEUE:
        raise StreamUnsuitable(f"stream {name} is a work queue: an event of it is for one server")
    if not _covers_ours(info):
        info = await _add_our_subject(jetstream, info)
    if retention not in (None, RetentionPolicy.LIMITS):
        _log.warning(
            "nats.stream_forgets",
            stream=name,
            retention=str(retention),
            hint="with limits retention nothing is lost over a short disconnect",
        )
    return info


def state_of(info: StreamInfo) -> StreamState:
    """What matters of a stream that NATS has described."""
    return StreamState(
        name=str(info.config.name),
        epoch=_epoch(info, _generation(info)),
        first=info.state.first_seq,
        last=info.state.last_seq,
        is_ours=all(covers(SUBJECT, pattern) for pattern in info.config.subjects or []),
        # Without a cluster, which has a name, one in memory is gone with its server.
        may_be_emptied=info.config.storage == StorageType.MEMORY
        and info.cluster is not None
        and bool(info.cluster.name),
    )


def _epoch(info: StreamInfo, generation: str) -> str:
    """The same on every server: when the stream was made, and how often it was found emptied."""
    made = f"{round(info.created.timestamp() * 1e6):x}" if info.created else "unknown"
    return f"{made}-{generation}" if generation else made


def _generation(info: StreamInfo) -> str:
    return (info.config.metadata or {}).get(_GENERATION, "")


async def count_generation_on(client: Client, info: StreamInfo) -> str:
    """The stream was found emptied: note that in its metadata, and return its epoch from now on.

    Several servers that see it at once write the same number. Where the stream cannot be changed,
    the epoch is one that no other server knows, so that clients which move are told of a gap.
    """
    before = _generation(info)
    generation = str(int(before) + 1) if before.isdecimal() else "1"
    metadata = {**(info.config.metadata or {}), _GENERATION: generation}
    try:
        await client.jetstream(timeout=_REQUEST_SECONDS).update_stream(
            info.config.evolve(metadata=metadata)
        )
    except nats.errors.Error as error:
        generation = f"{generation}-{secrets.token_hex(4)}"
        _log.warning("nats.generation_not_kept", stream=info.config.name, error=str(error))
    epoch = _epoch(info, generation)
    _log.warning("nats.stream_emptied", stream=info.config.name, epoch=epoch)
    return epoch


async def stored_at(client: Client, stream: str, offset: int) -> int | None:
    """When NATS stored the message at `offset`, in nanoseconds; None if it is not there.

    Raises:
        nats.errors.Error: NATS refuses, or does not answer.
    """
    message = await _message(client, stream, {"seq": offset})
    return None if message is None else unix_ns_of(message["time"])


async def next_offset(client: Client, stream: str, *, after: int) -> int | None:
    """The offset of the first event of ours after `after`; None: there is none.

    Raises:
        nats.errors.Error: NATS refuses, or does not answer.
    """
    message = await _message(client, stream, {"seq": after + 1, "next_by_subj": SUBJECT})
    return None if message is None else int(message["seq"])


async def _message(client: Client, stream: str, which: dict[str, Any]) -> dict[str, Any] | None:
    subject = f"$JS.API.STREAM.MSG.GET.{stream}"
    answer = await client.request(subject, json.dumps(which).encode(), _REQUEST_SECONDS)
    content = json.loads(answer.data)
    if "error" in content:
        if content["error"].get("code") == HTTPStatus.NOT_FOUND:
            return None
        raise APIError.from_error(content["error"])
    message: dict[str, Any] = content["message"]
    return message


def _covers_ours(info: StreamInfo) -> bool:
    return any(covers(pattern, SUBJECT) for pattern in info.config.subjects or [])


async def _add_our_subject(jetstream: JetStreamContext, info: StreamInfo) -> StreamInfo:
    # NATS refuses overlapping subjects in one stream: what ours covers makes room for it.
    kept = [pattern for pattern in info.config.subjects or [] if not covers(SUBJECT, pattern)]
    adapted: StreamInfo = await jetstream.update_stream(
        info.config.evolve(subjects=[*kept, SUBJECT])
    )
    _log.info("nats.stream_adapted", stream=info.config.name, added=SUBJECT)
    return adapted


async def _find_or_make(jetstream: JetStreamContext, settings: Settings) -> StreamInfo:
    try:
        other = await jetstream.find_stream_name_by_subject(SUBJECT)
    except NotFoundError:
        return await _make(jetstream, settings)
    info = await jetstream.stream_info(other)
    if not _covers_ours(info):
        raise StreamUnsuitable(
            f"stream {other} has a part of {SUBJECT}; add the rest to it, or name it in "
            f"JS_STREAM_NAME to have it added"
        )
    return info


async def _make(jetstream: JetStreamContext, settings: Settings) -> StreamInfo:
    info: StreamInfo = await jetstream.add_stream(
        StreamConfig(
            name=settings.stream_name,
            subjects=[SUBJECT],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.MEMORY,
            max_age=settings.stream_max_age_seconds,
            max_msgs=settings.stream_max_messages,
            max_bytes=settings.stream_max_bytes,
        )
    )
    _log.info("nats.stream_made", stream=settings.stream_name)
    return info
