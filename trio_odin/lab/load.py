"""A load: many subscribers in one process that check every envelope they receive.

Theory of operation. A publication's envelopes differ between subscribers in nothing but `seq`, which
is the first key. So a frame costs one slice for `seq` and one dict look-up of the bytes behind it:
the first frame with those bytes is decoded in full by msgspec, all others are known to say the same,
because they are equal to it. A server that makes those bytes per connection is read just as truly,
only slower.

    LoadPlan ──► run_load ──► LoadReport
                    │ asyncio, uvloop, picows: the only waiting
                    ▼
                  Books      pure: numbering, foreign channels, completeness, latency

Architecture invariant: no server code is imported here. asyncio, uvloop and picows are: a client has
to be much cheaper than the server it measures on the same machine.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import random
import re
import resource
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

import attrs
import msgspec
from rich.table import Table

from trio_odin.core.names import CHANNEL_RULE, is_channel
from trio_odin.lab.machine import this_machine

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
_SCRAPE_SECONDS = 5.0
_SCRAPE_MAX_BYTES = 4 * 1024 * 1024
_SPARE_FILES = 64
_KIB = 1024
_REASONS_MAX = 8  # that many kinds of failure are told apart, the rest is "other"


class LoadImpossible(Exception):
    """The load cannot be started from here. The message is one sentence that says what would do."""


# ---------------------------------------------------------------------------------------- the plan


@attrs.frozen(kw_only=True)
class LoadPlan:
    """What to do.

    Args:
        connections: how many WebSocket connections, 1 or more.
        channels_per_connection: how many of the channels `{token}.{event_type}` each one samples.
        ramp_per_second: connects a second; 0 goes as fast as it can, 200 handshakes at a time.
        seed: the same seed gives the same samples.
        metrics_url: the server's metrics page; by default /metrics beside `url`. None: no scraping.
    """

    url: str = "ws://127.0.0.1:3002/ws"
    connections: int
    channels_per_connection: int
    tokens: list[str]
    event_type: str = "trade"
    hold_seconds: float
    ramp_per_second: float = 0.0
    seed: int = 0
    metrics_url: str | None = attrs.field()

    @metrics_url.default
    def _metrics_beside_the_socket(self) -> str:
        parts = urlsplit(self.url)
        return f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}/metrics"

    @property
    def channels(self) -> list[str]:
        """Every channel that a connection may sample."""
        return [f"{token}.{self.event_type}" for token in dict.fromkeys(self.tokens)]

    def check(self) -> None:
        """Refuse a plan that cannot be carried out by any machine.

        Raises:
            LoadImpossible: says which number or name is wrong, and what is allowed.
        """
        channels = self.channels
        bad = [channel for channel in channels if not is_channel(channel)]
        parts = urlsplit(self.url)
        if parts.scheme not in {"ws", "wss"} or not parts.hostname:
            raise LoadImpossible(f"{self.url!r} is no address like ws://127.0.0.1:3002/ws")
        if self.connections < 1:
            raise LoadImpossible(f"{self.connections} connections: allowed is 1 or more")
        if bad:
            raise LoadImpossible(f"{bad[0]!r} is no channel: {CHANNEL_RULE}")
        if not 1 <= self.channels_per_connection <= len(channels):
            raise LoadImpossible(
                f"{self.channels_per_connection} channels a connection: "
                f"with {len(channels)} tokens, allowed is 1 to {len(channels)}"
            )
        for name, value in (("hold", self.hold_seconds), ("ramp", self.ramp_per_second)):
            if not 0 <= value < float("inf"):
                raise LoadImpossible(f"{name} of {value}: allowed is a number, 0 or more")

    def samples(self) -> Iterator[list[str]]:
        """The channels of each connection, in the order of connecting."""
        chance = random.Random(self.seed)
        channels = self.channels
        for _ in range(self.connections):
            yield chance.sample(channels, self.channels_per_connection)


class Phase(Enum):
    """Where a load is."""

    CONNECTING = "connecting"
    SUBSCRIBING = "subscribing"
    HOLDING = "holding"
    CLOSING = "closing"


@attrs.frozen
class Progress:
    """A glance at a running load. `seconds_left` of this phase, None where nobody can know."""

    phase: Phase
    connected: int
    subscribed: int
    received: int
    seconds_left: float | None


# ------------------------------------------------------------------- the books: pure, no I/O, no clock


class Histogram:
    """Milliseconds, one bucket each; fixed size. What lies above the last bucket counts as maximum."""

    __slots__ = ("_counts", "max_ms")

    SIZE: Final = 10_000

    def __init__(self) -> None:
        self._counts = [0] * (self.SIZE + 1)
        self.max_ms = 0

    def add(self, ms: int) -> None:
        """Count one value. Below zero (a clock that was set back) is zero."""
        if ms > self.max_ms:
            self.max_ms = ms
        self._counts[0 if ms < 0 else min(self.SIZE, ms)] += 1

    @property
    def count(self) -> int:
        """How many values were added."""
        return sum(self._counts)

    def percentile(self, fraction: float) -> int:
        """The smallest value that at least `fraction` of all values do not exceed; 0 if empty."""
        rank = max(1.0, fraction * self.count)
        seen = 0
        for ms, count in enumerate(self._counts[: self.SIZE]):
            seen += count
            if seen >= rank:
                return ms
        return self.max_ms

    def latency(self) -> Latency | None:
        """The figures of the report, None if there is no value."""
        if not self.count:
            return None
        return Latency(
            count=self.count,
            p50_ms=self.percentile(0.5),
            p99_ms=self.percentile(0.99),
            max_ms=self.max_ms,
        )


@attrs.frozen(kw_only=True)
class Latency:
    """How long deliveries took, by the machine's clock in whole milliseconds."""

    count: int
    p50_ms: int
    p99_ms: int
    max_ms: int


class Envelope(msgspec.Struct):
    """The envelope on the wire. `channel` and `offset` are absent on older servers."""

    seq: int
    ts: int
    data: msgspec.Raw
    channel: str | None = None
    offset: int | None = None


class _Payload(msgspec.Struct):
    """What a publisher may tell: when it published, in Unix milliseconds."""

    timestamp: float | None = None


class Reply(msgspec.Struct):
    """Any answer to a command; only what a load looks at."""

    type: str
    subscribed: list[str] = []  # msgspec copies it for every instance


_read_envelope = msgspec.json.Decoder(Envelope).decode
_read_payload = msgspec.json.Decoder(_Payload).decode
_read_reply = msgspec.json.Decoder(Reply).decode


class Publication:
    """One event as its receivers see it, and how often it was delivered."""

    __slots__ = ("channel", "deliveries", "offset", "published_ms", "stamped_ms")

    def __init__(self, envelope: Envelope) -> None:
        self.channel = envelope.channel
        self.offset = envelope.offset
        self.stamped_ms = envelope.ts
        self.published_ms = _published_ms(envelope.data)
        self.deliveries = 0


def _published_ms(data: msgspec.Raw) -> int | None:
    try:
        timestamp = _read_payload(data).timestamp
    except msgspec.DecodeError:
        return None
    return None if timestamp is None else int(timestamp)


class Numbering:
    """What one connection has received so far, and what it subscribed to."""

    __slots__ = ("channels", "offset", "seq")

    def __init__(self, channels: Iterable[str] = ()) -> None:
        self.channels = frozenset(channels)
        self.seq = 0
        self.offset = -1


@attrs.frozen(kw_only=True)
class Completeness:
    """Of the publications stamped inside the window: did each subscriber get each of them?"""

    publications: int = 0
    expected: int = 0
    received: int = 0
    lost: int = 0
    duplicated: int = 0


class Books:
    """What all connections received, and every breach of the rules of the wire.

    A publication is kept (about 300 bytes) until the end: one that is delivered late, to a slow
    connection, must still find its counter.
    """

    # After the first envelopes of a connection every 100th is decoded in full as well.
    _FIRST_CHECKED: Final = 3
    _CHECK_EVERY: Final = 100
    # Bounds the memory for the bytes behind `seq`; forgotten ones are decoded again.
    _KNOWN_MAX: Final = 8192
    _SEQ_KEY: Final = b'{"seq":'
    _SEQ_AT: Final = len(_SEQ_KEY)

    def __init__(self) -> None:
        self.received = 0
        self.gaps = 0
        self.duplicates = 0
        self.foreign = 0
        self.offsets_backwards = 0
        self._known: dict[bytes, Publication] = {}
        self._publications: dict[tuple[str | None, int], Publication] = {}
        self.restart_latency()

    def restart_latency(self) -> None:
        """Forget the latencies so far."""
        self.since_published = Histogram()
        self.since_stamped = Histogram()

    def take(self, numbering: Numbering, payload: bytes, unix_ms: int) -> bool:
        """Enter one text frame into the books.

        Args:
            numbering: of the connection it came on; is moved forward.
            payload: the whole message.
            unix_ms: when it was received.

        Returns:
            False if it is not an envelope (a reply, or nothing at all): the books are as they were.
        """
        publication = None
        seq = 0
        if payload.startswith(self._SEQ_KEY):
            comma = payload.find(b",")
            try:
                seq = int(payload[self._SEQ_AT : comma])
            except ValueError:
                return False
            if seq > self._FIRST_CHECKED and seq % self._CHECK_EVERY:
                publication = self._known.get(payload[comma:])
        if publication is None:
            envelope = _decoded(payload)
            if envelope is None:
                return False
            seq = envelope.seq
            publication = self._publication_of(envelope, payload)
        self._enter(numbering, seq, publication, unix_ms)
        return True

    def _enter(
        self, numbering: Numbering, seq: int, publication: Publication, unix_ms: int
    ) -> None:
        self.received += 1
        if seq == numbering.seq + 1:
            numbering.seq = seq
        else:
            self._jump(numbering, seq)
        offset = publication.offset
        if offset is not None:
            if offset > numbering.offset:
                numbering.offset = offset
            else:
                self.offsets_backwards += 1
        if publication.channel in numbering.channels:
            publication.deliveries += 1
        elif publication.channel is not None:
            self.foreign += 1
        self.since_stamped.add(unix_ms - publication.stamped_ms)
        if publication.published_ms is not None:
            self.since_published.add(unix_ms - publication.published_ms)

    def _jump(self, numbering: Numbering, seq: int) -> None:
        if seq > numbering.seq:
            self.gaps += seq - numbering.seq - 1
            numbering.seq = seq
        else:
            self.duplicates += 1

    def completeness(
        self, subscribers: Mapping[str, int], *, first_ms: float, last_ms: float
    ) -> Completeness:
        """Compare the deliveries of each publication with the subscribers of its channel.

        The window is over the server's stamps, which are the same for all receivers. A publication
        that nobody received cannot be seen here; it shows as gaps.

        Args:
            subscribers: how many connections each channel had during the whole window.
            first_ms: stamps below it are outside.
            last_ms: stamps above it are outside.
        """
        publications = expected = received = lost = duplicated = 0
        for publication in self._publications.values():
            wanted = subscribers.get(publication.channel or "", 0)
            if not wanted or not first_ms <= publication.stamped_ms <= last_ms:
                continue
            publications += 1
            expected += wanted
            received += publication.deliveries
            lost += max(0, wanted - publication.deliveries)
            duplicated += max(0, publication.deliveries - wanted)
        return Completeness(
            publications=publications,
            expected=expected,
            received=received,
            lost=lost,
            duplicated=duplicated,
        )

    def _publication_of(self, envelope: Envelope, payload: bytes) -> Publication:
        # Without a stream there is no offset: then stamp and payload say which publication it is.
        offset = envelope.offset
        identity = hash((envelope.ts, bytes(envelope.data))) if offset is None else offset
        key = (envelope.channel, identity)
        publication = self._publications.get(key)
        if publication is None:
            publication = self._publications[key] = Publication(envelope)
        if len(self._known) >= self._KNOWN_MAX:
            self._known.clear()
        if payload.startswith(self._SEQ_KEY):
            self._known[payload[payload.find(b",") :]] = publication
        return publication


def _decoded(payload: bytes) -> Envelope | None:
    try:
        return _read_envelope(payload)
    except msgspec.DecodeError:
        return None


# -------------------------------------------------------------------------------------- the report


@attrs.frozen(kw_only=True)
class ServerFigures:
    """What the server's metrics page said over the load; None where it said nothing.

    RSS is the resident memory of the process that answered the page: before the connects, after the
    subscriptions (`kib_per_connection` is the difference), and at the end of the hold.
    """

    cpu_us_per_connect: float | None = None
    cpu_cores: float | None = None
    cpu_us_per_delivery: float | None = None
    rss_before_bytes: float | None = None
    rss_after_bytes: float | None = None
    rss_held_bytes: float | None = None
    kib_per_connection: float | None = None
    connections: float | None = None


@attrs.frozen(kw_only=True)
class LoadReport:
    """What a load found.

    Args:
        connected: connections that were opened.
        subscribed: connections whose subscription to all of their channels was acknowledged.
        failures: why connections were not opened or not subscribed, and how often.
        disconnects: connections that ended before the load closed them.
        close_codes: the codes of these, and how often; 1006 is an end without a close frame.
        closed_cleanly: connections that answered our close (1000) in time.
        error_replies: errors that the server sent, `subscribed` or not.
        received: envelopes, in all.
        gaps: numbers that are missing from the connections' `seq`.
        duplicates: envelopes whose `seq` did not rise.
        foreign: envelopes of a channel that the connection had not subscribed to.
        offsets_backwards: envelopes whose `offset` did not rise on their connection.
        unreadable: frames that were no JSON of a known form.
        publications, expected, received_in_window, lost, duplicated: completeness, see
            `Books.completeness`. The window ends 1 s before the hold does, at either end.
        latency_published: from the payload's `timestamp` to the receipt, during the hold.
        latency_stamped: from the server's `ts` to the receipt, during the hold.
        connect_seconds: for all connects and subscriptions together.
    """

    plan: LoadPlan
    interrupted: bool
    connected: int
    subscribed: int
    failures: dict[str, int]
    disconnects: int
    close_codes: dict[int, int]
    closed_cleanly: int
    error_replies: int
    received: int
    gaps: int
    duplicates: int
    foreign: int
    offsets_backwards: int
    unreadable: int
    publications: int
    expected: int
    received_in_window: int
    lost: int
    duplicated: int
    latency_published: Latency | None
    latency_stamped: Latency | None
    connect_seconds: float
    connects_per_second: float
    hold_seconds: float
    received_per_second: float
    server: ServerFigures
    client_cpu_cores: float
    client_cpu_us_per_delivery: float | None

    @property
    def is_perfect(self) -> bool:
        """Whether everything that was asked for came about, and nothing else.

        True also for a load in which nothing was published: see `publications`.
        """
        wanted = self.plan.connections
        faults = (
            *(self.gaps, self.duplicates, self.foreign, self.offsets_backwards),
            *(self.lost, self.duplicated, self.unreadable),
            *(self.disconnects, self.error_replies, self.interrupted),
        )
        return self.connected == wanted and self.subscribed == wanted and not any(faults)

    def as_json(self) -> bytes:
        """All of it as one JSON object, with the machine and the lines that a person reads."""
        content = {name: getattr(self, name) for name in attrs.fields_dict(type(self))}
        more = {
            "is_perfect": self.is_perfect,
            "machine": this_machine(),
            "summary": dict(self._rows()),
        }
        return msgspec.json.encode(content | more)

    def lines(self) -> list[str]:
        """The report as plain text, one figure a line."""
        return [f"{name}: {value}" for name, value in self._rows()]

    def render(self) -> Table:
        """The report as a table for the terminal."""
        table = Table(title=f"load on {self.plan.url}", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column()
        for name, value in self._rows():
            table.add_row(name, value)
        return table

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "verdict", _verdict(self)
        yield from self._connection_rows()
        yield from self._delivery_rows()
        yield from self._cost_rows()

    def _connection_rows(self) -> Iterator[tuple[str, str]]:
        yield (
            "connections",
            (
                f"{self.connected:,} of {self.plan.connections:,} connected, "
                f"{self.subscribed:,} subscribed to {self.plan.channels_per_connection} channels each"
            ),
        )
        yield (
            "connect + subscribe",
            (f"{self.connect_seconds:.2f} s, {self.connects_per_second:,.0f} a second"),
        )
        for reason, count in self.failures.items():
            yield "failed", f"{count:,} × {reason}"
        codes = ", ".join(f"{count:,} × {code}" for code, count in self.close_codes.items())
        yield "disconnected early", f"{self.disconnects:,}{f' ({codes})' if codes else ''}"
        yield "closed cleanly", f"{self.closed_cleanly:,}"

    def _delivery_rows(self) -> Iterator[tuple[str, str]]:
        yield (
            "received",
            (
                f"{self.received:,} envelopes; {self.received_per_second:,.0f} a second "
                f"over {self.hold_seconds:.1f} s"
            ),
        )
        yield (
            "breaches",
            (
                f"{self.gaps:,} missing numbers, {self.duplicates:,} repeated, "
                f"{self.foreign:,} foreign, {self.offsets_backwards:,} offsets backwards, "
                f"{self.unreadable:,} unreadable, {self.error_replies:,} error replies"
            ),
        )
        yield (
            "completeness",
            (
                f"{self.received_in_window:,} of {self.expected:,} deliveries of "
                f"{self.publications:,} publications; {self.lost:,} lost, {self.duplicated:,} twice"
                if self.publications
                else "not tested: nothing was published within the window"
            ),
        )
        for name, latency in (
            ("published → received", self.latency_published),
            ("stamped → received", self.latency_stamped),
        ):
            if latency is not None:
                yield (
                    name,
                    (f"p50 {latency.p50_ms} ms, p99 {latency.p99_ms} ms, max {latency.max_ms} ms"),
                )

    def _cost_rows(self) -> Iterator[tuple[str, str]]:
        server = self.server
        yield (
            "server CPU",
            (
                f"{_figure(server.cpu_us_per_connect, 'µs per connect + subscribe')}; "
                f"{_figure(server.cpu_cores, 'cores', digits=2)} in the hold, "
                f"{_figure(server.cpu_us_per_delivery, 'µs per delivery', digits=1)}"
            ),
        )
        yield (
            "server memory",
            (
                f"{_mebibytes(server.rss_before_bytes)} before, "
                f"{_mebibytes(server.rss_after_bytes)} after, "
                f"{_mebibytes(server.rss_held_bytes)} at the end, "
                f"{_figure(server.kib_per_connection, 'KiB per connection', digits=1)}"
            ),
        )
        yield (
            "client CPU",
            (
                f"{self.client_cpu_cores:.2f} cores in the hold, "
                f"{_figure(self.client_cpu_us_per_delivery, 'µs per delivery', digits=1)}"
            ),
        )


def _verdict(report: LoadReport) -> str:
    if report.interrupted:
        return "interrupted: these are the figures so far"
    return "perfect" if report.is_perfect else "NOT perfect"


def _figure(value: float | None, unit: str, *, digits: int = 0) -> str:
    return f"unknown {unit}" if value is None else f"{value:,.{digits}f} {unit}"


def _mebibytes(value: float | None) -> str:
    return _figure(None if value is None else value / _KIB**2, "MiB", digits=1)


# ------------------------------------------------------------------------- what this machine allows


def require_files(connections: int) -> None:
    """Make sure that so many sockets can be open at once; raises the soft limit to the hard one.

    Raises:
        LoadImpossible: the hard limit on open files is too low.
    """
    needed = connections + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise LoadImpossible(
            f"{connections:,} connections need {needed:,} open files and this process may have "
            f"{hard:,}: raise the hard limit (ulimit -Hn {needed}) "
            f"or ask for at most {max(0, hard - _SPARE_FILES):,} connections"
        )


_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def require_ports(connections: int) -> None:
    """Make sure that so many connections to one address have source ports.

    Raises:
        LoadImpossible: they have not.
    """
    try:
        first, last = map(int, _PORT_RANGE.read_text().split())
    except (OSError, ValueError):  # not Linux: then the kernel has to say it
        return
    ports = last - first + 1
    if connections > ports:
        raise LoadImpossible(
            f"{connections:,} connections to one address need as many source ports and there are "
            f"{ports:,}: ask for at most {ports:,}, or widen net.ipv4.ip_local_port_range"
        )


# -------------------------------------------------------------------------- the server's own figures

_CPU = "process_cpu_seconds_total"
_RSS = "process_resident_memory_bytes"
_CONNECTIONS = "ws_connections_current"
_SENT = "ws_messages_sent_total"
_SAMPLE_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{.*\})?[ \t]+(\S+)")


def parse_metrics(text: str) -> dict[str, float]:
    """Read Prometheus' text format: the sum of each metric over its labels."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        match = _SAMPLE_LINE.match(line)
        if match is not None:
            with suppress(ValueError):
                sums[match[1]] = sums.get(match[1], 0.0) + float(match[2])
    return sums


@attrs.frozen
class _Sample:
    """The server's and our own counters at one moment. Seconds, bytes."""

    at: float
    metrics: Mapping[str, float]
    client_cpu: float
    received: int

    def since(self, earlier: _Sample, name: str) -> float | None:
        """How much the metric has grown, None if one of the two pages did not have it."""
        if name in self.metrics and name in earlier.metrics:
            return self.metrics[name] - earlier.metrics[name]
        return None


def _own_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _scrape(url: str | None) -> dict[str, float]:
    """The metrics page, empty if it cannot be had within the deadline."""
    if url is None:
        return {}
    try:
        async with asyncio.timeout(_SCRAPE_SECONDS):
            page = await _get(urlsplit(url))
    except (OSError, EOFError, ValueError):
        return {}
    head, _, body = page.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    return parse_metrics(body.decode(errors="replace")) if status == [b"200"] else {}


async def _get(url: SplitResult) -> bytes:
    """The whole answer to a GET. Cancellation closes the connection."""
    is_secure = url.scheme == "https"
    reader, writer = await asyncio.open_connection(
        url.hostname,
        url.port or (443 if is_secure else 80),
        ssl=ssl.create_default_context() if is_secure else None,
    )
    # HTTP/1.0 spares us chunks: the answer ends where the connection does.
    target = url.path or "/"
    request = f"GET {target} HTTP/1.0\r\nHost: {url.netloc}\r\nAccept: text/plain\r\n\r\n"
    page = bytearray()
    try:
        writer.write(request.encode())
        while len(page) < _SCRAPE_MAX_BYTES and (chunk := await reader.read(64 * 1024)):
            page += chunk
    finally:
        writer.transport.abort()  # unlike close(), it needs no waiting, which nothing would bound
    return bytes(page)


# ------------------------------------------------------------------------------------- the running

_LOGGER = logging.getLogger("picows.load")
_LOGGER.setLevel(logging.WARNING)  # below that it has a line for every connection
# RFC 6455, 7.4.1: what stands for a close frame without a code, and for an end without a close frame.
_NO_CODE, _ABNORMAL = 1005, 1006


def run_load(plan: LoadPlan, progress: Callable[[Progress], None]) -> LoadReport:
    """Connect, subscribe, hold and close as `plan` says; return what was found.

    Runs an asyncio loop of its own, so call it from a thread without one. Ctrl-C in the main thread
    ends the phase, closes what is open, and returns the report so far; a second one raises
    KeyboardInterrupt.

    Bounds: 30 s for each handshake and each acknowledgement, 200 of them at a time, and a phase that
    gets on with less than 100 a second ends with what it has; then `hold_seconds`; then 5 s to close.

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
            f'{error.name} is not installed, it comes with: pip install "trio-odin[lab]"'
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
        self._before: _Sample | None = None
        self._held_from: _Sample | None = None
        self._held_until: _Sample | None = None
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
            # picows bounds the handshake and tidies up after it; the outer bound is for the connect.
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
            reply = _read_reply(payload)
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

    async def _sample(self) -> _Sample:
        metrics = await _scrape(self._plan.metrics_url)
        return _Sample(
            at=time.monotonic(),
            metrics=metrics,
            client_cpu=_own_cpu_seconds(),
            received=self.books.received,
        )

    def _report(self) -> LoadReport:
        books = self.books
        first_ms, last_ms = self._window_ms
        complete = books.completeness(self._subscribers_of, first_ms=first_ms, last_ms=last_ms)
        hold = _Hold.between(self._held_from, self._held_until)
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
            connects_per_second=_ratio(self._subscribed, self._connect_seconds) or 0.0,
            hold_seconds=hold.seconds,
            received_per_second=_ratio(hold.received, hold.seconds) or 0.0,
            server=self._server_figures(hold),
            client_cpu_cores=_ratio(hold.client_cpu, hold.seconds) or 0.0,
            client_cpu_us_per_delivery=_micros(hold.client_cpu, hold.received),
        )

    def _server_figures(self, hold: _Hold) -> ServerFigures:
        before, held_from, held_until = self._before, self._held_from, self._held_until
        if before is None or held_from is None or held_until is None:
            return ServerFigures()
        grown = held_from.since(before, _RSS)
        hold_cpu = held_until.since(held_from, _CPU)
        # The server's own count if it has one: it may serve others besides us.
        deliveries = held_until.since(held_from, _SENT) or hold.received
        return ServerFigures(
            cpu_us_per_connect=_micros(held_from.since(before, _CPU), self._subscribed),
            cpu_cores=_ratio(hold_cpu, hold.seconds),
            cpu_us_per_delivery=_micros(hold_cpu, deliveries),
            rss_before_bytes=before.metrics.get(_RSS),
            rss_after_bytes=held_from.metrics.get(_RSS),
            rss_held_bytes=held_until.metrics.get(_RSS),
            kib_per_connection=_ratio(None if grown is None else grown / _KIB, self._connected),
            connections=held_from.metrics.get(_CONNECTIONS),
        )


@attrs.frozen
class _Hold:
    """The hold as our own side saw it."""

    seconds: float = 0.0
    received: int = 0
    client_cpu: float = 0.0

    @classmethod
    def between(cls, first: _Sample | None, last: _Sample | None) -> _Hold:
        if first is None or last is None:
            return cls()
        return cls(
            last.at - first.at, last.received - first.received, last.client_cpu - first.client_cpu
        )


def _ratio(amount: float | None, divisor: float) -> float | None:
    return None if amount is None or not divisor else amount / divisor


def _micros(seconds: float | None, divisor: float) -> float | None:
    return _ratio(None if seconds is None else seconds * 1e6, divisor)


def _unix_ms() -> float:
    return time.time() * 1000


def _reason(error: Exception) -> str:
    """Why a connect failed, without anything that differs between connections."""
    if isinstance(error, TimeoutError):
        return f"no handshake within {_STEP_SECONDS:.0f} s"
    response = getattr(error, "response", None)  # of picows' WSHandshakeError
    if response is not None:
        text = (response.body or b"").decode(errors="replace").strip()[:80]
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
