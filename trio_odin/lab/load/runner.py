"""Runs a load, from its first connect to its last close.

run_load()
├── fleets        the clients, a process for each 18,000 or more of them
├── signals       the first SIGINT or SIGTERM ends the load in order, the second at once
└── (this task)   connecting → idle → hold → reconnecting → closing, a sample each second
"""

from __future__ import annotations

import datetime as dt
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import trio

from trio_odin.lab.fleet.fleets import Fleets, fleets
from trio_odin.lab.fleet.latency import durations, fairness, percentile_ms
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.fleet.plan import Collected, Summary, merged
from trio_odin.lab.load.clients import fleet_plans
from trio_odin.lab.load.events import Completeness, Events, with_rates
from trio_odin.lab.load.plan import LoadPlan
from trio_odin.lab.load.publisher import PublisherControl
from trio_odin.lab.load.result import LoadResult, Progress, Reconnects, Sample
from trio_odin.lab.load.server import UNMATCHED, Moments, Server, Statement, server_figures
from trio_odin.lab.machine import this_machine
from trio_odin.net.segments import HEADERS_BYTES

_TICK_SECONDS = 1.0
_SHORT_TICK_SECONDS = 0.25
_SETTLE_SECONDS = 1.0
# Longer than any pause before another attempt to connect: no further client will come.
_STALLED_SECONDS = 60.0
_RETURN_SECONDS = 120.0
_CLOSE_SECONDS = 15.0
_ARRIVAL_SECONDS = 15.0
_QUIET_SECONDS = 2.0
# An event near the start of the hold may have come before some clients, one near the end may
# still be on its way.
_MARGIN_NS = 1_000_000_000
_MARGIN_SHARE = 4


class LoadAbandoned(Exception):
    """The user ended the load at once. The message is one sentence."""


class NobodyConnected(LoadImpossible):
    """There was not a single connection. The message gives the reason."""


async def run_load(plan: LoadPlan, progress: Callable[[Progress], None]) -> LoadResult:
    """Carry out `plan`. Call it in the main thread, which receives the signals.

    The first SIGINT or SIGTERM ends it in order: the publisher is stopped, connections are closed,
    and the result is marked as interrupted. The second one ends it at once.

    Raises:
        LoadImpossible: it cannot be started from here; the message gives a remedy. Also in a
            group.
        LoadAbandoned: it was interrupted twice.

    Cancellation: as that of `Load.run`.
    """
    result: LoadResult | None = None
    server = Server(plan.health_url, plan.metrics_url)
    async with (
        loading(plan, progress, server, PublisherControl(plan)) as load,
        trio.open_nursery() as nursery,
    ):
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            nursery.start_soon(_end_on_signals, signals, load, nursery.cancel_scope)
            result = await load.run()
        nursery.cancel_scope.cancel(reason="the load has ended")
    if result is None:
        raise LoadAbandoned("interrupted twice: the figures are lost")
    return result


async def _end_on_signals(
    signals: AsyncIterator[int], load: Load, everything: trio.CancelScope
) -> None:
    await anext(signals)
    load.interrupt()
    await anext(signals)
    everything.cancel(reason="interrupted twice")


@asynccontextmanager
async def loading(
    plan: LoadPlan,
    progress: Callable[[Progress], None],
    server: Server,
    publisher: PublisherControl,
) -> AsyncIterator[Load]:
    """A load that can be run once, with its client processes, which end with the block.

    Raises:
        LoadImpossible: it cannot be started from here; the message gives a remedy.
    """
    plan.check()
    async with fleets(await fleet_plans(plan)) as crowd:
        yield Load(plan, crowd, progress, server, publisher)


class _Interrupted(Exception):
    """Raised in a pause: the phases must end."""


class Load:
    """One run. Everything that waits has a deadline.

    Each answer of a fleet must be read, or it would be taken for the answer to the next question.
    So neither an interruption nor a deadline cuts a question short: they end pauses.
    """

    def __init__(
        self,
        plan: LoadPlan,
        crowd: Fleets,
        progress: Callable[[Progress], None],
        server: Server,
        publisher: PublisherControl,
    ) -> None:
        self._plan = plan
        self._crowd = crowd
        self._progress = progress
        self._server = server
        self._publisher = publisher
        self._interrupted = trio.Event()
        self._was_cut_short = False
        self._subscribers: dict[str, int] = {}
        # The sums over all seconds, and over those of the hold, without events and latencies.
        self._total, self._held = Collected(), Collected()
        self._latencies: Counter[int] = Counter()
        self._events = Events()
        self._busiest_cpu = 0.0
        self._series: list[Sample] = []
        self._pages = Moments()
        self._windows: list[tuple[int, int]] = []
        self._started = self._last_at = time.monotonic()
        self._arrived = self._started
        self._date = _now()
        self._ends_at: float | None = None

    def interrupt(self) -> None:
        """End the load in order, with the figures so far."""
        self._interrupted.set()

    async def run(self) -> LoadResult:
        """Run all phases. Nothing is published afterwards, whatever happens.

        Raises:
            NobodyConnected: there was no connection; the message gives the reason.
            LoadImpossible: the publisher or a client process fails.

        Cancellation: the publisher is stopped, which may take 10 s, and connections are not closed
        in order. The same applies to every exception.
        """
        self._health = [await self._server.health()]
        self._pages.before = await self._ask()
        try:
            try:
                await self._phases()
            except _Interrupted:
                self._was_cut_short = True
            await self._publisher.stop()
            await self._arrivals()
            self._health.append(await self._server.health())
            await self._close()
            return self._result(await self._crowd.summary())
        finally:
            with trio.CancelScope(shield=True):
                await self._publisher.stop()

    async def _phases(self) -> None:
        await self._publisher.prepare()
        await self._connect()
        await self._idle()
        await self._receive()
        await self._cut()

    # ---- phases

    async def _connect(self) -> None:
        self._started = self._last_at = time.monotonic()
        self._date = _now()
        ramp = self._plan.ramp_per_second
        patience = _STALLED_SECONDS + (1 / ramp if ramp else 0.0)
        at = await self._crowd.begin("connect")
        least, fell_at = at.pending, time.monotonic()
        pause = _SHORT_TICK_SECONDS  # a few connections are made at once
        while at.pending and time.monotonic() - fell_at < patience:
            await self._tick("connecting", seconds=pause)
            pause = _TICK_SECONDS
            at = await self._crowd.progress()
            if at.pending < least:
                least, fell_at = at.pending, time.monotonic()
        connects = await self._crowd.summary()
        self._subscribers = connects.subscribers
        if not connects.connected:
            raise NobodyConnected(
                f"nobody could connect to {self._plan.url}: "
                f"{_listed(connects.rejections | connects.failures)}"
            )
        await self._tick("connecting", seconds=_SETTLE_SECONDS)  # time for the server to clean up
        self._pages.connected = self._pages.end

    async def _idle(self) -> None:
        if self._plan.idle_seconds:
            self._pages.idle_from = self._pages.end
            await self._phase("idle", self._plan.idle_seconds)
            self._pages.idle_until = self._pages.end

    async def _receive(self) -> None:
        self._pages.published_from = self._pages.end
        await self._publisher.start()
        if self._plan.churn_per_second:
            await self._crowd.begin("churn")
        await self._crowd.begin("watch")
        self._pages.hold.append(await self._ask())
        await self._window("hold", self._plan.hold_seconds)

    async def _window(self, phase: str, seconds: float) -> None:
        """Receive events for `seconds`; the events of this time must be complete."""
        first = time.time_ns()
        try:
            await self._phase(phase, seconds)
        finally:
            last = time.time_ns()
            margin = min(_MARGIN_NS, (last - first) // _MARGIN_SHARE)
            self._windows.append((first + margin, last - margin))

    async def _cut(self) -> None:
        if not self._plan.is_cut:
            return
        at = await self._crowd.begin("cut")
        gives_up_at = time.monotonic() + _RETURN_SECONDS
        while at.pending and time.monotonic() < gives_up_at:
            await self._tick("reconnecting")
            at = await self._crowd.progress()
        await self._window("after", self._plan.after_seconds)

    async def _arrivals(self) -> None:
        """Wait for events on their way, until all have come or no more come.

        If somebody else publishes, there are always more: then it waits only for a moment.
        """
        if not self._windows:
            return
        # The last events of a rate come with its last tick.
        tick_seconds = self._plan.workload.every_ms / 1000
        last = -1
        began = time.monotonic()
        now = began
        while now - began < _ARRIVAL_SECONDS + 2 * tick_seconds:
            at = await self._crowd.progress()
            now = time.monotonic()  # a fleet that is behind answers late
            if at.received != last:
                last, self._arrived = at.received, now
            quiet_from = self._arrived if self._publisher.is_ours else began
            is_quiet = now - quiet_from >= _QUIET_SECONDS + 2 * tick_seconds
            if is_quiet or self._has_all(at.received + at.skipped):
                break
            await trio.sleep(_SHORT_TICK_SECONDS)
        await self._look("closing")

    def _has_all(self, accounted: int) -> bool:
        """Whether all due events have come or were skipped, as far as that is known."""
        events = self._publisher.events
        return events is not None and accounted >= sum(
            self._subscribers.get(channel, 0) for channel, _ in events
        )

    async def _close(self) -> None:
        at = await self._crowd.begin("close")
        gives_up_at = time.monotonic() + _CLOSE_SECONDS
        while at.connections and time.monotonic() < gives_up_at:
            await trio.sleep(_SHORT_TICK_SECONDS)
            await self._look("closing")
            at = await self._crowd.progress()

    async def _phase(self, phase: str, seconds: float) -> None:
        ends_at = self._ends_at = time.monotonic() + seconds
        pause = _TICK_SECONDS
        if not self._plan.is_sampled:
            pause = seconds
            last = attrs.evolve(self._series[-1], phase=phase)
            self._progress(Progress(last, self._plan.connections, seconds))
        try:
            while (left := ends_at - time.monotonic()) > 0:
                await self._tick(phase, seconds=min(pause, left))
        except _Interrupted:
            await self._look(phase)  # it still belongs to this phase
            raise
        finally:
            self._ends_at = None

    # ---- samples

    async def _tick(self, phase: str, *, seconds: float | None = None) -> None:
        """Wait, then take a sample.

        Raises:
            _Interrupted: the user ended the load; at once, if that was already so.
        """
        with trio.move_on_after(_TICK_SECONDS if seconds is None else seconds):
            await self._interrupted.wait()
            raise _Interrupted
        await self._look(phase)

    async def _look(self, phase: str) -> None:
        """Take a sample."""
        collected = await self._crowd.collect()
        earlier, page = self._pages.end, await self._ask()
        now = time.monotonic()
        took, self._last_at = max(1e-3, now - self._last_at), now
        books = collected.received
        counts = attrs.evolve(collected, received=attrs.evolve(books, deliveries=[], buckets={}))
        self._total = merged([self._total, counts])
        self._events.take(books.deliveries)
        if phase == "hold":
            self._held = merged([self._held, counts])
            self._busiest_cpu += self._crowd.busiest_cpu_seconds
            self._pages.hold.append(page)
        if phase == "hold" or (phase == "closing" and not self._plan.is_cut):
            self._latencies.update(books.buckets)
        sample = _sample(
            phase, now - self._started, took, collected, page, page.cores_since(earlier)
        )
        self._series.append(sample)
        left = None if self._ends_at is None else max(0.0, self._ends_at - now)
        self._progress(Progress(sample, self._plan.connections, left))

    async def _ask(self) -> Statement:
        self._pages.end = await self._server.statement()
        return self._pages.end

    # ---- the result

    def _result(self, summary: Summary) -> LoadResult:
        plan, total, held = self._plan, self._total, self._held
        came = self._completeness(summary)
        seconds = self._pages.hold_seconds
        return LoadResult(
            url=plan.url,
            workload=plan.workload,
            machine=this_machine(),
            date=self._date,
            connections=plan.connections,
            rate=plan.rate if self._publisher.is_ours else None,
            encoding=plan.encoding,
            granted_ms=summary.granted_ms,
            hold_seconds=seconds,
            arrival_seconds=self._arrived - self._pages.hold[0].at if self._windows else 0.0,
            interrupted=self._was_cut_short,
            connected=summary.connected,
            rejections=summary.rejections,
            failures=summary.failures,
            connect_seconds=summary.seconds,
            connect_ms=durations(summary.connect_buckets),
            disconnects=total.disconnects,
            closed_cleanly=summary.closed_cleanly,
            churned=total.churned,
            churn_per_second=plan.churn_per_second,
            reconnects=_reconnects(summary),
            received=total.received.received,
            received_per_second=_ratio(held.received.received, seconds),
            silent=summary.silent,
            quiet_channels=len(self._subscribers.keys() - self._events.channels),
            channels=len(self._subscribers),
            gaps=total.received.gaps,
            repeated=total.received.repeated,
            foreign=total.received.foreign,
            unreadable=total.unreadable,
            error_replies=total.error_replies,
            unexplained=total.received.unexplained,
            publications=came.publications,
            published=self._publisher.published,
            unseen=self._unseen(came),
            expected=came.expected,
            delivered=came.delivered,
            lost=came.lost,
            skipped=came.skipped,
            latency=durations(self._latencies),
            fairness=fairness(summary.p99_steps),
            frames_per_read=_ratio(held.received.received, held.reads),
            frames_per_second=_ratio(held.received.frames, seconds),
            delivery_bytes=_ratio(held.bytes, held.received.received),
            delivery_wire_bytes=_ratio(
                held.bytes + held.packets * HEADERS_BYTES, held.received.received
            ),
            client_cores=_ratio(held.cpu_seconds, seconds),
            busiest_client_cores=_ratio(self._busiest_cpu, seconds),
            server=server_figures(self._pages, summary.connected, held.received.received),
            health=self._health,
            series=self._series,
        )

    def _completeness(self, summary: Summary) -> Completeness:
        published = self._publisher.events
        if not self._plan.workload.every_ms:
            return self._events.completeness(self._subscribers, self._windows, published)
        if self._publisher.is_ours:
            return with_rates(self._subscribers, summary.tallies, published)
        # Somebody else published before and after: it is unknown what a connection should have.
        seen, received = len(self._events), self._total.received
        return Completeness(seen, 0, received.received, 0, received.skipped)

    def _unseen(self, came: Completeness) -> int | None:
        """Events with a subscriber that reached nobody; None if unknown."""
        published = self._publisher.published
        # While all are cut, events rightly reach nobody.
        if published is None or self._plan.is_cut:
            return None
        unwanted: float | None = 0.0
        if not all(self._subscribers.get(name) for name in self._plan.workload.channels):
            # Events of channels without a subscriber; only the server counts them.
            unwanted = self._pages.end.since(self._pages.published_from, UNMATCHED)
        # With a rate an event may be skipped by all.
        seen = came.publications if self._plan.workload.every_ms else len(self._events)
        return None if unwanted is None else max(0, published - int(unwanted) - seen)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _sample(
    phase: str,
    at: float,
    took: float,
    collected: Collected,
    page: Statement,
    cores: float | None,
) -> Sample:
    buckets = collected.received.buckets
    return Sample(
        at=round(at, 2),
        phase=phase,
        connections=collected.connections,
        received_per_second=round(collected.received.received / took, 1),
        p50_ms=percentile_ms(buckets, 0.5) if buckets else None,
        p99_ms=percentile_ms(buckets, 0.99) if buckets else None,
        max_ms=percentile_ms(buckets, 1.0) if buckets else None,
        server_cores=None if cores is None else round(cores, 3),
        server_percent=page.percent,
        server_mib=None if page.mib is None else round(page.mib, 2),
        client_cores=round(collected.cpu_seconds / took, 3),
    )


def _reconnects(summary: Summary) -> Reconnects | None:
    if not summary.lost:
        return None
    return Reconnects(
        lost=summary.lost,
        back=summary.back,
        seconds=max(0.0, summary.last_back - summary.first_lost),
        ms=durations(summary.back_buckets),
    )


def _now() -> str:
    return dt.datetime.now(tz=dt.UTC).isoformat(timespec="milliseconds")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} ({count:,} times)" for reason, count in counts.items())
