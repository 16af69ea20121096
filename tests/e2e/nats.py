"""A nats-server that a test can stop and restart, and a publisher without nats-py."""

from __future__ import annotations

import functools
import json
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import attrs
import trio

from trio_odin.demo.nats_server import find_nats_server


def free_port() -> int:
    """A free port that the kernel does not give away, so that it stays free for a while.

    Each one is given once, and processes of pytest-xdist have shares of the range: between the
    choice and the start of a server nobody else takes the port. Other programs may, so it is chosen
    at random.
    """
    while True:
        port = secrets.choice(_ports())
        if port in _given:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


_given: set[int] = set()


@functools.cache
def _ports() -> range:
    """This process' share of the ports below the kernel's range, or above, whichever are more."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    below, above = range(min(10_000, first // 2), first), range(last + 1, 65_536)
    ports = max(below, above, key=len)
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return ports[number % count :: count]


@attrs.define
class NatsServer:
    """nats-server on a port that stays the same over restarts. It works without trio."""

    folder: Path
    jetstream: bool = True
    port: int = attrs.field(factory=free_port)
    monitoring: int = 0  # the port of its pages; none if 0
    options: Sequence[str] = ()  # further options of nats-server
    environment: Mapping[str, str] = attrs.field(factory=dict)  # for its configuration
    is_busy: bool = False  # a fault is in progress
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = [*self.options]
        if self.jetstream:
            options += ["-js", "-sd", str(self.folder)]
        if self.monitoring:
            options += ["-m", str(self.monitoring)]
        self._process = subprocess.Popen(
            [find_nats_server(), "-a", "127.0.0.1", "-p", str(self.port), *options],
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def is_running(self) -> bool:
        """Whether the process exists, even if it is stopped."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def reconfigure(self, config: str) -> None:
        """Replace the configuration file in `options`, and reload it."""
        Path(self.options[-1]).write_text(config)
        self.signal(signal.SIGHUP)

    def enter_lame_duck_mode(self) -> None:
        """Make it send its clients away and accept no new ones, as before maintenance."""
        assert self._process is not None
        subprocess.run([find_nats_server(), "--signal", f"ldm={self._process.pid}"], check=True)

    def stop(self) -> None:
        self.end(signal.SIGKILL)

    def end(self, number: int) -> None:
        """Signal it and wait until it has ended."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait()
            self._process = None


@contextmanager
def running_nats(
    folder: Path, *, jetstream: bool = True, monitoring: int = 0
) -> Iterator[NatsServer]:
    server = NatsServer(folder, jetstream, monitoring=monitoring)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class NatsClient:
    """The few lines of the NATS protocol that a test needs, spoken directly."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = b""

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        line = f"PUB {subject} {reply} {len(payload)}\r\n".replace("  ", " ")
        await self._stream.send_all(line.encode() + payload + b"\r\n")

    async def publish_with(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        """Publish with headers. The login has to be with `headers=True`."""
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        block = f"NATS/1.0\r\n{''.join(lines)}\r\n".encode()
        line = f"HPUB {subject} {len(block)} {len(block) + len(payload)}\r\n"
        await self._stream.send_all(line.encode() + block + payload + b"\r\n")

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self._stream.send_all(data)

    async def flush(self) -> None:
        """Wait until the server has taken everything that was published."""
        await self._stream.send_all(b"PING\r\n")
        await self._receive_until(b"PONG\r\n")

    async def request(self, subject: str, content: object) -> dict[str, object]:
        """Ask the JetStream API."""
        await self._stream.send_all(b"SUB answers 1\r\n")
        payload = b"" if content is None else json.dumps(content).encode()
        await self.publish(subject, payload, "answers")
        head = await self._receive_until(b"\r\n{")
        size = int(head.rsplit(b" ", 1)[1].split(b"\r\n")[0])
        while len(self._received) < size + 1:
            self._received += await self._stream.receive_some()
        body, self._received = b"{" + self._received[: size - 1], self._received[size + 1 :]
        await self._stream.send_all(b"UNSUB 1\r\n")
        answer: dict[str, object] = json.loads(body)
        return answer

    async def receive_line(self, start: bytes) -> bytes:
        """Wait for a line that begins with `start`."""
        while not (line := await self._receive_until(b"\r\n")).startswith(start):
            pass
        return line

    async def wait_cut(self) -> None:
        """Wait until the server has closed the connection."""
        with suppress(trio.BrokenResourceError):
            while await self._stream.receive_some():
                pass

    async def _receive_until(self, end: bytes) -> bytes:
        while end not in self._received:
            chunk = await self._stream.receive_some()
            assert chunk, "nats-server has closed the connection"
            self._received += chunk
        before, _, self._received = self._received.partition(end)
        return before + end


@asynccontextmanager
async def nats_client(url: str, **login: object) -> AsyncIterator[NatsClient]:
    """Connect to the server at `url`, once it is up; `login` goes into CONNECT."""
    host, port = url.removeprefix("nats://").split(":")
    with trio.fail_after(10):
        while True:
            try:
                stream = await trio.open_tcp_stream(host, int(port))
                break
            except OSError:
                await trio.sleep(0.02)
    async with stream:
        client = NatsClient(stream)
        connect = json.dumps({"verbose": False, **login})
        await stream.send_all(f"CONNECT {connect}\r\n".encode())
        await client.flush()
        yield client


class Network:
    """A wire to a local port that can be cut. While it `is_down` it accepts no connection.

    Bytes `spoil[0]` from the port, if they come in one piece, arrive as `spoil[1]`. The bytes of a
    client are passed on after `before` was awaited with them.
    """

    def __init__(self, nursery: trio.Nursery, listener: trio.SocketListener, port: int) -> None:
        self.url = f"nats://127.0.0.1:{listener.socket.getsockname()[1]}"
        self.is_down = False
        self.spoil = (b"", b"")
        self.before: Callable[[bytes], Awaitable[object]] | None = None
        self._nursery = nursery
        self._port = port
        self._wires: set[trio.CancelScope] = set()
        self._ends: set[trio.SocketStream] = set()
        self._held_until = float("-inf")

    def hold(self, seconds: float) -> None:
        """Hold back the bytes from the port for a while, then pass them on."""
        self._held_until = trio.current_time() + seconds

    def cut(self) -> None:
        """Close every connection over this network; new ones are possible unless it `is_down`."""
        for wire in self._wires:
            wire.cancel(reason="cut")

    def each(self, do: Callable[[trio.socket.SocketType], None]) -> None:
        """Do something to the socket towards each client."""
        for end in self._ends:
            do(end.socket)

    async def carry(self, near: trio.SocketStream) -> None:
        try:
            if self.is_down:
                raise ConnectionRefusedError
            far = await trio.open_tcp_stream("127.0.0.1", self._port)
        except OSError:  # nobody listens yet
            await near.aclose()
            return
        async with near, far:
            self._ends.add(near)
            async with trio.open_nursery() as nursery:
                self._wires.add(nursery.cancel_scope)
                nursery.start_soon(self._copy_after, near, far, nursery.cancel_scope)
                nursery.start_soon(self._copy_spoilt, far, near, nursery.cancel_scope)
            self._wires.discard(nursery.cancel_scope)
            self._ends.discard(near)

    async def _copy_after(
        self, source: trio.SocketStream, sink: trio.SocketStream, wire: trio.CancelScope
    ) -> None:
        with suppress(trio.BrokenResourceError):
            async for chunk in source:
                if self.before is not None:
                    await self.before(bytes(chunk))
                await sink.send_all(chunk)
        wire.cancel(reason="one end has closed")

    async def _copy_spoilt(
        self, source: trio.SocketStream, sink: trio.SocketStream, wire: trio.CancelScope
    ) -> None:
        with suppress(trio.BrokenResourceError):
            async for chunk in source:
                await trio.sleep_until(self._held_until)
                good, bad = self.spoil
                await sink.send_all(chunk.replace(good, bad) if good else chunk)
        wire.cancel(reason="one end has closed")


async def start_network(nursery: trio.Nursery, port: int) -> Network:
    """Lay a wire to `port` of this machine."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    network = Network(nursery, listener, port)
    nursery.start_soon(trio.serve_listeners, network.carry, [listener])
    return network
