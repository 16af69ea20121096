"""A link to NATS: one connection from connect to loss, for the bridge and for the publisher.

Everything here runs under asyncio, inside a loop of trio-asyncio. nats-py's own reconnecting is
off: with it there would be two ways to lose a connection and two to get it back. `Outage` knows
where to make the next one, and how long to wait before that.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.js.errors import APIError, ServiceUnavailableError

from trio_odin.net.nats_url import NatsUrl
from trio_odin.upstream.access import OF_THE_URL, AccessUnusable, NatsAccess, now_seconds
from trio_odin.upstream.nats_client import Refused, TotalClient

T = TypeVar("T")

# For each server. One that hangs does not hold up the next, which is soon tried beside it.
_CONNECT_SECONDS = 3.0
# The addresses that a cluster announces may not be reachable from here.
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
# After a refusal a person has to change something, and each try is a line in the log of NATS.
_BACKOFF_REFUSED_MAX_SECONDS = 5.0
# Failures count anew after a connection that was of use for this long.
_STABLE_SECONDS = 5.0


class Unreachable(nats.errors.Error):
    """No server could be connected to; the text gives the reason for each.

    Attributes:
        is_refused: whether all of them refused.
    """

    def __init__(self, reasons: Mapping[NatsUrl, Exception]) -> None:
        super().__init__("; ".join(f"{url}: {_reason(why)}" for url, why in reasons.items()))
        self.is_refused = all(map(is_refusal, reasons.values()))


class NatsLink:
    """A connection that is open, or was. Made by `nats_link` or by an `Outage`.

    Attributes:
        url: the server that it is connected to.
        access: how it has logged in.
        client: nats-py's client, made total.
        lost_by: why it is lost; None while it is not.
        announced: the servers of the cluster, as NATS announced them last.
    """

    def __init__(self, url: NatsUrl, access: NatsAccess, *, is_alone: bool) -> None:
        self.url = url
        self.access = access
        self.client = TotalClient(
            on_lost=self.lose,
            on_info=self._learn,
            is_encrypted_only=url.is_tls or access.is_tls,
            has_certificate=access.tls_cert is not None,
        )
        self.lost_by: Exception | None = None
        self.announced: list[NatsUrl] = []
        self._is_alone = is_alone
        self._lost = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether messages can be sent and received now."""
        return self.client.is_connected and not self._lost.is_set()

    def give_up(self, why: str) -> None:
        """Count the connection as lost. `why`: a sentence, for a reason unknown to nats-py."""
        self.lose(nats.errors.Error(why))

    def lose(self, reason: Exception) -> None:
        """Count the connection as lost. The first reason is kept: later ones follow from it."""
        self.lost_by = self.lost_by or reason
        self._lost.set()

    def _learn(self, info: Mapping[str, Any]) -> None:
        """Take in what the server reports of itself and of its cluster."""
        addresses = info.get("connect_urls")
        if isinstance(addresses, list):
            is_encrypted = bool(info.get("tls_required"))
            siblings = [
                self.url.sibling(str(address), is_encrypted=is_encrypted)
                for address in addresses[:_ANNOUNCED_MAX]
            ]
            self.announced = [sibling for sibling in siblings if sibling is not None]
        has_others = not self._is_alone or any(str(u) != str(self.url) for u in self.announced)
        if info.get("ldm") is True and self.client.is_connected and has_others:
            self.give_up("the server is about to shut down (lame duck mode)")

    async def wait_lost(self) -> None:
        """Wait until the connection is lost; `lost_by` says why."""
        await self._lost.wait()

    async def while_up(self, *works: Coroutine[Any, Any, T]) -> T:
        """Run `works` at the same time until the first has ended; returns what that returned.

        Raises:
            Exception: the connection was lost meanwhile (`lost_by`), or what that work raised.
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

        nats-py can fail at this in many ways, one of them an assertion; none of them may hide why
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
    urls: Sequence[str], *, name: str, on_error: OnError, access: NatsAccess = OF_THE_URL
) -> AsyncIterator[NatsLink]:
    """Connect to the first of `urls` that answers; close at the end, within two seconds.

    `on_error` is called with the errors of nats-py while connected.

    Raises:
        Unreachable: no server could be connected to.
    """
    attempts = {NatsUrl.parse(url): _CONNECT_SECONDS for url in urls}
    link = await _first_that_answers(attempts, access, name, on_error)
    try:
        yield link
    finally:
        await link.close()


async def _first_that_answers(
    attempts: Mapping[NatsUrl, float], access: NatsAccess, name: str, on_error: OnError
) -> NatsLink:
    """Connect to one server after the other, and to the next one also while one is slow.

    Args:
        attempts: the servers, each with its time limit in seconds.
        access: how to log in to each of them.
        name: the name of the connection, for NATS' own pages.
        on_error: a callback for the errors of nats-py while connected.

    Raises:
        Unreachable: no server could be connected to.
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
                link = NatsLink(url, access, is_alone=len(attempts) == 1)
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
    """Connect `link` within `seconds`, or raise the reason why not."""
    url, client = link.url, link.client
    reasons: list[Exception] = []

    async def failed(error: Exception) -> None:
        if client.is_connected:
            await on_error(link, error)
        else:
            reasons.append(error)

    try:
        options = {
            "user": None if url.password is None else url.user or "",
            "password": url.password,
            "token": url.user if url.password is None else None,
            **link.access.options(),
        }
        async with asyncio.timeout(seconds):
            await client.connect(
                servers=[f"nats://{url}"],
                name=name,
                tls_hostname=url.certificate_name,
                allow_reconnect=False,
                # Together these two mean: try once more, at once, then give up.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=round(_CONNECT_SECONDS),
                ping_interval=_PING_SECONDS,
                max_outstanding_pings=_PINGS_OUTSTANDING,
                flush_timeout=_FLUSH_SECONDS,
                error_cb=failed,
                **options,
            )
        if not client.is_connected:
            raise nats.errors.Error("it does not answer as NATS does")
    except BaseException as error:  # a client that failed half-way needs closing too
        await link.close()
        is_last_of_all = isinstance(error, nats.errors.NoServersError) and reasons
        explained = _explained(link, reasons[-1] if is_last_of_all else error)
        if isinstance(explained, TimeoutError):
            raise TimeoutError(f"no answer within {seconds:g} s") from None
        if explained is not error:
            raise explained from None
        raise
    return link


def _explained(link: NatsLink, error: BaseException) -> BaseException:
    """What an error means that ended the connection before it was of use; or the error itself."""
    text = str(error)
    match error:
        case AccessUnusable():
            return Refused(text)
        case nats.errors.Error() if text.startswith(_QUOTED):
            return _refused(link, text.removeprefix(_QUOTED).strip("'"))
        case nats.errors.Error() if text.startswith(_NO_INFO) and not link.access.tls_first:
            return nats.errors.Error(
                "it ended the connection and sent nothing; if it has handshake_first, set "
                "NATS_TLS_FIRST to true"
            )
        case ssl.SSLError() if error.reason == "WRONG_VERSION_NUMBER" and link.access.tls_first:
            return Refused("it does not start with TLS: NATS_TLS_FIRST is for handshake_first only")
        case ssl.SSLCertVerificationError():
            return error
        case ConnectionError() | nats.errors.UnexpectedEOF() | ssl.SSLError():
            if link.client.is_certificate_wanted:
                return Refused(_why_cut(error))
    return error


def _why_cut(error: BaseException) -> str:
    """Why NATS has cut the connection after it has seen our certificate.

    With TLS 1.3 the handshake is over for us when NATS checks the certificate. Its alert, which
    gives the reason, is lost if something was sent meanwhile.
    """
    alert = _ALERT.search((isinstance(error, ssl.SSLError) and error.reason) or "")
    why = alert[1].lower().replace("_", " ") if alert else "it has cut the connection"
    return f"it does not accept the certificate in NATS_TLS_CERT: {why}"


_ALERT = re.compile(r"ALERT_(.*)")


def _refused(link: NatsLink, text: str) -> Refused:
    """What NATS said while we connected, and with which login, if that is what it refuses."""
    is_login = "authorization" in text.lower() or "authentication" in text.lower()
    why = link.access.why_refused(now_seconds()) if is_login else ""
    return Refused(f"{text}: {why}" if why else text)


# How nats-py's errors quote NATS while it connects; and its own where nothing came.
_QUOTED = "nats: '"
_NO_INFO = "nats: empty response from server"


def _abort(client: Client) -> None:
    """Close the socket, whatever state nats-py left it in.

    When its own closing fails, nats-py forgets an open socket with data waiting. The garbage
    collector closes that later, under the event loop, which then fails on the bad file number.
    There is no public way to the socket.
    """
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


async def _end_tasks(client: Client) -> None:
    """Retrieve the results of nats-py's tasks, or asyncio logs a traceback for each that failed."""
    names = ("_reading_task", "_ping_interval_task")
    tasks = [task for name in names if (task := getattr(client, name, None)) is not None]
    if tasks:
        ended, _ = await asyncio.wait(tasks, timeout=_LOOK_SECONDS)
        for task in ended:
            _ = task.cancelled() or task.exception()


async def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended.

    nats-py, and `asyncio.wait_for` before Python 3.12, can lose a cancellation that comes together
    with an answer; the task would never end.
    """
    while tasks:
        for task in tasks:
            task.cancel()
        ended, tasks = await asyncio.wait(tasks, timeout=_LOOK_SECONDS)
        for task in ended:
            _ = task.cancelled() or task.exception()


def is_refusal(error: BaseException | None) -> bool:
    """Whether NATS has refused, so that trying again soon is of no use."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_refusal, error.exceptions))
    if isinstance(error, Unreachable):
        return error.is_refused
    if isinstance(error, ServiceUnavailableError):  # a leader is being elected
        return False
    return isinstance(error, Refused | APIError)


def describe(error: BaseException) -> list[str]:
    """An error, or all errors of a group, as short lines for a log; NATS in its own words."""
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
    """`host:port` of each URL, for a log: without credentials."""
    return [str(NatsUrl.parse(url)) for url in urls]


class Outage:
    """Failures in a row to have a link: where to try next, how long to pause, what to log.

    Attributes:
        failures: how many in a row.
    """

    def __init__(self, log: Any, urls: Sequence[str], access: NatsAccess = OF_THE_URL) -> None:
        self.failures = 0
        self._access = access
        self._log = log
        self._urls = [NatsUrl.parse(url) for url in urls]
        self._announced: list[NatsUrl] = []
        self._last: NatsUrl | None = None
        self._is_refused = False
        self._over_at: float | None = None

    @asynccontextmanager
    async def link(self, *, name: str, on_error: OnError) -> AsyncIterator[NatsLink]:
        """Connect to one of the servers; close at the end, within two seconds.

        Announced servers are tried, too: the configured ones may be gone for good.

        Args:
            name: the name of the connection, for NATS' own pages.
            on_error: a callback for the errors of nats-py while connected.

        Raises:
            Unreachable: no server could be connected to.
        """
        link: NatsLink | None = None
        self._over_at = None
        try:
            link = await _first_that_answers(self._attempts(), self._access, name, on_error)
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
        """The servers with their time limits in seconds, in the order in which to try them.

        Configured ones come first, then announced ones, both shuffled; last of all the one that
        was lost last.
        """
        configured = {str(url) for url in self._urls}
        announced = [url for url in self._announced if str(url) not in configured]
        attempts = dict.fromkeys(random.sample(self._urls, len(self._urls)), _CONNECT_SECONDS)
        attempts |= dict.fromkeys(
            random.sample(announced, len(announced)), _CONNECT_ANNOUNCED_SECONDS
        )
        return dict(sorted(attempts.items(), key=lambda attempt: attempt[0] == self._last))

    def over(self) -> None:
        """Note that NATS is there and of use."""
        self._over_at = time.monotonic()

    def note(self, error: BaseException) -> None:
        """Log why there is no link, the 1st, 2nd, 4th, 8th … time: a long outage is not a flood."""
        self._is_refused = self._is_refused or is_refusal(error)
        if self.failures.bit_count() <= 1:
            self._log.warning(
                "nats.failed",
                servers=self._servers(),
                in_a_row=self.failures,
                errors=describe(error),
            )

    def note_unexpected(self) -> None:
        """Log the unexpected exception that is being handled, with its traceback."""
        self._log.exception("nats.failed", servers=self._servers(), in_a_row=self.failures)

    def _servers(self) -> list[str]:
        return [str(url) for url in self._urls]

    def pause_seconds(self) -> float:
        """How long to wait before trying again.

        Doubles up to half a second, so that events flow again within a second after NATS is back;
        up to five seconds if NATS is there and refuses. The jitter keeps many servers from
        reconnecting in step.
        """
        longest = _BACKOFF_REFUSED_MAX_SECONDS if self._is_refused else _BACKOFF_MAX_SECONDS
        longest = min(longest, _BACKOFF_FIRST_SECONDS * 2.0 ** min(self.failures, 16))
        return longest * random.uniform(0.5, 1.0)
