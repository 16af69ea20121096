"""`python -m tests.oracle --faults 1000 --seed 1`: random faults without a silent loss."""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
from functools import partial
from pathlib import Path

import attrs
import trio

from tests.oracle.run import Outcome, check, run_worlds
from tests.oracle.world import KINDS

_INTERRUPTED = 130  # the exit code of shells


def main() -> int:
    options = _options()
    # A script's background job ignores Ctrl-C, and so would every process started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"seed {options.seed}, {options.faults} faults in {', '.join(options.worlds)}")
    say = print if options.verbose else _Progress(options.faults)
    run = partial(
        run_worlds,
        options.worlds,
        faults=options.faults,
        seed=options.seed,
        folder=options.folder,
        pace=options.pace,
        say=say,
    )
    outcomes: list[Outcome] | None = None
    try:
        outcomes = trio.run(run)
    except* KeyboardInterrupt:
        print("stopped")
    if outcomes is None:
        return _INTERRUPTED
    for outcome in outcomes:
        print(line_of(outcome))
        for finding in outcome.verdict.findings[: options.show]:
            print(f"  {finding.at_ms:.0f} {finding.client} {finding.kind}: {finding.detail}")
    if options.record is not None:
        _record(options.record, options.seed, outcomes)
    try:
        check(outcomes)
    except AssertionError as failure:
        print(failure)
        return 1
    return 0


def line_of(outcome: Outcome) -> str:
    """The outcome of a world, in a line."""
    verdict = outcome.verdict
    return (
        f"{outcome.kind}: {outcome.faults.total()} faults in {outcome.seconds:.0f} s, "
        f"{outcome.events} events in {outcome.lives} lives of the stream; "
        f"{verdict.connections} connections, {verdict.delivered} delivered ({outcome.share:.1%}), "
        f"{verdict.skipped} skipped at a rate, {verdict.declared} declared missing; "
        f"{verdict.count('silent loss')} silent losses, "
        f"{verdict.count('repeat')} repeats, {len(verdict.findings)} findings; "
        f"seed {outcome.seed}"
    )


class _Progress:
    """Reports the progress every now and then."""

    def __init__(self, faults: int) -> None:
        self._faults = faults
        self._count = 0

    def __call__(self, text: str) -> None:
        if text.split(": ")[1][:1].isdigit():
            self._count += 1
            if self._count % 25 == 0 or self._count >= self._faults:
                print(f"{self._count} of {self._faults} faults", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--faults", type=int, default=100, help="in all worlds together")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--worlds", nargs="+", choices=KINDS, default=list(KINDS), metavar="WORLD")
    parser.add_argument("--pace", type=float, default=1.0, help="factor for pauses between faults")
    parser.add_argument("--folder", type=Path, help="for logs and stores, to be looked at")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write what was seen")
    parser.add_argument("--show", type=int, default=20, help="findings of each world to show")
    parser.add_argument("--verbose", action="store_true", help="say each fault")
    return parser.parse_args()


def _record(path: Path, seed: int, outcomes: list[Outcome]) -> None:
    content = {"seed": seed, "worlds": [attrs.asdict(outcome) for outcome in outcomes]}
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
