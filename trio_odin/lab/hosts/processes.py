"""Ends processes of a lab: finds them by their place, and signals them one by one by id."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

_POLL_SECONDS = 0.02
_KILL_SECONDS = 3.0
_PROC = Path("/proc")

_MARK = "TRIO_ODIN_LAB"

Belongs = Callable[[int], bool]


def marked(prefix: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` and marks it and its children as a lab's."""
    return ["env", f"{_MARK}={prefix}", *argv]


def is_marked(prefix: str) -> Belongs:
    """A test whether a lab of that prefix started a process, where we may read its environment."""
    return partial(_has_mark, f"{_MARK}={prefix}".encode())


def _has_mark(mark: bytes, pid: int) -> bool:
    try:
        return mark in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def members(belongs: Belongs) -> set[int]:
    """The ids of the live processes for which `belongs` is true, without our own."""
    ids = {int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()}
    return {pid for pid in ids - {os.getpid()} if belongs(pid) and not _is_zombie(pid)}


async def end_processes(belongs: Belongs, *, grace_seconds: float = 3.0) -> int:
    """Ask the processes for which `belongs` is true to stop, then kill the remaining ones.

    Processes that appear meanwhile are included. Returns their number when they have ended, or at
    the latest after grace_seconds + 3 seconds.
    """
    found: set[int] = set()
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, _KILL_SECONDS)):
        with trio.move_on_after(seconds):
            await _signal_until_gone(belongs, number, found)
            break
    return len(found)


async def _signal_until_gone(belongs: Belongs, number: signal.Signals, found: set[int]) -> None:
    told: set[int] = set()
    while here := members(belongs):
        found |= here
        for pid in here - told:  # once: for many programs a second SIGTERM means "at once"
            _signal(pid, belongs, number)
        told |= here
        await trio.sleep(_POLL_SECONDS)


def _signal(pid: int, belongs: Belongs, number: signal.Signals) -> None:
    """Signal a process if it still belongs: another process may have its id by now."""
    with suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if belongs(pid):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def _is_zombie(pid: int) -> bool:
    """Whether it has ended and waits only for its exit code to be read."""
    try:
        _, _, after_name = (_PROC / str(pid) / "stat").read_text().rpartition(")")
    except OSError:
        return True
    return after_name.split()[0] in "ZX"
