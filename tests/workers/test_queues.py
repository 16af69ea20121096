from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_odin.workers.queues import Taker, share_out

TAKERS = st.dictionaries(
    st.text(max_size=3),
    st.builds(
        Taker,
        number=st.integers(1, 8),
        queues=st.sets(st.integers(1, 8)),
        connections=st.integers(0, 10),
    ),
    max_size=10,
)
NUMBERS = range(1, 9)


def test_each_worker_accepts_from_its_own_queue_if_all_can() -> None:
    assert share_out([1, 2], {"a": Taker(1), "b": Taker(2)}) == {"a": {1}, "b": {2}}


def test_the_queue_of_a_missing_worker_goes_to_the_least_loaded() -> None:
    takers = {"a": Taker(1, connections=9), "b": Taker(2, connections=5), "c": Taker(3)}
    assert share_out([1, 2, 3, 4], takers) == {"a": {1}, "b": {2}, "c": {3, 4}}
    assert share_out([1, 2, 3, 4, 5], takers) == {"a": {1}, "b": {2, 5}, "c": {3, 4}}


def test_a_queue_stays_with_its_current_worker() -> None:
    takers = {"a": Taker(1, queues={1, 4}, connections=9), "b": Taker(2)}
    assert share_out([1, 2, 4], takers) == {"a": {1, 4}, "b": {2}}


def test_a_worker_and_its_successor_share_a_queue() -> None:
    assert share_out([1], {"old": Taker(1), "new": Taker(1)}) == {"old": {1}, "new": {1}}


def test_without_a_worker_the_queues_wait() -> None:
    takers: dict[str, Taker] = {}
    assert share_out([1, 2], takers) == {}


@given(TAKERS)
def test_every_queue_has_a_worker_if_there_is_one(takers: dict[str, Taker]) -> None:
    shares = share_out(NUMBERS, takers)
    assert shares.keys() == takers.keys()
    assert all(takers[key].number in share for key, share in shares.items())
    if takers:
        assert set().union(*shares.values()) == set(NUMBERS)
        own = {taker.number for taker in takers.values()}
        given_away = [number for share in shares.values() for number in share - own]
        assert len(given_away) == len(set(given_away)), "each to one only"


@given(TAKERS)
def test_sharing_out_again_changes_nothing(takers: dict[str, Taker]) -> None:
    shares = share_out(NUMBERS, takers)
    settled = {key: Taker(takers[key].number, share) for key, share in shares.items()}
    assert share_out(NUMBERS, settled) == shares
