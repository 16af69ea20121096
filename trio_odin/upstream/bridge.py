"""The bridge: NATS → inbound queue. Nothing in the server outside `upstream/` knows asyncio.

nats-py runs on asyncio, so each NATS connection gets an asyncio loop inside a trio task
(trio-asyncio), and nothing of it survives that connection. One connection has one life:

    connect ─► consume (ordered consumer or core subscription) ─► lost ─► wait a little ─► again

The position in the stream carries over from one life to the next, so nothing inside the stream's
window is lost or comes twice. What the window has dropped is declared as a gap
(docs/decisions/0002-one-nats-connection-one-life.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import attrs
import nats.errors
import structlog
import trio
import trio_asyncio
from nats.aio.msg import Msg
from nats.js.api import StreamInfo

from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.reasons import GapReason, Shed
from trio_odin.net.token_bucket import TokenBucket
from trio_odin.overload.byte_budget import ByteBudget
from trio_odin.overload.load_shedder import LoadShedder
from trio_odin.settings.settings import Settings
from trio_odin.upstream.access import OF_THE_URL, NatsAccess
from trio_odin.upstream.consumer import OrderedConsumer
from trio_odin.upstream.gaps import Gap, Gaps, Losses, Mark, joined
from trio_odin.upstream.metadata import MessageMetadata
from trio_odin.upstream.nats_client import Refused, TotalClient, Unreadable, spare_detours
from trio_odin.upstream.nats_link import NatsLink, Outage, describe
from trio_odin.upstream.nats_message import NatsMessage, Newest
from trio_odin.upstream.newest import Found, newest_in_mirror, newest_in_stream
from trio_odin.upstream.position import StreamPosition, StreamState
from trio_odin.upstream.status import NatsStatus
from trio_odin.upstream.stream import (
    SUBJECT,
    StreamUnsuitable,
    brings_ours,
    count_generation_on,
    ensure_stream,
    has_jetstream,
    info_after_doubt,
    is_made_here,
    next_offset,
    state_of,
    stored_at,
    why_unsuitable,
)
from trio_odin.wire.channels import channel_of_subject
from trio_odin.wire.payload import why_invalid
from trio_odin.wire.trace_context import HEADER, TraceContext, parse_traceparent

_REQUEST_SECONDS = 5.0
_TROUBLE_KEPT = 3
_PULSE_SECONDS = 1.0
_PULSE_DEADLINE_SECONDS = 60
_STREAM_LOOK_SECONDS = 2.0
_ON_ITS_WAY_SECONDS = 1.0
_SETTLE_LOOK_SECONDS = 0.2
# Clients that have just come wait for it, so it is better to have no first values.
_NEWEST_SECONDS = 1.5
_NEWEST_RETRY_SECONDS = 1.0
_NEWEST_RETRY_MAX_SECONDS = 60.0
_NEWEST_LOOK_SECONDS = 0.02
_NEWEST_IN_ONE_PART = 500
_ALL_PERCENT = 100
_SHED_CHANNELS_MAX = 10_000
# What NATS refuses first to a user that may not use JetStream at all.
_CORE_ONLY = (
    'permissions violation for publish to "$js.api.info"',
    'permissions violation for subscription to "_inbox.',
)
_USE_CORE = "a user that may only subscribe needs NATS_MODE=core"
# An event at which this many connections in a row have ended is skipped.
_STUMBLES_MAX = 2

_log = structlog.get_logger("bridge")


class Bridge:
    """Consumes `odin.token.>` and puts every message into the inbound queue.

    When the queue is full, the rate is exceeded or the load shedder takes its share, the newest
    message is shed and counted. The bridge does not wait: NATS would then drop messages uncounted.
    What others may know of NATS is written to `nats_status`.

    Attributes:
        fed: messages put into the inbound queue so far.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        inbound_send: trio.MemorySendChannel[NatsMessage | Mark | Newest],
        inbound_budget: ByteBudget,
        nats_status: NatsStatus,
        shedder: LoadShedder,
        *,
        backfill_max: int,
        access: NatsAccess = OF_THE_URL,
        is_tracing: bool = False,
    ) -> None:
        """Make a bridge; `run` it.

        `backfill_max`: events to read from before the start, for clients that resume. `is_tracing`:
        whether to find out which trace an event belongs to.
        """
        self.fed = 0
        self._nats_status = nats_status
        self._settings = settings
        self._counters = ledger.publications
        self._inbound_send = inbound_send
        self._inbound_budget = inbound_budget
        self._shedder = shedder
        self._is_tracing = is_tracing
        self._position = StreamPosition(backfill=backfill_max)
        self._untold: Gaps = {}
        self._must_tell = False
        self._consumer: OrderedConsumer | None = None
        self._shed: dict[str, int] = {}  # by channel, the newest one that was shed and is untold
        self._is_shed_unknown = False
        self._wants_newest = bool(settings.snapshot_channels) and settings.is_filtering
        self._is_newest_known = not self._wants_newest
        self._is_newest_awaited = self._wants_newest  # by clients, once
        # False if others made the stream: should they delete it, they know how to make it again.
        self._may_make = True
        self._outage = Outage(_log, settings.nats_urls, access)
        # How many connections in a row have ended at the same event, and after which offset.
        self._stumbles = self._stumbled_at = 0
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Apply the rate of `settings`."""
        self._rate = TokenBucket(
            burst=max(1.0, settings.max_nats_rate),
            per_second=settings.max_nats_rate,
            now=trio.current_time(),
        )

    async def run(self) -> None:
        """Connect, consume and connect again, until cancelled; then closes the inbound queue."""
        with self._inbound_send:
            while True:
                await self._live_once()
                await trio.sleep(self._outage.pause_seconds())

    async def _live_once(self) -> None:
        """Use one NATS connection, from connect to loss."""
        try:
            async with trio_asyncio.open_loop() as loop:
                spare_detours(loop)
                await trio_asyncio.aio_as_trio(self._connect_and_consume)()
        except* (OSError, nats.errors.Error) as group:  # TimeoutError is an OSError
            self._outage.note(group)
            self._fail(group)
        except* Exception as group:  # noqa: BLE001 - whatever it was, the way back is to connect
            self._outage.note_unexpected()
            self._fail(group)
        finally:
            self._nats_status.is_connected = False

    def _fail(self, error: BaseException) -> None:
        self._nats_status.fail("; ".join(describe(error)), trio.current_time())

    # The methods from here on run under asyncio.

    async def _connect_and_consume(self) -> None:
        trouble: list[str] = []

        async def on_error(link: NatsLink, error: Exception) -> None:
            trouble.extend(describe(error))
            del trouble[:-_TROUBLE_KEPT]
            if isinstance(error, Refused) and not self._nats_status.is_connected:
                link.lose(error)  # the link is of no use without it

        async with self._outage.link(name="trio-odin", on_error=on_error) as link:
            try:
                mode = await link.while_up(self._subscribe(link))
                self._note_connected(link, mode)
                watches = [self._feel_pulse(link), self._tell_losses_of_silence(mode)]
                if self._consumer is not None:
                    watches += [self._consumer.watch(), self._watch_stream(link)]
                    watches.append(self._settle(self._consumer))
                    watches.append(self._find_newest(link))
                await link.while_up(*watches)
            except (OSError, nats.errors.Error) as error:
                if not self._nats_status.is_connected:
                    is_auto = self._settings.nats_mode == "auto"
                    if is_auto and str(error).lower().startswith(_CORE_ONLY):
                        raise Refused(f"{error}: {_USE_CORE}") from None
                    raise
                _log.warning("nats.lost", errors=[*trouble, *describe(error)])
                self._fail(error)
            finally:
                self._nats_status.is_connected = False
                if isinstance(link.lost_by, Unreadable):
                    self._stumble(link.lost_by)

    def _stumble(self, reason: Unreadable) -> None:
        """Note that a connection has ended at the event after the position."""
        offset = self._position.offset
        self._stumbles = self._stumbles + 1 if offset == self._stumbled_at else 1
        self._stumbled_at = offset
        _log.error(
            "nats.unreadable", after=offset, errors=describe(reason), exc_info=reason.__cause__
        )

    async def _watch_stream(self, link: NatsLink) -> None:
        """Poll the stream for what the consumer does not report: its heartbeats go on meanwhile.

        Raises:
            nats.errors.Error: the stream is another one, no longer has our events, cannot be asked
                for, or does not deliver what it has. The next connection finds the position anew.
        """
        jetstream = link.client.jetstream(timeout=_REQUEST_SECONDS)
        stalled_at = -1
        while True:
            await asyncio.sleep(_STREAM_LOOK_SECONDS)
            before = attrs.evolve(self._position)  # a copy, as the position moves meanwhile
            info = await jetstream.stream_info(before.stream)
            state = state_of(info)
            if before.is_lost_in(state):
                raise nats.errors.Error(f"stream {before.stream} was replaced by another one")
            if (why_not := why_unsuitable(info)) or not brings_ours(info):
                raise nats.errors.Error(
                    why_not or f"stream {before.stream} no longer has {SUBJECT}"
                )
            if state.last > before.offset and before.offset == stalled_at:
                await self._look_for_stalled(link.client, before)
            stalled_at = before.offset

    async def _look_for_stalled(self, client: TotalClient, before: StreamPosition) -> None:
        """Raise if an event waits in the stream and does not come.

        What is after the position may also belong to others, be deleted, or be just on its way.
        """
        waiting = None
        with suppress(nats.errors.Error):  # during an election
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
            self._nats_status.heard(trio.current_time())

    def _note_connected(self, link: NatsLink, mode: str) -> None:
        nats_status, now = self._nats_status, trio.current_time()
        nats_status.reconnects += nats_status.was_connected
        nats_status.is_connected = nats_status.was_connected = True
        nats_status.mode = mode
        away = nats_status.age_seconds(now)
        nats_status.heard(now)
        nats_status.recover()
        self._outage.over()
        _log.info(
            "nats.connected",
            server=str(link.url),
            mode=mode,
            away_seconds=None if away is None else round(away, 1),
        )

    async def _subscribe(self, link: NatsLink) -> str:
        """Subscribe in the mode that is configured and possible; returns the mode."""
        self._consumer = None
        if self._settings.nats_mode != "core":
            why_not = await self._consume_stream(link)
            if why_not is None:
                return "jetstream"
            if self._settings.nats_mode == "jetstream":
                raise Refused(f"{why_not}, and NATS_MODE is jetstream")
            if self._position.epoch:
                # With core mode in between, the stream's events would come twice or not at all.
                raise Refused(f"{why_not}, but it was consumed before")
            _log.warning("nats.core_only", reason=why_not)
        gaps = [Gap(GapReason.CORE)] if self._nats_status.mode == "core" else []
        await self._tell_hub(None, *gaps)
        await link.client.listen(SUBJECT, self._on_core_message)
        await link.client.flush(timeout=int(_REQUEST_SECONDS))
        return "core"

    async def _consume_stream(self, link: NatsLink) -> str | None:
        """Consume the stream; returns why not, if there is no JetStream or no suitable stream."""
        client = link.client
        if not await has_jetstream(client, request_seconds=_REQUEST_SECONDS):
            return "the NATS server has no JetStream"
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
        """Check that the consumer is of the stream that was entered, not of one made anew since.

        Raises:
            nats.errors.Error: it is another one, whose events would come under the old epoch.
        """
        name = self._position.stream
        state = state_of(await client.jetstream(timeout=_REQUEST_SECONDS).stream_info(name))
        if self._position.is_lost_in(state):
            raise nats.errors.Error(f"stream {name} was replaced by another one")

    async def _step_over(self, client: TotalClient) -> None:
        """Skip the event that has ended one connection after the other."""
        position = self._position
        offset = await next_offset(client, position.stream, after=position.offset)
        self._stumbles = 0
        if offset is not None:
            self._is_newest_known = not self._wants_newest
            await self._tell_hub(offset, position.step_over(offset))

    async def _enter(self, client: TotalClient, info: StreamInfo) -> None:
        """Find the position after which to go on in the stream, and inform the hub."""
        position = self._position
        if position.epoch:
            info = await info_after_doubt(client, info, is_lost=position.was_emptied_in_place)
        state = await self._state_with_witness(client, info)
        if position.was_emptied_in_place(state):
            state = attrs.evolve(state, epoch=await count_generation_on(client, info))
        is_first = not position.epoch
        gaps = position.enter(state)
        self._lose(*gaps)  # at once: the link may be lost before the hub knows
        if gaps or is_first:
            self._is_newest_known = not self._wants_newest
        if self._nats_status.mode == "core":  # until now: the gap ends with the backfill
            self._lose(Gap(GapReason.CORE, last=position.backfill_end))
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
        """Put a mark into the inbound queue, in order with the messages. Waits for room."""
        self._lose(*gaps)
        mark = self._mark(reached, *self._untold.values())
        await self._send(mark)
        self._note_told()

    def _mark(self, reached: int | None, *gaps: Gap) -> Mark:
        position = self._position
        return Mark(
            position.epoch or None,
            reached,
            position.backfill_end,
            gaps,
            position.is_broken,
            is_newest_coming=reached is not None and self._is_newest_awaited,
            shed=self._shed,
            is_shed_unknown=self._is_shed_unknown,
        )

    async def _find_newest(self, link: NatsLink) -> None:
        """Find the newest message of each channel for the hub, whenever it is not known.

        The feed goes on meanwhile. Without an answer there is no first value of quiet channels.
        While all events are shed, as memory or CPU is short, nothing is read again: it would take
        more of it, and be outdated at once.
        """
        pause, trouble = _NEWEST_RETRY_SECONDS, [""]
        while True:
            if self._is_newest_known:
                pause = _NEWEST_RETRY_SECONDS
            elif self._is_newest_awaited or not self._sheds_all:
                errors = await self._read_newest(link.client)
                pause = min(2 * pause, _NEWEST_RETRY_MAX_SECONDS)
                if errors not in ([], trouble) and link.client.is_connected:
                    _log.warning("nats.newest_unknown", errors=errors)
                trouble = errors
            await asyncio.sleep(pause)

    @property
    def _sheds_all(self) -> bool:
        return self._shedder.percent >= _ALL_PERCENT

    async def _read_newest(self, client: TotalClient) -> list[str]:
        """Read the newest messages and tell the hub; returns the errors, as short lines."""
        self._is_newest_known = True  # until something is shed, even while they are read
        errors = ["cancelled"]
        try:
            errors = await self._read_and_tell_newest(client)
        finally:
            if errors:
                self._is_newest_known = False
        return errors

    async def _read_and_tell_newest(self, client: TotalClient) -> list[str]:
        settings, position = self._settings, attrs.evolve(self._position)
        older: Sequence[NatsMessage] = ()
        found = Found((), None)
        errors: list[str] = []
        if settings.keeps_newest:
            try:
                async with asyncio.timeout(_NEWEST_SECONDS):
                    older = await newest_in_mirror(
                        client, settings, position.stream, position.epoch
                    )
            except (TimeoutError, nats.errors.Error) as error:
                errors += describe(error)
        try:
            async with asyncio.timeout(_NEWEST_SECONDS):
                found = await newest_in_stream(
                    client, settings, position.stream, position.epoch, position=position.offset
                )
                # Nothing of it may be news to the hub: it would come a second time.
                ends = [part[-1].offset or 0 for part in (older, found.messages) if part]
                while self._position.offset < max(ends, default=0):  # noqa: ASYNC110
                    await asyncio.sleep(_NEWEST_LOOK_SECONDS)
        except (TimeoutError, nats.errors.Error) as error:
            errors += describe(error)
            found = Found((), None)
        self._is_newest_awaited = False
        if self._must_tell:  # what was shed is newer than what is known of its channel
            await self._tell_hub(self._position.offset)
        await self._tell_newest(older, position.offset, None)
        await self._tell_newest(found.messages, position.offset, found.known_after)
        await self._send(Newest((), position.offset, found.known_after, is_last=True))
        return errors

    async def _tell_newest(
        self, messages: Sequence[NatsMessage], position: int, known_after: int | None
    ) -> None:
        for start in range(0, len(messages), _NEWEST_IN_ONE_PART):
            part = messages[start : start + _NEWEST_IN_ONE_PART]
            await self._send(Newest(part, position, known_after))

    async def _send(self, item: Mark | Newest) -> None:
        """Put `item` into the inbound queue. Waits for room."""
        await trio_asyncio.trio_as_aio(self._inbound_send.send)(item)

    async def _settle(self, consumer: OrderedConsumer) -> None:
        """End the backfill where its last message never comes.

        The last message of the stream need not be ours, and may be dropped before it was read.
        """
        position = self._position
        while position.offset < position.backfill_end:
            with suppress(nats.errors.Error):  # the other watches see to errors
                info = await consumer.info()
                delivered = info.delivered.stream_seq if info.delivered else 0
                if info.num_pending == 0 and (delivered or 0) <= position.offset:
                    self._end_backfill()
            await asyncio.sleep(_SETTLE_LOOK_SECONDS)
        await asyncio.Event().wait()  # the first watch that ends, ends the connection

    def _end_backfill(self) -> None:
        """Declare the backfill as read: nothing more of ours from before the start will come."""
        self._position.settle()
        self._must_tell = True
        self._tell_losses(self._position.offset)

    async def _tell_losses_of_silence(self, mode: str) -> None:
        """Inform the hub each second of losses that no message has made known to it."""
        while True:
            await asyncio.sleep(Losses.TELL_SECONDS)
            self._tell_losses(self._position.offset if mode == "jetstream" else None)

    def _on_stream_message(self, message: Msg, metadata: MessageMetadata) -> None:
        arrival = self._position.arrived(metadata.offset, metadata.unix_ns)
        if arrival is None:
            self._counters.repeated += 1
            return
        if arrival.gap:
            self._lose(arrival.gap)
            self._is_newest_known = not self._wants_newest
        if self._position.is_broken:
            self._must_tell, self._is_newest_known = True, not self._wants_newest
        self._accept(
            NatsMessage(
                message.subject,
                message.data,
                metadata.offset,
                trio.current_time(),
                metadata.unix_ns // 1_000_000,
                arrival.is_backfill,
                self._trace_of(message) if message.headers and not arrival.is_backfill else None,
            )
        )
        if metadata.pending == 0 and arrival.is_backfill:
            self._end_backfill()

    def _on_core_message(self, message: Msg) -> None:
        unix_ms = time.time_ns() // 1_000_000
        now = trio.current_time()
        trace = self._trace_of(message) if message.headers else None
        self._accept(NatsMessage(message.subject, message.data, None, now, unix_ms, trace=trace))

    def _trace_of(self, message: Msg) -> TraceContext | None:
        """The span that a message with headers comes from, if that is to be traced here."""
        if not self._is_tracing or message.headers is None:
            return None
        context = parse_traceparent(message.headers.get(HEADER, ""))
        return context if context is not None and context.is_sampled else None

    def _accept(self, message: NatsMessage) -> None:
        self._counters.received += 1
        if not message.is_backfill:
            self._nats_status.heard_event(message.arrived_at)
        if (reason := self._reason_to_shed(message)) is not None or not self._feed(message):
            self._counters.shed[reason or Shed.FEED_FULL] += 1
            self._lose(Gap(GapReason.SHED, 1, message.offset, message.offset))
            self._is_newest_known = not self._wants_newest
            channel = channel_of_subject(message.subject)
            if channel and message.offset is not None and not why_invalid(message.payload):
                self._shed[channel] = message.offset
                if len(self._shed) > _SHED_CHANNELS_MAX:
                    self._shed, self._is_shed_unknown = {}, True

    def _feed(self, message: NatsMessage) -> bool:
        """Queue `message` for the hub, after the losses before it. False if there is no room."""
        reached = None if message.offset is None else message.offset - 1
        size = len(message.payload)
        if not self._inbound_budget.has_room_for(size) or not self._tell_losses(reached):
            return False
        try:
            # A synchronous call from asyncio into trio: awaiting would cost six times as much.
            self._inbound_send.send_nowait(message)
        except trio.WouldBlock:
            return False
        self.fed += 1
        self._inbound_budget.used_bytes += size
        return True

    def _lose(self, *gaps: Gap) -> None:
        """Note `gaps`, which the hub has to know of before the next message."""
        self._untold = joined(self._untold, gaps)
        self._must_tell = True

    def _tell_losses(self, reached: int | None) -> bool:
        """Inform the hub of what it does not know, up to `reached`. False if there is no room."""
        if self._must_tell:
            try:
                self._inbound_send.send_nowait(self._mark(reached, *self._untold.values()))
            except trio.WouldBlock:
                return False
            self._note_told()
        return True

    def _note_told(self) -> None:
        self._untold, self._must_tell = {}, False
        self._shed, self._is_shed_unknown = {}, False
        self._position.is_broken = False

    def _reason_to_shed(self, message: NatsMessage) -> Shed | None:
        if message.is_backfill:
            return None
        if self._shedder.sheds():
            return Shed.PAUSED
        return None if self._rate.take(message.arrived_at) else Shed.NATS_RATE
