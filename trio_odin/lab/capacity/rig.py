"""The programs of a lab, each on its host, with its output in a file of the run's folder."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import msgspec
import trio

from trio_odin.lab.capacity.stages import SERVER_SETTINGS, Stage
from trio_odin.lab.hosts.cgroup import Limits
from trio_odin.lab.hosts.hosts import Hosts
from trio_odin.settings.reading import variables

_START_SECONDS = 20.0
_STOP_SECONDS = 45.0
_LOOK_SECONDS = 0.05
_ASK_SECONDS = 15.0
_LISTENING = re.compile(rb'"addresses": \["([^"]+)"')
_PROGRAM = (sys.executable, "-m", "trio_odin")
# Fixed on isolated hosts; on loopback any free port.
_SERVER_PORT, _PUBLISHER_PORT, _PROMETHEUS_PORT = 3004, 3003, 9090


_SETTINGS = {variable.name for variable in variables()}


class ProgramFailed(Exception):
    """A program of the lab did not start, ended, or gave an unexpected answer."""


@attrs.frozen
class Running:
    """A running program. `address` is the one that it announced."""

    process: trio.Process
    log: Path
    address: str = ""


@attrs.frozen
class Rig:
    """The hosts of the programs, and the folder for their output."""

    hosts: Hosts
    folder: Path

    @property
    def is_isolated(self) -> bool:
        """Whether the hosts have their own ports."""
        return self.hosts.ws.address != self.hosts.backend.address

    def log(self, name: str) -> Path:
        """The file for the output of a program."""
        return self.folder / "logs" / f"{name}.log"

    def port(self, wanted: int) -> int:
        """The wanted port on isolated hosts, any free one otherwise."""
        return wanted if self.is_isolated else 0

    @asynccontextmanager
    async def publisher(self, nats_url: str) -> AsyncIterator[Running]:
        """The publisher on the back-end host, idle until it is started."""
        host = self.hosts.backend
        addr = f"{host.address}:{self.port(_PUBLISHER_PORT)}"
        argv = [*_PROGRAM, "publish", "--idle", "--addr", addr, "--nats", nats_url]
        async with self._listening("publisher", host.command(argv), {}) as running:
            yield running

    @asynccontextmanager
    async def server(self, stage: Stage, limits: Limits, nats_url: str) -> AsyncIterator[Running]:
        """The server on its host, within its limits, with the stage's settings."""
        host = self.hosts.ws
        addr = f"{host.address}:{self.port(_SERVER_PORT)}"
        argv = [*_PROGRAM, "serve", "--addr", addr, "--nats", nats_url]
        settings = server_settings(stage)
        command = host.command(limits.command(argv))
        async with self._listening(f"server-{stage.number:02}", command, settings) as running:
            yield running

    @asynccontextmanager
    async def prometheus(self) -> AsyncIterator[Prometheus | None]:
        """Prometheus on the back-end host, if it is installed and the hosts are isolated."""
        program = shutil.which("prometheus")
        if program is None or not self.is_isolated:
            yield None
            return
        folder = self.log("prometheus").with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        target = f"{self.hosts.ws.address}:{_SERVER_PORT}"
        (folder / "prometheus.yml").write_text(_PROMETHEUS_CONFIG.format(target=target))
        address = f"{self.hosts.backend.address}:{_PROMETHEUS_PORT}"
        argv = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            "--log.level=warn",
        ]
        command = self.hosts.backend.command(argv)
        async with self._running("prometheus", command, {}):
            try:
                await self._wait_for(f"http://{address}/-/ready")
                yield Prometheus(self, address)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    async def _wait_for(self, url: str) -> None:
        """Fetch `url` until there is an answer.

        Raises:
            ProgramFailed: there is none within 20 s.
        """
        with trio.move_on_after(_START_SECONDS):
            while True:
                with suppress(ProgramFailed):
                    await self.ask(url)
                    return
                await trio.sleep(_LOOK_SECONDS)
        raise ProgramFailed(f"{url} does not answer")

    async def ask(self, url: str) -> bytes:
        """Fetch a page from the back-end host.

        Raises:
            ProgramFailed: there is no answer.
        """
        script = (
            "import sys, urllib.request as r; "
            "sys.stdout.buffer.write(r.urlopen(sys.argv[1], timeout=5).read())"
        )
        argv = self.hosts.backend.command([sys.executable, "-c", script, url])
        with trio.move_on_after(_ASK_SECONDS):
            done = await trio.run_process(
                argv, capture_stdout=True, capture_stderr=True, check=False
            )
            if done.returncode == 0:
                return done.stdout
        raise ProgramFailed(f"{url} does not answer")

    @asynccontextmanager
    async def _listening(
        self, name: str, argv: Sequence[str], settings: Mapping[str, str]
    ) -> AsyncIterator[Running]:
        async with self._running(name, argv, settings) as running:
            yield attrs.evolve(running, address=await _announced(name, running))

    @asynccontextmanager
    async def _running(
        self, name: str, argv: Sequence[str], settings: Mapping[str, str]
    ) -> AsyncIterator[Running]:
        """A program that is asked to stop at the end of the block, and killed if it does not."""
        log = self.log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            # In its own session: a Ctrl-C in the terminal reaches us only, and we stop it.
            process = await trio.lowlevel.open_process(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment(settings),
            )
        try:
            yield Running(process, log)
        finally:
            await stop(process)


def server_settings(stage: Stage) -> dict[str, str]:
    """The server's environment in a stage."""
    return SERVER_SETTINGS | stage.settings


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Our environment without the user's settings, which must not change what is measured."""
    ours = {name: text for name, text in os.environ.items() if not _is_setting(name)}
    return {**ours, **settings}


def _is_setting(name: str) -> bool:
    return name in _SETTINGS or name.startswith(("WS_", "JS_"))


async def stop(process: trio.Process) -> int | None:
    """End a program in order within 45 s, or kill it; returns its exit code, None if killed."""
    with trio.CancelScope(shield=True):
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        with trio.move_on_after(_STOP_SECONDS):
            return await process.wait()
        process.kill()
        await process.wait()
    return None


async def _announced(name: str, running: Running) -> str:
    """Its address, once it is in its log."""
    with trio.move_on_after(_START_SECONDS):
        while running.process.returncode is None:
            if found := _LISTENING.search(running.log.read_bytes()):
                return found[1].decode()
            await trio.sleep(_LOOK_SECONDS)
    raise ProgramFailed(f"the {name} did not start: {last_words(running.log)}")


def last_words(log: Path) -> str:
    """The end of a program's output."""
    return log.read_bytes()[-400:].decode(errors="replace").strip() or "it said nothing"


_PROMETHEUS_CONFIG = """\
global:
  scrape_interval: 2s
scrape_configs:
  - job_name: trio_odin
    static_configs:
      - targets: ["{target}"]
"""


class _Value(msgspec.Struct):
    value: tuple[float, str]


class _Answer(msgspec.Struct):
    result: list[_Value]


class _Query(msgspec.Struct):
    data: _Answer


@attrs.frozen
class Prometheus:
    """A running Prometheus."""

    rig: Rig
    address: str

    async def most_connections(self, seconds: float) -> float | None:
        """The most connections that it scraped in the last `seconds`; None without a scrape.

        Raises:
            ProgramFailed: it does not answer.
        """
        query = f"max_over_time(ws_connections_current[{math.ceil(seconds)}s])"
        url = f"http://{self.address}/api/v1/query?query={query}"
        page = await self.rig.ask(url)
        try:
            answer = msgspec.json.decode(page, type=_Query)
        except msgspec.DecodeError as error:
            raise ProgramFailed(f"Prometheus answers something else: {error}") from error
        values = [float(found.value[1]) for found in answer.data.result]
        return max(values, default=None)
