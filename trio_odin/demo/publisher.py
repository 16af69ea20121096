"""The publisher service: a simulated market into NATS, under HTTP control.

    publish()
    ├── http            /control /stats /health
    └── run             one NATS connection after another, each with
        ├── link        an asyncio loop and nats-py
        └── pump        one open-loop run after another; it continues while there is no link

Between the schedule and NATS there is no queue: a tick that finds no connection is an error in the
statistics, not a message that comes late.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import attrs
import nats.errors
import structlog
import trio
import trio_asyncio

from trio_odin.demo.control import Control, Run, Schedule
from trio_odin.demo.market import DEFAULT_TOKENS, Market
from trio_odin.demo.shares import DEFAULT_EVENTS, Draw, Shares
from trio_odin.net.http import Request, Response, serve_request
from trio_odin.net.listening import Address, bound_address, open_listeners
from trio_odin.upstream.access import OF_THE_URL, NatsAccess
from trio_odin.upstream.nats_link import NatsLink, Outage
from trio_odin.wire.trace_context import HEADER, TraceContext

# No pause is longer, so `configure` takes effect soon, however low the rate.
_LOOK_SECONDS = 0.2
# A tick later than this (after the machine slept, for instance) is an error and not published.
_LATE_MAX_SECONDS = 5.0
_BATCH_MAX = 1000
_PUBLISH_SECONDS = 2.0

# Subject, payload, and headers if there are any.
_Message: TypeAlias = tuple[str, bytes, dict[str, str] | None]

_log = structlog.get_logger("publisher")


@attrs.frozen
class PublisherSettings:
    """How a publisher runs. `rate` is messages a second over all tokens.

    `events` are the event types, and `shares` is how the events are spread over the tokens. So much
    of them as `traced_share`, from 0 to 1, have a sampled `traceparent`.
    """

    address: Address = attrs.field(factory=lambda: Address("", 3003))
    nats_urls: Sequence[str] = ("nats://127.0.0.1:4222",)
    access: NatsAccess = OF_THE_URL
    rate: float = 12.0
    tokens: Sequence[str] = DEFAULT_TOKENS
    events: Sequence[str] = DEFAULT_EVENTS
    shares: Shares = "even"
    autostart: bool = True
    seed: int | None = None
    traced_share: float = 0.0


class Publisher:
    """A running publisher. Made by `publish`.

    Attributes:
        address: where the control listens.
        control: its orders and its statistics.
    """

    def __init__(self, settings: PublisherSettings, listeners: list[trio.SocketListener]) -> None:
        self.address = bound_address(listeners[0])
        self.control = Control(rate=settings.rate, tokens=tuple(settings.tokens))
        self._settings = settings
        self._market = Market(settings.seed)
        self._random = random.Random(settings.seed)
        self._started_at = trio.current_time()
        self._link: NatsLink | None = None
        self._outage = Outage(_log, settings.nats_urls, settings.access)
        self._changed = trio.Event()
        self._is_to_start = settings.autostart
        self._run: Run | None = None
        self._schedule = Schedule(rate=settings.rate, start=0)
        self._draw = Draw(settings.tokens)
        self._number = 0

    @property
    def is_connected(self) -> bool:
        """Whether NATS accepts messages now."""
        return self._link is not None and self._link.is_up

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one control connection; a fault in it does not stop the publishing."""
        try:
            await serve_request(stream, self.respond)
        except Exception:  # noqa: BLE001 - as said
            _log.exception("control.failed")

    async def respond(self, request: Request) -> Response:
        """Answer one HTTP request, always with 200, as the existing scripts expect."""
        match request.method, request.path:
            case "POST", "/control":
                answer = self.control.command(
                    request.body, now=trio.current_time(), unix_ms=_unix_ms()
                )
                self._changed.set()
                _log.info("control", body=request.body[:200].decode(errors="replace"), **answer)
            case "GET" | "HEAD", "/stats":
                answer = self.control.report()
            case "GET" | "HEAD", "/health":
                answer = self._health()
            case "OPTIONS", _:
                return Response(200, headers=_PREFLIGHT)
            case _:
                answer = {"success": False, "message": "POST /control, GET /stats, GET /health"}
        return Response.json(200, answer)

    def _health(self) -> dict[str, Any]:
        return {
            "status": "healthy",
            "nats": "connected" if self.is_connected else "disconnected",
            "publishing": self.control.run is not None,
            "uptime": round((trio.current_time() - self._started_at) * 1000),
        }

    async def run(self) -> None:
        """Hold a NATS connection, replace it whenever it is lost, and publish meanwhile.

        Each connection has its own asyncio loop. trio-asyncio's loop can break when its socket is
        reset; then only that connection is lost.
        """
        while True:
            try:
                async with trio_asyncio.open_loop(), trio.open_nursery() as nursery:
                    nursery.start_soon(self.pump)
                    await trio_asyncio.aio_as_trio(self._hold_link)()
                    nursery.cancel_scope.cancel(reason="NATS is lost")
            except* (OSError, nats.errors.Error) as group:
                self._outage.note(group)
            except* Exception:  # noqa: BLE001 - whatever it was, the way back is to connect again
                self._outage.note_unexpected()
            finally:
                self._link = None
            with trio.move_on_after(self._outage.pause_seconds()):
                await self.pump()

    async def _hold_link(self) -> None:
        """Under asyncio: connect, and return when the connection is lost."""

        async def on_error(_: NatsLink, error: Exception) -> None:
            _log.debug("nats.error", error=repr(error))

        async with self._outage.link(name="trio-odin-publisher", on_error=on_error) as link:
            self._link = link
            self._outage.over()
            _log.info("nats.connected")
            self.autostart()
            await link.wait_lost()
            _log.warning("nats.lost")

    def autostart(self) -> None:
        """Begin the first run, if the settings ask for one; called when NATS is connected."""
        if self._is_to_start:
            self._is_to_start = False
            if self.control.run is None:
                self.control.start(now=trio.current_time(), unix_ms=_unix_ms())
                self._changed.set()

    async def pump(self) -> None:
        """Publish the due ticks of the control's current run, until cancelled.

        Cancellation: due ticks that are not known to be sent count as errors; another pump
        continues at this place.
        """
        while True:
            run = self.control.run
            if run is None:
                await self._wait_for_change()
            else:
                await self._step(run)

    async def _wait_for_change(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()

    async def _step(self, run: Run) -> None:
        """Publish the due ticks of `run`, and wait for the next one."""
        if run is not self._run:
            _log.info("run.started", rate=run.rate, tokens=len(run.tokens))
            self._run = run
            self._schedule = Schedule(rate=run.rate, start=trio.current_time())
            self._draw = Draw(
                run.tokens,
                events=self._settings.events,
                shares=self._settings.shares,
                rate=run.rate,
                seed=self._settings.seed,
            )
            self._number = 0
        now = trio.current_time()
        due = self._schedule.take_due(min(now, run.ends_at))
        number, self._number = self._number, self._number + due
        await self._publish_due(run, number, due)
        if now >= run.ends_at and self.control.run is run:
            self.control.stop()
            _log.info("run.ended", **self.control.stats.as_json())
        await trio.sleep_until(min(self._schedule.next_at, run.ends_at, now + _LOOK_SECONDS))

    async def _publish_due(self, run: Run, number: int, count: int) -> None:
        """Publish `count` ticks from `number` on, except those that are far too late."""
        too_late = max(0, count - math.ceil(run.rate * _LATE_MAX_SECONDS))
        self.control.stats.errors += too_late
        ticks = range(number + too_late, number + count)
        for start in range(0, len(ticks), _BATCH_MAX):
            await self._publish(ticks[start : start + _BATCH_MAX])

    async def _publish(self, ticks: Sequence[int]) -> None:
        """Publish an event for each of some ticks."""
        stats, sent = self.control.stats, 0  # a new run has its own statistics
        try:
            if self._link is not None and self._link.is_up:
                batch = self._batch(ticks)
                # One crossing into asyncio for all due ticks, as a crossing costs 0.1 ms.
                sent = await trio_asyncio.aio_as_trio(partial(_publish_batch, self._link, batch))()
        finally:
            stats.published += sent
            stats.errors += len(ticks) - sent

    def _batch(self, ticks: Sequence[int]) -> list[_Message]:
        """The messages of some ticks."""
        batch: list[_Message] = []
        clocks_apart = time.time() - trio.current_time()
        for tick in ticks:
            token, event_type = self._draw.take(tick)
            # The due time, not the time of sending: a latency measured by it includes our lateness.
            unix_ms = round((clocks_apart + self._schedule.due_at(tick)) * 1000)
            channel, payload = self._market.event(token, event_type, unix_ms)
            batch.append((f"odin.token.{channel}", payload, self._headers()))
        return batch

    def _headers(self) -> dict[str, str] | None:
        """The header of a trace that begins here, for the share of the events that is traced."""
        share, number = self._settings.traced_share, self._random
        if not share or number.random() >= share:
            return None
        trace_id, span_id = number.getrandbits(128) or 1, number.getrandbits(64) or 1
        return {HEADER: TraceContext(f"{trace_id:032x}", f"{span_id:016x}").traceparent}


async def _publish_batch(link: NatsLink, batch: Sequence[_Message]) -> int:
    """Under asyncio: publish; returns how many messages nats-py took within the deadline."""
    sent = 0
    try:
        async with asyncio.timeout(_PUBLISH_SECONDS):
            for subject, payload, headers in batch:
                await link.client.publish(subject, payload, headers=headers)
                sent += 1
    except (OSError, nats.errors.Error) as error:
        _log.debug("nats.publish_failed", error=repr(error))
    return sent


_PREFLIGHT = (
    ("Access-Control-Allow-Methods", "GET, POST, OPTIONS"),
    ("Access-Control-Allow-Headers", "Content-Type"),
)


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000


async def publish(
    settings: PublisherSettings,
    *,
    task_status: trio.TaskStatus[Publisher] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Publish until cancelled. Starts with a `Publisher` as soon as its control listens.

    NATS may be absent: publishing begins when NATS is there, and ticks without it count as errors.

    Raises:
        AddressUnavailable: the control cannot listen at its address.
    """
    listeners = await open_listeners(settings.address)
    publisher = Publisher(settings, listeners)
    _log.info("publisher.listening", addresses=[str(publisher.address)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, publisher.serve, listeners)
        nursery.start_soon(publisher.run)
        task_status.started(publisher)
