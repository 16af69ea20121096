"""How a process is told to end, and how long it may take."""

from __future__ import annotations

import math
import signal

import trio

from trio_odin.server.tree import Server


async def drain_on_signal(
    server: Server, *, stop: trio.CancelScope, after_seconds: float = math.inf
) -> None:
    """Drain `server` at the first SIGTERM or SIGINT, or after `after_seconds`.

    The next signal cancels `stop`, for people who cannot wait. Runs until cancelled.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        with trio.move_on_after(after_seconds):
            await anext(signals)
        server.drain()
        await anext(signals)
        stop.cancel(reason="a second signal")
