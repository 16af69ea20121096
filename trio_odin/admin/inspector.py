"""Answers the questions about the connections of this process.

A list of ten thousand connections is made in slices, after each of which all other tasks have a
turn. Nothing here runs while nobody asks.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
import trio

from trio_odin.admin.channel_watch import ChannelWatch
from trio_odin.admin.frames import inflate_z1
from trio_odin.admin.networks import network_check
from trio_odin.admin.paging import FirstRows, key_of
from trio_odin.admin.questions import (
    ROWS_WITH_BYTES,
    ChannelList,
    ChannelRow,
    Channels,
    Close,
    Closed,
    ConnectionDetail,
    ConnectionPage,
    ConnectionRow,
    Connections,
    NextFrames,
    Outbox,
    Question,
    Refused,
    Reply,
    ShowConnection,
    StartTrace,
    StopTrace,
    Subscription,
    TraceStarted,
)
from trio_odin.admin.tracing import CONNECTIONS_MAX, Tap, Trace
from trio_odin.admin.transport import bytes_acknowledged, transport_of
from trio_odin.connection.connection import Connection
from trio_odin.fanout.hub import Hub
from trio_odin.fanout.ordered_stream import State
from trio_odin.fanout.outbound import Outbound
from trio_odin.ledger.reasons import CloseReason
from trio_odin.wire.channels import is_pattern, patterns_for
from trio_odin.wire.dictionary import Dictionary

T = TypeVar("T")

# After so much work all other tasks have a turn.
_SLICE_SECONDS: Final = 0.002
_ITEMS_BETWEEN_LOOKS: Final = 32
_STATES: Final = {state: state.name.lower() for state in State}
_TRACES_MAX: Final = 4
# For so long after a question about channels their events are counted.
_WATCHED_SECONDS: Final = 15.0
_TICK_SECONDS: Final = 0.5
_REFRESH_SECONDS: Final = 2.0

_encode: Final = msgspec.json.Encoder().encode


class _Slices:
    """Work in slices: `pause` lets all other tasks have a turn when one is over."""

    def __init__(self) -> None:
        self._ends_at = trio.current_time() + _SLICE_SECONDS

    async def pause(self) -> None:
        """Look at the clock. Call it for each of `_in_parts`."""
        if trio.current_time() >= self._ends_at:
            await trio.lowlevel.checkpoint()
            self._ends_at = trio.current_time() + _SLICE_SECONDS


def _in_parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """A few items at a time."""
    for start in range(0, len(items), _ITEMS_BETWEEN_LOOKS):
        yield items[start : start + _ITEMS_BETWEEN_LOOKS]


def _subject(connection: Connection) -> str | None:
    grant = connection.session.grant
    return None if grant is None else grant.subject


def _bytes(connection: Connection) -> int | None:
    return bytes_acknowledged(connection.outbound.socket.stream)


class Inspector:
    """Knows the connections of a hub. `run` has to be running.

    Args:
        hub: the connections.
        worker: the number of this worker; 0 without workers.
        dictionary: that of `trio-odin.z1`, to read what was compressed with it.
    """

    def __init__(
        self, hub: Hub[Connection], *, worker: int = 0, dictionary: Dictionary | None = None
    ) -> None:
        self._hub = hub
        self._worker = worker
        self._prefix = f"{worker}-" if worker else ""  # of ids, see `ConnectionId`
        self._inflated = inflate_z1(b"" if dictionary is None else dictionary.content)
        self._watch: ChannelWatch | None = None
        self._watched_until = 0.0
        self._traces: dict[int, Trace] = {}
        self._trace_number = 0
        self._lot = trio.lowlevel.ParkingLot()
        machine_time = time.monotonic() - trio.current_time()  # trio's clock is of this process
        self._figures: dict[str, Callable[[Connection], Any]] = {
            "queued_bytes": lambda one: one.outbound.queued_bytes,
            "queued": lambda one: one.outbound.queued,
            "dropped": lambda one: one.outbound.dropped,
            "skipped": lambda one: one.outbound.conflated,
            "seq": lambda one: one.outbound.seq,
            "bytes": _bytes,
            # Not the age itself: a cursor has to stand for the same place later, in all workers.
            "age_seconds": lambda one: -round(one.outbound.opened_at + machine_time, 6),
            "silent_seconds": lambda one: -round(one.outbound.heard_at + machine_time, 6),
            "channels": lambda one: hub.registry.count(one.outbound),
            "connection": lambda one: one.number,
            "address": lambda one: one.identity.address,
            "subject": _subject,
        }

    async def run(self) -> None:
        """End what nobody looks at any longer, until cancelled. Sleeps while nobody looks."""
        while True:
            if self._watch is None and not self._traces:
                await self._lot.park()
            await trio.sleep(_TICK_SECONDS)
            now = trio.current_time()
            if self._watch is not None and now >= self._watched_until:
                self._watch = None
                self._hub.watch(None)
            for number, trace in list(self._traces.items()):
                if trace.is_over(now):
                    self._stop_trace(number)

    async def answer(self, question: Question) -> Reply:
        """Answer a question. Takes as long as the question says, and waits for no client."""
        match question:
            case Connections():
                return await self._list(question)
            case ShowConnection(number=number):
                found = self._find(number)
                return _UNKNOWN if found is None else self._detail(found)
            case Close(number=number):
                return self._close(number)
            case Channels():
                return await self._channels(question)
            case StartTrace():
                return await self._start_trace(question)
            case NextFrames(trace=number):
                return await self._next_frames(number)
            case StopTrace(trace=number):
                self._stop_trace(number)
                return Closed()

    # ---- connections

    def _find(self, number: int) -> Connection | None:
        return next((one for one in self._hub.members if one.number == number), None)

    def _close(self, number: int) -> Reply:
        found = self._find(number)
        if found is None or found.close_reason is not None:
            return _UNKNOWN
        found.evict(CloseReason.OPERATOR)
        return Closed()

    async def _list(self, question: Connections) -> ConnectionPage:
        slices = _Slices()
        sort, figure, worker = question.sort, self._figures[question.sort], self._worker
        checks = self._checks(question)
        first = FirstRows[Connection](
            question.limit, is_descending=question.is_descending, after=question.after
        )
        matching = 0
        members = self._hub.members
        for some in _in_parts(list(members)):
            await slices.pause()
            wanted = [one for one in some if one in members]
            for check in checks:
                wanted = [one for one in wanted if check(one)]
            matching += len(wanted)
            first.add(((key_of(sort, figure(one)), one.number, worker), one) for one in wanted)
        chosen = first.in_order()
        asks_kernel = len(chosen) <= ROWS_WITH_BYTES and sort != "bytes"
        rows, places = [], []
        for part in _in_parts(chosen):
            await slices.pause()
            now = trio.current_time()
            for place, connection in part:
                if connection in members:
                    known = place[0] if sort == "bytes" and place[0] >= 0 else None
                    size = _bytes(connection) if asks_kernel else known
                    rows.append(msgspec.Raw(_encode(self._row(connection, now, size))))
                    places.append(place)
        return ConnectionPage(
            rows=rows,
            places=places,
            matching=matching,
            total=len(members),
            ends_at=chosen[-1][0] if first.added > len(chosen) else None,
        )

    def _checks(self, question: Connections) -> list[Callable[[Connection], bool]]:
        checks: list[Callable[[Connection], bool]] = []
        if question.channel:
            names = [question.channel]
            checks.append(lambda one: self._hub.registry.has_any(one.outbound, names))
        if question.address:
            is_in_network = network_check(question.address)
            checks.append(lambda one: is_in_network(one.identity.address))
        if question.subject is not None:
            checks.append(lambda one: _subject(one) == question.subject)
        if question.is_lagging is not None:
            checks.append(lambda one: _is_lagging(one.outbound) == question.is_lagging)
        return checks

    def _id(self, number: int) -> str:
        return f"{self._prefix}{number}"

    def _row(self, connection: Connection, now: float, size: int | None) -> ConnectionRow:
        outbound = connection.outbound
        address, user_agent = connection.identity
        state, queued = outbound.state, outbound.queued
        return ConnectionRow(
            id=self._id(connection.number),
            worker=self._worker,
            connection=connection.number,
            address=address,
            subject=_subject(connection),
            user_agent=user_agent,
            # To the millisecond; `round` takes a tenth of the time of the whole list.
            age_seconds=int((now - outbound.opened_at) * 1000) / 1000,
            silent_seconds=int((now - outbound.heard_at) * 1000) / 1000,
            channels=self._hub.registry.count(outbound),
            encoding=outbound.encoding.label,
            state=_STATES[state],
            seq=outbound.seq,
            queued=queued,
            queued_bytes=outbound.queued_bytes,
            skipped=outbound.conflated,
            dropped=outbound.dropped,
            bytes=size,
            is_lagging=state is State.WAITING or queued > 0,
        )

    def _detail(self, connection: Connection) -> ConnectionDetail:
        hub, outbound, grant = self._hub, connection.outbound, connection.session.grant
        subscriptions = []
        for name, rate in hub.registry.named(outbound).items():
            newest = hub.newest_events.get(name)
            subscriptions.append(
                Subscription(
                    name=name,
                    every_ms=rate,
                    events_per_second=self._events_per_second(name),
                    last_offset=None if newest is None else newest.offset,
                )
            )
        rules = hub.outbox_rules
        return ConnectionDetail(
            row=self._row(connection, trio.current_time(), _bytes(connection)),
            subscriptions=subscriptions,
            outbox=Outbox(
                messages=outbound.queued,
                bytes=outbound.queued_bytes,
                messages_limit=rules.capacity,
                bytes_limit=rules.max_bytes,
                policy=rules.policy.value,
            ),
            transport=transport_of(outbound.socket.stream),
            token_expires_at=None if grant is None else grant.expires_at,
            has_notices=outbound in hub.registry.audience,
            last_events=outbound.last_events(),
        )

    def _events_per_second(self, name: str) -> float | None:
        """The events of a channel, if somebody has looked at channels lately."""
        if self._watch is None or is_pattern(name):
            return None
        events = sum(counted.events for counted in self._watch.of(name))
        return round(events / self._watch.seconds(), 3)

    # ---- channels

    async def _channels(self, question: Channels) -> ChannelList:
        """Count for some seconds, unless it was counted for as long already."""
        watch = self._watch
        if watch is None:
            watch = self._watch = ChannelWatch(trio.current_time(), trio.current_time)
            self._hub.watch(watch.see)
            self._lot.unpark_all()
        missing = question.seconds - watch.seconds()
        self._watched_until = trio.current_time() + max(missing, 0.0) + _WATCHED_SECONDS
        if missing > 0:
            await trio.sleep(missing)
        return await self._channel_list(watch, question)

    async def _channel_list(self, watch: ChannelWatch, question: Channels) -> ChannelList:
        slices, registry, seconds = _Slices(), self._hub.registry, watch.seconds()
        names = set(registry.names())
        patterns = {name for name in names if is_pattern(name)}
        sums: dict[str, tuple[int, int]] = {}
        for at, channel in enumerate(watch.channels()):
            if at % _ITEMS_BETWEEN_LOOKS == 0:
                await slices.pause()
            counted = list(watch.of(channel))
            events, size = sum(one.events for one in counted), sum(one.bytes for one in counted)
            sums[channel] = events, size
            for pattern in patterns.intersection(patterns_for(channel)) if patterns else ():
                before = sums.get(pattern, (0, 0))
                sums[pattern] = before[0] + events, before[1] + size
        known = names | sums.keys()
        if question.names is not None:
            chosen = [name for name in question.names if name in known]
        else:
            chosen = await self._busiest(known, sums, question.limit, slices)
        rows = []
        for at, name in enumerate(chosen):
            if at % _ITEMS_BETWEEN_LOOKS == 0:
                await slices.pause()
            events, size = sums.get(name, (0, 0))
            at_every_event, at_a_rate = (
                len(registry.subscribers(name)),
                registry.rates.count_of(name),
            )
            offset, unix_ms = self._last_of(name, watch)
            rows.append(
                ChannelRow(
                    name=name,
                    subscribers=at_every_event + at_a_rate,
                    at_a_rate=at_a_rate,
                    events_per_second=round(events / seconds, 3),
                    bytes_per_second=round(size / seconds, 1),
                    deliveries_per_second=round(events / seconds * at_every_event, 1),
                    last_offset=offset,
                    last_age_seconds=(
                        round(max(time.time() - unix_ms / 1000, 0.0), 3) if unix_ms else None
                    ),
                )
            )
        return ChannelList(rows=rows, seconds=round(seconds, 3), total=len(known))

    async def _busiest(
        self,
        names: Collection[str],
        sums: Mapping[str, tuple[int, int]],
        limit: int,
        slices: _Slices,
    ) -> list[str]:
        """The names with most deliveries first, then those with most events, at most `limit`."""
        registry = self._hub.registry
        keyed = []
        for at, name in enumerate(names):
            if at % _ITEMS_BETWEEN_LOOKS == 0:
                await slices.pause()
            events, _ = sums.get(name, (0, 0))
            keyed.append((-events * len(registry.subscribers(name)), -events, name))
        return [name for *_, name in heapq.nsmallest(limit, keyed)]

    def _last_of(self, name: str, watch: ChannelWatch) -> tuple[int | None, int]:
        """Offset and time of the newest event of a channel, as far as they are known."""
        for counted in watch.of(name):
            return counted.offset, counted.unix_ms
        newest = self._hub.newest_events.get(name)
        return (None, 0) if newest is None else (newest.offset, newest.unix_ms)

    # ---- traces

    async def _start_trace(self, question: StartTrace) -> Reply:
        if len(self._traces) >= _TRACES_MAX:
            reason = f"{_TRACES_MAX} traces are running already: end one first"
            return Refused(status=429, reason=reason)
        self._trace_number += 1
        number = self._trace_number
        trace = self._traces[number] = Trace(question, id_of=self._id, inflated=self._inflated)
        self._lot.unpark_all()
        await self._follow(number, trace)
        if question.connection is not None and not trace.followed:
            self._stop_trace(number)
            return _UNKNOWN
        return TraceStarted(trace=number, connections=len(trace.followed))

    async def _follow(self, number: int, trace: Trace) -> None:
        """Follow the connections that are to be, up to a limit, and are not followed yet."""
        slices, members = _Slices(), self._hub.members
        is_wanted = self._is_wanted(trace.question)
        for some in _in_parts(list(members)):
            await slices.pause()
            for connection in some:
                if len(trace.followed) >= CONNECTIONS_MAX or number not in self._traces:
                    return
                if connection.number in trace.followed or connection not in members:
                    continue
                if is_wanted(connection):
                    _tap(connection, trace)

    def _is_wanted(self, question: StartTrace) -> Callable[[Connection], bool]:
        if question.connection is not None:
            return lambda one: one.number == question.connection
        if question.user is not None:
            return lambda one: _subject(one) == question.user
        names = {question.channel}
        if not is_pattern(question.channel):
            names.update(patterns_for(question.channel))
        return lambda one: self._hub.registry.has_any(one.outbound, names)

    async def _next_frames(self, number: int) -> Reply:
        trace = self._traces.get(number)
        if trace is None:
            return Refused(status=404, reason="There is no such trace: it has ended")
        now = trio.current_time()
        if trace.question.connection is None and now - trace.refreshed_at >= _REFRESH_SECONDS:
            trace.refreshed_at = now
            await self._follow(number, trace)
        frames = await trace.next()
        if frames.ended:
            self._stop_trace(number)
        return frames

    def _stop_trace(self, number: int) -> None:
        trace = self._traces.pop(number, None)
        if trace is None:
            return
        for connection in self._hub.members:
            tap = connection.outbound.socket.tap
            if isinstance(tap, Tap) and trace in tap.traces:
                tap.traces.remove(trace)
                if not tap.traces:
                    connection.outbound.socket.follow(None)


_UNKNOWN: Final = Refused(status=404, reason="There is no such connection: it may have ended")


def _tap(connection: Connection, trace: Trace) -> None:
    """Have `trace` get the frames to `connection`, if it can be followed."""
    socket = connection.outbound.socket
    tap = socket.tap
    if tap is None:
        tap = Tap(connection.number, connection.outbound, socket.untapped_write, _unix_ms)
        if not socket.follow(tap):
            return
    assert isinstance(tap, Tap)  # noqa: S101 - nothing else follows
    tap.traces.append(trace)
    trace.followed.add(connection.number)


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000


def _is_lagging(outbound: Outbound) -> bool:
    """Whether something waits because the client's socket takes nothing."""
    return outbound.state is State.WAITING or bool(outbound.queued)
