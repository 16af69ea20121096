"""A real nats-server as a child process, for `trio-odin up`, the bench and tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import attrs
import trio

from trio_odin.settings.extras import install_hint

_START_SECONDS = 10.0
_POLL_SECONDS = 0.02


class BrokerUnavailable(Exception):
    """nats-server cannot be found or started; the message is one sentence."""


def find_nats_server() -> Path:
    """Find the nats-server program: the one in the wheel beside this Python, else one on PATH.

    Raises:
        BrokerUnavailable: there is no such program.
    """
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    if beside.exists():
        return beside
    on_path = shutil.which("nats-server")
    if on_path is None:
        raise BrokerUnavailable(
            f"there is no nats-server: {install_hint('demo')}, or put one on PATH"
        )
    return Path(on_path)


@attrs.frozen
class NatsServer:
    """A running nats-server. `websocket_url` is the URL of its own WebSocket listener."""

    url: str
    websocket_url: str
    pid: int


async def run_nats_server(
    host: str = "127.0.0.1",
    within: Callable[[Sequence[str]], list[str]] = list,
    *,
    task_status: trio.TaskStatus[NatsServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run nats-server with JetStream on free ports, its store in a temporary folder.

    Starts as soon as it accepts connections. Runs until cancelled; then the child is asked to
    stop, killed if it does not, and its store is removed.

    Args:
        host: the address it listens on.
        within: wraps its command so that it runs in another place; by default it runs here.
        task_status: receives the running server.

    Raises:
        BrokerUnavailable: the program is missing, did not start, or ended by itself.
    """
    program = find_nats_server()
    with tempfile.TemporaryDirectory(prefix="trio-odin-nats-") as folder:
        command = [
            str(program),
            *("--addr", host, "--port", "-1", "--ports_file_dir", folder),
            *("--jetstream", "--store_dir", folder, "--log", str(Path(folder) / "log")),
            *("--config", str(_write_config(Path(folder), host))),
        ]
        async with trio.open_nursery() as nursery:
            # In its own session: a Ctrl-C in the terminal reaches us only, and we stop the child.
            child = partial(
                trio.run_process,
                within(command),
                check=False,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            process: trio.Process = await nursery.start(child)
            task_status.started(await _wait_until_ready(trio.Path(folder), process))
            code = await process.wait()
            raise BrokerUnavailable(f"nats-server has ended by itself with exit code {code}")


def _write_config(folder: Path, host: str) -> Path:
    """Write the settings that nats-server takes only from a file."""
    config = folder / "nats.conf"
    config.write_text(f'websocket {{ host: "{host}", port: -1, no_tls: true }}\n')
    return config


async def _wait_until_ready(folder: trio.Path, process: trio.Process) -> NatsServer:
    """Wait for the file in which nats-server writes its ports."""
    with trio.move_on_after(_START_SECONDS):
        while process.returncode is None:
            for ports_file in await folder.glob("*.ports"):
                if text := await ports_file.read_text():
                    ports = json.loads(text)
                    return NatsServer(ports["nats"][0], ports["websocket"][0], process.pid)
            await trio.sleep(_POLL_SECONDS)
    raise BrokerUnavailable(f"nats-server did not start within {_START_SECONDS:.0f} s")
