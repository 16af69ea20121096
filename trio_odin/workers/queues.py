"""Which worker takes clients from which queue of the port. Pure.

Each worker has its own queue. The kernel spreads new clients over the queues, even over one whose
worker has no process at the moment.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import TypeVar

import attrs


@attrs.frozen
class Taker:
    """A worker that can take clients.

    Attributes:
        number: number of its own queue.
        queues: queues that it takes clients from now.
        connections: number of connections that it holds.
    """

    number: int
    queues: Collection[int] = ()
    connections: int = 0


T = TypeVar("T", bound=Hashable)


def share_out(numbers: Iterable[int], takers: dict[T, Taker]) -> dict[T, set[int]]:
    """Give each taker its own queue, and each queue whose number has no taker to some taker.

    That is the taker that has the queue already, else the one with the fewest queues, then the
    fewest connections. Without takers the queues have to wait.
    """
    shares = {key: {taker.number} for key, taker in takers.items()}
    for number in numbers:
        if shares and not any(number == taker.number for taker in takers.values()):
            least = min(
                takers,
                key=lambda key: (
                    number not in takers[key].queues,
                    len(shares[key]),
                    takers[key].connections,
                ),
            )
            shares[least].add(number)
    return shares
