"""That the loop turns: made sure of by a watchdog in the process, and told to systemd.

A loop that hangs serves nobody, and says nothing. Docker restarts only what ends, so a process
whose loop has stood still for too long ends itself; before it does, it writes where it hangs.
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
# Within this time after it is due the watchdog has ended the process, if there is one.
_EXIT_SECONDS = 5.0

# Tells systemd a state such as "READY=1", if it was systemd that started us.
Notify: TypeAlias = Callable[[str], None]

_log = structlog.get_logger("watchdog")


def systemd_notify(environment: Mapping[str, str]) -> Notify:
    """How to tell systemd; does nothing without NOTIFY_SOCKET. Never waits, never raises.

    The protocol is that of sd_notify(3): a datagram for each.

    Resource handling: has a socket for as long as it is referred to. Where clients have taken all
    files none could be had, and systemd would end a server that lives.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return tell_nobody
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except OSError:
        return tell_nobody
    sock.setblocking(False)
    # A name that begins with a null byte is in no file system.
    address = f"\0{address[1:]}" if address.startswith("@") else address

    def notify(state: str) -> None:
        with suppress(OSError):
            sock.sendto(state.encode(), address)

    weakref.finalize(notify, sock.close)
    return notify


def tell_nobody(_: str) -> None:
    """Stands where no systemd is."""


async def prove_life(hung_seconds: float, notify: Notify) -> None:
    """Prove each second that the loop turns, until cancelled.

    After `hung_seconds` without it (0: never) the process writes the stacks of all its threads to
    standard error and exits with 1, without any farewell: that is done by a thread which needs
    neither the loop nor the interpreter's lock. A process that was stopped for so long ends as well
    when it is let go on: its clients have gone elsewhere.
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
    except RuntimeError as error:  # no further thread is to be had
        _log.warning("watchdog.off", error=str(error))
