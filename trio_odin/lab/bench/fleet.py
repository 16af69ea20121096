"""A fleet of WebSocket clients in one process: `python -m trio_odin.lab.bench.fleet PLAN`.

It is to cost less than what it measures, at 10,000 connections and many frames a read, so it is one
loop over epoll, and its reader looks at each frame once: the bytes that all subscribers of an event
share are decoded for the first of them and looked up for the others.

It looks every millisecond instead of waiting in epoll: a server on the same machine would pay for
waking it up, with each write into a socket, which no server does for clients far away.

It obeys lines on standard input and answers each with lines of JSON on standard output:

    connect    connect and subscribe everybody; a line of progress now and then, then the figures
    count      how many events were received so far
    collect    the figures since the last collect, and what was received of each event
    quit       end (as does the end of the input)
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import attrs
import msgspec

from trio_odin.lab.bench.dialects import DIALECTS, event_in, masked_frame, upgrade_request
from trio_odin.lab.load.limits import require_files
from trio_odin.lab.load.plan import LoadImpossible, samples

_READ_BYTES = 256 * 1024
_PONG = 0x8A
_CONTROL = 0x08
_CLOSE, _PING = 0x88, 0x89
_LENGTH_16_BITS, _LENGTH_64_BITS = 126, 127
_LOOK_SECONDS = 0.001
_PROGRESS_SECONDS = 0.25
_CONNECT_SECONDS = 30.0
_STORM_SECONDS = 300.0
_NS_PER_BUCKET = 100_000  # a tenth of a millisecond
_KNOWN_MAX = 16_384


@attrs.frozen(kw_only=True)
class FleetPlan:
    """What a fleet is to do.

    Args:
        host, port: of the server.
        source: the address to connect from, each has source ports of its own; none: any.
        path: of the WebSocket.
        dialect: a key of `DIALECTS`.
        connections: how many.
        channels: that a connection may subscribe to.
        channels_per_connection: how many of them each one samples.
        seed: the same seed gives the same samples.
        in_flight: how many connects may be under way at a time.
        is_reading: False: after the subscription nothing is read any more, with small buffers.
    """

    host: str
    port: int
    source: str = "127.0.0.1"
    path: str = "/ws"
    dialect: str = "odin"
    connections: int
    channels: list[str]
    channels_per_connection: int
    seed: int = 0
    in_flight: int = 200
    is_reading: bool = True

    def samples(self) -> Iterator[list[str]]:
        """The channels of each connection, in the order of connecting."""
        return samples(self.channels, self.channels_per_connection, self.connections, self.seed)


@attrs.frozen(kw_only=True)
class Connected:
    """How a storm of connects went. Times are from `connect` to the acknowledged subscription."""

    connected: int
    seconds: float
    failures: dict[str, int]
    ms: list[float]
    subscribers: dict[str, int]


@attrs.frozen(kw_only=True)
class Collected:
    """What was received since the last time.

    Args:
        received: events.
        reads: from sockets; fewer than `received` where the server joins.
        deliveries: how often each event was received, by its number.
        buckets: latencies from the moment of the plan, in tenths of a millisecond, with counts.
        gaps: envelopes that a jump of `seq` says are missing.
        repeated: events that came twice, or after a later one, on the same connection; they and
            foreign ones are in nothing else.
        foreign: events of a channel that the connection did not subscribe to.
        disconnects: connections that the server ended.
        cpu_seconds: of this process.
    """

    received: int
    reads: int
    deliveries: dict[int, int]
    buckets: dict[int, int]
    gaps: int
    repeated: int
    foreign: int
    disconnects: int
    cpu_seconds: float


class _Client:
    """One connection. `step` is what comes next; None once it is subscribed."""

    __slots__ = ("channels", "event", "partial", "rest", "seq", "socket", "started", "step")

    def __init__(self, connection: socket.socket, channels: list[str]) -> None:
        self.socket = connection
        self.channels = frozenset(channels)
        self.step: str | None = "connect"
        self.started = time.monotonic()
        self.rest = b""  # the beginning of a frame
        self.partial = b""  # the beginning of a message of the dialect
        self.seq = 0
        self.event = 0


class _Event:
    """An event that somebody has received."""

    __slots__ = ("channel", "deliveries", "due_ns", "number")

    def __init__(self, number: int, due_ns: int, channel: str) -> None:
        self.number = number
        self.due_ns = due_ns
        self.channel = channel
        self.deliveries = 0


class Fleet:
    """See the module."""

    def __init__(self, plan: FleetPlan) -> None:
        self._plan = plan
        self._dialect = DIALECTS[plan.dialect]
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._failures: Counter[str] = Counter()
        self._connect_ms: list[float] = []
        self._subscribers: Counter[str] = Counter()
        self._known: dict[bytes, _Event] = {}
        self._events: dict[int, _Event] = {}
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._total = 0
        self._in_flight = 0
        self._reset()

    def _reset(self) -> None:
        self._received = self._reads = self._gaps = self._repeated = self._foreign = 0
        self._disconnects = 0
        self._buckets: Counter[int] = Counter()
        self._events.clear()
        self._known.clear()
        self._cpu_from = time.process_time()

    # ---- commands

    def run(self) -> None:
        """Obey until the input ends."""
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        while True:
            for fd, _ in self._ready():
                if fd == sys.stdin.fileno():
                    line = os.read(fd, 4096).decode().strip()
                    if line in {"", "quit"}:
                        return
                    self._obey(line)
                else:
                    self._readable(fd)

    def _ready(self) -> list[tuple[int, int]]:
        """What can be read or written after a millisecond."""
        time.sleep(_LOOK_SECONDS)
        return self._epoll.poll(0, len(self._clients) + 1)

    def _obey(self, command: str) -> None:
        if command == "connect":
            _tell(self._connect_all())
        elif command == "count":
            _tell({"received": self._total})
        elif command == "collect":
            _tell(self._collect())

    def _collect(self) -> Collected:
        collected = Collected(
            received=self._received,
            reads=self._reads,
            deliveries={event.number: event.deliveries for event in self._events.values()},
            buckets=dict(self._buckets),
            gaps=self._gaps,
            repeated=self._repeated,
            foreign=self._foreign,
            disconnects=self._disconnects,
            cpu_seconds=time.process_time() - self._cpu_from,
        )
        self._reset()
        return collected

    # ---- connecting

    def _connect_all(self) -> Connected:
        started = told = time.monotonic()
        samples = self._plan.samples()
        begun = 0
        while begun < self._plan.connections or self._in_flight:
            while begun < self._plan.connections and self._in_flight < self._plan.in_flight:
                self._begin(next(samples))
                begun += 1
            if time.monotonic() - started > _STORM_SECONDS:
                self._failures[f"not within {_STORM_SECONDS:.0f} s"] += (
                    self._plan.connections - begun
                )
                begun = self._plan.connections
            for fd, _ in self._ready():
                if fd != sys.stdin.fileno():
                    self._advance(fd)
            now = time.monotonic()
            if now - told >= _PROGRESS_SECONDS:
                told = now
                self._give_up_on_late_ones(now)
                _tell({"connected": len(self._connect_ms)})
        return Connected(
            connected=len(self._connect_ms),
            seconds=time.monotonic() - started,
            failures=dict(self._failures),
            ms=[round(ms, 2) for ms in self._connect_ms],
            subscribers=dict(self._subscribers),
        )

    def _begin(self, channels: list[str]) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        if not self._plan.is_reading:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # The port is chosen by `connect`, when the whole pair of addresses is known.
        connection.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        if self._plan.source:
            connection.bind((self._plan.source, 0))
        code = connection.connect_ex((self._plan.host, self._plan.port))
        client = _Client(connection, channels)
        if code not in {0, errno.EINPROGRESS}:
            self._failed(client, os.strerror(code))
            return
        self._in_flight += 1
        self._clients[connection.fileno()] = client
        self._epoll.register(connection.fileno(), select.EPOLLOUT)

    def _advance(self, fd: int) -> None:
        client = self._clients[fd]
        if client.step is None:
            self._readable(fd)
        elif client.step == "connect":
            self._connected(fd, client)
        else:
            try:
                data = self._read(fd)
            except OSError as error:
                self._abandon(fd, client, os.strerror(error.errno or 0))
                return
            if not data:
                self._abandon(fd, client, "closed by the server during the handshake")
            elif client.step == "upgrade":
                self._upgraded(fd, client, data)
            else:
                self._take(fd, client, data)

    def _connected(self, fd: int, client: _Client) -> None:
        code = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._abandon(fd, client, os.strerror(code))
            return
        host = f"{self._plan.host}:{self._plan.port}"
        self._send(fd, upgrade_request(host, self._plan.path))
        client.step = "upgrade"
        self._epoll.modify(fd, select.EPOLLIN)

    def _upgraded(self, fd: int, client: _Client, data: bytes) -> None:
        head, end, behind = (client.rest + data).partition(b"\r\n\r\n")
        if not end:
            client.rest += data
        elif head.startswith(b"HTTP/1.1 101 "):
            client.rest = b""
            client.step = "subscribe"
            self._send(fd, self._dialect.greeting(sorted(client.channels)))
            if behind:
                self._take(fd, client, behind)
        else:
            self._abandon(fd, client, head.partition(b"\r\n")[0].decode(errors="replace"))

    def _acknowledged(self, fd: int, client: _Client) -> None:
        client.step = None
        self._in_flight -= 1
        self._connect_ms.append((time.monotonic() - client.started) * 1000)
        self._subscribers.update(client.channels)
        if not self._plan.is_reading:
            self._epoll.modify(fd, 0)

    def _abandon(self, fd: int, client: _Client, why: str) -> None:
        self._in_flight -= 1
        self._epoll.unregister(fd)
        del self._clients[fd]
        self._failed(client, why)

    def _failed(self, client: _Client, why: str) -> None:
        client.socket.close()
        self._failures[why] += 1

    def _give_up_on_late_ones(self, now: float) -> None:
        late = [
            (fd, client)
            for fd, client in self._clients.items()
            if client.step is not None and now - client.started > _CONNECT_SECONDS
        ]
        for fd, client in late:
            self._abandon(fd, client, f"not subscribed within {_CONNECT_SECONDS:.0f} s")

    # ---- receiving

    def _readable(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            data = self._read(fd)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._reads += 1
            self._take(fd, client, data)
        else:
            self._ended(fd, client)

    def _send(self, fd: int, data: bytes) -> None:
        # Small, and seldom: a socket that has no room for it, or is gone, is seen when it is read.
        with suppress(OSError):
            os.write(fd, data)

    def _read(self, fd: int) -> bytes:
        # Into memory that is there: os.read would map and unmap as much as it might need.
        return bytes(self._buffer[: os.readv(fd, [self._buffer])])

    def _ended(self, fd: int, client: _Client) -> None:
        self._epoll.unregister(fd)
        del self._clients[fd]
        client.socket.close()
        self._disconnects += 1

    def _take(self, fd: int, client: _Client, data: bytes) -> None:
        """Split into frames (RFC 6455, 5.2; a server does not mask), and take each."""
        now_ns = time.monotonic_ns()
        if client.rest:
            data = client.rest + data
        size = len(data)
        position = 0
        while size - position >= 2:
            length = data[position + 1]
            start = position + 2
            if length == _LENGTH_16_BITS:
                start += 2
            elif length == _LENGTH_64_BITS:
                start += 8
            if start > position + 2:
                length = int.from_bytes(data[position + 2 : start], "big")
            end = start + length
            if end > size:
                break
            head = data[position]
            if head & _CONTROL:
                self._control(fd, head, data[start:end])
            else:
                self._payload(fd, client, data[start:end], now_ns)
            position = end
        client.rest = data[position:] if position < size else b""

    def _control(self, fd: int, head: int, payload: bytes) -> None:
        if head == _PING:
            self._send(fd, masked_frame(_PONG, payload))
        elif head == _CLOSE:
            self._send(fd, masked_frame(_CLOSE, payload[:2]))

    def _payload(self, fd: int, client: _Client, payload: bytes, now_ns: int) -> None:
        if not client.partial:
            seq, shared = self._dialect.seq_and_rest(payload)
            event = self._known.get(shared)
            if event is not None:
                self._enter(client, seq, event, now_ns)
                return
        units, client.partial = self._dialect.units(client.partial + payload)
        for unit in units:
            self._unit(fd, client, unit, now_ns)

    def _unit(self, fd: int, client: _Client, unit: bytes, now_ns: int) -> None:
        seq, shared = self._dialect.seq_and_rest(unit)
        event = self._known.get(shared) or self._learn(shared)
        if event is not None:
            self._enter(client, seq, event, now_ns)
        elif client.step is not None and self._dialect.is_acknowledgement(unit):
            self._acknowledged(fd, client)
        elif (answer := self._dialect.answer(unit)) is not None:
            self._send(fd, answer)

    def _learn(self, shared: bytes) -> _Event | None:
        found = event_in(shared)
        if found is None:
            return None
        event = self._events.get(found.number)
        if event is None:
            event = self._events[found.number] = _Event(*found)
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[shared] = event
        return event

    def _enter(self, client: _Client, seq: int, event: _Event, now_ns: int) -> None:
        self._received += 1
        self._total += 1
        if seq:
            if seq != client.seq + 1:
                self._gaps += max(0, seq - client.seq - 1)
            client.seq = seq
        if event.number <= client.event:
            self._repeated += 1
            return
        client.event = event.number
        if event.channel not in client.channels:
            self._foreign += 1
            return
        event.deliveries += 1
        self._buckets[(now_ns - event.due_ns) // _NS_PER_BUCKET] += 1


def _tell(answer: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Read the plan from the one argument, and obey."""
    plan = msgspec.json.decode(sys.argv[1], type=FleetPlan)
    try:
        require_files(plan.connections)
    except LoadImpossible as error:
        _tell({"impossible": str(error)})
        return
    Fleet(plan).run()


if __name__ == "__main__":
    main()
