"""The watchdog: ends the process if the loop hangs, and notifies systemd while the loop turns.

A loop that hangs serves no client and reports nothing. Docker restarts only processes that end. So
a process whose loop has stood still for too long ends itself, after it has written where it hangs.
"""

from __future__ import annotations

import faulthandler
import socket
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeAlias

import structlog
import trio

_PROVE_SECONDS = 1.0
# The watchdog ends the process within this time after it is due, if it could be started.
_EXIT_SECONDS = 5.0

# Notifies systemd of a state such as "READY=1", if systemd has started this process.
Notify: TypeAlias = Callable[[str], None]

_log = structlog.get_logger("watchdog")


def systemd_notify(environment: Mapping[str, str]) -> Notify:
    """Return a function that notifies systemd; without NOTIFY_SOCKET it does nothing.

    It never waits and never raises. The protocol is that of sd_notify(3): one datagram per state.

    Resource handling: the function holds a socket as long as it is referred to. Once clients have
    taken all files it could not open one, and systemd would end a healthy server.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return tell_nobody
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except OSError:
        return tell_nobody
    sock.setblocking(False)
    # A name that begins with a null byte is not in the file system.
    address = f"\0{address[1:]}" if address.startswith("@") else address

    def notify(state: str) -> None:
        with suppress(OSError):
            sock.sendto(state.encode(), address)

    weakref.finalize(notify, sock.close)
    return notify


def tell_nobody(_: str) -> None:
    """Do nothing: there is no systemd to notify."""


async def prove_life(hung_seconds: float, notify: Notify) -> None:
    """Prove each second that the loop turns, until cancelled.

    After `hung_seconds` without a proof (0: never) the process writes the stacks of all its threads
    to standard error and exits with status 1, without closing its connections. A thread does this
    that needs neither the loop nor the interpreter's lock. A process that was stopped for this long
    also ends when it is continued: its clients have connected elsewhere by then.
    """
    proved_at = time.monotonic()
    try:
        while True:
            if hung_seconds:
                if time.monotonic() - proved_at >= hung_seconds:
                    time.sleep(_EXIT_SECONDS)  # noqa: ASYNC251 - the thread may need a moment
                _arm(hung_seconds)
            proved_at = time.monotonic()
            notify("WATCHDOG=1")
            await trio.sleep(min(_PROVE_SECONDS, hung_seconds / 4 or _PROVE_SECONDS))
    finally:
        faulthandler.cancel_dump_traceback_later()


def _arm(seconds: float) -> None:
    try:
        faulthandler.dump_traceback_later(seconds, exit=True)
    except RuntimeError as error:  # no further thread can be started
        _log.warning("watchdog.off", error=str(error))
