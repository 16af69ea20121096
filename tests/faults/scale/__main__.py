"""`python -m tests.faults.scale --nodes 4 --connections 40000`: nodes lost under many connections.

Everything runs in a network namespace and a process namespace of its own. When the drill ends,
however that happens, the kernel ends all that is in them, and they are gone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from tests.faults.scale.drill import Plan, Result, run
from tests.faults.scale.report import lines

_INTERRUPTED = 130
_TOOLS = {"unshare": "util-linux", "ip": "iproute2", "haproxy": "haproxy"}
_NAMESPACES = ("unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL")
_INSIDE = "--inside"
# To end in order after Ctrl-C or at the deadline, before the kernel ends it.
_GRACE_SECONDS = 30.0
_CONNECTIONS_MIN, _CONNECTIONS_MAX = 40, 200_000
_NODES_MIN, _NODES_MAX = 2, 16
_FILES_KEPT = 1000


def main() -> int:
    options = _options()
    plan = Plan(
        nodes=options.nodes,
        connections=options.connections,
        users=options.users,
        rate=options.rate,
        steady_seconds=options.steady,
    )
    if options.inside is not None:
        return _inside(plan, Path(options.inside), options.json)
    if why_not := _why_not(plan):
        print(f"python -m tests.faults.scale: {why_not}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="trio-odin-scale-") as folder:
        return _in_namespaces(plan, folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.scale",
        description="Kill a server and a node of NATS under many connections, and count losses.",
        epilog="Exit code 0: all checks hold. 1: one does not. 2: it cannot be run here. "
        "130: interrupted.",
    )
    parser.add_argument("--nodes", type=_whole(_NODES_MIN, _NODES_MAX), default=4)
    parser.add_argument(
        "--connections", type=_whole(_CONNECTIONS_MIN, _CONNECTIONS_MAX), default=40_000
    )
    parser.add_argument(
        "--users",
        type=_whole(1, 2000),
        default=200,
        help="further clients that resume, each with books of its own",
    )
    parser.add_argument(
        "--rate", type=_whole(1, 200), default=4, help="events a second, over ten channels"
    )
    parser.add_argument(
        "--steady", type=_whole(1, 600), default=10, help="seconds before, between and after"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument(_INSIDE, help=argparse.SUPPRESS)
    return parser.parse_args()


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isdecimal() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(
                f"{text!r}: allowed is a whole number from {least:,} to {most:,}"
            )
        return int(text)

    return read


def _why_not(plan: Plan) -> str | None:
    """Why it cannot be run here, in a sentence."""
    if os.geteuid() != 0:
        return "namespaces need root: sudo"
    for program, package in _TOOLS.items():
        if shutil.which(program) is None:
            return f"`{program}` is missing: install the package {package}"
    tried = subprocess.run([*_NAMESPACES, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"namespaces are refused here: {tried.stderr.strip()}"
    files = plan.files_of_a_node + _FILES_KEPT
    if files > plan.files_limit:
        return (
            f"{plan.connections:,} connections on {plan.nodes - 1} nodes are {files:,} files each, "
            f"and a process may have {plan.files_limit:,} here: use more --nodes"
        )
    return None


def _in_namespaces(plan: Plan, folder: str) -> int:
    """Run the drill in its namespaces, until its end or its deadline."""
    command = [
        *_NAMESPACES,
        sys.executable,
        "-m",
        "tests.faults.scale",
        *sys.argv[1:],
        _INSIDE,
        folder,
    ]
    process = subprocess.Popen(command)
    try:
        return process.wait(plan.most_seconds + _GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"the drill was not over after {plan.most_seconds:.0f} s", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # the terminal has sent it to the drill, too
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
        return _INTERRUPTED
    finally:
        process.kill()  # with it everything in the namespaces
        process.wait()


def _inside(plan: Plan, folder: Path, path: Path | None) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    result: Result | None = None
    code = _INTERRUPTED
    try:
        result = trio.run(run, plan, folder, print)
    except* KeyboardInterrupt:
        print("stopped")
    except* trio.TooSlowError:
        print("NOT passed: the next step was not over in time")
        code = 1
    if result is None:
        return code
    print(*lines(plan, result), sep="\n")
    if path is not None:
        path.write_text(json.dumps(attrs.asdict(result), indent=1) + "\n", encoding="utf-8")
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
