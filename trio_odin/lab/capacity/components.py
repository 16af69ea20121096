"""The programs of a lab with their versions, without which a figure means little."""

from __future__ import annotations

import subprocess
from importlib import metadata

from trio_odin import __version__
from trio_odin.demo.nats_server import find_nats_server
from trio_odin.lab.machine import this_machine


def components(*, has_prometheus: bool) -> dict[str, list[str]]:
    """The programs on each host, with their versions."""
    python = this_machine().python
    ours = f"trio-odin {__version__}"
    on_backend = [_version_of(str(find_nats_server())), f"{ours} publish"]
    if has_prometheus:
        on_backend.append(_version_of("prometheus"))
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("trio", "trio-websocket"))
    return {
        "ws": [f"{ours} serve ({python}, {packages})"],
        "backend": on_backend,
        "runner": [f"{ours} load"],
    }


def _version_of(program: str) -> str:
    """The first line of its output for `--version`."""
    done = subprocess.run([program, "--version"], capture_output=True, timeout=10, check=False)  # noqa: S603
    said = (done.stdout or done.stderr).decode(errors="replace").splitlines()
    return said[0].partition(" (")[0].replace(": v", " ") if said else program
