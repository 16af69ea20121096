"""A fleet in the test's process, one turn at a time, and the far ends of its sockets."""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import Event as WsprotoEvent
from wsproto.events import Message

from trio_odin.lab.fleet.client import Fleet, _Client
from trio_odin.lab.fleet.events import Event, payload_of
from trio_odin.lab.fleet.plan import Collected, FleetPlan, Progress, Summary
from trio_odin.lab.fleet.workload import Workload
from trio_odin.wire.frames import text_frame

BTC, ETH, SOL = "BTC.trade", "ETH.trade", "SOL.trade"
ACK = text_frame(b'{"type":"subscription_ack","subscribed":["BTC.trade","ETH.trade"],"count":2}')
ERROR = text_frame(b'{"type":"error","code":"INVALID_CHANNEL","message":"no"}')
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
SOON = 0.001

# Each example makes sockets and a buffer.
few_examples = settings(max_examples=40)

CUTS = st.lists(st.integers(0, 10**6), max_size=8)


class Rig:
    """A fleet in this process, the port that it connects to, and the far ends of its sockets."""

    def __init__(self, **changes: Any) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        plan: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.listener.getsockname()[1],
            "connections": 1,
            "workload": Workload(channels=[BTC, ETH], channels_per_connection=2),
            **changes,
        }
        self.fleet = Fleet(FleetPlan(**plan))
        self._sockets = [self.listener]

    def close(self) -> None:
        self.fleet._epoll.close()
        for client in self.fleet._clients.values():
            client.socket.close()
        for one in self._sockets:
            one.close()

    # ---- one connection, made by hand

    def client(self, *channels: str, step: str | None = None) -> tuple[_Client, socket.socket]:
        """A connection of the fleet, subscribed unless `step` is another, and its far end."""
        near, far = socket.socketpair()
        self._sockets += near, far
        near.setblocking(False)
        far.settimeout(5)
        client = _Client(list(channels or (BTC, ETH)))
        client.begin(near)
        client.step = step
        self.fleet._clients[near.fileno()] = client
        self.fleet._epoll.register(near.fileno())
        if step is None:
            self.fleet._subscribed += 1
        else:
            self.fleet._in_flight += 1
        return client, far

    def take(self, client: _Client, *pieces: bytes) -> None:
        for piece in pieces:
            self.fleet._take(client.socket.fileno(), client, piece)

    def read(self, client: _Client, far: socket.socket, *pieces: bytes) -> None:
        """Let the fleet read each piece by itself."""
        for piece in pieces:
            far.sendall(piece)
            self.fleet.advance(client.socket.fileno())

    # ---- connections that the fleet makes

    def turn(self) -> None:
        """Run the loop once."""
        for fd, _ in self.fleet._epoll.poll(0):
            self.fleet.advance(fd)
        self.fleet.tick(time.monotonic())

    def until(self, condition: Callable[[], object]) -> None:
        """Turn until `condition`."""
        give_up = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < give_up, "it did not come true"
            self.turn()
            time.sleep(0.0002)

    def accept(self) -> socket.socket:
        """The far end of the fleet's next connection, after its upgrade request."""
        accepted: list[socket.socket] = []

        def is_accepted() -> bool:
            try:
                accepted.append(self.listener.accept()[0])
            except BlockingIOError:
                return False
            return True

        self.until(is_accepted)
        (far,) = accepted
        self._sockets.append(far)
        far.settimeout(5)
        far.setblocking(False)
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += self._received(far)
        far.settimeout(5)
        return far

    def _received(self, far: socket.socket) -> bytes:
        found: list[bytes] = []

        def has_come() -> bool:
            try:
                found.append(far.recv(4096))
            except BlockingIOError:
                return False
            return True

        self.until(has_come)
        return found[0]

    def subscribe(self) -> socket.socket:
        """The far end of the next connection, subscribed."""
        far = self.accept()
        before = self.connections
        far.sendall(UPGRADED + ACK)
        self.until(lambda: self.connections > before)
        (greeting,) = sent_by(far, 1)
        assert isinstance(greeting, Message)
        return far

    @property
    def connections(self) -> int:
        return self.progress.connections

    @property
    def progress(self) -> Progress:
        answer: Progress = self.obey("progress", Progress)
        return answer

    def obey(self, command: str, kind: type[Any]) -> Any:
        answer = self.fleet.obey(command)
        assert isinstance(answer, kind)
        return answer

    def collect(self) -> Collected:
        answer: Collected = self.obey("collect", Collected)
        return answer

    def summary(self) -> Summary:
        answer: Summary = self.obey("summary", Summary)
        return answer


@contextmanager
def rig_of(**changes: Any) -> Iterator[Rig]:
    with closing(Rig(**changes)) as rig:
        yield rig


def reset(far: socket.socket) -> None:
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    far.close()


def is_reset(far: socket.socket) -> bool:
    try:
        while far.recv(4096):
            pass
    except ConnectionResetError:
        return True
    return False


def envelope(seq: int, number: int, channel: str = BTC, size: int = 60) -> bytes:
    """A frame of trio_odin's wire; without `seq` if that is 0."""
    number_of_it = b'"seq":%d,' % seq if seq else b""
    payload = payload_of(Event(number, 1000, channel), size)
    return text_frame(b'{%b"channel":"%b","data":%b}' % (number_of_it, channel.encode(), payload))


def figures(rig: Rig) -> dict[str, Any]:
    """The collected figures, without those that depend on the clock."""
    collected = attrs.asdict(rig.collect(), recurse=False)
    books = attrs.asdict(collected.pop("received"), recurse=False)
    deliveries: Counter[int] = Counter()
    for entry in books["deliveries"]:
        deliveries[entry.number] += entry.times
    books["deliveries"] = dict(deliveries)
    buckets = books.pop("buckets")
    assert collected.pop("cpu_seconds") >= 0
    assert sum(buckets.values()) == sum(books["deliveries"].values())
    del collected["connections"], collected["pending"]
    del collected["bytes"], collected["packets"], books["frames"]
    return collected | books


def expected(**changes: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "received": 0,
        "skipped": 0,
        "unexplained": 0,
        "reads": 0,
        "deliveries": {},
        "gaps": 0,
        "repeated": 0,
        "foreign": 0,
        "disconnects": {},
        "churned": 0,
        "error_replies": 0,
        "unreadable": 0,
    }
    return nothing | changes


def sent_by(far: socket.socket, number: int) -> list[WsprotoEvent]:
    """The next frames from the fleet, as a server reads them."""
    server = Connection(ConnectionType.SERVER)
    events: list[WsprotoEvent] = []
    while len(events) < number:
        data = far.recv(4096)
        assert data, "the fleet has closed the socket"
        server.receive_data(data)
        events += server.events()
    return events


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Split `stream` into non-empty pieces."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[a:b] for a, b in pairwise(places)]
