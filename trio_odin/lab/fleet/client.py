"""A fleet of WebSocket clients in one process: `python -m trio_odin.lab.fleet.client PLAN`.

It must cost less than the server it measures, at 10,000 connections and many frames a read, so it
is one loop over epoll, and `Books` reads each frame once.

It polls every millisecond instead of waiting in epoll: a server on the same machine would pay for
waking it with each write into a socket, which a server with distant clients does not.

It carries out commands from standard input, a line each, and answers each at once with a line of
JSON on standard output:

    connect    begin to connect and subscribe all clients: `Progress`
    progress   `Progress`
    collect    the events since the last collect: `Collected`
    cut        cut all connections at once, without a close; they come back as planned
    churn      begin to end connections, in every possible way, and replace them as planned
    close      close all in order, and stop reconnecting
    watch      from now on, keep the latencies of each connection, for the summary
    summary    the connections' history so far: `Summary`
    quit       end (as does the end of the input)
"""

from __future__ import annotations

import errno
import heapq
import os
import random
import select
import socket
import ssl
import struct
import sys
import time
from contextlib import suppress
from typing import TypeAlias, cast

import attrs
import msgspec

from trio_odin.lab.fleet.batches import tallies
from trio_odin.lab.fleet.books import Books, Subscriber
from trio_odin.lab.fleet.dialects import DIALECTS, masked_frame, upgrade_request
from trio_odin.lab.fleet.dictionary import DictionaryUnavailable, fetch
from trio_odin.lab.fleet.encodings import Z1, Unreadable, announced, encoding_of
from trio_odin.lab.fleet.events import KINDS
from trio_odin.lab.fleet.latency import p99_step
from trio_odin.lab.fleet.limits import LoadImpossible, require_files
from trio_odin.lab.fleet.plan import Collected, FleetPlan, Progress, Summary
from trio_odin.net.segments import segments

_Socket: TypeAlias = socket.socket

_READ_BYTES = 256 * 1024
_PONG = 0x8A
_CONTROL = 0x08
_CLOSE, _PING = 0x88, 0x89
_TEXT, _RESERVED = 0x81, 0x83
_LENGTH_16_BITS, _LENGTH_64_BITS = 126, 127
_HEAD_BYTES, _LONG_HEAD_BYTES = 2, 4
_LOOK_SECONDS = 0.001
_LATE_LOOK_SECONDS = 0.25
# They take some milliseconds: a client asks for the upgrade as soon as it is connected.
_BEGUN_AT_A_TIME = 100
_CONNECT_SECONDS = 30.0
_STORM_SECONDS = 300.0
_RETRY_MAX_SECONDS = 30.0
_REASON_CHARACTERS = 80
_REASONS_MAX = 20  # a server with a new reason each time must not fill the report
_NORMAL_CLOSURE = (1000).to_bytes(2, "big")
_NO_CLOSE_FRAME = "1006"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no time


@attrs.define(eq=False, on_setattr=attrs.setters.NO_OP)
class _Client(Subscriber):
    """One connection, and those that replace it.

    Attributes:
        socket: set by `begin`.
        step: the next step, None: receive events.
        rest: the beginning of a frame; `partial`: the beginning of a message of the dialect.
        refusal: the reason why there will be no events.
        old_order: the order that an earlier connection had reached.
        is_whole: it is the first connection, so that it should receive all events.
    """

    socket: _Socket = attrs.field(init=False)
    step: str | None = "connect"
    started: float = 0.0
    rest: bytes = b""
    partial: bytes = b""
    attempts: int = 0
    lost_at: float | None = None
    was_subscribed: bool = False
    is_leaving: bool = False
    close_reason: str = ""
    refusal: str = ""
    old_order: int = 0
    is_whole: bool = True

    @property
    def is_silent(self) -> bool:
        """Whether this connection received nothing since its subscription."""
        return self.step is None and not self.seq and self.order == self.old_order

    def begin(self, connection: _Socket) -> None:
        """Begin a new connection: its numbers start anew, the order of events does not."""
        self.socket = connection
        self.step = "connect"
        self.started = time.monotonic()
        self.rest = self.partial = b""
        self.seq = 0
        self.old_order = self.order
        if self.was_subscribed:
            self.is_whole = False
            self.standing = self.standing and self.standing.after_a_break()
        self.is_leaving = False
        self.close_reason = self.refusal = ""


class Fleet:
    """See the module."""

    def __init__(self, plan: FleetPlan) -> None:
        self._plan = plan
        self._dialect = DIALECTS[plan.dialect]
        self._kind = KINDS[plan.kind]
        self._encoding = encoding_of(plan.encoding)
        self._books = Books(self._dialect, self._kind)
        self._epoll = select.epoll()
        self._tls = (
            ssl.create_default_context(cafile=plan.authority or None) if plan.is_tls else None
        )
        self._clients: dict[int, _Client] = {}  # those with a socket, by its number
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._random = random.Random(plan.workload.seed + plan.first)
        self._samples = plan.workload.of(plan.first, plan.connections)

        self._begun = plan.connections  # first connects begun; all until the command
        self._returning: list[tuple[float, int, _Client]] = []  # a heap by time
        self._in_flight = 0
        self._subscribed = 0
        self._started = 0.0
        self._next_late_look = 0.0
        self._is_closing = False
        self._churners: list[_Client] = []
        self._churn_from: float | None = None
        self._churn_done = 0
        # A server tested only with orderly closes may leak with every other end.
        self._ways_to_leave = (
            self._leave_in_order,
            self._leave_without_a_word,
            self._leave_by_a_broken_rule,
            self._leave_by_a_reset,
            self._leave_within_a_frame,
        )

        self._so_far = Summary()
        self._reset()

    def _reset(self) -> None:
        self._since = Collected()
        self._cpu_from = time.process_time()

    # ---- commands

    def run(self) -> None:
        """Carry out commands until the input ends."""
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        while True:
            time.sleep(_LOOK_SECONDS)
            for fd, _ in self._epoll.poll(0, len(self._clients) + 1):
                if fd == sys.stdin.fileno():
                    for command in os.read(fd, 4096).decode().splitlines() or ["quit"]:
                        if command == "quit":
                            return
                        _tell(self.obey(command))
                else:
                    self.advance(fd)
            self.tick(time.monotonic())

    def obey(self, command: str) -> Progress | Collected | Summary:
        """Carry out one command."""
        match command:
            case "connect":
                self._begun = 0
                self._started = time.monotonic()
            case "collect":
                return self._collect()
            case "cut":
                self._cut(time.monotonic())
            case "churn":
                self._churn_from = time.monotonic()
            case "close":
                self._close_all()
            case "watch":
                for client in self._clients.values():
                    client.steps = bytearray() if client.is_counted else None
            case "summary":
                if not self._is_closing:
                    self._look_at_all()
                return self._so_far
        return Progress(
            connections=self._subscribed,
            pending=self._pending(),
            received=self._books.total,
            skipped=self._books.skipped,
        )

    def _pending(self) -> int:
        return self._plan.connections - self._begun + self._in_flight + len(self._returning)

    def _collect(self) -> Collected:
        collected = attrs.evolve(
            self._since,
            received=self._books.collect(),
            connections=self._subscribed,
            pending=self._pending(),
            cpu_seconds=time.process_time() - self._cpu_from,
        )
        self._reset()
        return collected

    def _look_at_all(self) -> None:
        clients = self._clients.values()
        self._so_far.silent = sum(1 for client in clients if client.is_silent)
        self._so_far.p99_steps = [p99_step(client.steps) for client in clients if client.steps]
        if self._plan.workload.every_ms:
            self._so_far.tallies = tallies(
                self._books.standing_of(client)
                for client in clients
                if client.is_whole and client.step is None
            )

    # ---- due work

    def tick(self, now: float) -> None:
        """Begin the connects and the churn that are due, and give up overdue connects."""
        if self._is_closing:
            return
        room = min(self._plan.in_flight - self._in_flight, _BEGUN_AT_A_TIME)
        for number in range(self._begun, min(self._allowed(now), self._begun + room)):
            self._begin(self._new_client(number))
            self._begun += 1
        while self._is_one_due_back(now):
            self._begin(heapq.heappop(self._returning)[2])
        if now >= self._next_late_look:
            self._next_late_look = now + _LATE_LOOK_SECONDS
            self._give_up_on_late_ones(now)
        if self._churn_from is not None and self._churners:
            self._churn(now - self._churn_from)

    def _allowed(self, now: float) -> int:
        """The number of first connects that may have begun by now."""
        ramp = self._plan.ramp_per_second
        if not ramp:
            return self._plan.connections
        return min(self._plan.connections, 1 + int((now - self._started) * ramp))

    def _is_one_due_back(self, now: float) -> bool:
        return (
            bool(self._returning)
            and self._returning[0][0] <= now
            and self._in_flight < self._plan.in_flight
        )

    def _new_client(self, number: int) -> _Client:
        client = _Client(next(self._samples))
        if number >= self._plan.connections - self._plan.churners:
            client.is_counted = False
            self._churners.append(client)
        return client

    def _give_up_on_late_ones(self, now: float) -> None:
        plan = self._plan
        ramp_seconds = plan.connections / plan.ramp_per_second if plan.ramp_per_second else 0.0
        if self._begun < plan.connections and now - self._started > _STORM_SECONDS + ramp_seconds:
            self._so_far.failures["not begun in time"] += plan.connections - self._begun
            self._begun = plan.connections
        late = [
            (fd, client)
            for fd, client in self._clients.items()
            if client.step is not None and now - client.started > _CONNECT_SECONDS
        ]
        for fd, client in late:
            self._abandon(fd, client, f"not subscribed within {_CONNECT_SECONDS:.0f} s")

    def _churn(self, seconds: float) -> None:
        due = int(seconds * self._plan.churn_per_second)
        while self._churn_done < due:
            client = self._churners[self._churn_done % len(self._churners)]
            way = self._ways_to_leave[self._churn_done % len(self._ways_to_leave)]
            self._churn_done += 1
            if client.step is None and not client.is_leaving:
                client.is_leaving = True
                way(client)

    def _leave_in_order(self, client: _Client) -> None:
        self._send(client, masked_frame(_CLOSE, _NORMAL_CLOSURE))

    def _leave_without_a_word(self, client: _Client) -> None:
        with suppress(OSError):  # the server was faster
            client.socket.shutdown(socket.SHUT_WR)

    def _leave_by_a_broken_rule(self, client: _Client) -> None:
        self._send(client, masked_frame(_RESERVED, b""))

    def _leave_by_a_reset(self, client: _Client) -> None:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._ended(client.socket.fileno(), client)

    def _leave_within_a_frame(self, client: _Client) -> None:
        self._send(client, masked_frame(_TEXT, b"never whole")[:5])
        self._leave_by_a_reset(client)

    # ---- connecting

    def _begin(self, client: _Client) -> None:
        plan = self._plan
        connection = socket.socket(plan.family)
        connection.setblocking(False)
        if not plan.is_reading:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.begin(connection)
        try:
            if plan.source:
                # The port is chosen by `connect`, when the whole pair of addresses is known.
                late_port = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)
                connection.setsockopt(socket.IPPROTO_IP, late_port, 1)
                connection.bind((plan.source, 0))
            code = connection.connect_ex((plan.host, plan.port))
        except OSError as error:
            code = error.errno or 0
        if code not in {0, errno.EINPROGRESS}:
            self._failed(client, os.strerror(code))
            return
        self._in_flight += 1
        self._clients[connection.fileno()] = client
        self._epoll.register(connection.fileno(), select.EPOLLOUT)

    def advance(self, fd: int) -> None:
        """Do the next step of a socket that is ready."""
        client = self._clients.get(fd)
        if client is None:  # it was removed in this round, with another one's end
            return
        if client.step is None:
            self._readable(fd, client)
        elif client.step == "connect":
            self._reached(fd, client)
        elif client.step == "tls":
            self._shake_hands(fd, client)
        else:
            self._read_answer(fd, client)

    def _reached(self, fd: int, client: _Client) -> None:
        code = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._abandon(fd, client, os.strerror(code))
        elif self._tls is None:
            self._ask_for_upgrade(fd, client)
        else:
            self._begin_tls(fd, client, self._tls)

    def _begin_tls(self, fd: int, client: _Client, tls: ssl.SSLContext) -> None:
        try:
            client.socket = tls.wrap_socket(
                client.socket,
                server_hostname=self._plan.name or self._plan.host,
                do_handshake_on_connect=False,
            )
        except OSError as error:  # it was just reset, and its socket is closed
            self._abandon(fd, client, os.strerror(error.errno or 0))
            return
        client.step = "tls"
        self._shake_hands(fd, client)

    def _shake_hands(self, fd: int, client: _Client) -> None:
        try:
            cast("ssl.SSLSocket", client.socket).do_handshake()
        except ssl.SSLWantReadError:
            self._epoll.modify(fd, select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._epoll.modify(fd, select.EPOLLOUT)
        except OSError as error:
            self._abandon(fd, client, f"TLS: {error.strerror or error}"[:_REASON_CHARACTERS])
        else:
            self._ask_for_upgrade(fd, client)

    def _ask_for_upgrade(self, fd: int, client: _Client) -> None:
        host = self._plan.name or self._plan.host
        host = f"[{host}]" if ":" in host else host
        offer = self._encoding.header
        self._send(client, upgrade_request(f"{host}:{self._plan.port}", self._plan.path, offer))
        client.step = "upgrade"
        self._epoll.modify(fd, select.EPOLLIN)

    def _read_answer(self, fd: int, client: _Client) -> None:
        try:
            data = self._read(client)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as error:
            self._abandon(fd, client, os.strerror(error.errno or 0))
            return
        if not data:
            why = f": {client.close_reason}" if client.close_reason else ""
            self._abandon(fd, client, f"closed by the server during the handshake{why}")
        elif client.step == "upgrade":
            self._upgraded(fd, client, data)
        else:
            self._take(fd, client, data)
        if client.step == "refused":
            self._abandon(fd, client, client.refusal)

    def _upgraded(self, fd: int, client: _Client, data: bytes) -> None:
        head, end, behind = (client.rest + data).partition(b"\r\n\r\n")
        if not end:
            client.rest += data
        elif head.startswith(b"HTTP/1.1 101 "):
            client.rest = b""
            if self._encoding.accepted not in f"{head.decode(errors='replace').lower()}\r\n":
                self._refused(client, f"the server does not speak {self._plan.encoding}")
                return
            self._greet(fd, client)
            if behind:
                self._take(fd, client, behind)
        else:
            self._rejected(fd, client, head)

    def _greet(self, fd: int, client: _Client) -> None:
        if self._plan.workload.is_filtered:
            client.step = "subscribe"
            greeting = self._dialect.greeting(sorted(client.channels), self._plan.workload.every_ms)
            self._send(client, greeting)
        else:
            self._acknowledged(fd, client)

    def _rejected(self, fd: int, client: _Client, head: bytes) -> None:
        status, *headers = head.decode(errors="replace").split("\r\n")
        self._count(self._so_far.rejections, status.removeprefix("HTTP/1.1 ")[:_REASON_CHARACTERS])
        wait = 0.0
        for header in headers:
            name, _, value = header.partition(":")
            if name.lower() == "retry-after" and value.strip().isdecimal():
                wait = min(_RETRY_MAX_SECONDS, float(value))
        self._drop(fd, client)
        self._in_flight -= 1
        self._retry(client, wait)

    def _acknowledged(self, fd: int, client: _Client) -> None:
        now = time.monotonic()
        client.step = None
        client.attempts = 0
        self._in_flight -= 1
        self._subscribed += 1
        if not client.was_subscribed:
            client.was_subscribed = True
            self._so_far.connected += 1
            self._so_far.seconds = now - self._started
            self._so_far.connect_buckets[int((now - client.started) * 10_000)] += 1
            if client.is_counted:
                for channel in client.channels:
                    self._so_far.subscribers[channel] += 1
        if client.lost_at is not None:
            self._so_far.back += 1
            self._so_far.last_back = now
            self._so_far.back_buckets[int((now - client.lost_at) * 10_000)] += 1
            client.lost_at = None
        if not self._plan.is_reading:
            self._epoll.modify(fd, 0)

    def _abandon(self, fd: int, client: _Client, why: str) -> None:
        self._in_flight -= 1
        self._drop(fd, client)
        self._failed(client, why)

    def _failed(self, client: _Client, why: str) -> None:
        client.socket.close()
        self._count(self._so_far.failures, why)
        self._retry(client, 0.0)

    def _retry(self, client: _Client, wait_seconds: float) -> None:
        """Schedule another attempt, if the plan asks for it."""
        if not self._plan.reconnect_seconds or self._is_closing:
            return
        most = min(_RETRY_MAX_SECONDS, self._plan.reconnect_seconds * 2**client.attempts)
        client.attempts = min(client.attempts + 1, 16)
        self._return_at(time.monotonic() + wait_seconds + self._random.uniform(0.0, most), client)

    def _return_at(self, when: float, client: _Client) -> None:
        heapq.heappush(self._returning, (when, id(client), client))

    def _count(self, counts: dict[str, int], reason: str) -> None:
        counts[reason if reason in counts or len(counts) < _REASONS_MAX else "other"] += 1

    # ---- the end of a connection

    def _drop(self, fd: int, client: _Client) -> None:
        """Close the socket."""
        with suppress(OSError):  # TLS may have closed it already
            self._epoll.unregister(fd)
        del self._clients[fd]
        client.socket.close()
        client.step = "connect"

    def _ended(self, fd: int, client: _Client) -> None:
        """Handle the end of a subscribed connection."""
        self._drop(fd, client)
        self._subscribed -= 1
        if client.is_leaving:
            self._since.churned += 1
            if not self._is_closing:
                self._return_at(0.0, client)
            return
        if self._is_closing:
            return
        self._count(self._since.disconnects, client.close_reason or _NO_CLOSE_FRAME)
        self._lose(client, time.monotonic())
        self._retry(client, 0.0)

    def _lose(self, client: _Client, now: float) -> None:
        if not self._plan.reconnect_seconds:
            return
        self._so_far.lost += 1
        self._so_far.first_lost = self._so_far.first_lost or now
        client.lost_at = now

    def _cut(self, now: float) -> None:
        for fd, client in list(self._clients.items()):
            if client.step is None:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                self._drop(fd, client)
                self._subscribed -= 1
                self._lose(client, now)
                self._retry(client, 0.0)

    def _close_all(self) -> None:
        if self._is_closing:
            return
        self._look_at_all()
        self._is_closing = True
        self._returning.clear()
        self._begun = self._plan.connections
        for fd, client in list(self._clients.items()):
            if client.step is not None:
                self._in_flight -= 1
                self._drop(fd, client)
            elif self._plan.is_reading:
                self._send(client, masked_frame(_CLOSE, _NORMAL_CLOSURE))
            else:
                self._ended(fd, client)

    # ---- receiving

    def _readable(self, fd: int, client: _Client) -> None:
        try:
            data = self._read(client)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            data = b""
        if data:
            self._since.reads += 1
            self._since.bytes += len(data)
            self._since.packets += segments(len(data))
            self._take(fd, client, data)
        else:
            self._ended(fd, client)

    def _send(self, client: _Client, data: bytes) -> None:
        # Small and rare; a full or closed socket is noticed when it is read.
        with suppress(OSError):
            client.socket.send(data)

    def _read(self, client: _Client) -> bytes:
        # Into existing memory: recv() would map and unmap the largest size each time.
        data = bytes(self._buffer[: client.socket.recv_into(self._buffer)])
        if self._tls is not None and isinstance(client.socket, ssl.SSLSocket):
            while client.socket.pending():  # epoll does not know what TLS has already taken
                data += client.socket.recv(_READ_BYTES)
        return data

    def _take(self, fd: int, client: _Client, data: bytes) -> None:
        """Split `data` into frames (RFC 6455, 5.2; a server does not mask), and take each."""
        now_ns = self._kind.now_ns()
        if client.rest:
            data = client.rest + data
        size = len(data)
        position = 0
        take_known = self._books.take_known
        encoded_head = self._encoding.head
        while size - position >= _HEAD_BYTES:
            head, length = data[position], data[position + 1]
            start = position + _HEAD_BYTES
            if length == _LENGTH_16_BITS:
                start = position + _LONG_HEAD_BYTES
                if start > size:
                    break
                length = data[position + 2] << 8 | data[position + 3]
            elif length == _LENGTH_64_BITS:
                start += 8
                length = int.from_bytes(data[position + 2 : start], "big")
            end = start + length
            if end > size:
                break
            payload = data[start:end]
            if head & _CONTROL:
                self._control(client, head, payload)
            elif head == encoded_head:
                self._encoded(fd, client, payload, now_ns)
            elif client.partial or not take_known(client, payload, now_ns):
                self._payload(fd, client, payload, now_ns)
            position = end
        client.rest = data[position:] if position < size else b""

    def _control(self, client: _Client, head: int, payload: bytes) -> None:
        if head == _PING:
            self._send(client, masked_frame(_PONG, payload))
        elif head == _CLOSE and self._is_closing:
            self._so_far.closed_cleanly += 1
        elif head == _CLOSE and not client.is_leaving:
            code = int.from_bytes(payload[:2], "big") or 1005
            client.close_reason = f"{code} {payload[2:].decode(errors='replace')}".strip()
            self._send(client, masked_frame(_CLOSE, payload[:2]))

    def _encoded(self, fd: int, client: _Client, payload: bytes, now_ns: int) -> None:
        encoding, is_taken = self._encoding, False
        try:
            try:
                seq, shared = encoding.split(payload)
            except Unreadable:
                self._payload(fd, client, encoding.whole(payload), now_ns)
                return
            is_taken = self._books.take_encoded(client, seq, shared, encoding.text, now_ns)
        except Unreadable:
            pass
        if not is_taken:
            self._since.unreadable += 1

    def _payload(self, fd: int, client: _Client, payload: bytes, now_ns: int) -> None:
        units, client.partial = self._dialect.units(client.partial + payload)
        for unit in units:
            if not self._books.take(client, unit, now_ns):
                self._other(fd, client, unit)

    def _other(self, fd: int, client: _Client, unit: bytes) -> None:
        """Handle a message that is not an event."""
        asked = len(client.channels)
        if (
            client.step == "subscribe"
            and (subscribed := self._dialect.subscribed(unit, asked)) is not None
        ):
            if subscribed < asked:
                self._refused(client, f"subscribed to {subscribed} of {asked} channels")
            elif not self._is_granted(client, unit):
                self._refused(client, "the server grants no rate")
            else:
                self._acknowledged(fd, client)
        elif isinstance(self._encoding, Z1) and (told := announced(unit)) is not None:
            self._learn_dictionary(client, self._encoding, *told)
        elif (answer := self._dialect.answer(unit)) is not None:
            self._send(client, answer)
        elif self._dialect.is_error(unit):
            self._since.error_replies += 1
            if client.step == "subscribe":
                self._refused(client, "the subscription was refused")
        elif not self._dialect.is_known(unit):
            self._since.unreadable += 1

    def _is_granted(self, client: _Client, acknowledgement: bytes) -> bool:
        """Whether it gets a rate, if it has asked for one."""
        if not self._plan.workload.every_ms:
            return True
        granted = self._dialect.granted_ms(acknowledgement)
        if granted and not client.was_subscribed:
            self._so_far.granted_ms[granted] += 1
        return granted > 0

    def _learn_dictionary(self, client: _Client, z1: Z1, identity: str, path: str) -> None:
        """Fetch the dictionary for the first connection; it is the same for all others."""
        if z1.dictionary is not None:
            return
        try:
            z1.dictionary = fetch(self._plan, path, identity)
        except DictionaryUnavailable as error:
            self._refused(client, str(error)[:_REASON_CHARACTERS])

    def _refused(self, client: _Client, why: str) -> None:
        """Give the connection up, after everything that was read with this message."""
        client.step = "refused"
        client.refusal = why


def _tell(answer: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Read the plan from the argument, and carry out commands."""
    plan = msgspec.json.decode(sys.argv[1], type=FleetPlan)
    try:
        require_files(plan.connections)
    except LoadImpossible as error:
        _tell({"impossible": str(error)})
        return
    Fleet(plan).run()


if __name__ == "__main__":
    main()
