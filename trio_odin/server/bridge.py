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
import time
from contextlib import suppress

import attrs
import nats.errors
import structlog
import trio
import trio_asyncio
from nats.aio.msg import Msg
from nats.js.api import StreamInfo

from trio_odin.config import Settings
from trio_odin.core.backpressure import ByteBudget
from trio_odin.core.gaps import Gap, GapReason, Gaps, Losses, Mark, Position, StreamState, joined
from trio_odin.core.ledger import Ledger, Shed
from trio_odin.core.pause import Pause
from trio_odin.core.place import Place
from trio_odin.core.publication import NatsMessage
from trio_odin.core.ratelimit import TokenBucket
from trio_odin.core.recent import RECENT_EVENTS_MAX
from trio_odin.core.upstream import Upstream
from trio_odin.net.nats_client import Refused, TotalClient, Unreadable
from trio_odin.net.nats_link import NatsLink, Outage, describe
from trio_odin.server.consumer import OrderedConsumer
from trio_odin.server.stream import (
    SUBJECT,
    StreamUnsuitable,
    brings_ours,
    count_generation_on,
    ensure_stream,
    has_jetstream,
    is_made_here,
    next_offset,
    state_of,
    stored_at,
    why_unsuitable,
)

_REQUEST_SECONDS = 5.0
_TROUBLE_KEPT = 3
_PULSE_SECONDS = 1.0
_PULSE_DEADLINE_SECONDS = 60
_STREAM_LOOK_SECONDS = 2.0
_ON_ITS_WAY_SECONDS = 1.0
_SETTLE_LOOK_SECONDS = 0.2
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
        feed_send: trio.MemorySendChannel[NatsMessage | Mark],
        feed_budget: ByteBudget,
        upstream: Upstream,
        pause: Pause,
    ) -> None:
        self.fed = 0
        self._upstream = upstream
        self._settings = settings
        self._books = ledger.publications
        self._feed_send = feed_send
        self._feed_budget = feed_budget
        self._pause = pause
        self._position = Position(recall=min(RECENT_EVENTS_MAX, settings.feed_capacity // 2))
        self._untold: Gaps = {}
        self._must_tell = False
        self._consumer: OrderedConsumer | None = None
        # Not one that others have made, and deleted: they know what it is to be.
        self._may_make = True
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
            self._fail(group)
        except* Exception as group:  # noqa: BLE001 - whatever it was, the way back is to connect
            self._outage.note_unexpected()
            self._fail(group)
        finally:
            self._upstream.is_connected = False

    def _fail(self, error: BaseException) -> None:
        self._upstream.fail("; ".join(describe(error)), trio.current_time())

    # From here on the functions run under asyncio.

    async def _connect_and_consume(self) -> None:
        trouble: list[str] = []

        async def on_error(link: NatsLink, error: Exception) -> None:
            trouble.extend(describe(error))
            del trouble[:-_TROUBLE_KEPT]
            if isinstance(error, Refused) and not self._upstream.is_connected:
                link.lose(error)  # it was needed

        async with self._outage.link(name="trio-odin", on_error=on_error) as link:
            try:
                mode = await link.while_up(self._subscribe(link))
                self._note_connected(link, mode)
                watches = [self._feel_pulse(link), self._tell_losses_of_silence(mode)]
                if self._consumer is not None:
                    watches += [self._consumer.watch(), self._watch_stream(link)]
                    watches.append(self._settle(self._consumer))
                await link.while_up(*watches)
            except (OSError, nats.errors.Error) as error:
                if not self._upstream.is_connected:
                    raise
                _log.warning("nats.lost", errors=[*trouble, *describe(error)])
                self._fail(error)
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
        """Notice what the consumer does not tell: it goes on with heartbeats all the while.

        Raises:
            nats.errors.Error: the stream is another one, has our events no longer, cannot be asked
                for, or does not deliver what it has. Then its place, or another one, is found anew.
        """
        jetstream = link.client.jetstream(timeout=_REQUEST_SECONDS)
        stalled_at = -1
        while True:
            await asyncio.sleep(_STREAM_LOOK_SECONDS)
            before = attrs.evolve(self._position)  # the question, as it moves meanwhile
            info = await jetstream.stream_info(before.stream)
            state = state_of(info)
            if before.is_lost_in(state):
                raise nats.errors.Error(f"stream {before.stream} is another one now")
            if (why_not := why_unsuitable(info)) or not brings_ours(info):
                raise nats.errors.Error(
                    why_not or f"stream {before.stream} has {SUBJECT} no longer"
                )
            if state.last > before.offset and before.offset == stalled_at:
                await self._look_for_stalled(link.client, before)
            stalled_at = before.offset

    async def _look_for_stalled(self, client: TotalClient, before: Position) -> None:
        """Raise if an event waits in the stream and does not come.

        What is behind the position may also be of others, deleted, or just on its way.
        """
        waiting = None
        with suppress(nats.errors.Error):  # in an election
            waiting = await next_offset(client, before.stream, after=before.offset)
        if waiting is not None:
            await asyncio.sleep(_ON_ITS_WAY_SECONDS)
            if self._position.offset == before.offset:
                raise nats.errors.Error(f"the consumer does not deliver event {waiting}")

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
        upstream.reconnects += upstream.was_connected
        upstream.is_connected = upstream.was_connected = True
        upstream.mode = mode
        away = upstream.age_seconds(now)
        upstream.heard(now)
        upstream.recover()
        self._outage.over()
        _log.info(
            "nats.connected",
            server=str(link.url),
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
                raise Refused(f"{why_not}, and NATS_MODE is jetstream")
            if self._position.epoch:
                # Core in between would have the stream's events come twice, or not at all.
                raise Refused(f"{why_not}, and it was consumed before")
            _log.warning("nats.core_only", reason=why_not)
        gaps = [Gap(GapReason.CORE)] if self._upstream.mode == "core" else []
        await self._tell_hub(None, *gaps)
        await link.client.listen(SUBJECT, self._on_core_message)
        await link.client.flush(timeout=int(_REQUEST_SECONDS))
        return "core"

    async def _consume_stream(self, link: NatsLink) -> str | None:
        """Consume JetStream; returns why not, if it is not there or not fit."""
        client = link.client
        if not await has_jetstream(client, request_seconds=_REQUEST_SECONDS):
            return "the server has no JetStream"
        try:
            info = await ensure_stream(client, self._settings, may_make=self._may_make)
        except StreamUnsuitable as unsuitable:
            return str(unsuitable)
        self._may_make = is_made_here(info, self._settings)
        await self._enter(client, info)
        if self._stumbles >= _STUMBLES_MAX and self._position.offset == self._stumbled_at:
            await self._step_over(client)
        self._consumer = OrderedConsumer(client, self._on_stream_message, link.give_up)
        await self._consumer.start(self._position.stream, SUBJECT, after=self._position.offset)
        await self._check_still_there(client)
        await self._consumer.listen()
        return None

    async def _check_still_there(self, client: TotalClient) -> None:
        """The consumer is of the stream that was entered, and not of one made anew since.

        Raises:
            nats.errors.Error: it is another one, whose events would come under the old epoch.
        """
        name = self._position.stream
        state = state_of(await client.jetstream(timeout=_REQUEST_SECONDS).stream_info(name))
        if self._position.is_lost_in(state):
            raise nats.errors.Error(f"stream {name} is another one now")

    async def _step_over(self, client: TotalClient) -> None:
        """Leave out the event that has ended one connection after the other."""
        position = self._position
        offset = await next_offset(client, position.stream, after=position.offset)
        self._stumbles = 0
        if offset is not None:
            gap = position.step_over(offset)
            await self._tell_hub(offset, gap)

    async def _enter(self, client: TotalClient, info: StreamInfo) -> None:
        """Find the place behind which to go on in the stream, and tell the hub."""
        state = await self._state_with_witness(client, info)
        position = self._position
        if position.epoch == state.epoch and position.was_emptied(state):
            state = attrs.evolve(state, epoch=await count_generation_on(client, info))
        self._lose(*position.enter(state))  # at once: the link may be lost before they are told
        if self._upstream.mode == "core":  # until now: what came since then is in the past
            self._lose(Gap(GapReason.CORE, last=position.past))
        if position.witness is None and state.last >= max(state.first, 1):
            stored = await stored_at(client, state.name, state.last)
            position.witness = None if stored is None else (state.last, stored)
        await self._tell_hub(position.offset)

    async def _state_with_witness(self, client: TotalClient, info: StreamInfo) -> StreamState:
        """The state of the stream, with the time of the message that we know, if it is there."""
        state, witness = state_of(info), self._position.witness
        if witness is None or not state.first <= witness[0] <= state.last:
            return state
        return attrs.evolve(state, witness=await stored_at(client, state.name, witness[0]))

    async def _tell_hub(self, reached: int | None, *gaps: Gap) -> None:
        """Put a mark into the feed, in order with the messages. Waits for room."""
        self._lose(*gaps)
        mark = self._mark(reached, *self._untold.values())
        await trio_asyncio.trio_as_aio(self._feed_send.send)(mark)
        self._note_told()

    def _mark(self, reached: int | None, *gaps: Gap) -> Mark:
        position = self._position
        return Mark(position.epoch or None, reached, position.past, gaps, position.is_broken)

    async def _settle(self, consumer: OrderedConsumer) -> None:
        """See to the end of what is read from before the start, also where it never comes.

        The last message of the stream need not be ours, and may be dropped before it was read.
        """
        position = self._position
        while position.offset < position.past:
            with suppress(nats.errors.Error):  # whatever it is, the other watches see to it
                info = await consumer.info()
                delivered = info.delivered.stream_seq if info.delivered else 0
                if info.num_pending == 0 and (delivered or 0) <= position.offset:
                    self._end_past()
            await asyncio.sleep(_SETTLE_LOOK_SECONDS)
        await asyncio.Event().wait()  # the first watch that ends, ends the connection

    def _end_past(self) -> None:
        """Nothing more of ours from before the start will come."""
        self._position.settle()
        self._must_tell = True
        self._tell_losses(self._position.offset)

    async def _tell_losses_of_silence(self, mode: str) -> None:
        """Tell the hub each second what it does not know and no message has told it."""
        while True:
            await asyncio.sleep(Losses.TELL_SECONDS)
            self._tell_losses(self._position.offset if mode == "jetstream" else None)

    def _on_stream_message(self, message: Msg, place: Place) -> None:
        if place.offset <= self._position.offset:
            self._books.repeated += 1
            return
        if gap := self._position.move(place.offset, place.unix_ns):
            self._lose(gap)
        self._must_tell = self._must_tell or self._position.is_broken
        self._accept(
            NatsMessage(
                message.subject,
                message.data,
                place.offset,
                trio.current_time(),
                place.unix_ns // 1_000_000,
                self._position.is_past,
            )
        )
        if place.pending == 0 and self._position.is_past:
            self._end_past()

    async def _on_core_message(self, message: Msg) -> None:
        unix_ms = time.time_ns() // 1_000_000
        now = trio.current_time()
        self._accept(NatsMessage(message.subject, message.data, None, now, unix_ms))

    def _accept(self, message: NatsMessage) -> None:
        self._books.received += 1
        if not message.is_past:
            self._upstream.heard_event(message.arrived_at)
        if (reason := self._reason_to_shed(message)) is not None or not self._feed(message):
            self._books.shed[reason or Shed.FEED_FULL] += 1
            self._lose(Gap(GapReason.SHED, 1, message.offset, message.offset))

    def _feed(self, message: NatsMessage) -> bool:
        """Put `message` into the feed, behind what was lost before. False if there is no room."""
        reached = None if message.offset is None else message.offset - 1
        size = len(message.payload)
        if not self._feed_budget.has_room_for(size) or not self._tell_losses(reached):
            return False
        try:
            # A synchronous call across the border; awaiting there would cost six times as much.
            self._feed_send.send_nowait(message)
        except trio.WouldBlock:
            return False
        self.fed += 1
        self._feed_budget.used_bytes += size
        return True

    def _lose(self, *gaps: Gap) -> None:
        """The hub has to know of `gaps` before the next message."""
        self._untold = joined(self._untold, gaps)
        self._must_tell = True

    def _tell_losses(self, reached: int | None) -> bool:
        """Tell the hub what it does not know, up to `reached`. False if there is no room."""
        if self._must_tell:
            try:
                self._feed_send.send_nowait(self._mark(reached, *self._untold.values()))
            except trio.WouldBlock:
                return False
            self._note_told()
        return True

    def _note_told(self) -> None:
        self._untold, self._must_tell = {}, False
        self._position.is_broken = False

    def _reason_to_shed(self, message: NatsMessage) -> Shed | None:
        if message.is_past:
            return None
        if self._pause.sheds():
            return Shed.PAUSED
        return None if self._rate.take(message.arrived_at) else Shed.NATS_RATE
