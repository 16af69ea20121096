"""Runs a load: the only part of it that waits."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from trio_odin.lab.load.books import Books, Numbering, read_reply
from trio_odin.lab.load.cost import Hold, micros, ratio, server_figures
from trio_odin.lab.load.limits import require_files, require_ports
from trio_odin.lab.load.plan import LoadImpossible, LoadPlan, Phase, Progress
from trio_odin.lab.load.report import LoadReport
from trio_odin.lab.load.scrape import Sample, own_cpu_seconds, scrape

if TYPE_CHECKING:
    from picows import WSFrame, WSListener, WSTransport

_IN_FLIGHT_MAX = 200
_STEP_SECONDS = 30.0  # deadline of one handshake, and of one acknowledgement
_CONNECTS_PER_SECOND_MIN = 100  # a phase that goes slower than this ends with what it has
_PROGRESS_SECONDS = 0.5
_CLOSE_SECONDS = 5.0
_CLOSE_BATCH = 500
_GRACE_SECONDS = 2.0  # what an interrupted phase gives to its handshakes in flight
_WINDOW_MARGIN_MS = 1000
_REASONS_MAX = 8  # that many kinds of failure are told apart, the rest is "other"

_LOGGER = logging.getLogger("picows.load")
_LOGGER.setLevel(logging.WARNING)  # below that it has a line for every connection
# RFC 6455, 7.4.1: a close frame without a code, and an end without a close frame.
_NO_CODE, _ABNORMAL = 1005, 1006


def run_load(plan: LoadPlan, progress: Callable[[Progress], None]) -> LoadReport:
    """Connect, subscribe, hold and close as `plan` says; return what was found.

    Runs an asyncio loop of its own, so call it from a thread without one. Ctrl-C in the main thread
    ends the phase, closes what is open, and returns the report so far; a second one raises
    KeyboardInterrupt.

    Bounds: 30 s for each handshake and each acknowledgement, 200 of them at a time, and a phase
    that gets on with less than 100 a second ends with what it has; then `hold_seconds`; then 5 s
    to close.

    Args:
        plan: is checked first.
        progress: called about twice a second and at each new phase, in the loop: it must be quick.

    Raises:
        LoadImpossible: the plan, this machine's limits or a missing library forbid it. What the
            server does wrong is in the report instead.
    """
    plan.check()
    require_files(plan.connections)
    require_ports(plan.connections)
    try:
        import picows  # noqa: F401, PLC0415
        import uvloop  # noqa: PLC0415
    except ImportError as error:
        raise LoadImpossible(
            f"{error.name} is not installed, it comes with the extra lab: pip install '.[lab]'"
        ) from error
    with _calm_gc(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Load(plan, progress).run())


@contextmanager
def _calm_gc() -> Iterator[None]:
    """Collect rarely: each full collection would walk every connection."""
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


class _Subscriber:
    """One connection, as the load sees it."""

    __slots__ = ("acknowledged", "asked", "numbering", "transport")

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked
        self.numbering = Numbering()
        self.transport: WSTransport | None = None  # None before the handshake and after the end
        self.acknowledged: asyncio.Future[list[str]] | None = None

    @property
    def has_heard_nothing(self) -> bool:
        """It subscribed, and no envelope has come."""
        return bool(self.numbering.channels) and not self.numbering.seq

    def answer(self, subscribed: list[str]) -> None:
        """The subscription is acknowledged (or, with no channels, will never be)."""
        if self.acknowledged is not None and not self.acknowledged.done():
            self.acknowledged.set_result(subscribed)


class _Load:
    """One run. Everything in here happens in the thread of its loop."""

    def __init__(self, plan: LoadPlan, progress: Callable[[Progress], None]) -> None:
        self.books = Books()
        self._plan = plan
        self._progress = progress
        self._subscribers = [_Subscriber(sample) for sample in plan.samples()]
        self._phase = Phase.CONNECTING
        self._phase_ends_at: float | None = None
        self._interrupted = False
        # Connections: all that were ever opened, those that are open, and how they ended.
        self._connected = self._subscribed = self._open = 0
        self._subscribers_of: Counter[str] = Counter()  # by channel
        self._failures: Counter[str] = Counter()
        self._close_codes: Counter[int] = Counter()
        self._closed_cleanly = self._error_replies = self._unreadable = 0
        self._all_gone = asyncio.Event()
        # Moments; a phase that never came leaves None.
        self._before: Sample | None = None
        self._held_from: Sample | None = None
        self._held_until: Sample | None = None
        self._connect_seconds = 0.0
        self._window_ms = (0.0, 0.0)

    async def run(self) -> LoadReport:
        """The phases one after the other. The first cancellation only goes on to the closing."""
        ticker = asyncio.create_task(self._tick())
        try:
            await self._connect_and_hold()
        except asyncio.CancelledError:
            self._interrupted = True
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
        finally:
            ticker.cancel()
        await self._close_all()
        with suppress(asyncio.CancelledError):
            await ticker  # a fault of `progress` comes out here
        return self._report()

    # ---- phases

    async def _connect_and_hold(self) -> None:
        self._enter(Phase.CONNECTING)
        self._before = await self._sample()
        started = time.monotonic()
        await self._for_each(
            self._subscribers, self._connect, per_second=self._plan.ramp_per_second
        )
        self._enter(Phase.SUBSCRIBING)
        await self._for_each([s for s in self._subscribers if s.transport], self._subscribe)
        self._connect_seconds = time.monotonic() - started
        if self._subscribed:
            await self._hold()

    async def _for_each(
        self,
        subscribers: list[_Subscriber],
        act: Callable[[_Subscriber], Awaitable[None]],
        *,
        per_second: float = 0.0,
    ) -> None:
        """Act on each subscriber, 200 at a time. Cancellation leaves those in flight 2 s to end."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        ramp_seconds = len(subscribers) / per_second if per_second else 0.0
        slowest_seconds = ramp_seconds + len(subscribers) / _CONNECTS_PER_SECOND_MIN
        places = asyncio.Semaphore(_IN_FLIGHT_MAX)
        tasks: set[asyncio.Future[None]] = set()
        faults: list[BaseException] = []
        begun = 0

        def end(task: asyncio.Future[None]) -> None:
            tasks.discard(task)
            places.release()
            if not task.cancelled() and (fault := task.exception()) is not None:
                faults.append(fault)

        try:
            async with asyncio.timeout(slowest_seconds + _STEP_SECONDS):
                for subscriber in subscribers:
                    if per_second:
                        await asyncio.sleep(started + begun / per_second - loop.time())
                    await places.acquire()
                    task = asyncio.ensure_future(act(subscriber))
                    tasks.add(task)
                    task.add_done_callback(end)
                    begun += 1
                await _finish(tasks, _STEP_SECONDS + _GRACE_SECONDS)
        except TimeoutError:
            self._fail("too slow, not even tried", len(subscribers) - begun)
        finally:
            await _finish(tasks, _GRACE_SECONDS)
        if faults:
            raise faults[0]

    async def _connect(self, subscriber: _Subscriber) -> None:
        from picows import WSError, ws_connect  # noqa: PLC0415

        try:
            # picows bounds the handshake and tidies up after it; the outer bound is for connecting.
            async with asyncio.timeout(_STEP_SECONDS + 1):
                _, listener = await ws_connect(
                    lambda: _listener(self, subscriber),
                    self._plan.url,
                    websocket_handshake_timeout=_STEP_SECONDS,
                    logger_name=_LOGGER.name.removeprefix("picows."),
                    max_redirects=0,
                )
        except (OSError, WSError) as error:
            self._fail(_reason(error))
        else:
            if listener is None:
                self._fail("closed by the server during the handshake")

    async def _subscribe(self, subscriber: _Subscriber) -> None:
        from picows import WSMsgType  # noqa: PLC0415

        if subscriber.transport is None:
            return  # ended in the meantime, and counted so
        # An event may overtake the acknowledgement.
        subscriber.numbering.channels = frozenset(subscriber.asked)
        subscriber.acknowledged = asyncio.get_running_loop().create_future()
        command = {"type": "subscribe", "channels": subscriber.asked}
        subscriber.transport.send(WSMsgType.TEXT, msgspec.json.encode(command))
        try:
            async with asyncio.timeout(_STEP_SECONDS):
                subscribed = await subscriber.acknowledged
        except TimeoutError:
            # Whether it is subscribed cannot be known, so it must not be counted with the others.
            self._fail(f"subscription not acknowledged within {_STEP_SECONDS:.0f} s")
            self._cut_off(subscriber)
            return
        if subscriber.transport is None:
            return
        self._subscribers_of.update(set(subscribed))
        if set(subscribed) == set(subscriber.asked):
            self._subscribed += 1
        else:
            self._fail("not subscribed to every channel")
            subscriber.numbering.channels = frozenset(subscribed)

    async def _hold(self) -> None:
        first_ms = _unix_ms() + _WINDOW_MARGIN_MS
        gc.freeze()  # what lives now lives until the end
        self._held_from = await self._sample()
        self.books.restart_latency()
        self._enter(Phase.HOLDING, self._plan.hold_seconds)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._plan.hold_seconds):
                    await self._all_gone.wait()
        finally:
            self._window_ms = (first_ms, _unix_ms() - _WINDOW_MARGIN_MS)
            self._held_until = await self._sample()

    async def _close_all(self) -> None:
        """Close with 1000 and wait for the answers; what has not answered in time is aborted."""
        from picows import WSCloseCode  # noqa: PLC0415

        self._enter(Phase.CLOSING, _CLOSE_SECONDS)
        transports = [s.transport for s in self._subscribers if s.transport is not None]
        for number, transport in enumerate(transports, start=1):
            transport.send_close(WSCloseCode.OK)
            if number % _CLOSE_BATCH == 0:
                await asyncio.sleep(0)  # take the answers in between
        await self._wait_until_all_gone()
        for transport in transports:
            transport.disconnect(graceful=False)
        await self._wait_until_all_gone()

    async def _wait_until_all_gone(self) -> None:
        if self._open:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._all_gone.wait()

    # ---- what a connection tells

    def opened(self, subscriber: _Subscriber, transport: WSTransport) -> None:
        """The handshake is done."""
        if self._phase is Phase.CLOSING:  # an interrupted phase left it behind
            transport.disconnect(graceful=False)
            return
        subscriber.transport = transport
        self._connected += 1
        self._open += 1
        self._all_gone.clear()

    def received(self, subscriber: _Subscriber, frame: WSFrame) -> None:
        """A frame that the library did not answer by itself."""
        payload = frame.get_payload_as_bytes()
        if not self.books.take(subscriber.numbering, payload, time.time_ns() // 1_000_000):
            self._received_other(subscriber, frame, payload)

    def _received_other(self, subscriber: _Subscriber, frame: WSFrame, payload: bytes) -> None:
        from picows import WSMsgType  # noqa: PLC0415

        if frame.msg_type == WSMsgType.CLOSE:
            self._received_close(subscriber, payload)
            return
        if frame.msg_type == WSMsgType.PONG:
            return
        try:
            reply = read_reply(payload)
        except msgspec.DecodeError:
            self._unreadable += 1
            return
        if reply.type == "subscription_ack":
            subscriber.answer(reply.subscribed)
        elif reply.type == "error":
            self._error_replies += 1
            subscriber.answer([])

    def _received_close(self, subscriber: _Subscriber, payload: bytes) -> None:
        from picows import WSCloseCode  # noqa: PLC0415

        transport = subscriber.transport
        if transport is None:
            return
        if (
            transport.is_close_frame_sent
        ):  # the answer to ours; the server closes first (RFC 6455, 7.1.1)
            self._closed_cleanly += 1
            return
        self._close_codes[int.from_bytes(payload[:2], "big") or _NO_CODE] += 1
        self._ended(subscriber)
        transport.send_close(WSCloseCode.OK)
        transport.disconnect()

    def closed(self, subscriber: _Subscriber) -> None:
        """The connection has ended, in whatever way."""
        if subscriber.transport is not None and self._phase is not Phase.CLOSING:
            self._close_codes[_ABNORMAL] += 1
        self._ended(subscriber)

    def _ended(self, subscriber: _Subscriber) -> None:
        if subscriber.transport is None:
            return
        subscriber.transport = None
        subscriber.answer([])
        self._open -= 1
        if not self._open:
            self._all_gone.set()

    def _cut_off(self, subscriber: _Subscriber) -> None:
        if subscriber.transport is not None:
            subscriber.transport.disconnect(graceful=False)
            self._ended(subscriber)

    # ---- books of the run

    def _fail(self, reason: str, count: int = 1) -> None:
        is_known = reason in self._failures or len(self._failures) < _REASONS_MAX
        self._failures[reason if is_known else "other"] += count

    def _enter(self, phase: Phase, seconds: float | None = None) -> None:
        self._phase = phase
        self._phase_ends_at = None if seconds is None else time.monotonic() + seconds
        self._report_progress()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            self._report_progress()

    def _report_progress(self) -> None:
        ends_at = self._phase_ends_at
        self._progress(
            Progress(
                phase=self._phase,
                connected=self._connected,
                subscribed=self._subscribed,
                received=self.books.received,
                seconds_left=None if ends_at is None else max(0.0, ends_at - time.monotonic()),
            )
        )

    async def _sample(self) -> Sample:
        metrics = await scrape(self._plan.metrics_url)
        return Sample(
            at=time.monotonic(),
            metrics=metrics,
            client_cpu=own_cpu_seconds(),
            received=self.books.received,
        )

    def _report(self) -> LoadReport:
        books = self.books
        first_ms, last_ms = self._window_ms
        complete = books.completeness(self._subscribers_of, first_ms=first_ms, last_ms=last_ms)
        hold = Hold.between(self._held_from, self._held_until)
        return LoadReport(
            plan=self._plan,
            interrupted=self._interrupted,
            connected=self._connected,
            subscribed=self._subscribed,
            failures=dict(self._failures),
            disconnects=self._close_codes.total(),
            close_codes=dict(self._close_codes),
            closed_cleanly=self._closed_cleanly,
            error_replies=self._error_replies,
            received=books.received,
            silent=sum(s.has_heard_nothing for s in self._subscribers),
            gaps=books.gaps,
            duplicates=books.duplicates,
            foreign=books.foreign,
            offsets_backwards=books.offsets_backwards,
            unreadable=self._unreadable,
            publications=complete.publications,
            expected=complete.expected,
            received_in_window=complete.received,
            lost=complete.lost,
            duplicated=complete.duplicated,
            latency_published=books.since_published.latency(),
            latency_stamped=books.since_stamped.latency(),
            connect_seconds=self._connect_seconds,
            connects_per_second=ratio(self._subscribed, self._connect_seconds) or 0.0,
            hold_seconds=hold.seconds,
            received_per_second=ratio(hold.received, hold.seconds) or 0.0,
            server=server_figures(
                self._before,
                self._held_from,
                self._held_until,
                connected=self._connected,
                subscribed=self._subscribed,
            ),
            client_cpu_cores=ratio(hold.client_cpu, hold.seconds) or 0.0,
            client_cpu_us_per_delivery=micros(hold.client_cpu, hold.received),
        )


def _unix_ms() -> float:
    return time.time() * 1000


def _reason(error: Exception) -> str:
    """Why a connect failed, without anything that differs between connections."""
    if isinstance(error, TimeoutError):
        return f"no handshake within {_STEP_SECONDS:.0f} s"
    response = getattr(error, "response", None)  # of picows' WSHandshakeError
    if response is not None:
        text = (getattr(error, "raw_body", None) or b"").decode(errors="replace").strip()[:80]
        return f"HTTP {int(response.status)} {text}".strip()
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return f"{type(error).__name__}: {error}"[:120]


async def _finish(tasks: set[asyncio.Future[None]], seconds: float) -> None:
    """Wait for the tasks; cancel those that need longer."""
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)
    for task in list(tasks):
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)


@functools.cache
def _listener_type() -> Callable[[_Load, _Subscriber], WSListener]:
    """The class of our listeners. Made when it is needed: its base is in an optional package."""
    from picows import WSListener  # noqa: PLC0415

    class Listener(WSListener):
        def __init__(self, load: _Load, subscriber: _Subscriber) -> None:
            self._load = load
            self._subscriber = subscriber

        def on_ws_connected(self, transport: WSTransport) -> None:
            self._load.opened(self._subscriber, transport)

        def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
            self._load.received(self._subscriber, frame)

        def on_ws_disconnected(self, transport: WSTransport) -> None:
            self._load.closed(self._subscriber)

    return Listener


def _listener(load: _Load, subscriber: _Subscriber) -> WSListener:
    return _listener_type()(load, subscriber)
