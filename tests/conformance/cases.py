"""Autobahn's cases, driven by kosoku, and their outcomes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version

import attrs
import kosoku
import trio

from trio_odin.lab.provenance import Provenance

SECTIONS = {
    "1": "messages of each length",
    "2": "pings and pongs",
    "3": "reserved bits",
    "4": "reserved opcodes",
    "5": "fragments",
    "6": "UTF-8",
    "7": "closing",
    "9": "large messages, small pieces",
    "10": "a message in automatic fragments",
    "12": "compression of messages",
    "13": "compression with every parameter",
}
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}


@attrs.frozen
class Outcome:
    """The outcome of a case: the worse of the verdicts on its messages and on its close."""

    case: str
    verdict: str
    remark: str

    @property
    def section(self) -> str:
        return self.case.partition(".")[0]

    @property
    def is_accepted(self) -> bool:
        """Whether it is good."""
        return self.verdict in GOOD


@attrs.frozen
class Section:
    """One row of the table in docs/conformance.md."""

    number: str
    about: str
    verdicts: dict[str, int]
    remarks: dict[str, str]
    """What is to be said about single cases."""


@attrs.frozen
class Report:
    """The record of a run of all cases in docs/conformance.json."""

    provenance: Provenance
    tool: str
    sections: list[Section]


async def run_cases(url: str, cases: Sequence[str] | None = None) -> list[Outcome]:
    """Run `cases`, patterns such as `5.*`, or all of them, against an echo at `url`."""

    async def run() -> list[Outcome]:
        try:
            results = await kosoku.run_fuzzingclient(url, cases, concurrency=2)
        except kosoku.FailureError as failure:
            results = failure.results
        return [_outcome(result) for result in results]

    return await trio.to_thread.run_sync(lambda: asyncio.run(run()), abandon_on_cancel=True)


def _outcome(result: kosoku._kosoku.CaseResult) -> Outcome:
    verdicts = [result.behavior.value, result.behavior_close.value]
    verdict = next((verdict for verdict in verdicts if verdict != "OK"), "OK")
    remark = f"{result.result} {result.result_close} Code {result.remote_close_code}."
    if verdict not in GOOD:  # a case that stood still and one that was slow end alike
        frames = sum(result.rx_frame_stats.values())
        remark += f" It took {result.duration / 1000:,.1f} s, {frames:,} frames came back."
    return Outcome(result.case_id, verdict, remark)


def report(outcomes: Iterable[Outcome], began: Provenance) -> Report:
    """The table of a run."""
    sections: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        sections.setdefault(outcome.section, []).append(outcome)
    return Report(
        began,
        f"kosoku {version('kosoku')}",
        [
            Section(
                number,
                SECTIONS.get(number, ""),
                dict(Counter(outcome.verdict for outcome in outcomes)),
                {one.case: one.remark for one in outcomes if one.verdict != "OK"},
            )
            for number, outcomes in sections.items()
        ],
    )
