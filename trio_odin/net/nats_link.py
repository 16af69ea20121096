"""A link to NATS: one connection from connect to loss, for the bridge and for the publisher.

Everything in here runs under asyncio, inside a loop of trio-asyncio's. nats-py's own reconnecting
is off: with it there would be two ways to lose a connection and two to get it back. `Outage` knows
where the next one can be made, and how long to wait before that.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.js.errors import APIError, ServiceUnavailableError

from trio_odin.core.nats_url import NatsUrl
from trio_odin.net.nats_client import Refused, TotalClient

T = TypeVar("T")

# For each server. One that hangs is not to keep us from the next, which is tried beside it soon.
_CONNECT_SECONDS = 3.0
# What a cluster says of its addresses may not be true from here.
_CONNECT_ANNOUNCED_SECONDS = 1.0
_NEXT_SERVER_SECONDS = 0.5
_ANNOUNCED_MAX = 100
_FLUSH_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
# A hung server is noticed after three pings without an answer, so within 9 s.
_PING_SECONDS = 3
_PINGS_OUTSTANDING = 2
_LOOK_SECONDS = 0.5
_BACKOFF_FIRST_SECONDS = 0.1
_BACKOFF_MAX_SECONDS = 0.5
# Where NATS has said no, a person has to change something, and each try is a line in its log.
_BACKOFF_REFUSED_MAX_SECONDS = 5.0
# Failures count anew after a connection that was of use for so long.
_STABLE_SECONDS = 5.0


class Unreachable(nats.errors.Error):
    """No server could be connected to; the text says for each of them why.

    Attributes:
        is_refused: all that is in the way are answers.
    """

    def __init__(self, reasons: Mapping[NatsUrl, Exception]) -> None:
        super().__init__("; ".join(f"{url}: {_reason(why)}" for url, why in reasons.items()))
        self.is_refused = all(map(is_refusal, reasons.values()))


class NatsLink:
    """A connection that is open, or was. Made by `nats_link`, or by an `Outage`.

    Attributes:
        url: where it is connected.
        client: of nats-py, and ours where that is not total.
        lost_by: why it is lost; None while it is not.
        announced: the servers of the cluster, as NATS has told last.
    """

    def __init__(self, url: NatsUrl, *, is_alone: bool) -> None:
        self.url = url
        self.client = TotalClient(
            on_lost=self.lose, on_info=self._learn, is_encrypted_only=url.is_tls
        )
        self.lost_by: Exception | None = None
        self.announced: list[NatsUrl] = []
        self._is_alone = is_alone
        self._lost = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether NATS takes and gives messages now."""
        return self.client.is_connected and not self._lost.is_set()

    def give_up(self, why: str) -> None:
        """Count the connection as lost, for a reason that nats-py does not know: a sentence."""
        self.lose(nats.errors.Error(why))

    def lose(self, reason: Exception) -> None:
        """Count the connection as lost. What comes after the first reason is its consequence."""
        self.lost_by = self.lost_by or reason
        self._lost.set()

    def _learn(self, info: Mapping[str, Any]) -> None:
        """Take in what the server says of itself and of its cluster."""
        places = info.get("connect_urls")
        if isinstance(places, list):
            is_encrypted = bool(info.get("tls_required"))
            siblings = [
                self.url.sibling(str(place), is_encrypted=is_encrypted)
                for place in places[:_ANNOUNCED_MAX]
            ]
            self.announced = [sibling for sibling in siblings if sibling is not None]
        has_others = not self._is_alone or any(str(u) != str(self.url) for u in self.announced)
        if info.get("ldm") is True and self.client.is_connected and has_others:
            self.give_up("the server is about to shut down (lame duck mode)")

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
        try:
            with suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self.client.close()
        finally:  # a second cancellation must not leave the socket open
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
        Unreachable: no connection could be had.
    """
    attempts = {NatsUrl.parse(url): _CONNECT_SECONDS for url in urls}
    link = await _first_that_answers(attempts, name, on_error)
    try:
        yield link
    finally:
        await link.close()


async def _first_that_answers(
    attempts: Mapping[NatsUrl, float], name: str, on_error: OnError
) -> NatsLink:
    """Connect to one server after the other, and to the next one also where one is slow.

    Args:
        attempts: the servers, and how many seconds each has.
        name: of the connection, for NATS' own pages.
        on_error: gets what nats-py meets while connected.

    Raises:
        Unreachable: none has answered.
    """
    waiting = iter(attempts.items())
    tasks: dict[asyncio.Task[NatsLink], NatsUrl] = {}
    failures: dict[NatsUrl, Exception] = {}
    chosen: NatsLink | None = None
    try:
        while chosen is None:
            attempt = next(waiting, None)
            if attempt is not None:
                url, seconds = attempt
                link = NatsLink(url, is_alone=len(attempts) == 1)
                tasks[asyncio.create_task(_connect(link, seconds, name, on_error))] = url
            running = [task for task in tasks if not task.done()]
            if running:
                timeout = None if attempt is None else _NEXT_SERVER_SECONDS
                await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in tasks if task.done()]:
                if (error := task.exception()) is None:
                    chosen = chosen or task.result()
                elif isinstance(error, Exception):
                    failures[tasks.pop(task)] = error
                else:
                    raise error
            if attempt is None and not tasks:
                raise Unreachable(failures)
        return chosen
    finally:
        await _cancel({task for task in tasks if not task.done()})
        for task in tasks:
            if not task.cancelled() and not task.exception() and task.result() is not chosen:
                await task.result().close()


async def _connect(link: NatsLink, seconds: float, name: str, on_error: OnError) -> NatsLink:
    """Connect, or raise the reason why not."""
    url, client = link.url, link.client
    reasons: list[Exception] = []

    async def failed(error: Exception) -> None:
        if client.is_connected:
            await on_error(link, error)
        else:
            reasons.append(error)

    try:
        async with asyncio.timeout(seconds):
            await client.connect(
                servers=[f"nats://{url}"],
                name=name,
                user=None if url.password is None else url.user or "",
                password=url.password,
                token=url.user if url.password is None else None,
                tls_hostname=url.certificate_name,
                allow_reconnect=False,
                # Here these two mean: try once more, at once, then give up.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=round(_CONNECT_SECONDS),
                ping_interval=_PING_SECONDS,
                max_outstanding_pings=_PINGS_OUTSTANDING,
                flush_timeout=_FLUSH_SECONDS,
                error_cb=failed,
            )
        if not client.is_connected:
            raise nats.errors.Error("it does not answer as NATS does")
    except BaseException as error:  # one that failed half-way needs closing too
        await link.close()
        if isinstance(error, nats.errors.NoServersError) and reasons:
            raise reasons[-1] from None
        if isinstance(error, nats.errors.Error) and str(error).startswith(_QUOTED):
            raise Refused(str(error).removeprefix(_QUOTED).strip("'")) from None
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"no answer within {seconds:g} s") from None
        raise
    return link


# How nats-py raises what NATS says while it connects.
_QUOTED = "nats: '"


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


def is_refusal(error: BaseException | None) -> bool:
    """Whether NATS has said no, so that trying again soon is of no use."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_refusal, error.exceptions))
    if isinstance(error, Unreachable):
        return error.is_refused
    if isinstance(error, ServiceUnavailableError):  # a leader is elected
        return False
    return isinstance(error, Refused | APIError)


def describe(error: BaseException) -> list[str]:
    """An error, or all in a group of them, as short lines for a log; NATS in its own words."""
    if isinstance(error, BaseExceptionGroup):
        return [line for inner in error.exceptions for line in describe(inner)]
    return [_reason(error)]


def _reason(error: BaseException) -> str:
    text = str(error).removeprefix("nats: ")
    match error:
        case APIError() if error.description:
            return f"{error.description} (JetStream {error.err_code or error.code})"
        case socket.gaierror():
            return f"the host is not found ({error.strerror})"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not accepted: {error.verify_message}"
        case OSError() if "Errno 111" in text:  # of one address, or of each of several
            return "connection refused"
        case nats.errors.Error() | OSError() if text:
            return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def places_of(urls: Sequence[str]) -> list[str]:
    """`host:port` of each URL, for a log: credentials are left out."""
    return [str(NatsUrl.parse(url)) for url in urls]


class Outage:
    """Failures in a row to have a link: where to try next, how long to pause, what to log.

    Attributes:
        failures: how many since NATS was there.
    """

    def __init__(self, log: Any, urls: Sequence[str]) -> None:
        self.failures = 0
        self._log = log
        self._urls = [NatsUrl.parse(url) for url in urls]
        self._announced: list[NatsUrl] = []
        self._last: NatsUrl | None = None
        self._is_refused = False
        self._over_at: float | None = None

    @asynccontextmanager
    async def link(self, *, name: str, on_error: OnError) -> AsyncIterator[NatsLink]:
        """Connect to one of the servers; close at the end, within two seconds.

        Those that NATS announced are tried, too: the configured ones may be gone for good.

        Args:
            name: of the connection, for NATS' own pages.
            on_error: gets what nats-py meets while connected.

        Raises:
            Unreachable: no connection could be had.
        """
        link: NatsLink | None = None
        self._over_at = None
        try:
            link = await _first_that_answers(self._attempts(), name, on_error)
            self._last = link.url
            yield link
        finally:
            self.failures = 0 if self._was_stable() else self.failures + 1
            self._is_refused = link is not None and is_refusal(link.lost_by)
            if link is not None:
                self._announced = link.announced or self._announced
                await link.close()

    def _was_stable(self) -> bool:
        over_at = self._over_at
        return over_at is not None and time.monotonic() - over_at >= _STABLE_SECONDS

    def _attempts(self) -> dict[NatsUrl, float]:
        """In which order to try: by chance, configured ones first, the one lost last at the end."""
        places = {str(url) for url in self._urls}
        announced = [url for url in self._announced if str(url) not in places]
        attempts = dict.fromkeys(random.sample(self._urls, len(self._urls)), _CONNECT_SECONDS)
        attempts |= dict.fromkeys(
            random.sample(announced, len(announced)), _CONNECT_ANNOUNCED_SECONDS
        )
        return dict(sorted(attempts.items(), key=lambda attempt: attempt[0] == self._last))

    def over(self) -> None:
        """NATS is there, and of use."""
        self._over_at = time.monotonic()

    def note(self, error: BaseException) -> None:
        """Log why there is no link: the 1st, 2nd, 4th, 8th … time, as a long outage is no flood."""
        self._is_refused = self._is_refused or is_refusal(error)
        if self.failures.bit_count() <= 1:
            self._log.warning(
                "nats.failed",
                servers=self._servers(),
                in_a_row=self.failures,
                errors=describe(error),
            )

    def note_unexpected(self) -> None:
        """Log the exception being handled, of which nobody thought, with its place."""
        self._log.exception("nats.failed", servers=self._servers(), in_a_row=self.failures)

    def _servers(self) -> list[str]:
        return [str(url) for url in self._urls]

    def pause_seconds(self) -> float:
        """How long to wait before trying again.

        Doubles up to half a second, as events are to flow again within a second after NATS is
        back; up to five where it is there and says no. The jitter keeps many servers from coming
        back in step.
        """
        longest = _BACKOFF_REFUSED_MAX_SECONDS if self._is_refused else _BACKOFF_MAX_SECONDS
        longest = min(longest, _BACKOFF_FIRST_SECONDS * 2.0 ** min(self.failures, 16))
        return longest * random.uniform(0.5, 1.0)
