"""The results of the incident drill: the data for docs/runbooks/incidents.md."""

from __future__ import annotations

from enum import Enum

import attrs

from trio_odin.lab.provenance import Provenance


class Place(Enum):
    """Where a person on call looks."""

    TOP = "top --once --json"
    SCREEN = "top --once"
    CONNECTIONS = "GET /connections"
    CHANNELS = "GET /channels"
    ALERT = "alert"
    LOG = "log"
    EXPLAIN = "explain"


@attrs.define(kw_only=True)
class Sighting:
    """What one place shows of an incident.

    Args:
        place: the place.
        what: what was waited for there, in a few words; for an alert its name and labels. Where
            nothing is expected, why the place does not show it.
        is_expected: whether the place has to show it.
        seconds: from the start of the incident until it was seen; None: it was not. For an alert
            the time until it fired.
        pending_seconds: of an alert, the time until it was pending; None if it never was.
        rule_for: of an alert, the `for` of the shipped rule.
        text: what was there.
    """

    place: Place
    what: str
    is_expected: bool
    seconds: float | None = None
    pending_seconds: float | None = None
    rule_for: str = ""
    text: str = ""

    @property
    def is_missing(self) -> bool:
        """Whether it should have been seen and was not."""
        return self.is_expected and self.seconds is None


@attrs.define(kw_only=True)
class Incident:
    """One incident that was played.

    Args:
        name: as `--only` takes it.
        title: its name for people.
        what_was_done: the incident in a sentence.
        users: what users notice.
        what_to_do: for the person on call, in Markdown, with links relative to docs/runbooks.
        command: what to look at first, as typed.
        settings: variables of the server that differ from the drill's usual ones.
        sightings: of each place.
        alerts: names of all alerts that fired meanwhile.
        failures: sentences about what was expected and not seen.
    """

    name: str
    title: str
    what_was_done: str
    users: str
    what_to_do: str
    command: str
    settings: dict[str, str]
    sightings: list[Sighting] = attrs.field(factory=list)
    alerts: list[str] = attrs.field(factory=list)
    failures: list[str] = attrs.field(factory=list)

    @property
    def passed(self) -> bool:
        """Whether every place that has to show it did."""
        return bool(self.sightings) and not self.failures

    def at(self, place: Place) -> Sighting:
        """What this place shows."""
        return next(one for one in self.sightings if one.place is place)

    @property
    def first(self) -> Sighting | None:
        """The place that showed it first."""
        seen = [one for one in self.sightings if one.seconds is not None]
        return min(seen, key=lambda one: one.seconds or 0.0, default=None)


@attrs.frozen(kw_only=True)
class IncidentReport:
    """A run of the drill.

    Args:
        provenance: of the run.
        command: that made it.
        versions: of the programs, by name.
        faster: what every `for` and every window of the rules was divided by.
        scrape_seconds: between two scrapes.
        incidents: those that were played.
    """

    provenance: Provenance
    command: str
    versions: dict[str, str]
    faster: int
    scrape_seconds: float
    incidents: list[Incident]
