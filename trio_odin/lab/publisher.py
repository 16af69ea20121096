"""The publisher service: a simulated market into NATS, under HTTP control.

    publish()
    ├── http            /control /stats /health
    ├── link            NATS, connected again for ever
    └── runs            one open-loop run after another

Between the schedule and NATS there is no queue: a tick that finds no connection is an error in the
statistics, not a message that comes late.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import nats.errors
import structlog
import trio
import trio_asyncio
from nats.aio.client import Client

from trio_odin.lab.control import Control, Run, Schedule
from trio_odin.lab.market import DEFAULT_TOKENS, Market
from trio_odin.net.address import Address, bound_address, open_listeners
from trio_odin.net.http import Request, Response, serve_request

_CONNECT_SECONDS = 5
_CLOSE_SECONDS = 2.0
_PING_SECONDS = 3
_PINGS_OUTSTANDING = 2
_BACKOFF_SECONDS = (0.1, 1.0)
# A pause this long lets a configure take effect soon, however low the rate.
_LOOK_SECONDS = 0.2

_log = structlog.get_logger("publisher")


@attrs.frozen
class PublisherSettings:
    """How a publisher runs. `rate` is messages a second over all tokens."""

    address: Address = attrs.field(factory=lambda: Address("", 3003))
    nats_urls: Sequence[str] = ("nats://127.0.0.1:4222",)
    rate: float = 12.0
    tokens: Sequence[str] = DEFAULT_TOKENS
    autostart: bool = True
    seed: int | None = None


class Publisher:
    """A running publisher, as whoever started it sees it. Made by `publish`.

    Attributes:
        address: where the control listens.
        control: what it is to do, and its statistics.
    """

    def __init__(self, settings: PublisherSettings, listeners: list[trio.SocketListener]) -> None:
        self.address = bound_address(listeners[0])
        self.control = Control(rate=settings.rate, tokens=tuple(settings.tokens))
        self._settings = settings
        self._market = Market(settings.seed)
        self._started_at = trio.current_time()
        self._client: Client | None = None
        self._changed = trio.Event()

    @property
    def is_connected(self) -> bool:
        """Whether NATS takes messages now."""
        return self._client is not None and self._client.is_connected

    async def respond(self, request: Request) -> Response:
        """Answer one HTTP request; always 200, as the existing scripts expect."""
        match request.method, request.path:
            case "POST", "/control":
                answer = self.control.command(request.body, unix_ms=_unix_ms())
                self._changed.set()
                _log.info("control", body=request.body[:200].decode(errors="replace"), **answer)
            case "GET" | "HEAD", "/stats":
                answer = self.control.report()
            case "GET" | "HEAD", "/health":
                answer = self._health()
            case "OPTIONS", _:
                return Response(204, headers=_PREFLIGHT)
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

    async def keep_link(self) -> None:
        """Hold a NATS connection, and make another one whenever it is lost."""
        failures = 0
        while True:
            try:
                await trio_asyncio.aio_as_trio(self._hold_link)()
                failures = 0
            except (OSError, nats.errors.Error) as error:
                failures += 1
                if failures.bit_count() == 1:  # the 1st, 2nd, 4th, 8th … in a row
                    _log.warning("nats.failed", in_a_row=failures, error=repr(error))
            await trio.sleep(random.uniform(*_BACKOFF_SECONDS))

    async def _hold_link(self) -> None:
        """Under asyncio: connect, and return when the connection is lost."""
        lost = asyncio.Event()
        client = Client()

        async def on_closed() -> None:
            lost.set()

        async def on_error(error: Exception) -> None:
            _log.debug("nats.error", error=repr(error))

        try:
            await client.connect(
                servers=list(self._settings.nats_urls),
                name="trio-odin-publisher",
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_SECONDS,
                ping_interval=_PING_SECONDS,
                max_outstanding_pings=_PINGS_OUTSTANDING,
                closed_cb=on_closed,
                error_cb=on_error,
            )
            self._client = client
            _log.info("nats.connected")
            await lost.wait()
            _log.warning("nats.lost")
        finally:
            self._client = None
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await client.close()

    async def run_for_ever(self) -> None:
        """Carry out whatever run the control asks for, one after another."""
        if self._settings.autostart:
            self.control.start(unix_ms=_unix_ms())
        while True:
            if self.control.run is None:
                await self._wait_for_change()
            else:
                await self._carry_out(self.control.run)

    async def _wait_for_change(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()

    async def _carry_out(self, run: Run) -> None:
        """Publish on the schedule of `run` until its time is over or the control has another."""
        _log.info("run.started", rate=run.rate, tokens=len(run.tokens))
        start = trio.current_time()
        end = start + run.seconds
        schedule = Schedule(rate=run.rate, start=start)
        number = 0
        while self.control.run is run:
            now = trio.current_time()
            due = schedule.take_due(min(now, end))
            await self._publish(run, number, due)
            number += due
            if now >= end:
                self.control.stop()
            else:
                await trio.sleep_until(min(schedule.next_at, end, now + _LOOK_SECONDS))
        _log.info("run.ended", **self.control.stats.as_json())

    async def _publish(self, run: Run, number: int, count: int) -> None:
        """Publish the ticks from `number` on, `count` of them; each token has its turn."""
        if not count:
            return
        stats = self.control.stats
        if self._client is None or not self._client.is_connected:
            stats.errors += count
            return
        batch = []
        for tick in range(number, number + count):
            token = run.tokens[tick % len(run.tokens)]
            batch.append((f"odin.token.{token}.trade", self._market.trade(token, _unix_ms())))
        try:
            # One crossing into asyncio for all that is due, as a crossing costs 0.1 ms.
            await trio_asyncio.aio_as_trio(partial(_publish_batch, self._client, batch))()
        except (OSError, nats.errors.Error):
            stats.errors += count
        else:
            stats.published += count


async def _publish_batch(client: Client, batch: Sequence[tuple[str, bytes]]) -> None:
    """Under asyncio. nats-py waits for nothing here unless its buffer of 2 MiB is full."""
    for subject, payload in batch:
        await client.publish(subject, payload)


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

    NATS need not be there: ticks without it are counted as errors.

    Raises:
        AddressUnavailable: the control cannot listen where it should.
    """
    listeners = await open_listeners(settings.address)
    publisher = Publisher(settings, listeners)
    async with trio_asyncio.open_loop(), trio.open_nursery() as nursery:
        nursery.start_soon(
            trio.serve_listeners, partial(serve_request, respond=publisher.respond), listeners
        )
        nursery.start_soon(publisher.keep_link)
        nursery.start_soon(publisher.run_for_ever)
        task_status.started(publisher)
