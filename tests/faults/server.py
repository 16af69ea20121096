"""`trio-odin serve` as a process, seen from outside: its pages, its log, its /proc."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.e2e.nats import free_port
from trio_odin.lab.load.pages import get, labelled, parse_metrics

MIB = 1024 * 1024
_READY_SECONDS = 30.0


@attrs.frozen
class Footprint:
    """The resources that the processes of a server hold."""

    mib: float
    files: int


@attrs.define
class ServerProcess:
    """A running server. `log` has its standard error, unless it goes elsewhere."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def page(self, path: str) -> tuple[int, str]:
        """A page, whatever its status; 0 if there was no answer."""
        page = await get(self.url(path))
        return (0, "") if page is None else (page.status, page.body.decode())

    async def status(self, path: str) -> int:
        return (await self.page(path))[0]

    async def health(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((await self.page("/health"))[1] or "{}")
        return content

    async def metrics(self) -> dict[str, float]:
        """Every metric, its labels summed up."""
        status, text = await self.page("/metrics")
        assert status == 200, "/metrics gave no answer"
        return parse_metrics(text)

    async def metric(self, name: str, label: str) -> float:
        """One metric, of one label such as `reason="timeout"`."""
        _, text = await self.page("/metrics")
        return labelled(text, name).get("{" + label + "}", 0.0)

    def workers(self) -> list[int]:
        return sorted(_children_of(self.process.pid))

    def pids(self) -> list[int]:
        return [self.process.pid, *self.workers()]

    def footprint(self) -> Footprint:
        pids = self.pids()
        return Footprint(sum(map(_mib_of, pids)), sum(map(_files_of, pids)))

    def log_lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, seconds: float) -> int:
        """Wait for the end; returns the exit code."""
        with trio.fail_after(seconds):
            while self.process.poll() is None:
                await trio.sleep(0.02)
        return int(self.process.returncode)

    async def wait_ready(self) -> None:
        """Wait until it accepts clients."""
        with trio.fail_after(_READY_SECONDS):
            while await self.status("/ready") != 200:
                assert self.process.poll() is None, self.log_lines()[-3:]
                await trio.sleep(0.02)

    def kill(self) -> None:
        """Kill it with all its workers, even stopped ones."""
        pids = self.pids() if self.process.poll() is None else []
        self.process.kill()
        for pid in pids[1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def footprint_of(pid: int) -> Footprint:
    """The resources that one process holds."""
    return Footprint(_mib_of(pid), _files_of(pid))


def _children_of(pid: int) -> set[int]:
    # Of all its threads: trio starts processes from its own thread.
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for thread in threads for child in thread.read_text().split()}


def _mib_of(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def _files_of(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def start(
    folder: Path,
    nats_url: str,
    *,
    workers: int = 1,
    files_max: int = 0,
    stderr: int | None = None,
    port: int = 0,
    cwd: Path | None = None,
    **variables: str,
) -> ServerProcess:
    """Start a server; it is not ready yet.

    `stderr` redirects its log; `port` is that of an earlier server; if `cwd` does not contain the
    program, PYTHONPATH leads to it.
    """
    port, log = port or free_port(), folder / "server.log"
    command = [sys.executable, "-m", "trio_odin", "serve", "--addr", f"127.0.0.1:{port}"]
    command += ["--nats", nats_url, "--workers", str(workers)]
    if files_max:
        command = ["prlimit", f"--nofile={files_max}", *command]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
            stderr=file if stderr is None else stderr,
            start_new_session=True,
        )
    return ServerProcess(process, port, log)


@asynccontextmanager
async def serving(folder: Path, nats_url: str, **options: Any) -> AsyncIterator[ServerProcess]:
    """A server that is ready; it ends with the block, whatever happens to it."""
    server = start(folder, nats_url, **options)
    try:
        await server.wait_ready()
        yield server
    finally:
        server.kill()
