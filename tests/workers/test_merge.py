from __future__ import annotations

from collections import Counter

import attrs
from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry.snapshots import balanced, snapshot
from trio_odin.ledger.counters import Deliveries, Ledger, Publications, Traffic
from trio_odin.ledger.reasons import CloseReason, Dropped, Shed
from trio_odin.ledger.snapshot import Build, Snapshot, Trouble, Workers
from trio_odin.workers.merge import Past, merge

WORKERS = Workers(configured=2, alive=2, restarts=0, connections=[1, 2])


def merged(*parts: Snapshot, past: Past | None = None) -> Snapshot:
    return merge(parts, past=past or Past(), workers=WORKERS)


def counts(ledger: Ledger) -> dict[str, float]:
    """Every counter that Prometheus sees, by its name and label."""
    found: dict[str, float] = {}
    for book in (ledger.publications, ledger.deliveries, ledger.traffic):
        for name, entry in attrs.asdict(book, recurse=False).items():
            if isinstance(entry, Counter):
                found |= {f"{name} {key}": number for key, number in entry.items()}
            elif name != "queued":
                found[name] = entry
    return found


def open_connections(state: Snapshot) -> int:
    return state.ledger.traffic.accepted - state.ledger.traffic.closed.total()


def imbalance(state: Snapshot) -> int:
    counters = state.ledger
    return abs(counters.deliveries.imbalance()) + abs(
        counters.publications.imbalance(state.fan_out.inbound_waiting)
    )


@given(balanced())
def test_a_merge_of_one_is_unchanged(one: Snapshot) -> None:
    assert merge([one], past=Past(), workers=one.workers) == one


@given(st.lists(balanced(), min_size=1, max_size=4))
def test_counters_add_up_and_nothing_is_unaccounted_for(parts: list[Snapshot]) -> None:
    whole = merged(*parts)
    sums: Counter[str] = Counter()
    for part in parts:
        sums.update(counts(part.ledger))
    assert counts(whole.ledger) == sums
    assert (
        whole.fan_out.connections
        == open_connections(whole)
        == sum(p.fan_out.connections for p in parts)
    )
    assert imbalance(whole) == 0


@given(balanced(), balanced())
def test_no_counter_decreases_when_a_worker_ends(stays: Snapshot, ends: Snapshot) -> None:
    before = merged(stays, ends)
    after = merged(stays, past=Past().with_ended(ends))
    was, now = counts(before.ledger), counts(after.ledger)
    assert all(now[name] >= was[name] for name in was)
    assert after.nats.reconnects == before.nats.reconnects
    assert after.process.cpu_seconds == before.process.cpu_seconds
    assert after.process.log_lines_dropped == before.process.log_lines_dropped
    assert after.fan_out.connections == open_connections(after) == stays.fan_out.connections
    assert after.ledger.deliveries.queued == stays.ledger.deliveries.queued
    assert after.fan_out.inbound_waiting == stays.fan_out.inbound_waiting
    assert imbalance(after) == 0


def test_queued_events_of_an_ended_worker_are_counted_as_lost() -> None:
    counters = Ledger(
        Publications(received=10, fanned_out=7),
        Deliveries(matched=9, written=5, queued=4),
        Traffic(accepted=6, closed=Counter({"peer_gone": 1})),
    )
    past = Past().with_ended(snapshot(ledger=counters, inbound_waiting=3, connections=5))
    assert past.ledger.publications.shed == {Shed.WORKER_LOST: 3}
    assert past.ledger.deliveries == Deliveries(
        matched=9, written=5, dropped=Counter({Dropped.WORKER_LOST: 4})
    )
    assert past.ledger.traffic.closed == {"peer_gone": 1, CloseReason.WORKER_LOST.label: 5}
    assert counters.deliveries.queued == 4, "the figures themselves are left alone"


def test_figures_of_two_workers_in_numbers() -> None:
    ended = snapshot(reconnects=5, cpu_seconds=10.0, log_lines_dropped=3, connections=0)
    one = snapshot(connections=3, channels=4, cpu_percent=20.0, memory_bytes=100, tasks=7,
                   subscription_counts=[1, 2, 2], inbound_capacity=10, cpu_seconds=1.0,
                   loop_busy_percent=80.0, lag_seconds=0.1, paused_percent=10, pending_handshakes=3,
                   encodings={"plain": 1, "z1": 2},
                   outbox_bytes_limit=7, reconnects=1, uptime_seconds=9.0,
                   log_lines_dropped=1, replay_bytes_limit=6)  # fmt: skip
    two = snapshot(connections=1, channels=5, cpu_percent=60.0, memory_bytes=150, tasks=5,
                   subscription_counts=[3], inbound_capacity=10, cpu_seconds=2.5,
                   loop_busy_percent=70.0, lag_seconds=0.2, paused_percent=30, pending_handshakes=4,
                   encodings={"deflate": 1, "plain": 0},
                   group_memory_bytes=900, outbox_bytes_limit=7, reconnects=0,
                   uptime_seconds=2.0, log_lines_dropped=2, replay_bytes_limit=6)  # fmt: skip
    whole = merged(one, two, past=Past().with_ended(ended))
    assert (whole.fan_out.connections, whole.fan_out.channels, whole.load.tasks) == (4, 5, 12)
    assert (whole.load.cpu_percent, whole.process.memory_bytes, whole.fan_out.inbound_capacity) == (
        40.0,
        250,
        20,
    )
    assert (whole.load.loop_busy_percent, whole.load.lag_seconds, whole.load.paused_percent) == (
        80.0,
        0.2,
        30,
    )
    assert (
        whole.listener.pending_handshakes,
        whole.load.group_memory_bytes,
        whole.used_memory_bytes,
    ) == (
        7,
        900,
        900,
    )
    assert (whole.fan_out.outbox_bytes_limit, whole.fan_out.replay_bytes_limit) == (14, 12)
    assert whole.fan_out.subscription_counts == [1, 2, 2, 3]
    assert whole.fan_out.encodings == {"plain": 1, "z1": 2, "deflate": 1}
    assert (whole.nats.reconnects, whole.process.cpu_seconds, whole.uptime_seconds) == (
        6,
        13.5,
        9.0,
    )
    assert whole.process.log_lines_dropped == 6
    assert whole.limits.max_connections == one.limits.max_connections
    assert whole.workers is WORKERS


def test_a_merged_boolean_is_true_only_if_clients_can_rely_on_it() -> None:
    good = snapshot()
    bad = snapshot(
        is_connected=False, was_connected=False, is_overloaded=True,
        is_memory_short=True, is_lagging=True,
    )  # fmt: skip
    leaving = attrs.evolve(bad, is_draining=True)
    mixed = merged(good, bad, leaving)
    assert (mixed.nats.is_connected, mixed.nats.was_connected) == (False, False)
    assert (mixed.load.is_overloaded, mixed.is_draining) == (False, False)
    assert (mixed.load.is_memory_short, mixed.load.is_lagging) == (False, False)
    worst = merged(leaving, leaving)
    assert (worst.load.is_overloaded, worst.is_draining) == (True, True)
    assert (worst.load.is_memory_short, worst.load.is_lagging) == (True, True)
    assert not worst.nats.was_connected


def test_a_worker_that_hands_over_counts_but_has_no_status() -> None:
    leaving = snapshot(is_draining=True, is_connected=False, connections=4)
    serving = snapshot(connections=3)
    whole = merged(leaving, serving)
    assert (whole.is_draining, whole.nats.is_connected, whole.fan_out.connections) == (
        False,
        True,
        7,
    )
    all_leave = merged(leaving, leaving)
    assert (all_leave.is_draining, all_leave.nats.is_connected) == (True, False)


def test_a_worker_that_is_not_open_yet_has_no_say_about_nats() -> None:
    waiting = snapshot(
        is_open=False,
        is_connected=False,
        was_connected=False,
        age_seconds=None,
        trouble=Trouble("maximum consumers limit reached", 9.0),
    )
    for parts in ((waiting, snapshot()), (snapshot(), waiting)):
        whole = merged(*parts)
        assert (whole.is_open, whole.nats.is_connected, whole.nats.was_connected) == (True,) * 3
        assert (whole.nats.age_seconds, whole.nats.trouble) == (0.25, None)
    nobody = merged(waiting, waiting)
    assert (nobody.is_open, nobody.nats.is_connected, nobody.nats.was_connected) == (False,) * 3
    assert nobody.nats.trouble == Trouble("maximum consumers limit reached", 9.0)


def test_the_age_of_nats_is_that_of_the_worst_worker() -> None:
    ages = [snapshot(age_seconds=age) for age in (1.0, 3.0, 2.0)]
    assert merged(*ages).nats.age_seconds == 3.0
    assert merged(*ages, snapshot(age_seconds=None)).nats.age_seconds is None


def test_the_nats_problem_is_that_of_the_longest_affected_worker() -> None:
    well = snapshot()
    new = snapshot(is_connected=False, trouble=Trouble("refused", 0.5))
    old = snapshot(is_connected=False, trouble=Trouble("no right", 60.0))
    leaving = attrs.evolve(old, is_draining=True, draining_seconds=1.0)
    assert merged(well, well).nats.trouble is None
    for parts in ((new, old, well), (well, old, new)):
        assert merged(*parts).nats.trouble == Trouble("no right", 60.0)
    assert merged(new, leaving).nats.trouble == Trouble("refused", 0.5)


def test_a_state_of_any_has_the_oldest_time_and_one_of_all_the_newest() -> None:
    in_it = [
        snapshot(
            is_draining=True,
            draining_seconds=seconds,
            is_out_of_files=True,
            refusing_seconds=seconds,
            paused_percent=100,
            paused_seconds=seconds,
        )
        for seconds in (0.0, 9.0, 4.0)
    ]
    whole = merged(*in_it)
    assert (whole.draining_seconds, whole.load.refusing_seconds, whole.load.paused_seconds) == (
        0.0,
        0.0,
        9.0,
    )
    assert whole.listener.is_out_of_files
    whole = merged(*in_it, snapshot())
    assert (whole.draining_seconds, whole.load.refusing_seconds, whole.load.paused_seconds) == (
        None,
        None,
        9.0,
    )
    assert not whole.listener.is_out_of_files


def test_during_a_rolling_restart_both_versions_are_shown() -> None:
    old, new = Build("0.1.0", "3.11.7", "a"), Build("0.2.0", "3.12.1", "")
    parts = [snapshot(builds=[build]) for build in (new, old, new)]
    assert merged(*parts).process.builds == [old, new]
