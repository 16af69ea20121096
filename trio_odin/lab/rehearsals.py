"""The results of rehearsed migrations and rollbacks: the data for docs/runbooks."""

from __future__ import annotations

import attrs

from trio_odin.lab.provenance import Provenance


@attrs.define(kw_only=True)
class Rehearsal:
    """One procedure of a runbook, done with real processes and users that count events.

    Args:
        runbook: "migration" or "rollback".
        name: of the procedure.
        what_was_done: the procedure in a sentence.
        users: connected when it began.
        seconds: from the first command until everything was in order.
        sent_away: number of ended connections; each came back.
        refused: answers to the upgrade other than 101, connects without an answer, and connections
            that ended before their first subscription was acknowledged.
        away_p50_ms, away_max_ms: from the end of a connection to the next subscription. The users
            over two nodes are of several processes: the worst of their medians.
        missed: events during the absence of users that do not resume.
        lost: other missing events; for users that resume, all missing events. None: not counted.
        repeated: events that came twice.
        notes: further figures; at the end the reason of a failure.
        passed: None if it could not be run here.
    """

    runbook: str
    name: str
    what_was_done: str
    users: int = 0
    seconds: float | None = None
    sent_away: int = 0
    refused: int = 0
    away_p50_ms: float | None = None
    away_max_ms: float | None = None
    missed: int = 0
    lost: int | None = None
    repeated: int = 0
    notes: list[str] = attrs.field(factory=list)
    passed: bool | None = False


@attrs.frozen(kw_only=True)
class RehearsalReport:
    """A run of the rehearsals. `versions` are those of the programs, by name."""

    provenance: Provenance
    command: str
    versions: dict[str, str]
    rows: list[Rehearsal]
