from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

from tests.e2e.nats import free_port
from tests.lab.load.made_up import load_plan
from tests.lab.load.rig import Rig, serving, stand_in
from tests.lab.load.test_publisher_control import fake
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.fleet.workload import Workload
from trio_odin.lab.load import runner
from trio_odin.lab.load.criteria import INTEGRITY, checks
from trio_odin.lab.load.plan import LoadPlan
from trio_odin.lab.load.result import LoadResult, Progress, ServerFigures
from trio_odin.lab.load.runner import run_load

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("hasty")]

WORKLOAD = Workload(channels=["BTC.trade", "ETH.trade", "SOL.trade"], channels_per_connection=2)


def plan_on(rig: Rig, url: str | None = None, **changes: Any) -> LoadPlan:
    given: dict[str, Any] = {
        "url": url or rig.server.websocket_url,
        "publisher_url": rig.publisher.url,
        "workload": WORKLOAD,
        "connections": 40,
        "hold_seconds": 0.6,
        "after_seconds": 0.4,
        "rate": 100.0,
    }
    return load_plan(**given | changes)


def plan_alone(url: str, **changes: Any) -> LoadPlan:
    """A plan without pages and publisher."""
    given: dict[str, Any] = {"url": url, "health_url": None, "hold_seconds": 0.3}
    return load_plan(**given | changes)


async def carried_out(
    plan: LoadPlan, progress: Callable[[Progress], None] = lambda _: None
) -> LoadResult:
    with trio.fail_after(20):
        return await run_load(plan, progress)


def not_met(result: LoadResult) -> list[str]:
    return [check.what for check in checks(result, INTEGRITY) if not check.is_met]


def phases(result: LoadResult) -> list[str]:
    return list(dict.fromkeys(sample.phase for sample in result.series))


def only(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        (group,) = group.exceptions
    return group


class InPhase:
    """Progress that acts on the second sample of a phase."""

    def __init__(self, phase: str, act: Callable[[], object]) -> None:
        self._phase = phase
        self._act = act
        self.seen = 0

    def __call__(self, progress: Progress) -> None:
        self.seen += progress.sample.phase == self._phase
        if progress.sample.phase == self._phase and self.seen == 2:
            self._act()


# --- faulty servers


async def test_a_server_that_skips_a_number_fails() -> None:
    with stand_in([1, 2, 4]) as url:
        result = await carried_out(plan_alone(url))
    assert (result.connected, result.received, result.gaps) == (10, 30, 10)
    assert "missing numbers of seq" in not_met(result)


async def test_a_server_that_repeats_a_number_fails() -> None:
    with stand_in([1, 2, 2]) as url:
        result = await carried_out(plan_alone(url))
    assert (result.received, result.repeated, result.gaps) == (30, 10, 0)
    assert "events repeated or late" in not_met(result)


async def test_a_server_that_sends_nothing_fails_with_all_silent() -> None:
    with stand_in() as url:
        result = await carried_out(plan_alone(url, health_url=f"http://127.0.0.1:{free_port()}/h"))
    assert (result.connected, result.silent, result.closed_cleanly) == (10, 10, 10)
    assert (result.latency, result.publications, result.unseen) == (None, 0, None)
    assert result.server == ServerFigures()
    assert not_met(result) == ["events received by anybody"]


async def test_unseen_events_are_those_that_the_publisher_counted() -> None:
    answers = {"/control": {"success": True}, "/stats": {"stats": {"messagesPublished": 7}}}
    with stand_in([1, 2]) as url:
        async with fake(answers) as publisher:
            result = await carried_out(plan_alone(url, publisher_url=publisher))
    # Two events of each channel that is the first of a client's command, which names them sorted.
    assert result.published == 7
    seen = 2 * len({min(names) for names in result.workload.of(0, 10)})
    assert result.unseen == 7 - seen


async def test_a_server_that_never_stops_sending_is_abandoned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "_ARRIVAL_SECONDS", 0.6)
    with stand_in(floods=True) as url:
        async with fake({"/control": {"success": True}}) as publisher:
            result = await carried_out(plan_alone(url, publisher_url=publisher))
    assert result.closed_cleanly == 10
    assert result.received > 100
    assert phases(result) == ["connecting", "hold", "closing"]


async def test_without_a_server_a_load_that_reconnects_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "_STALLED_SECONDS", 0.5)
    with pytest.raises(BaseExceptionGroup) as raised:
        await carried_out(plan_alone(f"ws://127.0.0.1:{free_port()}/ws", reconnects=True))
    assert "nobody could connect" in str(only(raised.value))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "x" * 70])
async def test_a_host_without_an_address_makes_the_load_impossible(host: str) -> None:
    with pytest.raises(LoadImpossible, match=f"'ws://{host}/ws': '{host}' cannot be resolved"):
        await carried_out(plan_alone(f"ws://{host}/ws"))


# --- the real server


async def test_a_load_on_the_real_server_is_complete_and_has_its_cost(rig: Rig) -> None:
    seen: list[Progress] = []
    plan = plan_on(rig, connections=200, idle_seconds=0.2, hold_seconds=1.6, processes=2)
    result = await carried_out(plan, seen.append)
    assert not_met(result) == []
    assert (result.success, result.closed_cleanly, result.silent) == (1, 200, 0)
    assert result.delivered == result.expected > 0
    assert (result.lost, result.unseen) == (0, 0)
    assert result.published is not None
    assert 120 <= result.published <= 220
    assert 40 <= result.publications < result.published  # without both ends of the hold
    assert result.latency is not None
    assert result.connect_ms is not None
    assert result.connect_ms.count == 200
    assert result.hold_seconds == pytest.approx(1.6, abs=1)
    unknown = {name for name, value in attrs.asdict(result.server).items() if value is None}
    assert unknown == {"delivery_user_us", "others_cores"}, "no page has them"
    assert (result.server.rejected, result.server.imbalance) == (0, 0)
    assert result.server.received_from_nats == pytest.approx(result.published, abs=60)
    assert phases(result) == ["connecting", "idle", "hold", "closing"]
    assert [sample.phase for sample in result.series] == [one.sample.phase for one in seen]
    assert max(sample.connections for sample in result.series) == 200
    assert not rig.publisher.is_publishing()


async def test_a_hold_shorter_than_its_margins_is_still_tested(rig: Rig) -> None:
    result = await carried_out(plan_on(rig, hold_seconds=0.4))
    assert not_met(result) == []
    assert result.publications > 0


async def test_after_a_cut_all_return_and_get_everything_again(rig: Rig) -> None:
    result = await carried_out(plan_on(rig, is_cut=True))
    assert result.reconnects is not None
    assert (result.reconnects.lost, result.reconnects.back) == (40, 40)
    assert 0 < result.reconnects.seconds < 5
    assert not_met(result) == []
    assert result.delivered == result.expected > 0
    assert phases(result) == ["connecting", "hold", "reconnecting", "after", "closing"]
    assert result.closed_cleanly == 40


async def test_replaced_connections_cost_the_others_nothing(rig: Rig) -> None:
    result = await carried_out(
        plan_on(rig, churn_per_second=20.0, reconnects=True, hold_seconds=1.0)
    )
    assert result.churned > 5
    assert not_met(result) == []
    assert result.delivered == result.expected > 0
    assert result.disconnects == {}


async def test_an_unfiltered_server_sends_every_event_to_everybody(rig: Rig) -> None:
    with serving(rig.nats_url, ENABLE_SUBSCRIPTION_FILTERING="false") as server:
        workload = attrs.evolve(WORKLOAD, is_filtered=False)
        result = await carried_out(plan_on(rig, server.websocket_url, workload=workload))
    assert not_met(result) == []
    assert result.delivered == result.publications * 40 > 0


async def test_refused_connections_are_counted_by_their_status(rig: Rig) -> None:
    with serving(rig.nats_url, WS_MAX_CONNECTIONS="10") as server:
        result = await carried_out(plan_on(rig, server.websocket_url, connections=25))
    assert result.rejections == {"503 Service Unavailable": 15}
    assert (result.connected, result.success, result.server.rejected) == (10, 0.4, 15)
    assert result.lost == 0
    assert result.delivered == result.expected > 0


async def test_a_server_stopped_in_the_hold_is_shown_with_its_reason(rig: Rig) -> None:
    with serving(rig.nats_url, WS_DRAIN_SECONDS="1s") as server:
        stop = InPhase("hold", server.process.terminate)
        # Long enough for its end, so that its pages are asked for in vain.
        plan = plan_on(rig, server.websocket_url, hold_seconds=5.0)
        result = await carried_out(plan, stop)
    assert result.disconnects == {"1001 Server is shutting down": 40}
    assert "connections cut off by the server" in not_met(result)
    assert result.series[-1].connections == 0
    assert result.server.held_mib is None


async def test_a_full_server_does_not_stop_a_load_that_reconnects(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_STALLED_SECONDS", 0.4)
    with serving(rig.nats_url, WS_MAX_CONNECTIONS="10") as server:
        plan = plan_on(rig, server.websocket_url, connections=15, reconnects=True)
        result = await carried_out(plan)
    assert (result.connected, result.closed_cleanly) == (10, 10)
    assert result.rejections["503 Service Unavailable"] >= 5
    assert phases(result) == ["connecting", "hold", "closing"]
    assert result.delivered == result.expected > 0


# --- a load that ends early


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


async def test_a_load_interrupted_during_the_connects_has_figures(
    rig: Rig,
) -> None:
    plan = plan_on(rig, ramp_per_second=10.0, connections=1000)
    result = await carried_out(plan, InPhase("connecting", interrupt))
    assert result.interrupted
    assert 1 <= result.connected < 100
    assert result.closed_cleanly == result.connected
    assert (result.published, result.publications, result.hold_seconds) == (None, 0, 0)
    assert result.server.base_mib is not None
    assert (result.server.connect_us, result.server.held_mib) == (None, None)


async def test_a_load_that_fails_stops_the_publisher(rig: Rig) -> None:
    def fail() -> None:
        assert rig.publisher.is_publishing()
        raise ValueError("nobody looks any more")

    with pytest.raises(BaseExceptionGroup) as raised:
        await carried_out(plan_on(rig, hold_seconds=60.0), InPhase("hold", fail))
    assert isinstance(only(raised.value), ValueError)
    assert not rig.publisher.is_publishing()


async def test_a_load_that_is_cancelled_stops_the_publisher(rig: Rig) -> None:
    with trio.CancelScope() as scope:
        await run_load(plan_on(rig, hold_seconds=60.0), InPhase("hold", scope.cancel))
    assert scope.cancelled_caught
    assert not rig.publisher.is_publishing()
