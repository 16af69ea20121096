"""One connection's numbering (`seq`) and its last messages, for replay."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple
from weakref import ReferenceType, ref

from trio_odin.fanout.publication import Kept, Publication

# The memory that each kept publication takes besides its bytes.
_OVERHEAD_BYTES = 512


class KeptRange(NamedTuple):
    """The kept messages of a range, and how many were asked for."""

    kept: list[tuple[int, Publication]]
    asked: int


class ReplayBudget:
    """The bytes of all publications that any connection of the process keeps for replay.

    Connections share what they keep, so a publication is counted once, when it is published, and
    not for each of them. Beyond the limit the oldest publications are released, wherever they are
    kept. A publication that no connection keeps is not counted.

    Attributes:
        limit_bytes: how many bytes may be kept.
        used_bytes: how many are.
    """

    def __init__(self, limit_bytes: int = 64 * 1024 * 1024) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._sizes: OrderedDict[ReferenceType[Kept], int] = OrderedDict()

    def add(self, kept: Kept) -> None:
        """Count `kept`, unless it is counted already, and release the oldest to make room."""
        reference = ref(kept, self._forget)
        if reference not in self._sizes:
            self._sizes[reference] = 0
            kept.on_growth = self._count
            self._count(kept)

    def _count(self, kept: Kept) -> None:
        """Count `kept` as large as it is now: events are compressed only when they are sent."""
        reference, size = ref(kept), kept.size + _OVERHEAD_BYTES
        self.used_bytes += size - self._sizes[reference]
        self._sizes[reference] = size
        while self.used_bytes > self.limit_bytes:
            oldest = next(iter(self._sizes))
            if (one := oldest()) is not None:
                one.let_go()
            self._forget(oldest)

    def _forget(self, reference: ReferenceType[Kept]) -> None:
        self.used_bytes -= self._sizes.pop(reference, 0)


class ReplayBuffer:
    """Numbers the messages addressed to one connection and keeps the last `capacity` of them.

    A message that was dropped because the outbox was full is numbered and kept too: the gap in
    `seq` shows the client its loss, and a replay repairs it. The buffer keeps references that all
    connections share, not copies. Numbers are contiguous, so only the last one is stored. A
    `ReplayBudget` limits how much all buffers hold together.

    Attributes:
        seq: the last number given.
        kept: the last publications; the newest one has number `seq`.
        dropped: the last number whose message was dropped; the client sees it missing only when
            a later number comes.
    """

    __slots__ = ("_capacity", "dropped", "kept", "seq")

    def __init__(self, capacity: int) -> None:
        self.seq = self.dropped = 0
        self._capacity = capacity
        self.kept: deque[Kept] | None = None  # most of a kilobyte, even without any

    def append(self, publication: Publication) -> int:
        """Give `publication` the next number, keep it, and return the number."""
        if self.kept is None:
            self.kept = deque(maxlen=self._capacity)
        self.kept.append(publication.kept)
        self.seq = seq = self.seq + 1
        return seq

    def extend(self, publications: Sequence[Publication]) -> int:
        """Give all `publications` the next numbers, keep them, and return the first number."""
        first = self.seq + 1
        for publication in publications:
            self.append(publication)
        return first

    def between(self, first: int, last: int) -> KeptRange:
        """The kept messages with `first <= seq <= last`; numbers not yet given do not count."""
        first, last = max(first, 1), min(last, self.seq)
        every = self.kept or ()
        oldest_kept = self.seq - len(every) + 1
        kept = [
            (seq, publication)
            for seq in range(max(first, oldest_kept), last + 1)
            if (publication := every[seq - oldest_kept].publication()) is not None
        ]
        return KeptRange(kept, asked=max(0, last - first + 1))
