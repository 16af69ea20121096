"""Loads with rates, in each encoding, on servers of another library."""

from __future__ import annotations

import attrs
import pytest
import trio

from tests.lab.fleet.wire import Sent
from tests.lab.load.made_up import load_plan, load_result
from tests.lab.load.ticking import Change, Publisher, ticking
from trio_odin.lab.fleet.encodings import ENCODINGS
from trio_odin.lab.fleet.workload import Workload
from trio_odin.lab.load.criteria import INTEGRITY, checks
from trio_odin.lab.load.report import rows
from trio_odin.lab.load.result import LoadResult
from trio_odin.lab.load.runner import loading
from trio_odin.lab.load.server import Server

pytestmark = pytest.mark.usefixtures("hasty")

CHANNELS = ["BTC.trade", "ETH.trade", "SOL.trade", "DOGE.trade"]
WORKLOAD = Workload(channels=CHANNELS, channels_per_connection=3, every_ms=50)


async def carried_out(encoding: str, change: Change = lambda sent: sent) -> LoadResult:
    with trio.fail_after(30), ticking(CHANNELS, encoding, change) as (url, market):
        plan = load_plan(
            url=url,
            connections=6,
            workload=WORKLOAD,
            hold_seconds=0.6,
            kind="bench",
            encoding=encoding,
            health_url=None,
        )
        server, publisher = Server(None, None), Publisher(plan, market)
        async with loading(plan, lambda _: None, server, publisher) as load:
            return await load.run()


def not_met(result: LoadResult) -> list[str]:
    return [check.what for check in checks(result, INTEGRITY) if not check.is_met]


@pytest.mark.e2e
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_every_event_is_received_or_skipped_at_every_connection(encoding: str) -> None:
    result = await carried_out(encoding)
    assert not_met(result) == []
    assert (result.connected, result.granted_ms) == (6, {50: 6})
    assert result.publications == result.published
    assert result.publications > 50
    assert result.expected == result.delivered + result.skipped
    assert 0 < result.delivered < result.skipped
    assert 0 < result.frames_per_second < result.received_per_second
    assert 0 < result.delivery_bytes < result.delivery_wire_bytes
    shown = dict(rows(result))
    assert f"{result.skipped:,} reported as skipped, 0 lost" in shown["completeness"]
    assert shown["rate"] == "an update every 50 ms; granted: 50 ms"
    assert encoding in shown["on the wire"]


def forgets_one(sent: Sent) -> Sent:
    return attrs.evolve(sent, skipped=max(0, sent.skipped - 1))


def adds_one(sent: Sent) -> Sent:
    return attrs.evolve(sent, skipped=sent.skipped + 1)


@pytest.mark.e2e
@pytest.mark.parametrize("change", [forgets_one, adds_one])
async def test_a_wrong_count_of_skipped_events_is_a_loss(change: Change) -> None:
    result = await carried_out("plain", change)
    assert "deliveries lost" in not_met(result)
    assert result.lost > 0


def of_somebody_else(**changes: object) -> LoadResult:
    return load_result(workload=WORKLOAD, expected=0, delivered=40, skipped=60, **changes)


def test_if_somebody_else_publishes_completeness_is_not_tested() -> None:
    shown = dict(rows(of_somebody_else()))
    assert shown["completeness"] == (
        "not tested: with a rate it takes a --publisher; 40 events received, 60 reported as skipped"
    )
    assert shown["rate"] == "an update every 50 ms; granted: unknown"


def test_a_break_of_a_chain_is_a_breach_whoever_publishes() -> None:
    assert not_met(of_somebody_else()) == []
    assert not_met(of_somebody_else(unexplained=1)) == ["breaks of a channel's chain"]
