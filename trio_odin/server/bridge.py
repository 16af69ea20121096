"""The bridge: NATS → feed. With `stream.py`, all of the server that knows asyncio.

nats-py runs on asyncio, so each NATS connection gets an asyncio loop inside a trio task
(trio-asyncio), and nothing of it survives that connection. One connection has one life:

    connect ─► consume (ordered consumer or core subscription) ─► lost ─► wait a little ─► again

What carries over between two lives is the position in the stream, so nothing inside the stream's
window is lost or comes twice (docs/decisions/0002-one-nats-connection-one-life.md).
"""

from __future__ import annotations

import asyncio

import attrs
import nats.errors
import structlog
import trio
import trio_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy, StreamInfo
from nats.js.errors import APIError

from trio_odin.config import Settings
from trio_odin.core.ledger import Ledger, Shed
from trio_odin.core.publication import NatsMessage
from trio_odin.core.ratelimit import TokenBucket
from trio_odin.net.nats_link import NatsLink, Outage, describe, nats_link, places_of
from trio_odin.server.stream import SUBJECT, StreamUnsuitable, ensure_stream, has_jetstream

_REQUEST_SECONDS = 5.0
# A consumer that is silent for two of these is made anew, or found to have no stream any more.
_CONSUMER_HEARTBEAT_SECONDS = 1.0
_TROUBLE_KEPT = 3
_STREAM_LOOK_SECONDS = 2.0
# nats-py's own queue before our callback; past it nats-py drops, which is booked as shed.
_PENDING_MESSAGES = 65_536
_PENDING_BYTES = 64 * 1024 * 1024

_log = structlog.get_logger("bridge")


@attrs.define
class _Position:
    """Where in which stream we are. `epoch` tells a stream from another one of the same name."""

    stream: str = ""
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

    Attributes:
        status: what the outside may know.
        fed: messages put into the feed so far.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        feed_send: trio.MemorySendChannel[NatsMessage],
    ) -> None:
        self.status = BridgeStatus()
        self.fed = 0
        self._settings = settings
        self._books = ledger.publications
        self._feed_send = feed_send
        self._position = _Position()
        self._outage = Outage(_log, settings.nats_urls)
        self._rate = TokenBucket(
            burst=max(1.0, settings.max_nats_rate),
            per_second=settings.max_nats_rate,
            now=trio.current_time(),
        )

    async def run(self) -> None:
        """Connect, consume, and connect again for ever; closes the feed when cancelled."""
        with self._feed_send:
            while True:
                await self._live_once()
                await trio.sleep(self._outage.pause_seconds())

    async def _live_once(self) -> None:
        """One NATS connection from connect to loss."""
        try:
            async with trio_asyncio.open_loop():
                await trio_asyncio.aio_as_trio(self._connect_and_consume)()
        except* (OSError, nats.errors.Error) as group:  # TimeoutError is an OSError
            self._outage.note(group)
        except* Exception:  # noqa: BLE001 - whatever it was, the way back is to connect again
            self._outage.note_unexpected()
        finally:
            self.status.is_connected = False

    # From here on the functions run under asyncio.

    async def _connect_and_consume(self) -> None:
        trouble: list[str] = []

        async def on_error(link: NatsLink, error: Exception) -> None:
            trouble.extend(describe(error))
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
                watch = asyncio.create_task(self._watch_stream(link, mode))
                try:
                    await link.wait_lost()
                finally:
                    watch.cancel()
                _log.warning("nats.lost", errors=trouble)
            finally:
                self.status.is_connected = False

    async def _watch_stream(self, link: NatsLink, mode: str) -> None:
        """Give the link up when the stream under it is another one: then the place is found anew.

        nats-py would make its consumer again at the old place and wait there, connected and silent.
        """
        if mode != "jetstream":
            return
        jetstream = link.client.jetstream(timeout=_REQUEST_SECONDS)
        try:
            while True:
                await asyncio.sleep(_STREAM_LOOK_SECONDS)
                offset = self._position.offset  # before the question, as it grows meanwhile
                info = await jetstream.stream_info(self._position.stream)
                if self._is_new(info, offset):
                    break
        except nats.errors.Error as error:
            _log.warning("nats.stream_unknown", errors=describe(error))
        link.give_up()

    def _is_new(self, info: StreamInfo, offset: int) -> bool:
        """Whether this is not the stream that had `offset`: made anew, or back but shorter."""
        return str(info.created) != self._position.epoch or info.state.last_seq < offset

    def _note_connected(self, client: Client, mode: str) -> None:
        status = self.status
        status.reconnects += status.was_connected
        status.is_connected = status.was_connected = True
        status.mode = mode
        self._outage.over()
        url = client.connected_url
        _log.info("nats.connected", server=places_of([url.geturl()])[0] if url else "", mode=mode)

    async def _subscribe(self, client: Client) -> str:
        """Subscribe in the mode that is wanted and possible; returns which."""
        if self._settings.nats_mode != "core":
            why_not = await self._consume_stream(client)
            if why_not is None:
                return "jetstream"
            if self._settings.nats_mode == "jetstream":
                raise nats.errors.Error(f"{why_not}, and NATS_MODE is jetstream")
            if self._position.epoch:
                # Core in between would have the stream's events come twice, or not at all.
                raise nats.errors.Error(f"{why_not}, and it was consumed before")
            _log.warning("nats.core_only", reason=why_not)
        await client.subscribe(
            SUBJECT,
            cb=self._on_core_message,
            pending_msgs_limit=_PENDING_MESSAGES,
            pending_bytes_limit=_PENDING_BYTES,
        )
        await client.flush(timeout=int(_REQUEST_SECONDS))
        return "core"

    async def _consume_stream(self, client: Client) -> str | None:
        """Consume JetStream; returns why not, if it is not there or not fit."""
        if not await has_jetstream(client, request_seconds=_REQUEST_SECONDS):
            return "the server has no JetStream"
        jetstream = client.jetstream(timeout=_REQUEST_SECONDS)
        try:
            info = await ensure_stream(jetstream, self._settings)
        except StreamUnsuitable as unsuitable:
            return str(unsuitable)
        await jetstream.subscribe(
            SUBJECT,
            stream=info.config.name,
            cb=self._on_stream_message,
            ordered_consumer=True,
            idle_heartbeat=_CONSUMER_HEARTBEAT_SECONDS,
            config=ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self._find_place(info) + 1,
            ),
            pending_msgs_limit=_PENDING_MESSAGES,
            pending_bytes_limit=_PENDING_BYTES,
        )
        return None

    def _find_place(self, info: StreamInfo) -> int:
        """The offset behind which to go on: where we were, or the end of the stream at start-up.

        A stream that was made anew, or that came back shorter than it was (as one in memory does
        when its server restarts), is read from its beginning: all that is in it is new.
        """
        position, epoch = self._position, str(info.created)
        if not position.epoch:
            position.offset = info.state.last_seq
        elif self._is_new(info, position.offset):
            _log.warning("nats.stream_is_new", epoch=epoch, last_offset=info.state.last_seq)
            position.offset = 0
        position.epoch = epoch
        position.stream = str(info.config.name)
        return position.offset

    async def _on_stream_message(self, message: Msg) -> None:
        offset = message.metadata.sequence.stream
        if offset <= self._position.offset:
            # A consumer that nats-py made anew before its first message starts at the beginning.
            self._books.repeated += 1
            return
        self._position.offset = offset
        self._accept(NatsMessage(message.subject, message.data, offset, trio.current_time()))

    async def _on_core_message(self, message: Msg) -> None:
        self._accept(NatsMessage(message.subject, message.data, None, trio.current_time()))

    def _accept(self, message: NatsMessage) -> None:
        self._books.received += 1
        if not self._rate.take(trio.current_time()):
            self._books.shed[Shed.NATS_RATE] += 1
            return
        try:
            # A synchronous call across the border; awaiting there would cost six times as much.
            self._feed_send.send_nowait(message)
            self.fed += 1
        except trio.WouldBlock:
            self._books.shed[Shed.FEED_FULL] += 1

    def _shed(self, why: Shed) -> None:
        """Book a message that never came as far as `_accept`."""
        self._books.received += 1
        self._books.shed[why] += 1
