"""Ending processes that are surely ours: found by where they are, told by id, one at a time."""

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
    """The words that run `argv` so that it, and what it starts, can be known as a lab's."""
    return ["env", f"{_MARK}={prefix}", *argv]


def is_marked(prefix: str) -> Belongs:
    """Whether a process was started by a lab of that prefix, as far as we may look."""
    return partial(_has_mark, f"{_MARK}={prefix}".encode())


def _has_mark(mark: bytes, pid: int) -> bool:
    try:
        return mark in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def members(belongs: Belongs) -> set[int]:
    """The ids of the live processes for which `belongs` is true; never our own."""
    ids = {int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()}
    return {pid for pid in ids - {os.getpid()} if belongs(pid) and not _is_zombie(pid)}


async def end_processes(belongs: Belongs, *, grace_seconds: float = 3.0) -> int:
    """Tell the processes for which `belongs` is true to stop, then kill those that do not.

    Processes that turn up meanwhile are included. Returns how many there were, when they are gone
    or, whatever they do, after grace_seconds + 3 seconds.
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
        for pid in here - told:  # once: many take a second SIGTERM for "now, at any price"
            _signal(pid, belongs, number)
        told |= here
        await trio.sleep(_POLL_SECONDS)


def _signal(pid: int, belongs: Belongs, number: signal.Signals) -> None:
    """Signal it if it still is what it was: the id may have gone to another process meanwhile."""
    with suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if belongs(pid):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def _is_zombie(pid: int) -> bool:
    """Whether it has ended and only waits to be asked for its exit code."""
    try:
        _, _, after_name = (_PROC / str(pid) / "stat").read_text().rpartition(")")
    except OSError:
        return True
    return after_name.split()[0] in "ZX"
