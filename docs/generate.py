"""Write the pages that come from the code: `python docs/generate.py`. A test keeps them current.

    templates/            a page each, or a part of one between its marks: words, and their figures
    this file             what the templates speak of: records of measurements, settings, metrics
    capacity/report.html  the lab's own page, of the record that is kept

With `--plot` the plot of the benchmark too.
"""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import jinja2
import msgspec
from click.testing import CliRunner

from trio_odin.cli.plan import plan_command
from trio_odin.lab import figures
from trio_odin.lab.bench.plot import plot
from trio_odin.lab.bench.record import BenchReport
from trio_odin.lab.bench.report import (
    COMPRESSION_HEAD,
    RATES_HEAD,
    SUMMARY_HEAD,
    TLS_HEAD,
    beside,
    compression_rows,
    latencies_by_rate,
    rates_rows,
    rows,
    summary,
    tls_rows,
)
from trio_odin.lab.capacity.stages import NORMAL_RATE, PEAK_RATE
from trio_odin.lab.incidents import IncidentReport, Place, Sighting
from trio_odin.lab.load.criteria import FIGURES, Check, tally
from trio_odin.lab.load.result import LoadResult
from trio_odin.lab.model.bill import GIB, TB, Egress, egress
from trio_odin.lab.model.fit import fit
from trio_odin.lab.model.model import Costs, Demand
from trio_odin.lab.model.regions import Loss
from trio_odin.lab.model.regions_answer import loss_cells
from trio_odin.lab.model.storm import simulate, storm_of_the_lab
from trio_odin.lab.model.tables import read_prices, write_costs
from trio_odin.lab.model.wire import ENCODINGS, fit_wire
from trio_odin.lab.provenance import UNKNOWN, Provenance, origin_of, server_commits_since
from trio_odin.lab.rehearsals import RehearsalReport
from trio_odin.lab.reliability import FaultReport
from trio_odin.lab.report.folder import read_verdict, report_html
from trio_odin.lab.report.summary import comparisons, error
from trio_odin.lab.verdict import LabResult, StageResult
from trio_odin.settings.reading import IGNORED, variables
from trio_odin.telemetry import metrics

DOCS = Path(__file__).parent
ROOT = DOCS.parent
COSTS = ROOT / "trio_odin" / "lab" / "model" / "costs.toml"
REPORT = DOCS / "capacity" / "report.html"
RECORDS = (
    "benchmarks.json",
    "benchmarks-rates.json",
    "benchmarks-scale-100000.json",
    "benchmarks-scale-18000.json",
    "benchmarks-scale-bridge.json",
    "capacity/verdict.json",
    "clients/faults.json",
    "clients/random-faults.json",
    "conformance.json",
    "incidents.json",
    "rehearsals.json",
    "reliability.json",
)
_PEAK_STAGE, _MOST_STAGE, _STORM_STAGE = 6, 7, 9
_WIDTH = 95
_FAILURE_MAX = 200
_VERDICTS = ("OK", "NON-STRICT", "INFORMATIONAL")
_HOLDS: Final = {True: "yes", False: "**no**", None: "not run"}
_T = TypeVar("_T")


# ---- what was measured


@cache
def lab() -> LabResult:
    """The run of the lab that is kept; of its series only those of the peak are."""
    result = read_verdict(DOCS / "capacity")
    stages = [
        stage
        if stage.number == _PEAK_STAGE or stage.load is None
        else attrs.evolve(stage, host=[], load=attrs.evolve(stage.load, series=[]))
        for stage in result.stages
    ]
    return attrs.evolve(result, stages=stages)


# These depend on the machine: a stage that misses our bound on one is quoted, and so is the miss.
_MAY_MISS: Final = {FIGURES[name].title for name in ("cores", "cpu", "memory", "p99")}


def quoted(stage: StageResult | None) -> tuple[LoadResult, list[Check]]:
    """What a stage measured, for quoting, and the checks that it missed, to be named beside it.

    Raises:
        ValueError: it was not run to its end, or missed a bound of the plan, or one of ours that is
            not on the cost.
    """
    if stage is None or stage.load is None or stage.failure or not stage.checks:
        raise ValueError("docs/capacity: a stage was not run to its end; run all stages")
    missed = [check for check in stage.checks if not check.is_met]
    for check in missed:
        if check.source == "plan" or check.what not in _MAY_MISS:
            raise ValueError(f"docs/capacity: stage {stage.number}: {check.what}: {check.measured}")
    return stage.load, missed


@cache
def costs() -> Costs:
    """What the model takes for measured: from the same run, and bytes from the bench if known."""
    found = fit(lab().stages, source="the lab, " + lab().provenance.day)
    runs = bench_runs(_RATES)
    samples = [sample for run in runs for target in run.targets for sample in target.wire_samples()]
    wire = fit_wire(
        samples, source="trio-odin bench --only compression", date=runs[0].provenance.day
    )
    found = attrs.evolve(found, nats_failover_seconds=_nats_failover_seconds())
    return found if wire is None else attrs.evolve(found, wire=wire)


def _nats_failover_seconds() -> float | None:
    """The longest outage of events when a node of a NATS cluster was killed, by the record."""
    rows = _record("reliability.json", FaultReport).rows
    found = [
        row.recovery_seconds
        for row in rows
        if row.passed and "of a cluster of three, SIGKILL" in row.what_was_done
    ]
    return max((seconds for seconds in found if seconds is not None), default=None)


def _egress() -> list[tuple[Egress, Egress]]:
    """The traffic of the plan's users at its two loads, by rate and encoding."""
    found, tiers = costs(), read_prices().tariff.egress
    ways = [(every_ms, encoding) for every_ms in (0, 1000) for encoding in ENCODINGS]

    def of(rate: float, every_ms: int, encoding: str) -> Egress:
        return egress(Demand(rate=rate, every_ms=every_ms, encoding=encoding), found, tiers)

    return [(of(NORMAL_RATE, *way), of(PEAK_RATE, *way)) for way in ways]


# The stages about this server alone, which take as long as all others.
_RATES = "benchmarks-rates.json"


def bench_runs(name: str = "benchmarks.json") -> list[BenchReport]:
    """The runs in a file of `trio-odin bench --json`."""
    return _record(name, list[BenchReport])


def _record(name: str, kind: type[_T]) -> _T:
    return msgspec.json.decode((DOCS / name).read_bytes(), type=kind)


@attrs.frozen(kw_only=True)
class _Section:
    """Some of Autobahn's cases."""

    number: str
    about: str
    verdicts: Counter[str]


@attrs.frozen(kw_only=True)
class _Conformance:
    """All of them; `remarks` are about those that are not OK, each with its cases."""

    tool: str
    provenance: Provenance
    verdicts: list[str]
    sections: list[_Section]
    remarks: dict[str, list[str]]


def _conformance() -> _Conformance:
    kept = _record("conformance.json", dict[str, Any])
    sections = [
        _Section(number=s["number"], about=s["about"], verdicts=Counter(s["verdicts"]))
        for s in kept["sections"]
    ]
    remarks: dict[str, list[str]] = {}
    for section in kept["sections"]:
        for case, remark in section["remarks"].items():
            remarks.setdefault(remark, []).append(case)
    others = {verdict for section in sections for verdict in section.verdicts} - set(_VERDICTS)
    return _Conformance(
        tool=kept["tool"],
        provenance=msgspec.convert(kept["provenance"], Provenance),
        verdicts=[*_VERDICTS, *sorted(others)],
        sections=sections,
        remarks=remarks,
    )


def _clients() -> dict[str, Any]:
    """The record of faults in a browser, with what two clients made of each."""
    return _with_origin(_record("clients/faults.json", dict[str, Any]))


def _random_faults() -> dict[str, Any]:
    """The record of random faults under all client libraries, with sums over the worlds."""
    kept = _with_origin(_record("clients/random-faults.json", dict[str, Any]))
    done: Counter[str] = Counter()
    players: dict[str, Counter[str]] = {}
    for world in kept["worlds"]:
        done.update(world["faults"])
        for name, its in world["players"].items():
            players.setdefault(name, Counter()).update(its)
    rates = [world["per_second"] for world in kept["worlds"]]
    sums = {"faults": done, "players": players, "least": min(rates), "most": max(rates)}
    return kept | sums | {"events": sum(world["events"] for world in kept["worlds"])}


def _with_origin(kept: dict[str, Any]) -> dict[str, Any]:
    return kept | {"provenance": msgspec.convert(kept["provenance"], Provenance)}


# ---- what `trio-odin plan` answers


@attrs.frozen(kw_only=True)
class _Answer:
    """What a command has answered.

    Attributes:
        command: as a reader would type it.
        first: its first sentences; `drawing`: the lines of the topology.
        figures: of `--json`.
    """

    command: str
    first: list[str]
    drawing: list[str]
    figures: dict[str, Any]

    @property
    def losses(self) -> list[Loss]:
        """What the loss of each part means."""
        return msgspec.convert(self.figures["losses"], list[Loss])

    @property
    def terabytes(self) -> float:
        """Traffic of a month to the users."""
        return sum(region["gib"] for region in self.figures["regions"]) * GIB / TB

    @property
    def egress_usd(self) -> float:
        """The cost of that."""
        return sum(float(region["egress_usd"]) for region in self.figures["regions"])


@cache
def _planned(*more: str) -> _Answer:
    """The answer for a million users in three regions."""
    arguments = ["--users", "1000000", "--regions", "3", *more]
    text, figures = (
        CliRunner().invoke(plan_command, [*arguments, *way]) for way in ([], ["--json", "-"])
    )
    if text.exit_code or figures.exit_code:
        raise ValueError(f"trio-odin plan {' '.join(arguments)}: {text.output}")
    before, _, after = text.output.partition("  publishers\n")
    sentences = " ".join(before.split())
    return _Answer(
        command=f"trio-odin plan {' '.join(arguments)}",
        # The demand comes after them.
        first=[sentences.partition(" 1,000,000 users, ")[0]],
        drawing=["  publishers", *after.partition("The regions")[0].rstrip().splitlines()],
        figures=msgspec.json.decode(figures.output),
    )


def _storm() -> tuple[float, float]:
    """Seconds until all were back in the storm of the lab: measured, and simulated."""
    stage = lab().stage(_STORM_STAGE)
    load = None if stage is None else stage.load
    if load is None or load.reconnects is None:
        raise ValueError(f"docs/capacity: stage {_STORM_STAGE} was not run; run all stages")
    calm = simulate(storm_of_the_lab(load, costs()))
    if calm.seconds is None:
        raise ValueError("the storm of the lab does not end in the simulation")
    return load.reconnects.seconds, calm.seconds


def _scale() -> dict[str, _Answer]:
    return {
        "million": _planned(),
        "wide": _planned("--survive-region"),
        "workers": _planned("--workers", "2"),
        "rated": _planned("--every-ms", "1000", "--encoding", "z1"),
    }


# ---- pages


def wrap(text: str, width: int = _WIDTH) -> str:
    """In lines, which break at spaces alone."""
    words = " ".join(text.split())
    return textwrap.fill(words, width, break_on_hyphens=False, break_long_words=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _seconds(value: float | None) -> str:
    return figures.NOTHING if value is None else f"{value:.1f} s"


def _end_of(text: str) -> str:
    """The end of an error's text, where it says what it is."""
    line = " ".join(text.split())
    return line if len(line) <= _FAILURE_MAX else "…" + line[1 - _FAILURE_MAX :]


_COMMANDS: Final = {Place.TOP, Place.SCREEN, Place.EXPLAIN}


def _place(name: str) -> str:
    """A place of an incident, as what one types."""
    place = Place(name)
    if place in _COMMANDS:
        return f"`trio-odin {name}`"
    return f"`{name}`" if place in {Place.CONNECTIONS, Place.CHANNELS} else f"the {name}"


def _seen_after(seen: Sighting) -> str:
    """The time of a sighting; of an alert, until it was pending and until it fired."""
    if not seen.is_expected or seen.seconds is None:
        return "**not seen**" if seen.is_expected else figures.NOTHING
    pending = seen.pending_seconds
    is_same = pending is None or pending == seen.seconds
    return _seconds(seen.seconds) if is_same else f"{pending:.1f} → {seen.seconds:.1f} s"


def _anchor(title: str) -> str:
    """Where a heading is on its page."""
    return title.lower().replace(" ", "-")


def _versions(report: FaultReport | RehearsalReport | IncidentReport) -> str:
    return ", ".join(f"{name} {version}" for name, version in report.versions.items())


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(DOCS / "templates"),
        autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for read in (figures.count, figures.figure, figures.deviation, figures.duration, wrap):
        environment.filters[read.__name__] = read
    environment.filters |= {"cell": _cell, "seconds": _seconds, "end_of": _end_of}
    environment.filters |= {"place": _place, "seen_after": _seen_after, "anchor": _anchor}
    larger = sorted(path.name for path in DOCS.glob("benchmarks-scale-*.json"))
    peak, peak_missed = quoted(lab().stage(_PEAK_STAGE))
    most, most_missed = quoted(lab().stage(_MOST_STAGE))
    environment.globals |= {
        "metrics": metrics,
        "variables": variables(),
        "ignored": IGNORED,
        "lab": lab(),
        "comparisons": list(comparisons(lab())),
        "peak": peak,
        "peak_missed": peak_missed,
        "most": most,
        "most_missed": most_missed,
        "error": error,
        "egress": _egress(),
        "egress_users": Demand().users,
        "scale": _scale(),
        "loss_cells": loss_cells,
        "storm": _storm(),
        "prices_date": read_prices().network_date,
        "wire": costs().wire,
        "tally": tally,
        "bench": bench_runs(),
        "rated": bench_runs(_RATES)[0],
        "larger": [run for name in larger for run in bench_runs(name)],
        "beside": beside,
        "compression_head": COMPRESSION_HEAD,
        "compression_rows": compression_rows,
        "latencies_by_rate": latencies_by_rate,
        "rates_head": RATES_HEAD,
        "rates_rows": rates_rows,
        "rows": rows,
        "rated_tls": list(tls_rows(bench_runs(_RATES)[0])),
        "summary": summary,
        "summary_head": SUMMARY_HEAD,
        "tls_head": TLS_HEAD,
        "clients": _clients(),
        "random_faults": _random_faults(),
        "conformance": _conformance(),
        "faults": _record("reliability.json", FaultReport),
        "incidents": _record("incidents.json", IncidentReport),
        "rehearsals": _record("rehearsals.json", RehearsalReport),
        "versions": _versions,
        "holds": _HOLDS,
    }
    return environment


def _filled(template: str, **own: str) -> str:
    return _templates().get_template(f"{template}.j2").render(own).rstrip() + "\n"


def page(name: str) -> str:
    """A page that is generated whole."""
    return _filled(name)


def part(path: Path, **parts: str) -> str:
    """A page of which parts are generated: those between the marks of this name."""
    text = path.read_text(encoding="utf-8")
    for mark, template in parts.items():
        first, last = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->\n"
        before, _, rest = text.partition(first)
        _, _, after = rest.partition(last)
        content = _filled(template, name=path.stem)
        text = f"{before}{first}{content}{last}{after}"
    return text


def readme() -> str:
    """README.md with three targets of the bench, the lab's claim, and the cost of the traffic."""
    names = ("benchmarks", "capacity", "egress")
    parts = {name: f"readme-{name}.md" for name in names}
    return part(ROOT / "README.md", **parts)


def report() -> str:
    """docs/capacity/report.html."""
    return report_html(lab())


def _runbook(name: str) -> str:
    return part(DOCS / name, rehearsals="rehearsals.md")


def _migration() -> str:
    path = DOCS / "runbooks" / "migration.md"
    return part(path, **{"against-go": "against-go.md", "rehearsals": "rehearsals.md"})


_WHOLE = (
    "benchmarks",
    "capacity",
    "clients/faults",
    "configuration",
    "conformance",
    "metrics",
    "reliability",
    "runbooks/incidents",
    "scale",
)
PAGES: dict[str, Callable[[], str]] = {f"{name}.md": partial(page, f"{name}.md") for name in _WHOLE}
PAGES |= {
    "runbooks/migration.md": _migration,
    "runbooks/rollback.md": partial(_runbook, "runbooks/rollback.md"),
}


# ---- how old the records are


def origins() -> dict[str, Provenance]:
    """Where each record comes from, by its name; of a list of runs the first."""
    return {name: origin_of((DOCS / name).read_bytes()) for name in RECORDS}


def ages() -> Iterable[str]:
    """For each record how much the server has changed since, as git has it."""
    for name, origin in origins().items():
        if origin.revision == UNKNOWN:
            since = "of an unknown revision"
        else:
            commits = server_commits_since(origin.revision)
            since = f"at {origin.revision[:12]}, " + (
                "which is not in this history" if commits is None else f"{commits} commits ago"
            )
        stale = "; the server's code has changed" if origin.is_outdated else ""
        yield f"{name}: measured on {origin.day} {since}{stale}"


def main() -> None:
    """Write all pages, and the plot if it is asked for."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--plot", action="store_true", help="draw docs/benchmarks.svg too")
    parser.add_argument("--age", action="store_true", help="only say how old the records are")
    options = parser.parse_args()
    if options.age:
        print(*ages(), sep="\n")
        return
    if options.plot:
        plot(bench_runs()[0], DOCS / "benchmarks.svg")
        plot(bench_runs(_RATES)[0], DOCS / "benchmarks-rates.svg")
    for name, written in PAGES.items():
        (DOCS / name).write_text(written(), encoding="utf-8")
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    REPORT.write_text(report(), encoding="utf-8")
    write_costs(COSTS, costs())


if __name__ == "__main__":
    main()
