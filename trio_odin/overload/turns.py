"""Turns: work that clients cause gives way to events, by a limit for each turn of the loop.

In each turn trio runs all tasks that are ready. When ten thousand clients send something at once,
or disconnect at once, a turn takes seconds, and an event takes several turns from NATS to a socket.
"""

from __future__ import annotations

import trio

from trio_odin.overload.meters import LoopMeter

_SLICE_SECONDS = 0.005
# About 5 ms of work in a turn: a client that disconnects costs 150 µs. A longer turn admits more
# tasks, or a loop full of fan-outs would read too few pongs in a second.
_IN_A_TURN = 32
_USUAL_TURN_SECONDS = 0.02


class Turns:
    """Lets tasks wait, in order, for a turn of the loop that has time.

    `run` has to be running in a task.
    """

    def __init__(self, loop: LoopMeter) -> None:
        self._loop = loop
        self._waiting = trio.lowlevel.ParkingLot()
        self._sleeping = trio.lowlevel.ParkingLot()  # `run`, while no task waits

    def are_over(self) -> bool:
        """Whether a task that has work now should `wait`."""
        return bool(self._waiting) or self._loop.turn_seconds() > _SLICE_SECONDS

    async def wait(self) -> None:
        """Wait for a turn that has time."""
        self._sleeping.unpark()
        await self._waiting.park()

    async def run(self) -> None:
        """Wake some of the waiting tasks in each turn."""
        while True:
            if not self._waiting:
                await self._sleeping.park()
            await trio.lowlevel.checkpoint()
            lengths = max(1.0, self._loop.last_turn_seconds / _USUAL_TURN_SECONDS)
            self._waiting.unpark(count=int(_IN_A_TURN * lengths))
