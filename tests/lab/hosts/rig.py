from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from trio_odin.lab.hosts.hosts import Host
from trio_odin.lab.hosts.run import Finished, run

# Unique to this run: neither a real lab nor another test run interferes.
PREFIX = f"odint{os.getpid()}"

_CAPABILITIES = 1 << 12 | 1 << 21  # CAP_NET_ADMIN and CAP_SYS_ADMIN


def _missing() -> str:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    status = Path("/proc/self/status").read_text().splitlines()
    effective = next(line for line in status if line.startswith("CapEff"))
    if int(effective.split()[1], 16) & _CAPABILITIES != _CAPABILITIES:
        return "network namespaces need CAP_NET_ADMIN and CAP_SYS_ADMIN"
    programs = [name for name in ("ip", "nsenter") if shutil.which(name) is None]
    return f"not installed: {', '.join(programs)}" if programs else ""


needs_namespaces = pytest.mark.skipif(bool(_missing()), reason=_missing())
# Only root can make namespaces, so other users look for none.
needs_ip_if_root = pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("ip") is None, reason="not installed: ip"
)

_SERVER = """
import socket
listener = socket.create_server(("", 7777))
print("ready", flush=True)
while True:
    listener.accept()[0].send(b"hello")
"""
_CLIENT = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 7777), timeout=float(sys.argv[2]))
print(connection.recv(5).decode(), *connection.getsockname())
"""


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a process outside of any nursery, which somebody else must end."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


async def first_line(process: subprocess.Popen[bytes]) -> None:
    """Wait for its first output: then it runs in its place."""
    assert process.stdout is not None
    read = partial(trio.to_thread.run_sync, process.stdout.readline, abandon_on_cancel=True)
    with trio.fail_after(10):
        assert await read() != b""


def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process that is ending or has ended."""
    with process:
        return process.wait(5)


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script, *arguments]


async def serve_hello(host: Host, nursery: trio.Nursery) -> trio.Process:
    """Answer hello on port 7777 of a host; ends with the nursery."""
    command = host.command(python(_SERVER))
    server = partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
    process: trio.Process = await nursery.start(server)
    assert process.stdout is not None
    with trio.fail_after(5):
        assert await process.stdout.receive_some() == b"ready\n"
    return process


async def hear_hello(host: Host, address: str, *, seconds: float = 5) -> Finished:
    """Connect to `address`; code 0 and "hello ADDRESS PORT" if it was reached."""
    return await run(host.command(python(_CLIENT, address, str(seconds))))


def leftovers(prefix: str = PREFIX) -> list[str]:
    """Everything that a lab of that prefix could leave behind."""
    places = [
        *Path("/run/netns").glob(f"{prefix}-*"),
        *Path("/sys/fs/cgroup").glob(f"trio-odin-{prefix}-*"),
        *Path("/sys/fs/cgroup").glob(f"*/trio-odin-{prefix}-*"),
        *Path("/run").glob(f"trio-odin-lab-{prefix}.lock"),
    ]
    return [str(place) for place in places]
