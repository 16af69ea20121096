"""A batch: the message of one tick, with the newest event of each channel that has changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from trio_odin.fanout.publication import Kept, Publication
from trio_odin.fanout.updates import Update

BATCH_TYPE: Final = "price:batch"


def _not_kept() -> Kept:
    kept = Kept("", b"")
    kept.let_go()
    return kept


# A batch gets its number only when its socket takes it, so none is lost between this server and its
# client, and none has to be kept for replay.
_NOT_KEPT: Final = _not_kept()


class Batch(Publication):
    """The events of one tick, which all members of a cohort share. Immutable.

    Attributes:
        events: how many events it has.
        skipped: how many older events of their channels they stand for.
    """

    __slots__ = ("events", "skipped")
    events: int
    skipped: int

    @classmethod
    def of(cls, changed: Iterable[tuple[Update, int]]) -> Batch:
        """Make the batch of updates, each with the number of the last event before it.

        There is at least one.
        """
        parts = [update.part(since) for update, since in changed]
        tail = b',"ts":%d,"type":"%b","events":[%b]}' % (
            max(part.unix_ms for part in parts),
            BATCH_TYPE.encode(),
            b",".join([part.fragment for part in parts]),
        )
        batch = cls.__new__(cls)
        batch._set("", tail, _NOT_KEPT, bodies={})  # noqa: SLF001
        batch.events = len(parts)
        batch.skipped = sum(part.skipped for part in parts)
        return batch
