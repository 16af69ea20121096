"""Fuzz for a while: `python -m tests.fuzz [--seconds N] [TARGET …]`, or `nox -s fuzz`.

The time is shared by the targets, and by two engines: hypothesis, which knows the grammar of each,
and atheris, which follows the branches of the code. Where atheris is not installed, hypothesis has
it all. A failing input is printed as bytes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

from tests.fuzz.inputs import INPUTS, SEEDS
from tests.fuzz.targets import TARGETS

_EXAMPLES_A_ROUND = 300


def by_hypothesis(name: str, seconds: float) -> int:
    """Run rounds of examples, each with another seed, until the time is over; their number."""
    due = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < due:
        rounds += 1

        @seed(time.time_ns())
        @settings(
            max_examples=_EXAMPLES_A_ROUND,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(INPUTS[name])
        def check(data: bytes) -> None:
            TARGETS[name](data)

        check()
    return rounds * _EXAMPLES_A_ROUND


def by_atheris(name: str, seconds: float) -> bool:
    """Run in another process, as atheris ends its own. Returns whether nothing failed."""
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(SEEDS[name]):
            (Path(folder) / str(number)).write_bytes(data)
        options = [f"-max_total_time={max(1, round(seconds))}", "-max_len=4096", "-timeout=20"]
        quiet = ["-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={folder}/"]
        command = [sys.executable, "-m", "tests.fuzz.by_atheris", name, folder, *options, *quiet]
        return subprocess.run(command, check=False, timeout=seconds * 2 + 120).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60, help="in all (default: 60)")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    has_atheris = find_spec("atheris") is not None
    if not has_atheris:
        print("atheris is not installed (it has no wheel for every Python): hypothesis only")
    share = options.seconds / len(names) / (2 if has_atheris else 1)
    failed = []
    for name in names:
        print(f"{name}: hypothesis, {share:.0f} s", flush=True)
        print(f"{name}: {by_hypothesis(name, share)} examples", flush=True)
        if has_atheris and not by_atheris(name, share):
            failed.append(name)
    sys.exit(f"atheris has found inputs that fail: {', '.join(failed)}" if failed else 0)


main()
