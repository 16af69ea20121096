from __future__ import annotations

import time

import pytest
import trio
import trio.testing

from trio_odin.overload.meters import LoopMeter
from trio_odin.overload.turns import Turns


class Turn(LoopMeter):
    """A turn whose length the test sets."""

    def __init__(self) -> None:
        super().__init__(())
        self.seconds = 0.0

    def turn_seconds(self) -> float:
        return self.seconds


async def test_nobody_waits_in_a_turn_that_has_time() -> None:
    assert not Turns(Turn()).are_over()


async def test_clients_that_are_late_in_a_turn_get_later_turns_in_order(
    nursery: trio.Nursery,
) -> None:
    turn = Turn()
    turns = Turns(turn)
    came: list[int] = []
    waiting = 0

    async def come(number: int) -> None:
        nonlocal waiting
        waiting += 1
        assert turns.are_over()
        await turns.wait()
        came.append(number)

    turn.seconds = 1.0
    for number in range(100):
        nursery.start_soon(come, number)
        while waiting <= number:
            await trio.lowlevel.checkpoint()
    turn.seconds = 0.0
    assert turns.are_over(), "nobody overtakes those who wait"
    most, before = 0, 0
    nursery.start_soon(turns.run)
    while len(came) < 100:
        await trio.lowlevel.checkpoint()
        most, before = max(most, len(came) - before), len(came)
    assert 0 < most <= 64, "some in each turn of everybody else, not all at once"
    assert sorted(came) == list(range(100))
    assert not turns.are_over()


@pytest.mark.parametrize(("turn_seconds", "least"), [(0.06, 160), (10.0, 192)])
async def test_longer_turns_serve_more_clients_up_to_a_limit(
    nursery: trio.Nursery, turn_seconds: float, least: int
) -> None:
    turn = Turn()
    turn.last_turn_seconds = turn_seconds
    turns = Turns(turn)
    came = 0

    async def come() -> None:
        nonlocal came
        await turns.wait()
        came += 1

    for _ in range(2000):
        nursery.start_soon(come)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(turns.run)
    while not came:
        await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()  # the rest of that turn
    assert least <= came <= 2 * least


@pytest.mark.parametrize(
    ("turn_seconds", "events_seconds"), [(0.0, 0.002), (0.012, 0.006), (1.0, 0.01)]
)
def test_events_have_half_of_a_long_turn(turn_seconds: float, events_seconds: float) -> None:
    turn = Turn()
    turn.last_turn_seconds = turn_seconds
    assert Turns(turn).events_seconds() == events_seconds


async def test_one_waiting_client_can_be_cancelled_without_the_others(
    nursery: trio.Nursery,
) -> None:
    turns = Turns(Turn())
    nursery.start_soon(turns.run)
    with trio.move_on_after(0) as scope:
        await turns.wait()
    assert scope.cancelled_caught
    with trio.fail_after(5):
        await turns.wait()


async def test_a_loop_in_which_nobody_waits_sleeps(nursery: trio.Nursery) -> None:
    meter = LoopMeter(())
    nursery.start_soon(Turns(meter).run)
    trio.lowlevel.add_instrument(meter)
    try:
        began = time.perf_counter()
        await trio.sleep(0.3)
        assert meter.idle_seconds > 0.5 * (time.perf_counter() - began)
    finally:
        trio.lowlevel.remove_instrument(meter)
