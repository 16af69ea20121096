"""Finds an incident in what each place says. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs

from trio_odin.lab.incidents import Incident, Place, Sighting

_TEXT_MAX: Final = 160
_FIRING, _PENDING = "firing", "pending"

Sees: TypeAlias = Callable[[Any], str]
"""Given what a place says: the part that shows the incident, or empty."""


@attrs.frozen
class Expect:
    """What one place has to show.

    Args:
        place: the place.
        what: what is waited for, in a few words.
        sees: finds it in what the place says: of TOP, CONNECTIONS and CHANNELS a JSON object, of
            SCREEN and EXPLAIN a text, of LOG a list of lines as objects, of ALERT a list of alerts
            as Prometheus has them.
        alert: of ALERT its name.
    """

    place: Place
    what: str
    sees: Sees
    alert: str = ""


def alert(name: str, **labels: str) -> Expect:
    """The alert of this name fires, with these labels."""
    shown = "".join(f", {label} {value}" for label, value in labels.items())

    def sees(alerts: Sequence[Mapping[str, Any]]) -> str:
        for one in alerts:
            has_labels = {"alertname": name, **labels}.items() <= one["labels"].items()
            if has_labels and one["state"] == _FIRING:
                return str(one["annotations"]["summary"])
        return ""

    return Expect(Place.ALERT, f"{name}{shown}", sees, alert=name)


def is_pending(alerts: Iterable[Mapping[str, Any]], name: str) -> bool:
    """Whether the alert of this name waits for its `for`, or fires."""
    return any(
        one["labels"]["alertname"] == name and one["state"] in {_PENDING, _FIRING} for one in alerts
    )


def firing(alerts: Iterable[Mapping[str, Any]]) -> set[str]:
    """The names of those that fire, without the one that always does."""
    names = {one["labels"]["alertname"] for one in alerts if one["state"] == _FIRING}
    return names - {"Watchdog"}


def event(*names: str, **fields: Any) -> Expect:
    """A line of the log with one of these events, and these fields."""
    what = " or ".join(names) + "".join(f", {name} {value}" for name, value in fields.items())

    def sees(lines: Sequence[Mapping[str, Any]]) -> str:
        for line in lines:
            if line.get("event") in names and fields.items() <= line.items():
                return cut(json.dumps(line))
        return ""

    return Expect(Place.LOG, what, sees)


def says(place: Place, what: str, pattern: str) -> Expect:
    """A text in which this regular expression is found."""

    def sees(text: str) -> str:
        found = re.search(pattern, text)
        return found[0] if found else ""

    return Expect(place, what, sees)


def table(text: str, title: str) -> list[dict[str, str]]:
    """The rows of a table that `top --once` prints, by the titles of its columns."""
    lines = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0].splitlines()
    if not lines:
        return []
    starts = [found.start() for found in re.finditer(r"(?:(?<=  )|^)\S", lines[0])]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    titles = [lines[0][start:end].strip() for start, end in spans]
    return [
        dict(zip(titles, (line[start:end].strip() for start, end in spans), strict=True))
        for line in lines[1:]
    ]


def amount(shown: str) -> float:
    """The number that a cell shows, such as 12.3k; 0 if it is none."""
    found = re.match(r"([\d.]+)([kMG]?)", shown)
    return float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]] if found else 0.0


def cut(text: str) -> str:
    """A text that fits into a record."""
    text = " ".join(text.split())
    return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…"


def sightings(
    expects: Iterable[Expect], blind: Mapping[Place, str], *, rule_for: Mapping[str, str]
) -> list[Sighting]:
    """One for each place in the order of `Place`, with nothing seen yet.

    Args:
        expects: of the places that have to show it.
        blind: of all others, why they do not.
        rule_for: the `for` of each alert.
    """
    wanted = {
        one.place: Sighting(
            place=one.place,
            what=one.what,
            is_expected=True,
            rule_for=rule_for.get(one.alert, ""),
        )
        for one in expects
    }
    not_wanted = {
        place: Sighting(place=place, what=why, is_expected=False) for place, why in blind.items()
    }
    both = wanted.keys() & not_wanted.keys()
    if both or wanted.keys() | not_wanted.keys() != set(Place):
        raise ValueError("each place is either expected to show an incident or not")
    return [(wanted | not_wanted)[place] for place in Place]


def failures(incident: Incident, waited_seconds: float) -> list[str]:
    """A sentence for each place that should have shown the incident and did not."""
    return [
        f"{incident.name}: {one.place.value} has not shown it within {waited_seconds:.0f} s: "
        f"{one.what}"
        for one in incident.sightings
        if one.is_missing
    ]
