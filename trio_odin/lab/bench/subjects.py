"""What is measured: servers as processes, each with the dialect it speaks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import attrs
import trio

from trio_odin.lab.fleet.dialects import DIALECTS
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.load.pages import get, labelled
from trio_odin.net.nats_server import NatsServer

if TYPE_CHECKING:
    import psutil

_START_SECONDS = 20.0
_STOP_SECONDS = 5.0
_ADDRESS = re.compile(rb'(?:listening on |"addresses": \[")([\w.]+):(\d+)')
_OUTPUT_KEPT_BYTES = 4096
_PEERS = "trio_odin.lab.bench.peers"
# In a storm its CPU is used up, and that is what is to be measured: nobody refused, nothing shed.
OUR_SETTINGS = {
    "WS_MAX_CONNECTIONS": "0",
    "WS_CPU_REJECT_THRESHOLD": "0",
    "WS_CPU_PAUSE_THRESHOLD": "0",
    "WS_LAG_REJECT_MS": "0",
    "WS_ACCEPT_RATE": "0",
}


class SubjectFailed(Exception):
    """A server did not start, or ended by itself; the message shows its last words."""


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
        cores: how many it can fill.
        workers: processes of ours that share the port; each says when it listens.
        is_ours: trio-odin, which may lose nothing.
    """

    name: str
    title: str
    dialect: str = "odin"
    path: str = "/ws"
    command: Callable[[NatsServer], list[str]] | None = None
    url: str | None = None
    cores: int = 1
    workers: int = 1
    is_ours: bool = False
    environment: Mapping[str, str] = {}


@attrs.frozen
class Running:
    """A subject that takes connections. `processes` is empty if it runs elsewhere."""

    host: str
    port: int
    processes: Sequence[psutil.Process]

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system time so far, of all its processes."""
        with _ended_is_failed():
            times = [process.cpu_times() for process in self._family()]
        return sum(t.user for t in times), sum(t.system for t in times)

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        with _ended_is_failed():
            return sum(process.memory_info().rss for process in self._family())

    async def connections_by_worker(self) -> list[int]:
        """How many each worker of ours holds, as /metrics has it."""
        page = await get(f"http://{self.host}:{self.port}/metrics")
        text = "" if page is None else page.body.decode()
        return [int(count) for count in labelled(text, "ws_worker_connections").values()]

    def _family(self) -> list[psutil.Process]:
        return [
            member
            for process in self.processes
            for member in (process, *process.children(recursive=True))
        ]


@contextmanager
def _ended_is_failed() -> Iterator[None]:
    import psutil  # noqa: PLC0415

    try:
        yield
    except psutil.NoSuchProcess as error:
        raise SubjectFailed(f"a process of it has ended by itself: {error}") from error


def process_of(pid: int) -> psutil.Process:
    """The process, to be measured.

    Raises:
        LoadImpossible: psutil is not installed.
    """
    try:
        import psutil  # noqa: PLC0415
    except ImportError as error:
        raise LoadImpossible(
            "psutil is not installed: pip install '.[demo,lab,bench]' (the extra lab)"
        ) from error
    return psutil.Process(pid)


def _ours(workers: int, nats: NatsServer) -> list[str]:
    command = [sys.executable, "-m", "trio_odin", "serve", "--addr", "127.0.0.1:0"]
    command += ["--nats", nats.url, "--log-format", "json"]
    return [*command, "--workers", str(workers)] if workers > 1 else command


def _peer(name: str, nats: NatsServer) -> list[str]:
    return [sys.executable, "-m", f"{_PEERS}.{name}", "--nats", nats.url]


def ours(workers: int) -> Subject:
    """trio-odin with so many workers."""
    return Subject(
        name="odin" if workers == 1 else f"odin-{workers}",
        title=f"trio-odin, {workers} worker{'s' if workers > 1 else ''}",
        command=partial(_ours, workers),
        cores=workers,
        workers=workers,
        is_ours=True,
        environment=OUR_SETTINGS,
    )


SUBJECTS = (
    ours(1),
    ours(2),
    Subject(
        name="nats",
        title="nats-server's WebSocket",
        dialect="nats",
        path="/",
        cores=len(os.sched_getaffinity(0)),
    ),
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
    if not (name and equals and _is_address(url)):
        raise ValueError("allowed is NAME=ws://HOST:PORT/PATH, perhaps with ,DIALECT behind it")
    if name in {subject.name for subject in SUBJECTS} or name.startswith("odin"):
        raise ValueError(f"{name!r} is the name of a subject of the bench: choose another one")
    if (dialect or "odin") not in DIALECTS:
        raise ValueError(f"{dialect!r} is no dialect: allowed is one of {', '.join(DIALECTS)}")
    return Subject(
        name=name, title=name, dialect=dialect or "odin", path=urlsplit(url).path or "/", url=url
    )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "ws" and bool(parts.hostname and parts.port and not parts.query)
    except ValueError:  # a port that cannot be
        return False


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
        processes = [] if subject.url else [process_of(nats.pid)]
        task_status.started(Running(parts.hostname or "", parts.port or 80, processes))
        await trio.sleep_forever()
        return
    # In a session of its own: a Ctrl-C in the terminal is for us, we tell it when to stop. Settings
    # of whoever runs the bench are not to change what is measured.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WS_", "JS_"))}
    process = await trio.lowlevel.open_process(
        subject.command(nats),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**environment, **subject.environment},
    )
    try:
        host, port = await _announced(subject, cast("trio.abc.ReceiveStream", process.stdout))
        task_status.started(Running(host, port, [process_of(process.pid)]))
        words = b""
        async for chunk in cast("trio.abc.ReceiveStream", process.stdout):
            words = (words + chunk)[-_OUTPUT_KEPT_BYTES:]
        raise SubjectFailed(f"it has ended: {_last_words(words)}")
    finally:
        process.terminate()
        with trio.CancelScope(shield=True), trio.move_on_after(_STOP_SECONDS):
            await process.wait()
        process.kill()


async def _announced(subject: Subject, output: trio.abc.ReceiveStream) -> tuple[str, int]:
    """Where it listens, once all of its workers have said so."""
    words = b""
    with trio.move_on_after(_START_SECONDS):
        async for chunk in output:
            words += chunk
            said = _ADDRESS.findall(words)
            if len(said) >= subject.workers:
                return said[0][0].decode(), int(said[0][1])
    raise SubjectFailed(f"it did not start: {_last_words(words)}")


def _last_words(output: bytes) -> str:
    return output[-500:].decode(errors="replace").strip() or "it said nothing"
