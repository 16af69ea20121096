"""10,000 connections on loopback: `nox -s load`. Arguments go to `trio-odin load`.

Starts nats-server, `trio-odin serve` and `trio-odin publish` as processes of their own, with the
plan's 200 tokens at its peak of 30 events a second; then puts the load on it, and ends all. The
exit code is that of `trio-odin load`.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import trio

from trio_odin.net.nats_server import run_nats_server

TOKENS = "200"
PROGRAM = [sys.executable, "-m", "trio_odin"]
PUBLISH = ["publish", "--addr", "127.0.0.1:0", "--rate", "30", "--tokens", TOKENS]
LOAD = ["--connections", "10000", "--channels-per-connection", "24", "--tokens", TOKENS]


async def main() -> int:
    """Run all of it; returns the exit code of the load."""
    async with trio.open_nursery() as nursery:
        nats: str = (await nursery.start(run_nats_server)).url
        serve = [*PROGRAM, "serve", "--addr", "127.0.0.1:0", "--nats", nats]
        server = await trio.lowlevel.open_process(serve, stderr=subprocess.PIPE)
        publish = [*PROGRAM, *PUBLISH, "--nats", nats, "--log-level", "error"]
        publisher = await trio.lowlevel.open_process(publish)
        try:
            url = f"ws://{await _address_of(server)}/ws"
            nursery.start_soon(_pass_on, server)
            load = [*PROGRAM, "load", url, *LOAD, *sys.argv[1:]]
            code = (await trio.run_process(load, check=False, stdin=None)).returncode
        finally:
            for process in (publisher, server):
                process.send_signal(signal.SIGTERM)
                with trio.CancelScope(shield=True):
                    await process.wait()
        nursery.cancel_scope.cancel(reason="the load has ended")
    return code


async def _address_of(server: trio.Process) -> str:
    """Read the log up to the line that says where the server listens."""
    assert server.stderr is not None
    log = b""
    with trio.fail_after(15):
        while not (found := re.search(rb'"addresses": \["([^"]+)"', log)):
            log += await server.stderr.receive_some()
    return found[1].decode()


async def _pass_on(server: trio.Process) -> None:
    """Show the rest of the server's log, warnings and worse."""
    assert server.stderr is not None
    rest = b""
    async for chunk in server.stderr:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if b'"level": "info"' not in line:
                sys.stderr.write(line.decode() + "\n")


if __name__ == "__main__":
    sys.exit(trio.run(main))
