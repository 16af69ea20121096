"""The process of a worker: its environment, its start and its end."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial

import structlog
import trio

from trio_odin.net.listening import Address
from trio_odin.overload.budgets import outboxes_bytes, replay_bytes
from trio_odin.settings.settings import Settings

# Between the two signals of a cut.
_CUT_SECONDS = 1.0

_log = structlog.get_logger("workers")


def environment_of_worker(
    settings: Settings,
    environment: Mapping[str, str],
    address: Address,
) -> dict[str, str]:
    """Return the environment of a worker: as given, but for addresses and shares of bytes.

    The shares are of the bytes that may wait or be kept. The other limits are for all workers
    together, and each worker knows what the others hold.
    """
    return {
        **environment,
        "WS_ADDR": str(address),
        "WS_WORKERS": str(settings.workers),
        "WS_TOTAL_OUTBOX_BYTES": str(max(1, outboxes_bytes(settings) // settings.workers)),
        "WS_REPLAY_BYTES": str(max(1, replay_bytes(settings) // settings.workers)),
    }


async def start_process(
    number: int,
    link_file: int,
    *,
    environment: Mapping[str, str],
    queues: Mapping[int, Sequence[trio.socket.SocketType]],
    nursery: trio.Nursery,
) -> trio.Process:
    """Start worker `number` in `nursery`, with the other end of its link and all `queues`.

    Raises:
        OSError: it cannot be started.

    Cancellation of `nursery`: the process is told to end, and killed if it has not after a second.
    """
    inherited = [(queue, sock.fileno()) for queue, sockets in queues.items() for sock in sockets]
    as_worker = ["--as-worker", str(number), str(link_file)]
    for queue, file in inherited:
        as_worker += ["--socket", str(queue), str(file)]
    # In its own session: Ctrl-C in the terminal is for the supervisor, which ends the workers.
    child = partial(
        trio.run_process,
        [sys.executable, "-m", "trio_odin", "serve", *as_worker],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        pass_fds=[link_file, *(file for _, file in inherited)],
        check=False,
        start_new_session=True,
        deliver_cancel=_cut,
    )
    process: trio.Process = await nursery.start(child)
    _log.info("worker.started", worker=number, pid=process.pid)
    return process


async def _cut(process: trio.Process) -> None:
    """End a process that may be leaving already. Cancelled when it has ended."""
    process.terminate()
    await trio.sleep(_CUT_SECONDS)
    process.kill()


def how_it_ended(exit_code: int | None) -> str:
    """Describe the end of a process, for the log. None: it could not be started."""
    if exit_code is None:
        return "not started"
    if exit_code < 0:
        # A real-time signal has no name.
        names = {member.value: member.name for member in signal.Signals}
        return names.get(-exit_code, f"signal {-exit_code}")
    return f"exit code {exit_code}"
