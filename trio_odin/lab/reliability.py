"""The results of the fault suite: the data for docs/reliability.md."""

from __future__ import annotations

from enum import Enum

import attrs

from trio_odin.lab.provenance import Provenance


class RowKind(Enum):
    """The kind of a row: hostile input, or a fault."""

    ATTACK = "attack"
    FAULT = "fault"


@attrs.define(kw_only=True)
class Row:
    """One attack or fault, the requirement, and the observation.

    Args:
        kind: attack or fault.
        name: its name.
        what_was_done: the attack or fault in a sentence.
        must_hold: the requirement in a sentence.
        held: well-behaved clients that kept their connection, of `clients`; like the next ones None
            if that was not found out, as the test failed before.
        clients: well-behaved clients at the same time.
        lost: published events that did not reach one of them.
        repeated: events that came again.
        foreign: events of a channel that the client did not subscribe to.
        recovery_seconds: time until the recovery; None where nothing had to recover.
        notes: further figures; at the end the reason of a failure.
        passed: None if it could not be run here.
    """

    kind: RowKind
    name: str
    what_was_done: str
    must_hold: str
    held: int | None = None
    clients: int = 0
    lost: int | None = None
    repeated: int | None = None
    foreign: int | None = None
    recovery_seconds: float | None = None
    notes: list[str] = attrs.field(factory=list)
    passed: bool | None = False


@attrs.frozen(kw_only=True)
class FaultReport:
    """A run of the fault suite. `versions` are those of the packages, by name."""

    provenance: Provenance
    command: str
    versions: dict[str, str]
    rows: list[Row]
