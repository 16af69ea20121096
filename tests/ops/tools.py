"""Programs that the checks of the deployment run: of this environment, else of the machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def load_yaml(path: Path) -> Any:
    """The content of a file, read ten times as fast where PyYAML has its parser in C."""
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def tool(name: str) -> str:
    """The path of a program; the test is skipped, with the reason, where there is none."""
    found = _where(name)
    if found is None:
        pytest.skip(f"not installed: {name}")
    return found


def require(*names: str) -> None:
    """Skip the test, with the reason, unless all these programs are here."""
    if (reason := missing(*names)) is not None:
        pytest.skip(reason)


def missing(*names: str) -> str | None:
    """Which of these programs are neither of this environment nor of the machine, in words."""
    absent = [name for name in names if _where(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def _where(name: str) -> str | None:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def run(
    *arguments: str | Path, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with nothing in its environment but `variables` and a PATH."""
    return subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": _PATH, **(variables or {})},
    )


class CommandFailed(Exception):
    """A program ended with another code than 0; the text is its command and what it said."""


def output(
    *command: str | Path,
    seconds: float = 60,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """What a program writes, in this process' environment unless another one is given.

    Raises:
        CommandFailed: it failed.
    """
    done = subprocess.run(
        command,
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise CommandFailed(f"{' '.join(map(str, command))}: {done.returncode}\n{said}")
    return done.stdout
