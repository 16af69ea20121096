"""10,000 connections on loopback: `nox -s load`. Arguments go to `trio-odin load`.

Starts `trio-odin up` with the plan's 200 tokens at its peak of 30 events a second, puts the load
on it and ends both. The exit code is that of `trio-odin load`.
"""

from __future__ import annotations

import re
import subprocess
import sys

TOKENS = "200"
PROGRAM = [sys.executable, "-m", "trio_odin"]
UP = ["up", "--addr", "127.0.0.1:0", "--tokens", TOKENS, "--rate", "30"]
LOAD = ["--connections", "10000", "--channels-per-connection", "24", "--tokens", TOKENS]


def main() -> int:
    """Run both; returns the exit code of the load."""
    with subprocess.Popen([*PROGRAM, *UP], stdout=subprocess.PIPE, text=True) as up:
        try:
            assert up.stdout is not None
            url = next(m[0] for line in up.stdout if (m := re.search(r"ws://[^ ]+/ws", line)))
            load = [*PROGRAM, "load", url, *LOAD, *sys.argv[1:]]
            return subprocess.run(load, check=False).returncode
        finally:
            up.terminate()


if __name__ == "__main__":
    sys.exit(main())
