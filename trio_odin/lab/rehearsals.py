"""What the rehearsals of migrations and rollbacks found: the data behind docs/runbooks."""

from __future__ import annotations

import attrs

from trio_odin.lab.provenance import Provenance


@attrs.define(kw_only=True)
class Rehearsal:
    """One procedure of a runbook, done with real processes and users that keep books.

    Args:
        runbook: "migration" or "rollback".
        name: of the procedure.
        what_was_done: in a sentence.
        users: connected when it began.
        seconds: from the first command until all was as it should be.
        sent_away: how often a connection ended; each came back.
        refused: answers to the upgrade other than 101, connects without an answer, and connections
            that ended before their first subscription was acknowledged.
        away_p50_ms, away_max_ms: from the end of a connection to the next subscription. The users
            over two nodes are of several processes: the worst of their medians.
        missed: events that came meanwhile, of users that do not resume.
        lost: events that are missing without that excuse; of users that resume, all missing ones.
            None: nobody counted them.
        repeated: events that came twice.
        notes: figures worth knowing; at the end why it failed.
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
    """A run of them. `versions` are those of the programs, by name."""

    provenance: Provenance
    command: str
    versions: dict[str, str]
    rows: list[Rehearsal]
