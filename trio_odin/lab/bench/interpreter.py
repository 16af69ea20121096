"""Another Python for our server: the same code may cost a third less on another build of it."""

from __future__ import annotations

import subprocess

import attrs
import msgspec

_SECONDS = 20
_SHOWN = 100
_PROBE = """
import json
from trio_odin.lab.machine import this_machine
machine = this_machine()
print(json.dumps([machine.python, machine.is_python_optimised]))
"""


@attrs.frozen
class Interpreter:
    """A Python with trio-odin installed. `version` is short, as in 3.13.1 or 3.13.1-pgo."""

    path: str
    version: str
    title: str

    def __str__(self) -> str:
        return self.title


def interpreter_at(path: str) -> Interpreter:
    """Ask the Python at `path` what it is.

    Raises:
        ValueError: it cannot run, or has no trio-odin; the text is a sentence.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the user's own Python
            [path, "-c", _PROBE], capture_output=True, timeout=_SECONDS, check=True
        )
        python, is_optimised = msgspec.json.decode(done.stdout, type=tuple[str, bool])
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
        said = b"" if isinstance(error, OSError) else getattr(error, "stderr", None) or b""
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        why = last or getattr(error, "strerror", None) or "it is none"
        raise ValueError(
            f"{path[:_SHOWN]!r}: it has to be a Python with trio-odin: {why}"
        ) from None
    _, _, number = python.partition(" ")
    return Interpreter(
        path=path,
        version=number + ("-pgo" if is_optimised else ""),
        title=f"{python} configured {'with' if is_optimised else 'without'} PGO",
    )
