"""The queue between bridge and hub: its limit of bytes, and the reports of dropped events."""

from __future__ import annotations

import trio

from trio_odin.fanout.hub import Hub
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.reasons import GapReason, Shed
from trio_odin.overload.byte_budget import ByteBudget
from trio_odin.overload.load_shedder import LoadShedder
from trio_odin.settings.reading import read_settings
from trio_odin.upstream.bridge import Bridge
from trio_odin.upstream.gaps import Gap, Mark
from trio_odin.upstream.nats_message import NatsMessage, Newest
from trio_odin.upstream.status import NatsStatus


def message(offset: int) -> NatsMessage:
    return NatsMessage("odin.token.BTC.trade", b"1" * 600, offset, trio.current_time())


async def test_waiting_events_are_limited_in_bytes_and_a_drop_is_a_gap() -> None:
    settings, ledger = read_settings({}), Ledger()
    inbound_send, inbound_receive = trio.open_memory_channel[NatsMessage | Mark | Newest](100)
    budget = ByteBudget(limit_bytes=1500)
    bridge = Bridge(
        settings, ledger, inbound_send, budget, NatsStatus(), LoadShedder(), backfill_max=0
    )
    for offset in range(1, 5):
        bridge._accept(message(offset))
    assert (bridge.fed, ledger.publications.shed) == (2, {Shed.FEED_FULL: 2})
    first = inbound_receive.receive_nowait()
    assert isinstance(first, NatsMessage)
    budget.used_bytes -= len(first.payload)
    bridge._accept(message(5))
    waiting = [inbound_receive.receive_nowait() for _ in range(3)]
    lost = (Gap(GapReason.SHED, 2, 3, 4),)
    mark = Mark(None, 4, 0, lost, is_newest_coming=True, shed={"BTC.trade": 4})
    assert [getattr(one, "offset", one) for one in waiting] == [2, mark, 5]


async def test_the_inbound_queues_of_all_workers_share_an_eighth_of_memory() -> None:
    for workers in ("1", "4"):
        settings = read_settings({"WS_MEMORY_LIMIT": "3200000", "WS_WORKERS": workers})
        hub: Hub[object] = Hub(settings, Ledger())  # type: ignore[type-var]
        assert hub.inbound_budget.limit_bytes == 400_000 // int(workers)


async def test_the_hub_gives_back_the_bytes_that_it_has_taken() -> None:
    hub: Hub[object] = Hub(read_settings({}), Ledger())  # type: ignore[type-var]
    assert hub.inbound_budget.limit_bytes > 1024 * 1024
    inbound_send, inbound_receive = trio.open_memory_channel[NatsMessage | Mark | Newest](100)
    for offset in (1, 2, 3):
        inbound_send.send_nowait(message(offset))
        hub.inbound_budget.used_bytes += 600
    inbound_send.close()
    await hub.run(inbound_receive)
    assert hub.inbound_budget.used_bytes == 0
