"""Whatever happens, each event is handed out, counted as skipped or covered by a gap; none twice.

And none after a newer one of its channel; and when all is quiet again the newest is known.
`SIMULATION_EXAMPLES` sets how many scripts are tried.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.client.world import CHANNELS, NAMES, World

EXAMPLES = int(os.environ.get("SIMULATION_EXAMPLES", "100"))

_node = st.integers(0, 2)
_ms = st.sampled_from([0, 1, 50, 400, 1500, 4000, 12_000])
_rate = st.sampled_from([0, 100, 1000, 5000, None])
_names = st.frozensets(st.sampled_from(NAMES), min_size=1, max_size=3)


def _action(name: str, *args: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *args)


_of_the_user = [
    _action("subscribe", _names, _rate, st.booleans()),
    _action("unsubscribe", st.integers(0, 9)),
    _action("set_rate", st.integers(0, 9), _rate),
    _action("hide", st.booleans()),
    _action("probe"),
]
_pass_time = _action("pass_time", _ms)
_publish = _action("publish", st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=4))
_mild = [
    _action("lag", _node, st.sampled_from([0, 30, 700, 3000])),
    _action("nats", _node, st.booleans()),
    _action("limit", _node, st.integers(0, 2)),
    _action("break_connections", _node),
    _action("cut", _node),
    _action("close", _node, st.sampled_from([1001, 1008, 1011])),
    _action("drain", _node, st.sampled_from([0, 200, 2500])),
    _action("kill", _node, _ms),
    _action("freeze", st.sampled_from([500, 6000, 20_000])),
]
_lossy = [
    _action("lose", _node, st.integers(1, 3)),
    _action("drop_events", _node, st.integers(1, 8)),
    _action("forbid", _node, st.sampled_from(NAMES)),
    _action("recreate"),
    _action("restart_without_nats", _node, _ms),
]


def _scripts(*faults: st.SearchStrategy[Any]) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    some = [_pass_time, _pass_time, _publish, _publish, *_of_the_user, *faults]
    return st.lists(st.one_of(some), max_size=60)


_first = st.lists(st.tuples(_names, st.sampled_from([0, 0, 1000, 5000])), max_size=4)


def _run(
    world: World, first: list[tuple[frozenset[str], int]], script: list[tuple[Any, ...]]
) -> None:
    """Run a script with subscriptions that have had events, and positions."""
    for names, every_ms in first:
        world.subscribe(names, every_ms, True)
    world.publish([*CHANNELS])
    world.pass_time(6000)
    world.publish([*CHANNELS])
    for name, *args in script:
        world.log.append(f"{world.now:.0f} {name} {args}")
        getattr(world, name)(*args)
    world.settle()


_settings = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@_settings
@given(
    first=_first,
    script=_scripts(*_mild, *_lossy),
    nodes=st.integers(1, 3),
    keeps=st.sampled_from([3, 20, 1000]),
    channels_max=st.sampled_from([2, 256]),
    max_channels=st.sampled_from([2, 256]),
)
def test_nothing_is_lost_untold_twice_or_late(
    first: list[tuple[frozenset[str], int]],
    script: list[tuple[Any, ...]],
    nodes: int,
    keeps: int,
    channels_max: int,
    max_channels: int,
) -> None:
    world = World(nodes=nodes, keeps=keeps, channels_max=channels_max, max_channels=max_channels)
    _run(world, first, script)


@_settings
@given(first=_first, script=_scripts(*_mild), nodes=st.integers(1, 3))
def test_no_gap_is_told_where_nothing_is_lost(
    first: list[tuple[frozenset[str], int]], script: list[tuple[Any, ...]], nodes: int
) -> None:
    world = World(nodes=nodes, keeps=1000, channels_max=256, max_channels=256)
    _run(world, first, script)
    assert world.gaps == []


_moves = st.one_of(
    _pass_time,
    _publish,
    _publish,
    _action("subscribe", _names, _rate, st.just(True)),
    _action("unsubscribe", st.integers(0, 9)),
    _action("set_rate", st.integers(0, 9), _rate),
    _action("break_connections", _node),
    _action("lag", _node, st.sampled_from([0, 30])),
)


@_settings
@given(
    first=_first,
    script=st.lists(_moves, min_size=3, max_size=25),
    nodes=st.integers(1, 2),
)
def test_names_that_move_between_rates_lose_nothing(
    first: list[tuple[frozenset[str], int]], script: list[tuple[Any, ...]], nodes: int
) -> None:
    world = World(nodes=nodes, keeps=1000, channels_max=256, max_channels=256)
    _run(world, first, script)
    assert world.gaps == []
