"""What is measured: servers as processes, each with the dialect it speaks."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from urllib.parse import urlsplit

import attrs
import psutil
import trio

from trio_odin.lab.bench.dialects import DIALECTS
from trio_odin.net.nats_server import NatsServer

_START_SECONDS = 20.0
_STOP_SECONDS = 5.0
_ADDRESS = re.compile(rb'(?:listening on |"addresses": \[")([\w.]+):(\d+)')
_OUTPUT_KEPT_BYTES = 4096
_PEERS = "trio_odin.lab.bench.peers"


class SubjectFailed(Exception):
    """A server did not start, or ended by itself; the message says which and shows its last words."""


@attrs.frozen(kw_only=True)
class Subject:
    """A server to measure.

    Args:
        name: for the command line and the JSON.
        title: for people.
        dialect: a key of `DIALECTS`.
        path: of its WebSocket.
        command: how to start it beside a NATS server; None if it is not ours to start.
        url: where it is, if it is not ours to start; None and no command: nats-server itself.
        workers: processes that share the work: so many cores it can fill.
    """

    name: str
    title: str
    dialect: str = "odin"
    path: str = "/ws"
    command: Callable[[NatsServer], list[str]] | None = None
    url: str | None = None
    workers: int = 1


@attrs.frozen
class Running:
    """A subject that takes connections. `processes` is empty if it runs elsewhere."""

    host: str
    port: int
    processes: Sequence[psutil.Process]

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system time so far, of all its processes."""
        times = [process.cpu_times() for process in self._family()]
        return sum(t.user for t in times), sum(t.system for t in times)

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        return sum(process.memory_info().rss for process in self._family())

    def _family(self) -> list[psutil.Process]:
        return [
            member
            for process in self.processes
            for member in (process, *process.children(recursive=True))
        ]


def _ours(workers: int, nats: NatsServer) -> list[str]:
    command = [sys.executable, "-m", "trio_odin", "serve", "--addr", "127.0.0.1:0"]
    command += ["--nats", nats.url, "--max-connections", "0", "--log-format", "json"]
    return [*command, "--workers", str(workers)] if workers > 1 else command


def _peer(name: str, nats: NatsServer) -> list[str]:
    return [sys.executable, "-m", f"{_PEERS}.{name}", "--nats", nats.url]


def ours(workers: int) -> Subject:
    """trio-odin with so many workers."""
    return Subject(
        name="odin" if workers == 1 else f"odin-{workers}",
        title=f"trio-odin, {workers} worker{'s' if workers > 1 else ''}",
        command=partial(_ours, workers),
        workers=workers,
    )


SUBJECTS = (
    ours(1),
    ours(2),
    Subject(name="nats", title="nats-server's WebSocket", dialect="nats", path="/", workers=2),
    Subject(name="floor", title="floor: a loop of send(2)", command=partial(_peer, "send_floor")),
    Subject(
        name="websockets",
        title="websockets on trio, broadcast",
        command=partial(_peer, "websockets_broadcast"),
    ),
    Subject(
        name="trio-websocket",
        title="trio-websocket, a channel each",
        command=partial(_peer, "trio_websocket_plain"),
    ),
)


def parse_peer(text: str) -> Subject:
    """A subject that runs elsewhere: `NAME=URL` or `NAME=URL,DIALECT`.

    Raises:
        ValueError: says what is allowed.
    """
    name, equals, rest = text.partition("=")
    url, _, dialect = rest.partition(",")
    parts = urlsplit(url)
    if not (name and equals and parts.scheme == "ws" and parts.hostname and parts.port):
        raise ValueError("allowed is NAME=ws://HOST:PORT/PATH, perhaps with ,DIALECT behind it")
    if (dialect or "odin") not in DIALECTS:
        raise ValueError(f"{dialect!r} is no dialect: allowed is one of {', '.join(DIALECTS)}")
    return Subject(
        name=name, title=name, dialect=dialect or "odin", path=parts.path or "/", url=url
    )


async def run_subject(
    subject: Subject,
    nats: NatsServer,
    *,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run `subject` until cancelled; starts when it takes connections.

    Raises:
        SubjectFailed: it did not start, or ended.
    """
    if subject.command is None:
        parts = urlsplit(subject.url or nats.websocket_url)
        processes = [] if subject.url else [psutil.Process(nats.pid)]
        task_status.started(Running(parts.hostname or "", parts.port or 80, processes))
        await trio.sleep_forever()
        return
    process = await trio.lowlevel.open_process(
        subject.command(nats), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        output = bytearray()
        async for chunk in _within(_START_SECONDS, process.stdout):
            output += chunk
            if found := _ADDRESS.search(output):
                break
        else:
            raise SubjectFailed(f"{subject.title} did not start: {_last_words(output)}")
        running = Running(found[1].decode(), int(found[2]), [psutil.Process(process.pid)])
        task_status.started(running)
        async for chunk in process.stdout:
            output = (output + chunk)[-_OUTPUT_KEPT_BYTES:]
        raise SubjectFailed(f"{subject.title} has ended: {_last_words(output)}")
    finally:
        process.terminate()
        with trio.CancelScope(shield=True), trio.move_on_after(_STOP_SECONDS):
            await process.wait()
        process.kill()


async def _within(seconds: float, stream: trio.abc.ReceiveStream):  # type: ignore[no-untyped-def]
    deadline = trio.current_time() + seconds
    while True:
        with trio.move_on_at(deadline) as scope:
            chunk = await stream.receive_some()
        if scope.cancelled_caught or not chunk:
            return
        yield chunk


def _last_words(output: bytes | bytearray) -> str:
    return bytes(output[-500:]).decode(errors="replace").strip() or "it said nothing"
