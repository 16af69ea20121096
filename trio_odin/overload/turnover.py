"""Turnover: clients that come or go. The names of their tasks mark it, and `LoopMeter` reads them.

A server that is busy with clients that come or go has time for more clients. A server that is busy
serving connected clients has not. So it matters which of the two takes the time.

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
# The name that a task gets after a step under another name.
THEN: Final = {_FIRST_COMMAND: _SERVED}


def note_command() -> None:
    """Note that the client of this task has sent a command. With the first one it has arrived."""
    task = trio.lowlevel.current_task()
    task.name = _FIRST_COMMAND if task.name == COMING else _SERVED


def note_end() -> None:
    """Note that the client of this task is going."""
    trio.lowlevel.current_task().name = GOING
