"""Two nodes on one NATS behind HAProxy, as processes; and what an operator does to them.

A process stands for a container: stopped by SIGTERM, started anew on the same ports. Its restart is
asked for by a command, as over ssh, so that ops/haproxy/rolling.py can do it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.e2e.nats import free_port, nats_client, running_nats
from tests.faults.publisher import Publisher
from tests.faults.server import ServerProcess, start
from tests.ops.conftest import OPS
from tests.ops.tools import tool
from tests.ops.users import Crowd, User
from trio_odin.lab.load.pages import get

CONFIG = OPS / "haproxy" / "haproxy.cfg"
ROLLING = OPS / "haproxy" / "rolling.py"
NODES = ("ws-1", "ws-2")
_READY_SECONDS = 30.0
_EXIT_SECONDS = 45.0
_EVENTS_PER_SECOND = 10.0
_FLOW_SECONDS = 1.0
# A restart command: says which node, waits for the word that it was restarted.
_ASK = (
    "import socket,sys; s=socket.create_connection(('127.0.0.1',{port})); "
    "s.sendall(b'{{node}}\\n'); sys.exit(s.recv(9)!=b'started')"
)


@attrs.define
class Node:
    """A server with ports of its own, that stay the same over restarts.

    Attributes:
        settings: environment variables, from the next start on.
    """

    name: str
    folder: Path
    nats_url: str
    settings: dict[str, str]
    port: int = attrs.field(factory=free_port)
    admin_port: int = attrs.field(factory=free_port)
    _running: ServerProcess | None = None

    @property
    def process(self) -> ServerProcess:
        assert self._running is not None, f"{self.name} was not started"
        return self._running

    @property
    def admin(self) -> ServerProcess:
        """The same, its pages those at WS_ADMIN_ADDR."""
        return attrs.evolve(self.process, port=self.admin_port)

    def start(self) -> None:
        folder = self.folder / self.name
        folder.mkdir(exist_ok=True)
        variables: dict[str, Any] = {
            "WS_ADMIN_ADDR": f"127.0.0.1:{self.admin_port}",
            "WS_TRUSTED_PROXIES": "127.0.0.1",
            **self.settings,
        }
        workers = int(self.settings.get("WS_WORKERS", "1"))
        self._running = start(
            folder, self.nats_url, workers=workers, port=self.port, cwd=folder, **variables
        )

    async def wait_ready(self) -> float:
        """Wait until it takes clients; how long that took."""
        begun = trio.current_time()
        await self.admin.wait_ready()
        return trio.current_time() - begun

    async def stop(self) -> None:
        """Drain it, and wait until it has ended in order."""
        self.process.signal(signal.SIGTERM)
        assert await self.process.ended(_EXIT_SECONDS) == 0, self.process.log_lines()[-3:]

    async def restart(self) -> None:
        await self.stop()
        self.start()

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()


@attrs.define
class Proxy:
    """HAProxy with the configuration of ops/haproxy, or with one made of it."""

    folder: Path
    nodes: Sequence[Node]
    config: Path = CONFIG
    files: int = 20_000
    socket_port: int = 0  # of its admin socket, as in a container; a path if 0
    certificates: Path | None = None  # a folder; without it there is no TLS
    port: int = attrs.field(factory=free_port)
    admin_port: int = attrs.field(factory=free_port)
    plain_port: int = attrs.field(factory=free_port)
    processes: list[subprocess.Popen[bytes]] = attrs.field(factory=list)

    @property
    def socket(self) -> str:
        if self.socket_port:
            return f"127.0.0.1:{self.socket_port}"
        return str(self.folder / f"haproxy-{self.port}.sock")

    def environment(self) -> dict[str, str]:
        first, second = self.nodes
        return {
            **os.environ,
            "HAPROXY_TLS": "off" if self.certificates is None else "on",
            "HAPROXY_CERTS": str(self.certificates),
            "HAPROXY_PLAIN_ADDR": f"127.0.0.1:{self.plain_port}",
            "HAPROXY_ADDR": f"127.0.0.1:{self.port}",
            "HAPROXY_ADMIN_ADDR": f"127.0.0.1:{self.admin_port}",
            "HAPROXY_SOCKET": ("ipv4@" if self.socket_port else "") + self.socket,
            "HAPROXY_MAXCONN": str(self.files // 2 - 100),
            "WS1_ADDR": f"127.0.0.1:{first.port}",
            "WS2_ADDR": f"127.0.0.1:{second.port}",
            "WS1_CHECK_PORT": str(first.admin_port),
            "WS2_CHECK_PORT": str(second.admin_port),
        }

    def start(self) -> None:
        """Start it, or a further one that takes over the port from the one before (a reload)."""
        command = ["haproxy", "-db", "-f", str(self.config)]
        if self.processes:
            command += ["-x", self.socket, "-sf", str(self.processes[-1].pid)]
        with self.log.open("ab") as log:
            self.processes.append(
                subprocess.Popen(command, env=self.environment(), stdout=log, stderr=log)
            )

    async def wait_up(self, *names: str) -> None:
        """Wait until these nodes take clients, both if none is named."""
        await self.wait_status("UP", *(names or NODES))

    async def wait_status(self, status: str, *names: str) -> float:
        begun = trio.current_time()
        with trio.fail_after(_READY_SECONDS):
            while {(await self.stat(name))["status"] for name in names} != {status}:
                await trio.sleep(0.05)
        return trio.current_time() - begun

    async def ask(self, command: str) -> str:
        """Say something to its admin socket; the answer."""
        for _ in range(100):
            with suppress(OSError):
                async with await self._socket_stream() as stream:
                    await stream.send_all(command.encode() + b"\n")
                    return b"".join([chunk async for chunk in stream]).decode()
            await trio.sleep(0.05)
        raise AssertionError("HAProxy does not answer at its admin socket")

    async def _socket_stream(self) -> trio.SocketStream:
        if self.socket_port:
            return await trio.open_tcp_stream("127.0.0.1", self.socket_port)
        return await trio.open_unix_socket(self.socket)

    async def stat(self, name: str) -> dict[str, str]:
        """One line of `show stat`."""
        head, *lines = (await self.ask("show stat")).removeprefix("# ").splitlines()
        names = head.split(",")
        for line in lines:
            row = dict(zip(names, line.split(","), strict=False))
            if (row["pxname"], row["svname"]) == ("ws", name):
                return row
        raise AssertionError(f"no node {name}")

    async def connections(self) -> list[int]:
        """Open now, of each node."""
        return [int((await self.stat(name))["scur"]) for name in NODES]

    async def wait_full_weight(self, name: str) -> None:
        """Wait until a node gets its whole share of clients, at the end of slowstart."""
        with trio.fail_after(_READY_SECONDS):
            while (await self.stat(name))["weight"] != "100":
                await trio.sleep(0.1)

    async def set_state(self, name: str, state: str) -> None:
        assert not (await self.ask(f"set server ws/{name} state {state}")).strip()

    @property
    def log(self) -> Path:
        return self.folder / f"haproxy-{self.port}.log"

    async def page(self, path: str) -> int:
        """The status of a page of the public side."""
        page = await get(f"http://127.0.0.1:{self.port}{path}")
        return 0 if page is None else page.status

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@attrs.define
class Site:
    """Everything that runs in a rehearsal."""

    folder: Path
    nodes: list[Node]
    proxy: Proxy
    publisher: Publisher
    crowd: Crowd
    restart_command: str

    def node(self, name: str) -> Node:
        return self.nodes[NODES.index(name)]

    async def roll(self, *options: str, proxies: Sequence[Proxy] = ()) -> tuple[int, str]:
        """Run ops/haproxy/rolling.py; its exit code and what it said."""
        sockets = [f"--socket={proxy.socket}" for proxy in proxies or [self.proxy]]
        command = [str(ROLLING), f"--restart={self.restart_command}", *sockets, *options]
        done = await trio.run_process(
            [sys.executable, *command],
            check=False,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
        )
        return done.returncode, done.stdout.decode()

    async def join(self, resuming: int, others: int) -> tuple[list[User], list[User]]:
        """Have users of both kinds, and events that flow."""
        users = (
            await self.crowd.join(resuming, resumes=True),
            await self.crowd.join(others, resumes=False),
        )
        self.publisher.is_paused = False
        await trio.sleep(_FLOW_SECONDS)
        return users

    async def come_to_rest(self) -> None:
        """Publish no more, and wait until all has come."""
        self.publisher.is_paused = True
        await self.crowd.wait_all()
        await self.crowd.wait_quiet()

    async def check_balance(self) -> None:
        """Nothing is unaccounted for at any node that runs."""
        for node in self.nodes:
            if node.process.process.poll() is None:
                assert (await node.admin.metrics())["ws_ledger_imbalance"] == 0


@asynccontextmanager
async def site(
    folder: Path, *, config: Path = CONFIG, has_proxy: bool = True, **settings: str
) -> AsyncIterator[Site]:
    """NATS, two nodes, HAProxy and a publisher that is paused; all gone after the block.

    The test is skipped where there is no HAProxy. Users come by it, or, without `has_proxy`, to the
    first node.
    """
    tool("haproxy")
    with running_nats(folder / "nats") as nats:
        async with nats_client(nats.url):
            pass
        nodes = [Node(name, folder, nats.url, dict(settings)) for name in NODES]
        proxy = Proxy(folder, nodes, config)
        try:
            for node in nodes:
                node.start()
            proxy.start()
            for node in nodes:
                await node.wait_ready()
            await proxy.wait_up()
            async with trio.open_nursery() as nursery:
                publisher = Publisher(nats.port, _EVENTS_PER_SECOND)
                nursery.start_soon(publisher.run)
                command = await _take_restarts(nursery, nodes)
                crowd = Crowd(nursery, proxy.port if has_proxy else nodes[0].port)
                yield Site(folder, nodes, proxy, publisher, crowd, command)
                nursery.cancel_scope.cancel(reason="the rehearsal is over")
        finally:
            proxy.kill()
            for node in nodes:
                node.kill()


async def _take_restarts(nursery: trio.Nursery, nodes: Sequence[Node]) -> str:
    """Restart nodes upon request; the command that asks for it, of {node}."""

    async def take(stream: trio.SocketStream) -> None:
        async with stream:
            name = (await stream.receive_some()).decode().strip()
            node = nodes[NODES.index(name)]
            await node.restart()
            await stream.send_all(b"started")

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, take, [listener])
    port = listener.socket.getsockname()[1]
    return f'{sys.executable} -c "{_ASK.format(port=port)}"'


def scaled(folder: Path, **timeouts: str) -> Path:
    """The configuration with shorter timeouts, for a test that cannot wait as long."""
    text = CONFIG.read_text()
    for name, value in timeouts.items():
        pattern = rf"(?m)^(    timeout {name.replace('_', '-')}) \S+$"
        text, times = re.subn(pattern, rf"\1 {value}", text)
        assert times == 1, name
    path = folder / "haproxy.cfg"
    path.write_text(text)
    return path
