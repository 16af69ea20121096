"""Finds the JetStream stream that the bridge consumes, or makes it.

Runs under asyncio, called by the bridge.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.errors import APIError, NotFoundError

from trio_odin.settings.settings import Settings
from trio_odin.upstream.metadata import unix_ns_of
from trio_odin.upstream.nats_client import Refused, TotalClient
from trio_odin.upstream.position import StreamState
from trio_odin.wire.channels import covers

SUBJECT = "odin.token.>"

# NATS server error codes: JetStream is not enabled for this account, or not at all.
_NOT_ENABLED = {10039, 10076}

# In the metadata of a stream: how often it was found emptied; that a server like this made it.
_GENERATION = "trio_odin_generation"
MADE = "trio_odin_made"
# In the metadata of a mirror: the epoch of its origin, whose offsets it has. Offsets of another one
# mean nothing.
EPOCH = "trio_odin_epoch"
_REQUEST_SECONDS = 5.0
# How often, and how far apart, a replicated stream that seems to have lost events is asked again.
_DOUBTS = 4
_DOUBT_SECONDS = 1.0

_log = structlog.get_logger("bridge")


class StreamUnsuitable(Exception):
    """A stream is in the way that cannot be consumed and is not ours to change."""


async def has_jetstream(client: TotalClient, *, request_seconds: float) -> bool:
    """Whether the server has JetStream for us. False only on a definite answer.

    Raises:
        nats.errors.Error: there is no definite answer, as while a cluster elects its leader.
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


async def ensure_stream(client: TotalClient, settings: Settings, *, may_make: bool) -> StreamInfo:
    """Find the stream for our subject, or make it.

    An existing stream keeps its configuration. Our subject is added only to the stream of the
    configured name, where it is missing and no other streams feed it. A stream of another name is
    used as it is, if its subjects cover ours.

    Args:
        client: a connected client.
        settings: the name of the stream, and its configuration if it is made.
        may_make: whether to make a missing stream; if not, `Refused` is raised.

    Raises:
        StreamUnsuitable: the stream cannot be consumed; the text gives the reason.
        nats.errors.Error: NATS refuses or does not answer.
    """
    jetstream = client.jetstream(timeout=_REQUEST_SECONDS)
    try:
        info = await jetstream.stream_info(settings.stream_name)
    except NotFoundError:
        info = await _find_or_make(jetstream, settings, may_make=may_make)
    if why_not := why_unsuitable(info):
        raise StreamUnsuitable(why_not)
    if not brings_ours(info):
        info = await _add_our_subject(client, info)
    retention = info.config.retention
    if retention not in (None, RetentionPolicy.LIMITS):
        _log.warning(
            "nats.stream_forgets",
            stream=info.config.name,
            retention=str(retention),
            hint="use limits retention: then a short disconnect loses no events",
        )
    return info


def why_unsuitable(info: StreamInfo) -> str | None:
    """Why the stream cannot be consumed, in a sentence; None if it can."""
    config = info.config
    if config.retention == RetentionPolicy.WORK_QUEUE:
        return f"stream {config.name} is a work queue, which delivers an event to one server only"
    if config.sealed:
        return f"stream {config.name} is sealed: it takes no further events"
    transform = config.subject_transform
    if (
        transform
        and not _is_fed(config)
        and covers(transform.src or ">", SUBJECT)
        and not covers(SUBJECT, _pattern_of(transform.dest))
    ):
        return f"stream {config.name} stores {SUBJECT} under other subjects: {transform.dest}"
    return None


def brings_ours(info: StreamInfo) -> bool:
    """Whether the stream stores what is published on our subject, or is fed by other streams."""
    config = info.config
    if _is_fed(config):
        return True  # with our subject added, each event would come twice
    transform = config.subject_transform
    if transform and covers(SUBJECT, _pattern_of(transform.dest)):
        return True
    return any(covers(pattern, SUBJECT) for pattern in config.subjects or [])


def is_made_here(info: StreamInfo, settings: Settings) -> bool:
    """Whether a server like this one has made the stream, and so may make it again.

    Earlier versions left no mark; they made all streams with the same configuration.
    """
    if (info.config.metadata or {}).get(MADE):
        return True
    earlier = _wanted(settings).evolve(storage=StorageType.MEMORY)
    return all(
        getattr(info.config, name) == getattr(earlier, name)
        for name in ("subjects", "retention", "storage", "max_age", "max_msgs", "max_bytes")
    )


def _is_fed(config: StreamConfig) -> bool:
    """Whether other streams feed it."""
    return bool(config.mirror or config.sources)


def _pattern_of(destination: str) -> str:
    """The subjects that a transform can make: `a.{{wildcard(1)}}` makes `a.*`."""
    tokens = destination.split(".")
    return ".".join("*" if "{{" in token or token.startswith("$") else token for token in tokens)


def state_of(info: StreamInfo) -> StreamState:
    """The state of a stream, from its description by NATS."""
    return StreamState(
        name=str(info.config.name),
        epoch=_epoch(info, _generation(info)),
        first=info.state.first_seq,
        last=info.state.last_seq,
        is_ours=not _is_fed(info.config)
        and all(covers(SUBJECT, pattern) for pattern in info.config.subjects or []),
        # Without a cluster, which has a name, a stream in memory is gone with its server.
        may_be_emptied=info.config.storage == StorageType.MEMORY
        and info.cluster is not None
        and bool(info.cluster.name),
    )


async def info_after_doubt(
    client: Client, info: StreamInfo, *, is_lost: Callable[[StreamState], bool]
) -> StreamInfo:
    """Ask a replicated stream again while `is_lost`, for some seconds.

    A node that has just become the leader, or does not know yet that it no longer is, may answer
    before it has everything. Believing it, we would take the same events for those of another life.

    Raises:
        nats.errors.Error: NATS refuses or does not answer.
    """
    is_replicated = info.cluster is not None and bool(info.cluster.replicas)
    for _ in range(_DOUBTS if is_replicated else 0):
        if not is_lost(state_of(info)):
            break
        await asyncio.sleep(_DOUBT_SECONDS)
        info = await client.jetstream(timeout=_REQUEST_SECONDS).stream_info(str(info.config.name))
    return info


def _epoch(info: StreamInfo, generation: str) -> str:
    """When the stream was made and how often it was found emptied: the same on every server.

    The mirror of another region's stream has that one's epoch, so that clients resume in both. When
    it was found emptied, its own creation is in it as well: the stream that it mirrors counts its
    generations too, and the same number means other offsets there.
    """
    made = f"{round(info.created.timestamp() * 1e6):x}" if info.created else "unknown"
    origin = (info.config.metadata or {}).get(EPOCH)
    if not generation:
        return origin or made
    return f"{origin}-{made}-{generation}" if origin else f"{made}-{generation}"


def _generation(info: StreamInfo) -> str:
    return (info.config.metadata or {}).get(_GENERATION, "")


async def count_generation_on(client: Client, info: StreamInfo) -> str:
    """Note in the metadata of a stream that it was found emptied; returns its new epoch.

    Several servers that see it at once write the same number. Where the stream cannot be changed,
    no other server knows the epoch, so that clients that move to one are sent a gap notice.
    """
    before = _generation(info)
    generation = str(int(before) + 1) if before.isdecimal() else "1"
    metadata = {**(info.config.metadata or {}), _GENERATION: generation}
    try:
        await change(client, str(info.config.name), metadata=metadata)
    except nats.errors.Error as error:
        generation = f"{generation}-{secrets.token_hex(4)}"
        _log.warning("nats.generation_not_kept", stream=info.config.name, error=str(error))
    epoch = _epoch(info, generation)
    _log.warning("nats.stream_emptied", stream=info.config.name, epoch=epoch)
    return epoch


async def stored_at(client: Client, stream: str, offset: int) -> int | None:
    """When NATS stored the message at `offset`, in nanoseconds; None if it is not there.

    Raises:
        nats.errors.Error: NATS refuses or does not answer.
    """
    message = await _message(client, stream, {"seq": offset})
    return None if message is None else unix_ns_of(message["time"])


async def next_offset(client: Client, stream: str, *, after: int) -> int | None:
    """The offset of the first event on our subject after `after`; None: there is none.

    Raises:
        nats.errors.Error: NATS refuses or does not answer.
    """
    message = await _message(client, stream, {"seq": after + 1, "next_by_subj": SUBJECT})
    return None if message is None else int(message["seq"])


async def _message(client: Client, stream: str, which: dict[str, Any]) -> dict[str, Any] | None:
    try:
        answer = await ask(client, f"STREAM.MSG.GET.{stream}", which)
    except NotFoundError:
        return None
    message: dict[str, Any] = answer["message"]
    return message


async def _add_our_subject(client: TotalClient, info: StreamInfo) -> StreamInfo:
    # NATS refuses overlapping subjects in one stream, so those that ours covers are removed.
    kept = [pattern for pattern in info.config.subjects or [] if not covers(SUBJECT, pattern)]
    adapted = await change(client, str(info.config.name), subjects=[*kept, SUBJECT])
    _log.info("nats.stream_adapted", stream=info.config.name, added=SUBJECT)
    return adapted


async def change(client: Client, stream: str, **changes: Any) -> StreamInfo:
    """Change parts of a stream's configuration. nats-py would drop the parts it does not know."""
    config = (await ask(client, f"STREAM.INFO.{stream}", None))["config"]
    answer = await ask(client, f"STREAM.UPDATE.{stream}", {**config, **changes})
    changed: StreamInfo = StreamInfo.from_response(answer)
    return changed


async def ask(client: Client, question: str, content: object) -> dict[str, Any]:
    """Send a request to JetStream's API; returns the answer.

    Raises:
        nats.errors.Error: NATS refuses or does not answer.
    """
    payload = b"" if content is None else json.dumps(content).encode()
    answer = await client.request(f"$JS.API.{question}", payload, _REQUEST_SECONDS)
    parsed: dict[str, Any] = json.loads(answer.data)
    if "error" in parsed:
        APIError.from_error(parsed["error"])
    return parsed


async def _find_or_make(
    jetstream: JetStreamContext, settings: Settings, *, may_make: bool
) -> StreamInfo:
    try:
        other = await jetstream.find_stream_name_by_subject(SUBJECT)
    except NotFoundError:
        if not may_make:
            raise Refused(
                f"the stream that was consumed, which this server has not made, is gone or no "
                f"longer has {SUBJECT}: make it again, or restart this server, which makes its own"
            ) from None
        return await _make(jetstream, settings)
    info: StreamInfo = await jetstream.stream_info(other)
    if not brings_ours(info):
        raise StreamUnsuitable(
            f"stream {other} covers only a part of {SUBJECT}: add the rest to it, or name it in "
            f"JS_STREAM_NAME, so that the server adds it"
        )
    return info


def _wanted(settings: Settings) -> StreamConfig:
    return StreamConfig(
        name=settings.stream_name,
        subjects=[SUBJECT],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType(settings.stream_storage),
        num_replicas=settings.stream_replicas,
        max_age=settings.stream_max_age_seconds,
        max_msgs=settings.stream_max_messages,
        max_bytes=settings.stream_max_bytes,
        metadata={MADE: "yes"},
    )


async def _make(jetstream: JetStreamContext, settings: Settings) -> StreamInfo:
    info: StreamInfo = await jetstream.add_stream(_wanted(settings))
    _log.info(
        "nats.stream_made",
        stream=settings.stream_name,
        storage=settings.stream_storage,
        replicas=settings.stream_replicas,
    )
    return info
