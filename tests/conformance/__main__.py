"""Run all cases: `python -m tests.conformance [--keep] [PATTERN …]`, or `nox -s conformance`.

Fails if one of them is neither good nor accepted for a reason. `--keep` writes the figures of
docs/conformance.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec
import trio

from tests.conformance.cases import Outcome, Report, report, run_cases
from tests.conformance.echo import ENVIRONMENT, send_back, settings
from trio_odin.connection.connection import Connection
from trio_odin.lab.provenance import provenance
from trio_odin.server import serve

KEPT = Path(__file__).parent.parent.parent / "docs" / "conformance.json"


async def _run(cases: list[str]) -> list[Outcome]:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve, settings())
        outcomes = await run_cases(f"ws://{server.addresses[0]}/ws", cases or None)
        nursery.cancel_scope.cancel()
    return outcomes


def _show(made: Report) -> None:
    for section in made.sections:
        verdicts = ", ".join(f"{number} {verdict}" for verdict, number in section.verdicts.items())
        print(f"{section.number:>3} {section.about:35} {verdicts}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="PATTERN", help="such as 5.* (default: all)")
    parser.add_argument("--keep", action="store_true", help=f"write {KEPT.name}")
    options = parser.parse_args()
    Connection._take = send_back  # type: ignore[method-assign, assignment]
    began = provenance(ENVIRONMENT)
    outcomes = trio.run(_run, options.cases)
    made = report(outcomes, began)
    _show(made)
    if options.keep:
        KEPT.write_bytes(msgspec.json.format(msgspec.json.encode(made)) + b"\n")
    bad = [outcome for outcome in outcomes if not outcome.is_accepted]
    for outcome in bad:
        print(f"{outcome.case}: {outcome.verdict}. {outcome.remark}")
    sys.exit(1 if bad or not outcomes else 0)


main()
