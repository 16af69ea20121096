"""Which worker takes clients from which queue of the port.

Each has one, and the kernel spreads new clients over them, also while no process is there. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import TypeVar

import attrs


@attrs.frozen
class Taker:
    """A worker that can take clients.

    Attributes:
        number: of its own queue.
        queues: those that it takes clients from now.
        connections: how many it holds.
    """

    number: int
    queues: Collection[int] = ()
    connections: int = 0


T = TypeVar("T", bound=Hashable)


def share_out(numbers: Iterable[int], takers: dict[T, Taker]) -> dict[T, set[int]]:
    """Give each taker its own queue, and each queue of a number without one to some taker.

    That is the one that has it already, or has least. Without takers the queues have to wait.
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
