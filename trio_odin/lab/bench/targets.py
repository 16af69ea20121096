"""The targets of a bench: servers as processes, each with the dialect it speaks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import attrs
import trio

from trio_odin.demo.nats_server import NatsServer
from trio_odin.lab.bench.interpreter import Interpreter
from trio_odin.lab.fleet.dialects import DIALECTS
from trio_odin.lab.load.pages import get, labelled
from trio_odin.lab.load.plan import is_address
from trio_odin.lab.load.server import CPU, OTHERS_CPU, RSS, USER_CPU, Server, Statement
from trio_odin.lab.machine import busy_core_seconds

if TYPE_CHECKING:
    import psutil

_START_SECONDS = 20.0
_STOP_SECONDS = 5.0
_ADDRESS = re.compile(rb'(?:listening on |"addresses": \[")([\w.]+:\d+)')
_ADMIN = re.compile(rb'"admin": \["([\w.]+:\d+)')
_OUTPUT_KEPT_BYTES = 4096
_PEER_NAME = re.compile(r"[\w.@-]{1,40}", re.ASCII)
_PEER_URL = re.compile(r"ws://[^?#@\x00-\x20\x7f-\U0010ffff]{1,1000}")
_PID_DIGITS = 10
_PEERS = "trio_odin.lab.bench.peers"
# A storm uses up the CPU, which is to be measured: refuse nobody, shed nothing.
OUR_SETTINGS = {
    "WS_MAX_CONNECTIONS": "0",
    "WS_CPU_REJECT_THRESHOLD": "0",
    "WS_CPU_PAUSE_THRESHOLD": "0",
    "WS_LAG_REJECT_MS": "0",
    "WS_ACCEPT_RATE": "0",
}


class TargetFailed(Exception):
    """A server did not start, or ended by itself; the message shows the end of its output."""


@attrs.frozen(kw_only=True)
class Target:
    """A server to measure.

    Args:
        name: for the command line and the JSON.
        title: for people.
        dialect: a key of `DIALECTS`.
        path: of its WebSocket, if the bench starts it.
        command: the program to start and its arguments, beside `--addr HOST:PORT` and
            `--nats URL`; None if the bench does not start it.
        url: its address, if the bench does not start it; None and no command: nats-server itself.
        pid: its process, if the bench does not start it, and it is on this machine.
        cores: number of cores it can fill.
        workers: processes of trio-odin that share the port; each announces that it listens.
        is_ours: it is trio-odin, which must lose nothing.
        is_tls: whether it is connected to with `wss`.
    """

    name: str
    title: str
    dialect: str = "odin"
    path: str = "/ws"
    command: Sequence[str] | None = None
    url: str | None = None
    pid: int | None = None
    cores: int = 1
    workers: int = 1
    is_ours: bool = False
    is_tls: bool = False
    environment: Mapping[str, str] = {}


@attrs.frozen
class Place:
    """Where a program of the bench runs; by default on this machine, on loopback.

    Args:
        address: it listens on; IPv4.
        within: wraps its command so that it runs there, under the same process id.
    """

    address: str = "127.0.0.1"
    within: Callable[[Sequence[str]], list[str]] = list


class Running(Server):
    """A target that accepts connections, observed through its processes.

    Its pages are fetched only at the ends of a load, as they cost CPU.

    Attributes:
        url: of its WebSocket.
        health_url: of trio-odin only.
        spread: connections that each worker of trio-odin held at the end of the last load.
    """

    def __init__(
        self, target: Target, url: str, processes: Sequence[psutil.Process], admin: str = ""
    ) -> None:
        """`admin`: where its pages are, if not at `url`."""
        pages = f"http://{admin or urlsplit(url).netloc}" if target.is_ours else None
        self.health_url = pages and f"{pages}/health"
        super().__init__(self.health_url, pages and f"{pages}/metrics")
        self.url = url
        self.spread: list[int] = []
        self._processes = processes

    async def health(self) -> str:
        """The health that it reports; renews `spread`."""
        page = None if self._metrics_url is None else await get(self._metrics_url)
        text = "" if page is None else page.body.decode()
        self.spread = [int(count) for count in labelled(text, "ws_worker_connections").values()]
        return await super().health()

    async def statement(self) -> Statement:
        """CPU and memory of its processes; unknown for a target that runs elsewhere.

        Raises:
            TargetFailed: one of them has ended.
        """
        # In a thread: reading takes some ms, and an event would be published late meanwhile.
        figures = await trio.to_thread.run_sync(self._figures)
        return Statement(time.monotonic(), figures)

    def _figures(self) -> dict[str, float]:
        import psutil  # noqa: PLC0415 - of an extra

        figures = {OTHERS_CPU: busy_core_seconds() - sum(_cpu_seconds(psutil.Process()))}
        if self._processes:
            try:
                user, system = map(sum, zip(*map(_cpu_seconds, self._processes), strict=True))
                rss = sum(one.memory_info().rss for top in self._processes for one in _family(top))
            except psutil.NoSuchProcess as error:
                raise TargetFailed(f"a process of it has ended by itself: {error}") from error
            figures |= {CPU: user + system, USER_CPU: user, RSS: rss}
        return figures


def _cpu_seconds(process: psutil.Process) -> tuple[float, float]:
    """User and system time so far, child processes included."""
    times = [one.cpu_times() for one in _family(process)]
    return sum(t.user for t in times), sum(t.system for t in times)


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _process(pid: int) -> psutil.Process:
    """The process to measure."""
    import psutil  # noqa: PLC0415 - of an extra

    return psutil.Process(pid)


def ours(workers: int) -> Target:
    """trio-odin with this number of workers."""
    return Target(
        name="odin" if workers == 1 else f"odin-{workers}",
        title=f"trio-odin, {workers} worker{'s' if workers > 1 else ''}",
        command=(
            *(sys.executable, "-m", "trio_odin", "serve", "--log-format", "json"),
            *(("--workers", str(workers)) if workers > 1 else ()),
        ),
        cores=workers,
        workers=workers,
        is_ours=True,
        environment=OUR_SETTINGS,
    )


def with_tls(target: Target, certificate: Path, key: Path) -> Target:
    """The same target of ours, which speaks TLS; its pages are at an address without."""
    settings = {
        "WS_TLS_CERT": str(certificate), "WS_TLS_KEY": str(key), "WS_ADMIN_ADDR": "127.0.0.1:0"
    }  # fmt: skip
    return attrs.evolve(target, is_tls=True, environment={**target.environment, **settings})


def on_interpreter(target: Target, interpreter: Interpreter) -> Target:
    """The same target of ours, run by another Python."""
    return attrs.evolve(
        target,
        name=f"{target.name}@{interpreter.version}",
        title=f"{target.title}, {interpreter}",
        command=(interpreter.path, *(target.command or ())[1:]),
    )


def _peer(name: str, title: str, module: str) -> Target:
    return Target(name=name, title=title, command=(sys.executable, "-m", f"{_PEERS}.{module}"))


def _node() -> str:
    """Node: that of the package nodejs-bin if it is installed, as uWebSockets needs an old one."""
    packaged = find_spec("nodejs")
    if packaged is not None and packaged.origin:
        return str(Path(packaged.origin).parent / "bin" / "node")
    return "node"


TARGETS = (
    ours(1),
    ours(2),
    Target(
        name="nats",
        title="nats-server's WebSocket",
        dialect="nats",
        path="/",
        cores=len(os.sched_getaffinity(0)),
    ),
    _peer("floor", "floor: a loop of send(2)", "send_floor"),
    Target(
        name="uws",
        title="uWebSockets (C++), its topics",
        command=(_node(), str(Path(__file__).parent / "peers" / "uws.mjs")),
    ),
    _peer("websockets", "websockets on trio, broadcast", "websockets_broadcast"),
    _peer("trio-websocket", "trio-websocket, a channel each", "trio_websocket_plain"),
)


def why_not_here(target: Target) -> str | None:
    """Why this machine cannot start `target`; None if it can."""
    if target.name != "uws":
        return None
    if shutil.which(_node()) is None:
        return "it needs Node: install the Python package nodejs-bin, or Node 16"
    folders = os.environ.get("NODE_PATH", "").split(os.pathsep)
    if not any((Path(folder) / "@based" / "uws").is_dir() for folder in folders if folder):
        return "it needs `npm install @based/uws nats`, and NODE_PATH to name that node_modules"
    return None


def parse_peer(text: str) -> Target:
    """A target that the bench does not start: `NAME=URL`, perhaps `,DIALECT` and `,pid=N` after it.

    Raises:
        ValueError: says what is allowed.
    """
    name, equals, rest = text.partition("=")
    url, *options = rest.split(",")
    is_whole = _PEER_URL.fullmatch(url) and is_address(url, {"ws"}) and urlsplit(url).port
    if not (_PEER_NAME.fullmatch(name) and equals and is_whole):
        raise ValueError(
            "allowed is NAME=ws://HOST:PORT/PATH, perhaps with ,DIALECT and ,pid=N behind it"
        )
    if name in {target.name for target in TARGETS} or name.startswith("odin"):
        raise ValueError(f"{name!r} is the name of a target of the bench: choose another one")
    pids = [one.removeprefix("pid=") for one in options if one.startswith("pid=")]
    dialects = [one for one in options if one and not one.startswith("pid=")]
    for dialect in dialects:
        if dialect not in DIALECTS:
            raise ValueError(
                f"{dialect!r} is not a known dialect: allowed is one of "
                f"{', '.join(DIALECTS)}, and pid=N"
            )
    if len(pids) > 1 or len(dialects) > 1:
        raise ValueError(f"{text!r}: allowed is one dialect and one pid=N")
    return Target(
        name=name,
        title=name,
        dialect=dialects[0] if dialects else "odin",
        url=url,
        pid=_pid(pids[0]) if pids else None,
    )


def _pid(text: str) -> int:
    if not (text.isdecimal() and len(text) <= _PID_DIGITS and Path(f"/proc/{text}").is_dir()):
        raise ValueError(f"pid={text[:_PID_DIGITS]}: there is no such process on this machine")
    return int(text)


async def run_target(
    target: Target,
    nats: NatsServer,
    place: Place,
    *,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run `target` at `place` until cancelled; starts when it accepts connections.

    Raises:
        TargetFailed: it did not start, or ended.
    """
    if target.command is None:
        pid = target.pid if target.url else nats.pid
        processes = [_process(pid)] if pid else []
        url = target.url or f"{nats.websocket_url}{target.path}"
        task_status.started(Running(target, url, processes))
        await trio.sleep_forever()
        return
    # In its own session: a Ctrl-C in the terminal reaches us only, and we stop it. The settings of
    # the user's environment must not change what is measured.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WS_", "JS_"))}
    process = await trio.lowlevel.open_process(
        command_at(place, target.command, nats.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**environment, **target.environment},
    )
    try:
        address, admin = await _announced(target, cast("trio.abc.ReceiveStream", process.stdout))
        url = f"{'wss' if target.is_tls else 'ws'}://{address}{target.path}"
        task_status.started(Running(target, url, [_process(process.pid)], admin))
        words = b""
        async for chunk in cast("trio.abc.ReceiveStream", process.stdout):
            words = (words + chunk)[-_OUTPUT_KEPT_BYTES:]
        raise TargetFailed(f"it has ended: {_last_words(words)}")
    finally:
        process.terminate()
        with trio.CancelScope(shield=True), trio.move_on_after(_STOP_SECONDS):
            await process.wait()
        process.kill()


def command_at(place: Place, command: Sequence[str], nats_url: str) -> list[str]:
    """The command line that starts a target at `place`, on a free port."""
    return place.within([*command, "--addr", f"{place.address}:0", "--nats", nats_url])


async def _announced(target: Target, output: trio.abc.ReceiveStream) -> tuple[str, str]:
    """Its address, and that of its admin port or an empty text, once all workers listen."""
    words = b""
    with trio.move_on_after(_START_SECONDS):
        async for chunk in output:
            words += chunk
            said = _ADDRESS.findall(words)
            if len(said) >= target.workers:
                admin = _ADMIN.search(words)
                return cast("bytes", said[0]).decode(), admin[1].decode() if admin else ""
    raise TargetFailed(f"it did not start: {_last_words(words)}")


def _last_words(output: bytes) -> str:
    return output[-500:].decode(errors="replace").strip() or "it said nothing"
