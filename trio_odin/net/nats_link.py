"""A link to NATS: one connection from connect to loss, for the bridge and for the publisher.

Everything in here runs under asyncio, inside a loop of trio-asyncio's. nats-py's own reconnecting
is off: with it there would be two ways to lose a connection and two to get it back. Who wants to
stay connected makes another link.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias, TypeVar

import nats.errors
from nats.aio.client import Client

from trio_odin.net.nats_client import TotalClient

T = TypeVar("T")

# For each server: one that hangs is not to keep us from the next.
_CONNECT_SECONDS = 3
_FLUSH_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
# A hung server is noticed after three pings without an answer, so within 9 s.
_PING_SECONDS = 3
_PINGS_OUTSTANDING = 2
_LOOK_SECONDS = 0.5
_BACKOFF_FIRST_SECONDS = 0.1
_BACKOFF_MAX_SECONDS = 0.5


class NatsLink:
    """A connection that is open, or was. Made by `nats_link`.

    Attributes:
        url: where it is connected.
        client: of nats-py, and ours where that is not total.
        lost_by: why it is lost; None while it is not.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = TotalClient(self._lose)
        self.lost_by: Exception | None = None
        self._lost = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether NATS takes and gives messages now."""
        return self.client.is_connected and not self._lost.is_set()

    def give_up(self, why: str) -> None:
        """Count the connection as lost, for a reason that nats-py does not know: a sentence."""
        self._lose(nats.errors.Error(why))

    def _lose(self, reason: Exception) -> None:
        self.lost_by = self.lost_by or reason  # what comes after the first is its consequence
        self._lost.set()

    async def wait_lost(self) -> None:
        """Wait until the connection is lost; `lost_by` says why."""
        await self._lost.wait()

    async def while_up(self, *works: Coroutine[Any, Any, T]) -> T:
        """Do `works` at the same time, until the first has ended; returns what that returns.

        Raises:
            Exception: the connection was lost meanwhile (`lost_by`), or what a work raises.
        """
        tasks = [asyncio.create_task(work) for work in works]
        loss = asyncio.create_task(self._lost.wait())
        try:
            ended, _ = await asyncio.wait({*tasks, loss}, return_when=asyncio.FIRST_COMPLETED)
            if self.lost_by is not None:
                raise self.lost_by
            return next(task for task in tasks if task in ended).result()
        finally:
            await _cancel({*tasks, loss})

    async def close(self) -> None:
        """Close, within two seconds.

        nats-py can fail at that in many ways, by an assertion for one; none of them may hide why
        the connection ended.
        """
        with suppress(Exception):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.client.close()
        _abort(self.client)
        await _end_tasks(self.client)


OnError: TypeAlias = Callable[[NatsLink, Exception], Awaitable[None]]


@asynccontextmanager
async def nats_link(
    urls: Sequence[str], *, name: str, on_error: OnError
) -> AsyncIterator[NatsLink]:
    """Connect to the first of `urls` that answers; close at the end, within two seconds.

    `on_error` gets what nats-py meets while connected.

    Raises:
        OSError, nats.errors.Error: no connection could be had (TimeoutError is an OSError). It is
            the error of the last one.
    """
    link = await _first_that_answers(urls, name, on_error)
    try:
        yield link
    finally:
        await link.close()


async def _first_that_answers(urls: Sequence[str], name: str, on_error: OnError) -> NatsLink:
    # nats-py, given several, gives up at the first one that accepts and then says nothing.
    *others, last = urls
    for url in others:
        with suppress(OSError, nats.errors.Error):
            return await _connect(url, name, on_error)
    return await _connect(last, name, on_error)


async def _connect(url: str, name: str, on_error: OnError) -> NatsLink:
    link = NatsLink(url)

    async def failed(error: Exception) -> None:
        await on_error(link, error)

    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            await link.client.connect(
                servers=[url],
                name=name,
                allow_reconnect=False,
                # Here these two mean: try once more, at once, then give up.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_SECONDS,
                ping_interval=_PING_SECONDS,
                max_outstanding_pings=_PINGS_OUTSTANDING,
                flush_timeout=_FLUSH_SECONDS,
                error_cb=failed,
            )
    except BaseException:  # one that failed half-way needs closing too
        await link.close()
        raise
    return link


def _abort(client: Client) -> None:
    """Close the socket, whatever state nats-py left it in.

    When its own closing fails, nats-py forgets an open socket with data waiting. The garbage
    collector closes that some time later, under the feet of the event loop, which fails on the bad
    file number. There is no public way to the socket.
    """
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


async def _end_tasks(client: Client) -> None:
    """Take notice of how nats-py's tasks end, or asyncio logs a traceback for each that failed."""
    names = ("_reading_task", "_ping_interval_task")
    tasks = [task for name in names if (task := getattr(client, name, None)) is not None]
    if tasks:
        ended, _ = await asyncio.wait(tasks, timeout=_LOOK_SECONDS)
        for task in ended:
            _ = task.cancelled() or task.exception()


async def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended.

    nats-py, and `asyncio.wait_for` before Python 3.12, can lose a cancellation that comes together
    with an answer; the task would go on for ever.
    """
    while tasks:
        for task in tasks:
            task.cancel()
        ended, tasks = await asyncio.wait(tasks, timeout=_LOOK_SECONDS)
        for task in ended:
            _ = task.cancelled() or task.exception()


def describe(error: BaseException) -> list[str]:
    """An error, or all in a group of them, as short lines for a log."""
    if isinstance(error, BaseExceptionGroup):
        return [line for inner in error.exceptions for line in describe(inner)]
    return [f"{type(error).__name__}: {error}" if str(error) else type(error).__name__]


def places_of(urls: Sequence[str]) -> list[str]:
    """`host:port` of each URL, for a log: credentials are left out."""
    return [url.rpartition("@")[2].rpartition("//")[2].rstrip("/") for url in urls]


class Outage:
    """Failures in a row to have a link: how long to pause after each, and which to log.

    Attributes:
        failures: how many since NATS was there.
    """

    def __init__(self, log: Any, urls: Sequence[str]) -> None:
        self.failures = 0
        self._log = log
        self._urls = urls
        self._last_url = ""
        self._servers = places_of(urls)

    def urls_to_try(self) -> list[str]:
        """In which order to try: by chance, but behind the others the one that was lost last."""
        shuffled = random.sample(self._urls, len(self._urls))
        return sorted(shuffled, key=lambda url: url == self._last_url)

    def over(self, url: str) -> None:
        """NATS is there, at `url`."""
        self.failures = 0
        self._last_url = url

    def note(self, error: BaseException) -> None:
        """Count a failure; log the 1st, 2nd, 4th, 8th … so that a long outage is no flood."""
        self.failures += 1
        if self.failures.bit_count() == 1:
            self._log.warning(
                "nats.failed",
                servers=self._servers,
                in_a_row=self.failures,
                errors=describe(error),
            )

    def note_unexpected(self) -> None:
        """Count a failure nobody thought of, and log the exception being handled with its place."""
        self.failures += 1
        self._log.exception("nats.failed", servers=self._servers, in_a_row=self.failures)

    def pause_seconds(self) -> float:
        """How long to wait before trying again.

        Doubles up to half a second, as events are to flow again within a second after NATS is
        back; the jitter keeps many servers from coming back in step.
        """
        longest = min(_BACKOFF_MAX_SECONDS, _BACKOFF_FIRST_SECONDS * 2.0 ** min(self.failures, 16))
        return longest * random.uniform(0.5, 1.0)
