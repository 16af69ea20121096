"""The bridge: NATS → feed. The only module of the server that knows asyncio.

nats-py runs on asyncio, so each NATS connection gets an asyncio loop inside a trio task
(trio-asyncio), and nothing of it survives that connection. One connection has one life:

    connect ─► consume (ordered consumer or core subscription) ─► lost ─► wait a little ─► again

What carries over between two lives is the position in the stream, so nothing inside the stream's
window is lost or comes twice (docs/decisions/0002-one-nats-connection-one-life.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import nats.errors
import structlog
import trio
import trio_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from trio_odin.config import Settings
from trio_odin.core.ledger import Ledger, Shed
from trio_odin.core.names import covers
from trio_odin.core.publication import NatsMessage
from trio_odin.core.ratelimit import TokenBucket
from trio_odin.net.nats_link import NatsLink, backoff_seconds, nats_link

SUBJECT = "odin.token.>"

_REQUEST_SECONDS = 5.0
# A consumer that is silent for two of these is made anew, or found to have no stream any more.
_CONSUMER_HEARTBEAT_SECONDS = 1.0
_TROUBLE_KEPT = 3
# nats-py's own queue before our callback; past it nats-py drops, which is booked as shed.
_PENDING_MESSAGES = 65_536
_PENDING_BYTES = 64 * 1024 * 1024

_log = structlog.get_logger("bridge")


@attrs.define
class _Position:
    """Where in which stream we are. `epoch` tells a stream from another one of the same name."""

    epoch: str = ""
    offset: int = 0


@attrs.define
class BridgeStatus:
    """What the outside may know of the bridge."""

    is_connected: bool = False
    was_connected: bool = False
    mode: str = "none"
    reconnects: int = 0


class Bridge:
    """Consumes `odin.token.>` for ever and puts every message into the feed.

    Feed full, or more than the allowed rate: the newest message is shed and counted; the bridge
    does not wait, as NATS would then drop for us, and uncounted.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        feed_send: trio.MemorySendChannel[NatsMessage],
    ) -> None:
        self.status = BridgeStatus()
        self._settings = settings
        self._books = ledger.publications
        self._feed_send = feed_send
        self._position = _Position()
        self._failures = 0
        self._rate = TokenBucket(
            burst=max(1.0, settings.max_nats_rate),
            per_second=settings.max_nats_rate,
            now=trio.current_time(),
        )

    async def run(self) -> None:
        """Connect, consume, and connect again for ever; closes the feed when cancelled."""
        with self._feed_send:
            attempt = 0
            while True:
                reached = await self._live_once()
                attempt = 0 if reached else attempt + 1
                await trio.sleep(backoff_seconds(attempt))

    async def _live_once(self) -> bool:
        """One NATS connection from connect to loss. Returns whether it ever consumed."""
        self.status.is_connected = False
        reached = False
        try:
            async with trio_asyncio.open_loop():
                reached = await trio_asyncio.aio_as_trio(self._connect_and_consume)()
        except* (OSError, nats.errors.Error) as group:  # TimeoutError is an OSError
            self._note_failure(group)
        except* Exception:  # noqa: BLE001 - whatever it was, the way back is to connect again
            _log.exception("nats.failed")
        finally:
            self.status.is_connected = False
        return reached

    def _note_failure(self, group: BaseExceptionGroup[BaseException]) -> None:
        """Log the 1st, 2nd, 4th, 8th … failure in a row, so that a long outage is no flood."""
        self._failures += 1
        if self._failures.bit_count() == 1:
            errors = [_describe(error) for error in _leaves(group)]
            _log.warning("nats.failed", in_a_row=self._failures, errors=errors)

    # From here on the functions run under asyncio.

    async def _connect_and_consume(self) -> bool:
        trouble: list[str] = []

        async def on_error(link: NatsLink, error: Exception) -> None:
            trouble.append(_describe(error))
            del trouble[:-_TROUBLE_KEPT]
            if isinstance(error, nats.errors.SlowConsumerError):
                self._shed(Shed.NATS_CLIENT)
            # What nats-py cannot mend: the stream is gone, or the consumer cannot be made again.
            if isinstance(
                error, (APIError, nats.errors.TimeoutError, nats.errors.NoRespondersError)
            ):
                link.give_up()

        async with nats_link(self._settings.nats_urls, name="trio-odin", on_error=on_error) as link:
            try:
                mode = await self._subscribe(link.client)
                self._note_connected(link.client, mode)
                await link.wait_lost()
                _log.warning("nats.lost", errors=trouble)
            finally:
                self.status.is_connected = False
        return True

    def _note_connected(self, client: Client, mode: str) -> None:
        status = self.status
        status.reconnects += status.was_connected
        status.is_connected = status.was_connected = True
        status.mode = mode
        self._failures = 0
        url = client.connected_url
        _log.info("nats.connected", server=url.hostname if url else None, mode=mode)

    async def _subscribe(self, client: Client) -> str:
        """Subscribe in the mode that is wanted and possible; returns which."""
        wanted = self._settings.nats_mode
        if wanted == "jetstream" or (wanted == "auto" and await _has_jetstream(client)):
            await self._consume_stream(client.jetstream(timeout=_REQUEST_SECONDS))
            return "jetstream"
        await client.subscribe(
            SUBJECT,
            cb=self._on_core_message,
            pending_msgs_limit=_PENDING_MESSAGES,
            pending_bytes_limit=_PENDING_BYTES,
        )
        await client.flush(timeout=int(_REQUEST_SECONDS))
        return "core"

    async def _consume_stream(self, jetstream: JetStreamContext) -> None:
        name, epoch = await self._ensure_stream(jetstream)
        await jetstream.subscribe(
            SUBJECT,
            stream=name,
            cb=self._on_stream_message,
            ordered_consumer=True,
            idle_heartbeat=_CONSUMER_HEARTBEAT_SECONDS,
            config=self._where_to_start(epoch),
            pending_msgs_limit=_PENDING_MESSAGES,
            pending_bytes_limit=_PENDING_BYTES,
        )

    def _where_to_start(self, epoch: str) -> ConsumerConfig:
        """After the last message we had; at the first in a new stream; at the next at start-up."""
        before, self._position.epoch = self._position.epoch, epoch
        if not before:
            return ConsumerConfig(deliver_policy=DeliverPolicy.NEW)
        if before != epoch:
            _log.warning("nats.stream_is_new", epoch=epoch)
            self._position.offset = 0
        return ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._position.offset + 1,
        )

    async def _ensure_stream(self, jetstream: JetStreamContext) -> tuple[str, str]:
        """Find the stream for our subject or make it; returns its name and epoch.

        A stream that exists keeps the settings its makers chose. Only a missing subject is added to
        the stream of the configured name, as without it there would be nothing to consume.
        """
        try:
            info = await jetstream.stream_info(self._settings.stream_name)
        except NotFoundError:
            info = await self._find_or_make(jetstream)
        config = info.config
        subjects = config.subjects or []
        if not any(covers(pattern, SUBJECT) for pattern in subjects):
            # NATS refuses overlapping subjects in one stream: what ours covers makes room for it.
            kept = [pattern for pattern in subjects if not covers(SUBJECT, pattern)]
            info = await jetstream.update_stream(config.evolve(subjects=[*kept, SUBJECT]))
            _log.info("nats.stream_adapted", stream=config.name, added=SUBJECT)
        if config.retention not in (None, RetentionPolicy.LIMITS):
            _log.warning(
                "nats.stream_forgets",
                stream=config.name,
                retention=str(config.retention),
                hint="with limits retention nothing is lost over a short disconnect",
            )
        return str(config.name), str(info.created)

    async def _find_or_make(self, jetstream: JetStreamContext) -> Any:
        settings = self._settings
        try:
            return await jetstream.stream_info(await jetstream.find_stream_name_by_subject(SUBJECT))
        except NotFoundError:
            _log.info("nats.stream_made", stream=settings.stream_name)
            return await jetstream.add_stream(
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

    async def _on_stream_message(self, message: Msg) -> None:
        offset = message.metadata.sequence.stream
        self._position.offset = offset
        self._accept(NatsMessage(message.subject, message.data, offset))

    async def _on_core_message(self, message: Msg) -> None:
        self._accept(NatsMessage(message.subject, message.data, None))

    def _accept(self, message: NatsMessage) -> None:
        self._books.received += 1
        if not self._rate.take(trio.current_time()):
            self._books.shed[Shed.NATS_RATE] += 1
            return
        try:
            # A synchronous call across the border; awaiting there would cost six times as much.
            self._feed_send.send_nowait(message)
        except trio.WouldBlock:
            self._books.shed[Shed.FEED_FULL] += 1

    def _shed(self, why: Shed) -> None:
        """Book a message that never came as far as `_accept`."""
        self._books.received += 1
        self._books.shed[why] += 1


async def _has_jetstream(client: Client) -> bool:
    try:
        await client.jetstream(timeout=_REQUEST_SECONDS).account_info()
    except (ServiceUnavailableError, nats.errors.NoRespondersError, APIError):
        return False
    return True


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
