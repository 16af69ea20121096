"""Interrupt a command of the lab in the middle of its work, as Ctrl-C or a service manager does."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence

import attrs
import psutil

_END_SECONDS = 60
_CHILDREN_SECONDS = 5
_BETWEEN_SIGNALS_SECONDS = 0.5


@attrs.frozen
class Interrupted:
    """What a command left when it was interrupted.

    Attributes:
        children: how many processes it had started.
        left: how many of these still ran after it.
    """

    returncode: int
    output: str
    errors: str
    children: int
    left: int


def interrupt(
    command: Sequence[str],
    *,
    at: str,
    number: signal.Signals = signal.SIGINT,
    times: int = 1,
) -> Interrupted:
    """Run `command` until it prints a line with `at` as progress; then send it the signal."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if at in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        for _ in range(times - 1):
            time.sleep(_BETWEEN_SIGNALS_SECONDS)
            process.send_signal(number)
        output, errors = process.communicate(timeout=_END_SECONDS)
    _, alive = psutil.wait_procs(children, timeout=_CHILDREN_SECONDS)
    return Interrupted(process.returncode, output, errors, len(children), len(alive))
