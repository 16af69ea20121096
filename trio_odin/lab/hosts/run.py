"""Runs short system programs (ip, nsenter) with a deadline; their outcome is a value."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import attrs
import trio

_DEADLINE_SECONDS = 10.0
_NOT_FOUND = 127


@attrs.frozen
class Finished:
    """The outcome of a program. `complaint` is the first line of its standard error."""

    code: int
    output: str = ""
    complaint: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether it succeeded."""
        return self.code == 0


async def run(argv: Sequence[str]) -> Finished:
    """Run a program to its end, for at most 10 seconds.

    It has its own session: a Ctrl-C in the terminal reaches us only, and must not end an `ip`
    during the teardown. A program that is missing or too slow also gives a `Finished`.
    Cancelling ends the program.
    """
    with trio.move_on_after(_DEADLINE_SECONDS):
        try:
            done = await trio.run_process(
                list(argv),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                start_new_session=True,
            )
        except OSError as refusal:
            return Finished(_NOT_FOUND, complaint=f"{argv[0]}: {refusal.strerror}")
        return _finished(done)
    return Finished(-1, complaint=f"{argv[0]} took longer than {_DEADLINE_SECONDS:.0f} s")


def _finished(done: subprocess.CompletedProcess[bytes]) -> Finished:
    errors = done.stderr.decode(errors="replace").strip().splitlines()
    silent = "" if done.returncode == 0 else f"exit code {done.returncode}"
    complaint = next(iter(errors), silent)
    return Finished(done.returncode, done.stdout.decode(errors="replace"), complaint)
