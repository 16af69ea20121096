"""The bridge: NATS → feed. With `stream.py`, all of the server that knows asyncio.

nats-py runs on asyncio, so each NATS connection gets an asyncio loop inside a trio task
(trio-asyncio), and nothing of it survives that connection. One connection has one life:

    connect ─► consume (ordered consumer or core subscription) ─► lost ─► wait a little ─► again

What carries over between two lives is the position in the stream, so nothing inside the stream's
window is lost or comes twice; what the window has dropped is declared as a gap
(docs/decisions/0002-one-nats-connection-one-life.md).
"""

from __future__ import annotations

import asyncio

import attrs
import nats.errors
import structlog
import trio
import trio_asyncio
from nats.aio.msg import Msg
from nats.js.api import StreamInfo

from trio_odin.config import Settings
from trio_odin.core.gaps import Gap, GapReason, Position
from trio_odin.core.ledger import Ledger, Shed
from trio_odin.core.pause import Pause
from trio_odin.core.place import Place
from trio_odin.core.publication import NatsMessage
from trio_odin.core.ratelimit import TokenBucket
from trio_odin.core.recent import RECENT_EVENTS_MAX
from trio_odin.core.upstream import Upstream
from trio_odin.net.nats_client import TotalClient, Unreadable
from trio_odin.net.nats_link import NatsLink, Outage, describe, nats_link, places_of
from trio_odin.server.consumer import OrderedConsumer
from trio_odin.server.stream import (
    SUBJECT,
    StreamUnsuitable,
    ensure_stream,
    has_jetstream,
    next_offset,
    state_of,
)

_REQUEST_SECONDS = 5.0
_TROUBLE_KEPT = 3
_PULSE_SECONDS = 1.0
_PULSE_DEADLINE_SECONDS = 60
_STREAM_LOOK_SECONDS = 2.0
# An event at which so many connections have ended, one after the other, is stepped over.
_STUMBLES_MAX = 2

_log = structlog.get_logger("bridge")


class Bridge:
    """Consumes `odin.token.>` for ever and puts every message into the feed.

    Feed full, more than the allowed rate, or a share of them while `pause` says so: the newest
    message is shed and counted; the bridge does not wait, as NATS would then drop for us, and
    uncounted. What the outside may know of NATS is written to `upstream`.

    Attributes:
        fed: messages put into the feed so far.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        feed_send: trio.MemorySendChannel[NatsMessage],
        upstream: Upstream,
        pause: Pause,
    ) -> None:
        self.fed = 0
        self._upstream = upstream
        self._settings = settings
        self._books = ledger.publications
        self._feed_send = feed_send
        self._pause = pause
        self._position = Position(recall=min(RECENT_EVENTS_MAX, settings.feed_capacity // 2))
        self._consumer: OrderedConsumer | None = None
        self._outage = Outage(_log, settings.nats_urls)
        # How many connections in a row have ended at the same place, and behind which offset.
        self._stumbles = self._stumbled_at = 0
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Take on the rate of `settings`."""
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
            self._upstream.is_connected = False

    # From here on the functions run under asyncio.

    async def _connect_and_consume(self) -> None:
        trouble: list[str] = []

        async def on_error(_: NatsLink, error: Exception) -> None:
            trouble.extend(describe(error))
            del trouble[:-_TROUBLE_KEPT]

        urls = self._outage.urls_to_try()
        async with nats_link(urls, name="trio-odin", on_error=on_error) as link:
            try:
                mode = await link.while_up(self._subscribe(link))
                self._note_connected(link, mode)
                watches = [self._feel_pulse(link)]
                if self._consumer is not None:
                    watches += [self._consumer.watch(), self._watch_stream(link)]
                await link.while_up(*watches)
            except (OSError, nats.errors.Error) as error:
                if not self._upstream.is_connected:
                    raise
                _log.warning("nats.lost", errors=[*trouble, *describe(error)])
            finally:
                self._upstream.is_connected = False
                if isinstance(link.lost_by, Unreadable):
                    self._stumble(link.lost_by)

    def _stumble(self, reason: Unreadable) -> None:
        """Remember that a connection has ended at what comes after the position."""
        offset = self._position.offset
        self._stumbles = self._stumbles + 1 if offset == self._stumbled_at else 1
        self._stumbled_at = offset
        _log.error(
            "nats.unreadable", after=offset, errors=describe(reason), exc_info=reason.__cause__
        )

    async def _watch_stream(self, link: NatsLink) -> None:
        """Notice when the stream under the link is another one: then the place is found anew.

        Raises:
            nats.errors.Error: it is, or cannot be asked for.
        """
        jetstream = link.client.jetstream(timeout=_REQUEST_SECONDS)
        while True:
            await asyncio.sleep(_STREAM_LOOK_SECONDS)
            before = attrs.evolve(self._position)  # the question, as it moves meanwhile
            info = await jetstream.stream_info(before.stream)
            if before.is_lost_in(state_of(info)):
                raise nats.errors.Error(f"stream {before.stream} is another one now")

    async def _feel_pulse(self, link: NatsLink) -> None:
        """Ask NATS for a sign of life each second.

        Raises:
            nats.errors.Error: there is none, or the link is lost.
        """
        while True:
            await asyncio.sleep(_PULSE_SECONDS)
            await link.client.flush(timeout=_PULSE_DEADLINE_SECONDS)
            self._upstream.heard(trio.current_time())

    def _note_connected(self, link: NatsLink, mode: str) -> None:
        upstream, now = self._upstream, trio.current_time()
        if upstream.mode == "core":
            upstream.declare(Gap(GapReason.CORE))
        upstream.reconnects += upstream.was_connected
        upstream.is_connected = upstream.was_connected = True
        upstream.mode = mode
        upstream.epoch = self._position.epoch if mode == "jetstream" else None
        away = upstream.age_seconds(now)
        upstream.heard(now)
        self._outage.over(link.url)
        _log.info(
            "nats.connected",
            server=places_of([link.url])[0],
            mode=mode,
            away_seconds=None if away is None else round(away, 1),
        )

    async def _subscribe(self, link: NatsLink) -> str:
        """Subscribe in the mode that is wanted and possible; returns which."""
        self._consumer = None
        if self._settings.nats_mode != "core":
            why_not = await self._consume_stream(link)
            if why_not is None:
                return "jetstream"
            if self._settings.nats_mode == "jetstream":
                raise nats.errors.Error(f"{why_not}, and NATS_MODE is jetstream")
            if self._position.epoch:
                # Core in between would have the stream's events come twice, or not at all.
                raise nats.errors.Error(f"{why_not}, and it was consumed before")
            _log.warning("nats.core_only", reason=why_not)
        await link.client.listen(SUBJECT, self._on_core_message)
        await link.client.flush(timeout=int(_REQUEST_SECONDS))
        return "core"

    async def _consume_stream(self, link: NatsLink) -> str | None:
        """Consume JetStream; returns why not, if it is not there or not fit."""
        client = link.client
        if not await has_jetstream(client, request_seconds=_REQUEST_SECONDS):
            return "the server has no JetStream"
        try:
            info = await ensure_stream(client.jetstream(timeout=_REQUEST_SECONDS), self._settings)
        except StreamUnsuitable as unsuitable:
            return str(unsuitable)
        offset = self._find_place(info)
        if self._stumbles >= _STUMBLES_MAX and offset == self._stumbled_at:
            offset = await self._step_over(client)
        self._consumer = OrderedConsumer(client, self._on_stream_message, link.give_up)
        await self._consumer.start(self._position.stream, SUBJECT, after=offset)
        return None

    async def _step_over(self, client: TotalClient) -> int:
        """Leave out the event that has ended one connection after the other."""
        position = self._position
        offset = await next_offset(
            client, position.stream, after=position.offset, request_seconds=_REQUEST_SECONDS
        )
        self._stumbles = 0
        if offset is not None:
            self._upstream.declare(position.step_over(offset))
        return position.offset

    def _find_place(self, info: StreamInfo) -> int:
        """The offset behind which to go on; what is missing before it is declared."""
        self._upstream.declare(*self._position.enter(state_of(info)))
        self._upstream.past = self._position.past
        return self._position.offset

    def _on_stream_message(self, message: Msg, place: Place) -> None:
        offset = place.offset
        if offset <= self._position.offset:
            self._books.repeated += 1
            return
        if gap := self._position.move(offset):
            self._upstream.declare(gap)
        now, position = trio.current_time(), self._position
        self._accept(
            NatsMessage(
                message.subject, message.data, offset, now, position.is_past, position.before
            )
        )

    async def _on_core_message(self, message: Msg) -> None:
        self._accept(NatsMessage(message.subject, message.data, None, trio.current_time()))

    def _accept(self, message: NatsMessage) -> None:
        self._books.received += 1
        if not message.is_past:
            self._upstream.heard_event(message.arrived_at)
            if (reason := self._reason_to_shed(message)) is not None:
                self._books.shed[reason] += 1
                return
        try:
            # A synchronous call across the border; awaiting there would cost six times as much.
            self._feed_send.send_nowait(message)
            self.fed += 1
        except trio.WouldBlock:
            self._books.shed[Shed.FEED_FULL] += 1

    def _reason_to_shed(self, message: NatsMessage) -> Shed | None:
        if self._pause.sheds():
            return Shed.PAUSED
        return None if self._rate.take(message.arrived_at) else Shed.NATS_RATE
