"""Signals that end a process, or change a running server."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

import structlog
import trio

from trio_odin.overload.watchdog import Notify
from trio_odin.settings.reload import ReadEnvironment

# When entered, it gives the numbers of received signals.
Signals: TypeAlias = AbstractContextManager[AsyncIterator[int]]


_log = structlog.get_logger("server")


class Leaving(Protocol):
    """What can drain: a server, or a server with workers."""

    def drain(self) -> None:
        """Begin to drain. Does not wait."""


class Serving(Leaving, Protocol):
    """What can also change while it runs. None of this waits."""

    def reload(self, read: ReadEnvironment) -> None:
        """Apply the settings of the environment that `read` returns."""

    def roll(self) -> None:
        """Begin to replace all workers."""


def end_signals() -> Signals:
    """Receive the signals that end a process: a stop, Ctrl-C, and the loss of the terminal.

    Enter it before starting anything that they should end. Under nohup, which ignores the loss of
    the terminal (SIGHUP), that stays ignored.
    """
    ends = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)
    return trio.open_signal_receiver(*ends)


def serve_signals() -> Signals:
    """Receive what a server obeys: signals that end it, SIGHUP to reload, SIGUSR2 to roll.

    SIGUSR1 has no meaning here. It is received because it would otherwise end the process without a
    drain. Under nohup SIGHUP stays ignored.
    """
    obeyed = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        obeyed.append(signal.SIGHUP)
    return trio.open_signal_receiver(*obeyed)


def leave_changes_to_parent() -> None:
    """Ignore the signals that change a server: a worker gets changes from its supervisor."""
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def has_terminal() -> bool:
    """Whether our standard input is a terminal: its loss is then a SIGHUP as well."""
    try:
        return os.isatty(sys.__stdin__.fileno()) if sys.__stdin__ else False
    except (OSError, ValueError):  # closed
        return False


async def obey_signals(
    signals: AsyncIterator[int],
    server: Serving,
    *,
    read: ReadEnvironment,
    stop: trio.CancelScope,
    hangup_ends: bool,
    notify: Notify,
) -> None:
    """Drain `server` on a signal that ends it; the next such signal cancels `stop`.

    SIGUSR2 replaces the workers. SIGHUP reloads the settings that `read` returns, or, with
    `hangup_ends`, ends the server like the others. `notify` is called when the server begins to
    leave. Runs until cancelled.
    """
    is_leaving = False
    async for number in signals:
        if number == signal.SIGUSR2:
            server.roll()
        elif number == signal.SIGUSR1:
            _log.warning("signal.ignored", signal="SIGUSR1")
        elif number == signal.SIGHUP and not hangup_ends:
            server.reload(read)
        elif is_leaving:
            stop.cancel(reason="a second signal")
        else:
            notify("STOPPING=1")
            server.drain()
            is_leaving = True


async def drain_on_signal(
    signals: AsyncIterator[int],
    server: Leaving,
    *,
    stop: trio.CancelScope,
    after_seconds: float = math.inf,
) -> None:
    """Drain `server` at the first signal, or after `after_seconds`.

    The next signal cancels `stop`, for users who cannot wait. Runs until cancelled.
    """
    with trio.move_on_after(after_seconds):
        await anext(signals)
    server.drain()
    await anext(signals)
    stop.cancel(reason="a second signal")
