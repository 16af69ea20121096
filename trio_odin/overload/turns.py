"""Turns: work that clients cause gives way to events, by a limit for each turn of the loop.

In each turn trio runs all tasks that are ready. When ten thousand clients send something at once,
or disconnect at once, a turn takes seconds, and an event takes several turns from NATS to a socket.
"""

from __future__ import annotations

import trio

from trio_odin.overload.meters import LoopMeter

_SLICE_SECONDS = 0.005
# About 3 ms of work in a turn: a client that disconnects costs 80 µs. A longer turn admits more
# tasks, or a loop full of fan-outs would read too few pongs in a second; but not without a limit,
# as a turn may be long because of the tasks that it has admitted, at up to 750 µs each.
_IN_A_TURN = 32
_USUAL_TURN_SECONDS = 0.012
_LENGTHS_MAX = 6.0
# Events are written for half of a turn within these bounds. A longer slice delays replies too long.
_EVENTS_SHARE = 0.5
_EVENTS_SECONDS_MIN = 0.002
_EVENTS_SECONDS_MAX = 0.01


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

    def events_seconds(self) -> float:
        """Return how long events that wait may be written in this turn, before the others go on.

        The longer the others take, the longer it is: with a slice of 2 ms in turns of 15 ms, which
        ten thousand clients that leave cause, events waited for more than a second.
        """
        share = self._loop.last_turn_seconds * _EVENTS_SHARE
        return min(max(share, _EVENTS_SECONDS_MIN), _EVENTS_SECONDS_MAX)

    async def wait(self) -> None:
        """Wait for a turn that has time."""
        if self._sleeping:
            self._sleeping.unpark()
        await self._waiting.park()

    async def run(self) -> None:
        """Wake some of the waiting tasks in each turn."""
        while True:
            if not self._waiting:
                await self._sleeping.park()
            await trio.lowlevel.checkpoint()
            lengths = self._loop.last_turn_seconds / _USUAL_TURN_SECONDS
            self._waiting.unpark(count=int(_IN_A_TURN * min(max(1.0, lengths), _LENGTHS_MAX)))
