from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_odin.overload.pacing import AcceptPace


def test_without_a_rate_there_is_room_in_every_turn() -> None:
    pace = AcceptPace(0)
    for turn in range(100):
        assert pace.room(1.0 + turn * 0.0001, 64) == 10, "5 ms, at a guess of 0.5 ms each"
        pace.accepted(10)


def test_a_slice_may_come_at_once_and_the_rest_waits_its_turn() -> None:
    pace = AcceptPace(2000)
    assert [pace.room(5.0, 8), pace.room(5.0, 1000)] == [8, 10]
    pace.accepted(10)
    assert pace.room(5.0, 64) == 0
    assert pace.delay() == 0.0025
    assert pace.room(5.0 + pace.delay() * 1.001, 64) == 5


def test_a_tenth_of_a_second_of_a_low_rate_may_come_at_once() -> None:
    assert AcceptPace(50).room(1.0, 64) == 5
    assert AcceptPace(3).room(1.0, 64) == 1


@given(st.floats(0.01, 10_000), st.integers(0, 1000))
def test_after_the_delay_there_is_room_for_one(per_second: float, accepted: int) -> None:
    pace = AcceptPace(per_second)
    room = pace.room(0.0, accepted)
    assert 0 <= room <= accepted
    pace.accepted(room)
    assert pace.room(pace.delay() * 1.001, 64) >= 1


@given(
    st.integers(1, 5000),
    st.lists(st.tuples(st.floats(0, 0.3), st.integers(0, 64)), min_size=1, max_size=60),
)
def test_no_interval_has_more_accepts_than_the_rate_and_one_burst(
    per_second: int, turns: list[tuple[float, int]]
) -> None:
    pace = AcceptPace(per_second)
    now, total = 0.0, 0
    for seconds, come in turns:
        now += seconds
        accepted = pace.room(now, come)
        pace.accepted(accepted)
        total += accepted
        assert total <= max(1.0, min(20, per_second * 0.1)) + per_second * now + 1e-6


def test_a_new_accept_rate_holds_at_once_and_0_leaves_it_to_the_loop() -> None:
    pace = AcceptPace(2000)
    pace.set_limit(100)
    assert pace.room(1.0, 64) == 10
    pace.accepted(10)
    pace.set_limit(0)
    pace.observe(1.0, 0.0, 0.0)
    pace.observe(1.2, 0.2, 0.0)
    assert pace.per_second > 1000


# --- accepts: the feedback


class Loop:
    """A loop on a made-up clock: rounds of other work, and a queue of clients that never ends.

    A client costs `cost` seconds in a turn after its accept, and `more` later that is not counted
    as accepting. At each tick of `every` seconds a round of other work is due, which takes `work`.
    """

    def __init__(
        self, *, cost: float, every: float = 0.02, work: float = 0.0, more: float = 0.0
    ) -> None:
        self.pace = AcceptPace(0)
        self.cost, self.every, self.work, self.more = cost, every, work, more
        self.now = self.idle = self.accepting = 0.0
        self.accepted = 0
        self.lates: list[float] = []  # the delay of each round
        self._next_round = self._may_accept = 0.0
        self._handshakes = 0
        self._later = 0.0

    def run(self, seconds: float) -> float:
        """Run for `seconds`; returns the clients accepted a second."""
        end, accepted_before = self.now + seconds, self.accepted
        while self.now < end:
            self._turn()
        return (self.accepted - accepted_before) / seconds

    def _turn(self) -> None:
        """Run every ready task once; without one the loop waits."""
        began = self.now
        self.accepting += self._handshakes * self.cost
        self.now += self._handshakes * self.cost + self._later
        self._later = self._handshakes * self.more
        self._handshakes = 0
        if began >= self._next_round:
            self.lates.append(self.now - self._next_round)
            self.now += self.work
            # A late round includes the work that has come meanwhile.
            self._next_round = max(self._next_round + self.every, began)
        if began >= self._may_accept:
            self.pace.observe(self.now, self.idle, self.accepting)
            self._handshakes = self.pace.room(self.now, 64)
            self.pace.accepted(self._handshakes)
            self.accepted += self._handshakes
            if not self._handshakes:
                self._may_accept = self.now + self.pace.delay()
        if self.now == began and not self._handshakes:
            next_thing = min(self._next_round, self._may_accept)
            self.idle += next_thing - self.now
            self.now = next_thing


COSTS = st.floats(0.0001, 0.002)
SIMULATED = settings(max_examples=40)  # each simulates some seconds of a loop


@given(COSTS, st.floats(0, 0.8), st.floats(0.005, 0.1), st.floats(0, 0.3))
@SIMULATED
def test_accepting_takes_the_free_time_except_for_the_reserve(
    cost: float, load: float, every: float, more_share: float
) -> None:
    loop = Loop(cost=cost, every=every, work=load * every, more=more_share * cost)
    loop.run(3)
    per_second = loop.run(5)
    fair = (1 - AcceptPace.RESERVE - load) / (cost * (1 + more_share))
    least = max(AcceptPace.FLOOR / cost, AcceptPace.TRICKLE_PER_SECOND)
    assert per_second <= max(fair, least) * 1.15 + 2
    # A round longer than a slice leaves it fewer turns than it could fill.
    is_often_asked = load * every <= AcceptPace.SLICE_SECONDS
    assert per_second >= (fair if is_often_asked else fair / 2) * 0.85 - 2


@given(COSTS, st.floats(0, 0.8), st.floats(0.005, 0.1))
@SIMULATED
def test_no_other_task_is_late_by_more_than_two_slices(
    cost: float, load: float, every: float
) -> None:
    loop = Loop(cost=cost, every=every, work=load * every)
    loop.run(2)  # until it has learned the costs
    loop.lates.clear()
    loop.run(4)
    assert loop.lates
    assert max(loop.lates) <= 2 * AcceptPace.SLICE_SECONDS + 3 * cost


@given(COSTS, st.floats(0.9, 3.0))
@SIMULATED
def test_a_busy_loop_still_accepts_some_clients(cost: float, load: float) -> None:
    loop = Loop(cost=cost, every=0.02, work=load * 0.02)
    loop.run(3)
    per_second = loop.run(10)
    assert per_second >= 4, "one in each turn at least"
    assert per_second * cost <= max(0.15, AcceptPace.TRICKLE_PER_SECOND * cost * 1.1)


@given(COSTS)
@SIMULATED
def test_accepting_gives_way_to_other_work_and_returns(cost: float) -> None:
    loop = Loop(cost=cost)
    alone = loop.run(3)
    loop.work = 0.6 * loop.every
    loop.run(1)
    beside = loop.run(3)
    fair = (1 - AcceptPace.RESERVE - 0.6) / cost
    assert beside == pytest.approx(fair, rel=0.25, abs=2)
    loop.work = 0.0
    loop.run(1)
    assert loop.run(3) == pytest.approx(alone, rel=0.2)


def test_time_that_the_machine_gives_to_others_is_not_counted() -> None:
    """A container of half a core: of each tenth of a second the loop stands still for half."""
    pace = AcceptPace(0)
    now = idle = accepting = 0.0
    for _ in range(50):
        now += 0.1
        idle += 0.02
        accepting += 0.03
        pace.accepted(60)
        pace.observe(now, idle, accepting)
    # Idle 0.2 and accepting 0.3: other programs have half of the time.
    share = 1 - AcceptPace.RESERVE - 0.5
    assert pace.per_second == pytest.approx(share / 0.0005, rel=0.05)


def test_a_single_slow_client_does_not_change_the_estimate() -> None:
    pace = AcceptPace(0)
    pace.observe(0.0, 0.0, 0.0)
    for number in range(1, 30):
        pace.accepted(100)
        pace.observe(number * 0.1, number * 0.07, number * 0.03)
    before = pace.per_second
    pace.accepted(1)
    pace.observe(3.1, 2.2, 0.9 + 0.02)  # the work for fifty that were accepted long before
    assert pace.per_second > before * 0.5
