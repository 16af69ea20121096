"""The storm after a loss."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_odin.lab.model.storm import (
    QUEUE_MAX,
    Calm,
    Storm,
    accept_rate,
    simulate,
    storm_of_the_lab,
)
from trio_odin.lab.model.tables import read_costs
from trio_odin.lab.report.folder import read_verdict

QUIET = Storm(
    clients=10_000,
    nodes=1,
    present=0,
    room=20_000,
    processes=1,
    busy=lambda connections: 0.01 + connections * 2e-5,
    connect_us=400.0,
    accepts_per_second=2000.0,
)
CAPACITY = Path(__file__).parents[3] / "docs" / "capacity"

some_storms = st.builds(
    lambda base, slope, **more: Storm(busy=lambda n: base + n * slope, **more),
    base=st.floats(0, 0.3),
    slope=st.floats(0, 3e-5),
    clients=st.integers(0, 60_000),
    nodes=st.integers(1, 12),
    present=st.integers(0, 20_000),
    room=st.integers(0, 40_000),
    processes=st.integers(1, 4),
    connect_us=st.floats(100, 1000),
    accepts_per_second=st.floats(200, 4000),
    notice_seconds=st.just((0.0, 0.0)) | st.just((4.0, 14.0)),
    failures=st.integers(0, 8),
)


def test_without_a_loss_there_is_no_storm() -> None:
    calm = simulate(attrs.evolve(QUIET, clients=0))
    assert (calm.seconds, calm.refused, calm.left_out) == (0.0, 0.0, 0.0)


def test_the_time_follows_from_the_rate_of_accepting() -> None:
    calm = simulate(attrs.evolve(QUIET, busy=lambda _: 0.0))
    assert calm.seconds == pytest.approx(10_000 / 2000, abs=0.2)
    assert calm.accepts_per_second == pytest.approx(2000, rel=0.01)
    slow = simulate(attrs.evolve(QUIET, busy=lambda _: 0.0, connect_us=800.0))
    assert slow.accepts_per_second == pytest.approx(1000, rel=0.01)
    # A client waits for an answer for ten seconds: as long as the last of these.
    assert slow.seconds == pytest.approx(10_000 / 1000, abs=0.2)


def test_a_full_loop_still_lets_somebody_in() -> None:
    full = attrs.evolve(QUIET, busy=lambda _: 1.0)
    assert accept_rate(full, 0) == pytest.approx(0.1 * 1e6 / 400)
    assert accept_rate(attrs.evolve(full, connect_us=1e5), 0) == 50


def test_clients_that_wait_too_long_come_again_later_and_later() -> None:
    calm = simulate(attrs.evolve(QUIET, clients=40_000, room=50_000, busy=lambda _: 0.1))
    assert calm.refused > QUEUE_MAX
    assert calm.longest_queue == pytest.approx(QUEUE_MAX)
    assert calm.seconds is not None
    assert calm.seconds > 40_000 / calm.accepts_per_second


def test_whoever_has_no_place_is_left_out() -> None:
    calm = simulate(attrs.evolve(QUIET, room=6000))
    assert calm.left_out == pytest.approx(4000)
    assert calm.seconds is not None
    assert calm.half_seconds is not None
    none = simulate(attrs.evolve(QUIET, room=0))
    assert (none.left_out, none.half_seconds) == (10_000, None)


def test_a_notice_that_takes_time_spreads_the_storm() -> None:
    at_once = simulate(QUIET)
    silent = simulate(attrs.evolve(QUIET, notice_seconds=(4.0, 14.0)))
    assert at_once.longest_queue > 2 * silent.longest_queue
    assert silent.seconds is not None
    assert silent.seconds >= 13


def test_the_lab_measured_a_storm_like_this() -> None:
    """Stage 9 cuts all 10,000, and each comes back after a random part of a second."""
    costs, stage = read_costs(), read_verdict(CAPACITY).stage(9)
    assert costs is not None
    assert stage is not None
    assert stage.load is not None
    assert stage.load.reconnects is not None
    calm = simulate(storm_of_the_lab(stage.load, costs))
    # docs/scale.md has both. The lab's clients share the cores with the server, which delays them,
    # and none of them gives up after ten seconds.
    measured = stage.load.reconnects.seconds
    assert calm.seconds is not None
    assert measured * 2 / 3 <= calm.seconds <= measured


def test_without_a_node_there_is_no_way_back() -> None:
    with pytest.raises(ValueError, match="0 nodes remain: allowed is 1 or more"):
        simulate(attrs.evolve(QUIET, nodes=0))


@settings(deadline=None, max_examples=60)
@given(some_storms)
def test_everybody_is_in_or_left_out(storm: Storm) -> None:
    calm = simulate(storm)
    room = max(0.0, storm.room - storm.present) * storm.nodes
    assert calm.left_out == pytest.approx(max(0.0, storm.clients - room), abs=1e-3)
    assert storm.busy(storm.present) <= calm.peak_busy <= 1.0 or calm.peak_busy == 1.0
    assert calm.longest_queue <= QUEUE_MAX * storm.processes * (1 + 1e-9)
    assert calm.refused >= -1e-6
    if calm.seconds is not None and storm.clients:
        entered = storm.clients - calm.left_out
        assert calm.seconds >= entered / storm.nodes / accept_rate(storm, storm.present) - 0.1
        assert calm.seconds >= (calm.half_seconds or 0.0)


@settings(deadline=None, max_examples=40)
@given(some_storms, st.integers(0, 20_000), st.integers(1, 5))
def test_more_clients_take_longer_and_more_nodes_do_not(
    storm: Storm, more: int, nodes: int
) -> None:
    """As long as nobody has to come twice: then luck decides who is the last."""
    storm = attrs.evolve(storm, room=storm.present + storm.clients + more)
    few, many = simulate(storm), simulate(attrs.evolve(storm, clients=storm.clients + more))
    wide = simulate(attrs.evolve(storm, nodes=storm.nodes + nodes))
    if many.refused < 1 and few.refused < 1:
        assert _seconds(few) <= _seconds(many) + 0.1
        assert few.peak_busy <= many.peak_busy + 0.02
        assert _seconds(wide) <= _seconds(few) + 0.1
    assert few.longest_queue <= many.longest_queue + 1e-6


def _seconds(calm: Calm) -> float:
    assert calm.seconds is not None
    return calm.seconds
