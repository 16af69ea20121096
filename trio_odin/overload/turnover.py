"""Turnover: clients that come or go. The names of their tasks say so, and `LoopMeter` reads them.

A server that is busy with those who come or go has time for more clients; one that is busy serving
those who are in has not. So it matters which of the two takes the time.

    listener, coming → first command → served → going
"""

from __future__ import annotations

from typing import Final

import trio

LISTENER: Final = "listener"
COMING: Final = "connection (coming)"
GOING: Final = "connection (going)"
_FIRST_COMMAND: Final = "connection (first command)"
_SERVED: Final = "connection"

ARRIVAL: Final = frozenset({LISTENER, COMING, _FIRST_COMMAND})
TURNOVER: Final = ARRIVAL | {GOING}
# What the task is called after a step in which it is called so.
THEN: Final = {_FIRST_COMMAND: _SERVED}


def note_command() -> None:
    """The client of this task has sent a command: with the first one it has arrived."""
    task = trio.lowlevel.current_task()
    task.name = _FIRST_COMMAND if task.name == COMING else _SERVED


def note_end() -> None:
    """The client of this task goes."""
    trio.lowlevel.current_task().name = GOING
