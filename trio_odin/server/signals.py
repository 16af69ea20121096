"""How a process is told to end."""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Protocol

import trio


class Leaving(Protocol):
    """What can leave in order: a server, or a server with workers."""

    def drain(self) -> None:
        """Begin to leave. Does not wait."""


def end_signals() -> AbstractContextManager[AsyncIterator[int]]:
    """Receive what ends a process: a stop, a Ctrl-C, a terminal that is gone.

    To be entered before anything is started that they should end. Under nohup, which has the last
    one ignored, it stays ignored.
    """
    ends = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)
    return trio.open_signal_receiver(*ends)


async def drain_on_signal(
    signals: AsyncIterator[int],
    server: Leaving,
    *,
    stop: trio.CancelScope,
    after_seconds: float = math.inf,
) -> None:
    """Drain `server` at the first signal, or after `after_seconds`.

    The next signal cancels `stop`, for people who cannot wait. Runs until cancelled.
    """
    with trio.move_on_after(after_seconds):
        await anext(signals)
    server.drain()
    await anext(signals)
    stop.cancel(reason="a second signal")
