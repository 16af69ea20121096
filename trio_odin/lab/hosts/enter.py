"""Sets limits and becomes another program; `Limits.command` runs this file as a script.

It imports nothing from this project and little else: it runs before every server, even if the
server's environment has no path to this package. A shell could do everything but pin the CPUs.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path


def enter(cgroups: list[str], open_files: int, cpus: list[int]) -> None:
    """Put this process within the limits; its next program and its children inherit them.

    Args:
        cgroups: folders of cgroups to join.
        open_files: limit of open files; if it is not allowed, as many as are.
        cpus: the CPUs to run on; empty: all.

    Raises:
        OSError: a cgroup or a CPU is not available.
    """
    for folder in cgroups:
        (Path(folder) / "cgroup.procs").write_text(str(os.getpid()))
    if cpus:
        os.sched_setaffinity(0, cpus)
    _allow_open_files(open_files)


def _allow_open_files(wanted: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (OSError, ValueError):  # ValueError: the hard limit cannot be raised
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(arguments: list[str]) -> None:
    """Take the limits as JSON, then the program's command line; does not return."""
    limits, *program = arguments
    try:
        enter(**json.loads(limits))
        os.execvp(program[0], program)  # noqa: S606 — to be this program is what it is for
    except OSError as refusal:
        sys.exit(f"{program[0]} cannot be started within its limits: {refusal}")


if __name__ == "__main__":
    main(sys.argv[1:])
