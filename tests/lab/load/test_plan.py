from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.load.made_up import WORKLOAD, load_plan
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.load.plan import LoadPlan, health_beside
from trio_odin.lab.load.result import Progress, Sample


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"url": "http://x/ws"}, "'http://x/ws' is no address like ws://127.0.0.1:3002/ws"),
        ({"url": "ws:///ws"}, "'ws:///ws' is no address like ws://127.0.0.1:3002/ws"),
        ({"url": "ws://x:99999/ws"}, "'ws://x:99999/ws' is no address like"),
        ({"url": "ws://[x/ws"}, r"'ws://\[x/ws' is no address like"),
        ({"url": ""}, "'' is no address like"),
        (
            {"health_url": "ws://x/health"},
            (
                "'ws://x/health' is no address of a server's health page, "
                "like http://127.0.0.1:3002/health"
            ),
        ),
        (
            {"publisher_url": "x:3003"},
            "'x:3003' is no address of a publisher, like http://127.0.0.1:3003",
        ),
        ({"publisher_url": "http://"}, "'http://' is no address of a publisher"),
        ({"publisher_url": "http://x:y"}, "'http://x:y' is no address of a publisher"),
        ({"connections": 0}, "0 connections: allowed is 1 or more"),
        ({"processes": 0}, "0 processes: allowed is 1 or more"),
        (
            {"workload": attrs.evolve(WORKLOAD, channels=["BTC.trade", "B C"])},
            "'B C' is no channel: ",
        ),
        ({"workload": attrs.evolve(WORKLOAD, channels=[])}, "no channels: allowed is 1 or more"),
        (
            {"workload": attrs.evolve(WORKLOAD, channels_per_connection=4)},
            "4 channels a connection: with 3 tokens, allowed is 1 to 3",
        ),
        (
            {"workload": attrs.evolve(WORKLOAD, channels_per_connection=0)},
            "0 channels a connection: with 3 tokens, allowed is 1 to 3",
        ),
        ({"hold_seconds": -1.0}, "hold of -1 seconds: allowed is a number, 0 or more"),
        ({"idle_seconds": math.nan}, "idle of nan seconds: allowed is a number, 0 or more"),
        ({"after_seconds": math.inf}, "after of inf seconds: allowed is a number, 0 or more"),
        ({"ramp_per_second": math.nan}, "ramp of nan a second: allowed is a number, 0 or more"),
        ({"churn_per_second": -2.5}, "churn of -2.5 a second: allowed is a number, 0 or more"),
        ({"rate": 0.0}, "rate of 0 a second: allowed is a number above 0"),
        ({"rate": math.nan}, "rate of nan a second: allowed is a number above 0"),
        ({"workload": attrs.evolve(WORKLOAD, every_ms=-1)}, "an update every -1 ms: allowed is 0"),
        (
            {"churn_per_second": 5.0, "connections": 1},
            "churn of 5 a second with 1 connections: allowed is 2 connections or more",
        ),
    ],
)
def test_an_impossible_plan_is_refused_with_the_allowed_values(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(LoadImpossible, match=f"^{sentence}"):
        load_plan(**changes).check()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"url": "wss://odin.example/ws?version=2"},
        {"url": "ws://[::1]:3002/ws"},
        {"health_url": None, "publisher_url": "http://127.0.0.1:3003/", "rate": 0.5},
        {"hold_seconds": 0.0, "ramp_per_second": 100.0},
        {"churn_per_second": 1.0, "connections": 2},
    ],
)
def test_a_possible_plan_is_not_refused(changes: dict[str, Any]) -> None:
    load_plan(**changes).check()


@given(
    st.builds(
        LoadPlan,
        url=st.text(max_size=20) | st.text(max_size=10).map("ws://".__add__),
        connections=st.integers(-1, 3),
        workload=st.just(WORKLOAD),
        hold_seconds=st.floats(),
        ramp_per_second=st.floats(),
        churn_per_second=st.floats(),
        rate=st.none() | st.floats(),
        publisher_url=st.none() | st.text(max_size=10).map("http://".__add__),
    )
)
def test_any_plan_is_carried_out_or_refused_with_a_sentence(plan: LoadPlan) -> None:
    with suppress(LoadImpossible):
        plan.check()
        assert plan.connections >= 1
        assert math.isfinite(plan.hold_seconds)
        assert plan.metrics_url is not None


@pytest.mark.parametrize(
    ("url", "health", "metrics"),
    [
        ("ws://127.0.0.1:3002/ws", "http://127.0.0.1:3002/health", "http://127.0.0.1:3002/metrics"),
        ("wss://x/deep/ws?a=b", "https://x/health", "https://x/metrics"),
        ("ws://x:1?a=b", "http://x:1/health", "http://x:1/metrics"),
        ("ws://[::1]:3002/ws", "http://[::1]:3002/health", "http://[::1]:3002/metrics"),
    ],
)
def test_the_pages_are_expected_beside_the_websocket(url: str, health: str, metrics: str) -> None:
    assert health_beside(url) == health
    assert load_plan(url=url).metrics_url == metrics


@pytest.mark.parametrize(
    ("health", "metrics"),
    [
        (None, None),
        ("http://x:3004", "http://x:3004/metrics"),
        ("http://x:3004/", "http://x:3004/metrics"),
        ("https://x/odin/health", "https://x/odin/metrics"),
        ("http://x/health?full=a/b", "http://x/metrics"),
    ],
)
def test_metrics_are_expected_beside_health(health: str | None, metrics: str | None) -> None:
    assert load_plan(health_url=health).metrics_url == metrics


def test_a_fifth_of_the_connections_but_at_least_one_is_replaced() -> None:
    assert load_plan(connections=1000).churners == 0
    assert load_plan(connections=1000, churn_per_second=3.0).churners == 200
    assert load_plan(connections=2, churn_per_second=3.0).churners == 1


def test_connections_return_after_a_cut_or_if_they_reconnect() -> None:
    assert load_plan().reconnect_seconds == 0
    assert load_plan(is_cut=True).reconnect_seconds == 1
    assert load_plan(reconnects=True).reconnect_seconds == 1


def test_a_line_of_progress_has_the_known_figures() -> None:
    sample = Sample(
        at=10.0,
        phase="hold",
        connections=9_999,
        received_per_second=12_345.6,
        p99_ms=7.4,
        server_percent=23.8,
    )
    assert Progress(sample, 10_000, 61.2).line() == (
        "hold: 9,999 of 10,000, 12,346 events/s, p99 7 ms, CPU 24 %, 61 s left"
    )


def test_a_line_of_progress_leaves_out_unknown_figures() -> None:
    sample = Sample(at=0.0, phase="connecting", connections=0, received_per_second=0.0)
    assert Progress(sample, 10).line() == "connecting: 0 of 10"
