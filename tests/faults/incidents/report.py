"""What the drill has found, in lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trio_odin.lab.incidents import Incident, IncidentReport, Place, Sighting

_TITLES = {
    Place.TOP: "top json",
    Place.SCREEN: "top",
    Place.CONNECTIONS: "/connections",
    Place.CHANNELS: "/channels",
    Place.ALERT: "alert",
    Place.LOG: "log",
    Place.EXPLAIN: "explain",
}
_NOT_SHOWN = "–"
_MISSING = "MISSING"


def lines(report: IncidentReport) -> Iterator[str]:
    """The table, the alerts, the sentences about what is missing, and the verdict."""
    yield ""
    yield from _table(report.incidents)
    yield ""
    yield (
        f"Seconds from the start of an incident, by a script that asks all the time. Every `for` "
        f"and window of the rules is 1/{report.faster} of the shipped one; thresholds are the "
        f"shipped ones. A scrape every {report.scrape_seconds:g} s. {_NOT_SHOWN}: not its place."
    )
    for one in report.incidents:
        for sentence in one.failures:
            yield f"NOT seen  {sentence}"
    failed = [one.name for one in report.incidents if not one.passed]
    played = len(report.incidents)
    yield (
        f"NOT passed: {', '.join(failed)}"
        if failed
        else f"passed: {played} incidents, each seen where it has to be"
    )


def _table(incidents: Sequence[Incident]) -> Iterator[str]:
    rows = [["incident", *(_TITLES[place] for place in Place), "alert is"]]
    for one in incidents:
        cells = [cell_of(one.at(place)) for place in Place]
        alert = one.at(Place.ALERT)
        rows.append([one.name, *cells, alert.what if alert.is_expected else _NOT_SHOWN])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def cell_of(sighting: Sighting) -> str:
    """Seconds; of an alert, those until it was pending too."""
    if not sighting.is_expected:
        return _NOT_SHOWN
    if sighting.seconds is None:
        return _MISSING
    pending = sighting.pending_seconds
    if pending is None or pending == sighting.seconds:
        return f"{sighting.seconds:.1f}"
    return f"{pending:.1f} → {sighting.seconds:.1f}"
