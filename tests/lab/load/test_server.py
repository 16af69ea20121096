from __future__ import annotations

from itertools import count
from typing import Any

import attrs
import pytest

from trio_odin.lab.load.result import ServerFigures
from trio_odin.lab.load.server import Moments, Server, Statement, server_figures

MIB = 1024 * 1024


def page(
    at: float, *, cpu: float = 0.0, mib: float = 40.0, percent: float = 0.0, **more: float
) -> Statement:
    figures = {
        "process_cpu_seconds_total": cpu,
        "process_resident_memory_bytes": mib * MIB,
        "ws_cpu_usage_percent": percent,
    }
    return Statement(at, figures | more)


MOMENTS = Moments(
    before=page(0, cpu=1.0, mib=40, ws_connections_rejected_total=5),
    connected=page(10, cpu=3.0, mib=60),
    idle_from=page(10, cpu=3.0),
    idle_until=page(20, cpu=3.5),
    hold=[
        page(20, cpu=4.0, percent=99, ws_messages_sent_total=100,
             ws_nats_messages_received_total=7, user=1.0, others=20.0),
        page(21, cpu=5.0, percent=10),
        page(30, cpu=9.0, mib=80, percent=30, ws_messages_sent_total=200_100,
             ws_nats_messages_received_total=127, user=2.0, others=22.0),
    ],
    end=page(40, ws_connections_rejected_total=8, ws_ledger_imbalance=2),
)  # fmt: skip


def test_the_figures_are_the_differences_between_the_pages() -> None:
    found = server_figures(MOMENTS, connected=1000, received=1)
    assert found == ServerFigures(
        connect_us=2000.0,
        idle_cores=0.05,
        cores=0.5,
        percent=20.0,  # the page before the hold describes the time before it
        percent_max=30,
        delivery_us=25.0,
        delivery_user_us=5.0,
        others_cores=0.2,
        base_mib=40.0,
        connected_mib=60.0,
        held_mib=80.0,
        connection_kib=40.96,
        rejected=3,
        imbalance=2,
        received_from_nats=120,
    )


def test_uncounted_deliveries_are_taken_from_the_clients() -> None:
    uncounted = attrs.evolve(MOMENTS, hold=[page(20, cpu=4.0), page(30, cpu=9.0)])
    assert server_figures(uncounted, connected=1, received=1000).delivery_us == 5000


def test_without_connections_and_deliveries_there_is_no_unit_cost() -> None:
    idle = attrs.evolve(MOMENTS, hold=[page(20), page(30)])
    found = server_figures(idle, connected=0, received=0)
    assert (found.connect_us, found.connection_kib, found.delivery_us) == (None, None, None)


def test_without_any_page_everything_is_unknown() -> None:
    empty = Statement(1.0, {})
    for hold in ([], [empty], [empty, empty]):
        moments = Moments(hold=hold)
        assert server_figures(moments, connected=100, received=100) == ServerFigures()


@pytest.mark.parametrize("name", ["before", "connected", "idle_from", "idle_until", "end"])
def test_a_missing_page_makes_only_its_own_figures_unknown(name: str) -> None:
    whole = attrs.asdict(server_figures(MOMENTS, connected=1000, received=1))
    changes: dict[str, Any] = {name: Statement(1.0, {})}
    without = attrs.evolve(MOMENTS, **changes)
    found = attrs.asdict(server_figures(without, connected=1000, received=1))
    unknown = {figure for figure, value in found.items() if value is None}
    assert (
        unknown
        == {
            "before": {"connect_us", "base_mib", "connection_kib", "rejected"},
            "connected": {"connect_us", "connected_mib"},
            "idle_from": {"idle_cores"},
            "idle_until": {"idle_cores"},
            "end": {"rejected", "imbalance"},
        }[name]
    )
    assert found == whole | dict.fromkeys(unknown)


@pytest.mark.parametrize(("missing", "percents"), [(0, 20.0), (1, 30.0), (2, 10.0)])
def test_a_missing_page_of_the_hold_is_left_out(missing: int, percents: float) -> None:
    hold = [
        Statement(one.at, {}) if number == missing else one
        for number, one in zip(count(), MOMENTS.hold, strict=False)
    ]
    found = server_figures(attrs.evolve(MOMENTS, hold=hold), connected=1000, received=50)
    assert found.percent == percents
    assert (found.cores is None) == (missing != 1)
    assert (found.held_mib is None) == (missing == 2)


def test_two_pages_of_the_same_moment_give_no_rates() -> None:
    assert page(5, cpu=2).cores_since(page(5, cpu=1)) is None


async def test_without_a_page_address_there_are_no_figures() -> None:
    found = await Server(None, None).statement()
    assert (found.figures, found.mib, found.percent) == ({}, None, None)
