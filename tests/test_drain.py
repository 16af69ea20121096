from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection

from tests.server_rig import Rig
from trio_odin.drain import send_away
from trio_odin.ledger.reasons import Dropped


class Leaver:
    """A client that reads until it is closed, and records the times."""

    def __init__(self, client: WebSocketConnection) -> None:
        self.client = client
        self.messages: list[tuple[float, dict[str, Any]]] = []
        self.closed_at = -1.0
        self.code = 0

    async def run(self) -> None:
        try:
            while True:
                message = json.loads(await self.client.get_message())
                self.messages.append((trio.current_time(), message))
        except ConnectionClosed as closed:
            self.closed_at = trio.current_time()
            self.code = closed.reason.code if closed.reason else 0

    @property
    def notices(self) -> list[tuple[float, int]]:
        return [(at, m["reconnect_in_ms"]) for at, m in self.messages if "reconnect_in_ms" in m]

    @property
    def seqs(self) -> list[int]:
        return [message["seq"] for _, message in self.messages if "seq" in message]


async def leavers(rig: Rig, nursery: trio.Nursery, count: int) -> list[Leaver]:
    clients = [Leaver(await rig.subscribe("BTC.trade")) for _ in range(count)]
    for client in clients:
        nursery.start_soon(client.run)
    await trio.testing.wait_all_tasks_blocked()
    return clients


async def drain(rig: Rig, rate: float, seconds: float = 30.0) -> float:
    """Send everyone away; returns the time it took."""
    began = trio.current_time()
    await send_away(rig.hub, rig.listener, reconnects_per_second=rate, drain_seconds=seconds)
    return trio.current_time() - began


async def test_each_client_gets_its_own_time_and_a_1001_two_seconds_later(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery)
    clients = await leavers(rig, nursery, 20)
    began = trio.current_time()
    took = await drain(rig, rate=10)
    assert took <= 2.0 + 2.0
    for client in clients:
        ((told_at, milliseconds),) = client.notices
        assert told_at == began
        assert client.closed_at - began == pytest.approx(milliseconds / 1000 + 2, abs=0.001)
        assert client.code == 1001
    closed = sorted(client.closed_at for client in clients)
    gaps = [after - before for before, after in pairwise(closed)]
    assert gaps == pytest.approx([0.1] * 19)
    assert rig.ledger.traffic.closed == {"draining": 20}


async def test_events_continue_until_the_close_of_each_client_and_balance(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery)
    clients = await leavers(rig, nursery, 10)
    began = trio.current_time()
    with trio.CancelScope() as publishing:

        async def publish() -> None:
            while True:
                rig.publish("BTC.trade")
                await trio.sleep(0.1)

        nursery.start_soon(publish)
        await drain(rig, rate=5)
        publishing.cancel()
    for client in clients:
        assert client.seqs == list(range(1, len(client.seqs) + 1))
        lived = client.closed_at - began
        assert len(client.seqs) == pytest.approx(lived / 0.1, abs=1.01)
    assert len({len(client.seqs) for client in clients}) == 10, "each had its own time"
    assert rig.ledger.deliveries.dropped.total() == 0
    rig.check_balance()


async def test_a_client_that_leaves_by_itself_is_not_waited_for(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery)
    clients = [await rig.subscribe("BTC.trade") for _ in range(5)]

    async def obey(client: WebSocketConnection) -> None:
        assert json.loads(await client.get_message())["type"] == "server:draining"
        await client.aclose(1000)

    for client in clients:
        nursery.start_soon(obey, client)
    assert await drain(rig, rate=1) == 0
    assert rig.ledger.traffic.closed == {"peer_closed": 5}


async def test_a_drain_without_clients_takes_no_time(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    assert await drain(Rig(nursery), rate=1) == 0


@pytest.mark.parametrize("seconds", [30.0, 2.0])
async def test_a_client_that_never_reads_is_cut_in_time(
    seconds: float, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery, WS_WRITE_DEADLINE="60s")
    (good,) = await leavers(rig, nursery, 1)
    await rig.subscribe("BTC.trade")
    (_, stuck) = rig.hub.members
    stuck.outbound.socket.stream = trio.testing.lockstep_stream_pair()[0]
    for _ in range(3):
        rig.publish("BTC.trade")
    took = await drain(rig, rate=2000, seconds=seconds)
    assert took <= seconds
    assert good.code == 1001
    assert good.seqs == [1, 2, 3]
    assert rig.ledger.deliveries.dropped == {Dropped.CLOSING: 3}
    assert rig.ledger.traffic.closed == {"draining": 2}
    rig.check_balance()


async def test_a_client_with_a_full_outbox_is_closed_soon_after_its_slot(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery, WS_OUTBOX_CAPACITY="2", WS_WRITE_DEADLINE="60s")
    await rig.subscribe("BTC.trade")
    (stuck,) = rig.hub.members
    stuck.outbound.socket.stream = trio.testing.lockstep_stream_pair()[0]
    for _ in range(2):
        rig.publish("BTC.trade")
        await trio.testing.wait_all_tasks_blocked()
    rig.publish("BTC.trade")
    assert await drain(rig, rate=2000) < 2 + 1
    rig.check_balance()
