"""One connection's numbering (`seq`) and its last envelopes, for replay."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from trio_odin.core.publication import Publication


class KeptRange(NamedTuple):
    """The envelopes of a range that are kept, and how many were asked for."""

    kept: list[tuple[int, Publication]]
    asked: int


class History:
    """Numbers the envelopes addressed to one connection and keeps the last `capacity` of them.

    An envelope that was dropped for a full outbox is numbered and kept as well: the gap shows the
    client its loss, and the replay mends it. Kept are references to the shared publications, not
    copies; numbers are contiguous, so only the last one is stored.

    Attributes:
        seq: the last number given.
        kept: the last publications, the newest one is number `seq`.
    """

    __slots__ = ("kept", "seq")

    def __init__(self, capacity: int) -> None:
        self.seq = 0
        self.kept: deque[Publication] = deque(maxlen=capacity)

    def append(self, publication: Publication) -> int:
        """Give `publication` the next number, keep it, and return the number."""
        self.kept.append(publication)
        self.seq += 1
        return self.seq

    def between(self, first: int, last: int) -> KeptRange:
        """The kept envelopes with `first <= seq <= last`; numbers not yet given do not count."""
        first, last = max(first, 1), min(last, self.seq)
        oldest_kept = self.seq - len(self.kept) + 1
        kept = [
            (seq, self.kept[seq - oldest_kept]) for seq in range(max(first, oldest_kept), last + 1)
        ]
        return KeptRange(kept, asked=max(0, last - first + 1))
