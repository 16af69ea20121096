"""A server and a publisher as a user runs them, and faulty servers."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import attrs
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from tests.e2e.nats import free_port, running_nats
from trio_odin.fanout.publication import Publication

COMMAND = [sys.executable, "-m", "trio_odin"]
# Nobody is refused because this machine is busy.
_UNLIMITED = {
    "WS_CPU_LIMIT": "64",
    "WS_CPU_REJECT_THRESHOLD": "0",
    "WS_CPU_PAUSE_THRESHOLD": "0",
    "WS_LAG_REJECT_MS": "0",
    "LOG_LEVEL": "error",
}


@attrs.frozen
class Service:
    """A process of trio-odin with HTTP pages."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def websocket_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    def status(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def is_publishing(self) -> bool:
        return bool(json.loads(self.status("/stats")[1])["isPublishing"])


@contextmanager
def started(*arguments: str, page: str, words: str = "", **variables: str) -> Iterator[Service]:
    """Run a command on a free port until the block ends; `page` shows when it is ready."""
    port = free_port()
    with subprocess.Popen(
        [*COMMAND, *arguments, "--addr", f"127.0.0.1:{port}"],
        env={**os.environ, **_UNLIMITED, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        service = Service(port, process)
        try:
            _wait_until_ready(service, page, words)
            yield service
        finally:
            process.kill()


def _wait_until_ready(service: Service, page: str, words: str) -> None:
    gives_up_at = time.monotonic() + 15
    while time.monotonic() < gives_up_at:
        with suppress(OSError):
            status, body = service.status(page)
            if status == 200 and words.encode() in body:
                return
        time.sleep(0.02)
    raise TimeoutError(f"{service.process.args!r} is not ready")


@contextmanager
def serving(nats_url: str, **variables: str) -> Iterator[Service]:
    """A server that is connected to NATS."""
    with started("serve", "--nats", nats_url, page="/ready", **variables) as service:
        yield service


@attrs.frozen
class Rig:
    """A server, an idle publisher, and the NATS between them."""

    nats_url: str
    server: Service
    publisher: Service


@contextmanager
def rigged(folder: Path) -> Iterator[Rig]:
    publish = ("publish", "--idle", "--nats")
    with (
        running_nats(folder) as nats,
        started(*publish, nats.url, page="/health", words='"connected"') as publisher,
        serving(nats.url) as server,
    ):
        yield Rig(nats.url, server, publisher)


def envelope(seq: int, channel: str, offset: int | None) -> str:
    """The payload of an envelope as the server frames it, published just now."""
    now_ms = time.time_ns() // 1_000_000
    made = Publication(channel, b'{"timestamp":%d}' % now_ms, offset=offset, unix_ms=now_ms)
    frame = made.frame(seq)
    return frame[frame.index(b"{") :].decode()


@contextmanager
def stand_in(numbers: Sequence[int] = (), *, floods: bool = False) -> Iterator[str]:
    """A server of the `websockets` library that sends envelopes with just these numbers.

    With `floods` it continues until the connection is closed.
    """
    is_over = Event()

    def handle(client: ServerConnection) -> None:
        channels = json.loads(client.recv())["channels"]
        ack = {"type": "subscription_ack", "subscribed": channels, "count": len(channels)}
        client.send(json.dumps(ack))
        for offset, number in enumerate(numbers, start=1):
            client.send(envelope(number, channels[0], offset))
        with suppress(ConnectionClosed):
            offset = len(numbers)
            while floods and not is_over.wait(0.02):
                offset += 1
                client.send(envelope(offset, channels[0], offset))
            for _ in client:
                pass

    with serve(handle, "127.0.0.1", 0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws"
        finally:
            is_over.set()
            server.shutdown()
            thread.join()
