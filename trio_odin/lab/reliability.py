"""What the fault suite found: the data behind docs/reliability.md."""

from __future__ import annotations

from enum import Enum

import attrs

from trio_odin.lab.provenance import Provenance


class RowKind(Enum):
    """Hostile input, or something that breaks."""

    ATTACK = "attack"
    FAULT = "fault"


@attrs.define(kw_only=True)
class Row:
    """One attack or fault, what must hold, and what was seen.

    Args:
        kind: what it is.
        name: of it.
        what_was_done: in a sentence.
        must_hold: in a sentence.
        held: well-behaved clients that kept their connection, of `clients`.
        clients: well-behaved clients beside it.
        lost: events that were published and did not reach one of them.
        repeated: events that came again.
        foreign: events of a channel that the client did not subscribe to.
        recovery_seconds: until all was as before; None where nothing had to recover.
        notes: figures worth knowing; at the end why it does not hold.
        passed: None if it could not be run here.
    """

    kind: RowKind
    name: str
    what_was_done: str
    must_hold: str
    held: int = 0
    clients: int = 0
    lost: int = 0
    repeated: int = 0
    foreign: int = 0
    recovery_seconds: float | None = None
    notes: list[str] = attrs.field(factory=list)
    passed: bool | None = False


@attrs.frozen(kw_only=True)
class FaultReport:
    """A run of the suite. `versions` are those of the packages, by name."""

    provenance: Provenance
    command: str
    versions: dict[str, str]
    rows: list[Row]
