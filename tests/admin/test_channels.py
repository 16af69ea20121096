"""The channels of a server: each process sends its busiest ones, whatever it has."""

from __future__ import annotations

import json
from typing import Any

import trio

from tests.server_rig import Rig
from trio_odin.admin.access import Access
from trio_odin.admin.api import Api
from trio_odin.admin.inspector import Inspector
from trio_odin.admin.questions import ChannelList, Channels, Question, Reply
from trio_odin.net.address import Address
from trio_odin.net.http import Request
from trio_odin.upstream.gaps import Mark
from trio_odin.upstream.nats_message import NatsMessage, Newest


class Worker:
    """A process with some connections, which keeps its answers."""

    def __init__(self, worker: int, inspector: Inspector) -> None:
        self.worker = worker
        self.inspector = inspector
        self.lists: list[ChannelList] = []

    async def ask(self, question: Question) -> Reply:
        reply = await self.inspector.answer(question)
        assert isinstance(reply, ChannelList)
        self.lists.append(reply)
        return reply


async def begin(nursery: trio.Nursery, number: int, *subscribed: tuple[str, int]) -> Worker:
    """A worker with so many subscribers of these channels, which has had an event of each."""
    rig = Rig(nursery)
    worker = Worker(number, Inspector(rig.hub, worker=number))
    nursery.start_soon(worker.inspector.run)
    for channel, count in subscribed:
        for _ in range(count):
            await rig.subscribe(channel)
    await worker.inspector.answer(Channels(seconds=0.001))
    send, receive = trio.open_memory_channel[NatsMessage | Mark | Newest](len(subscribed))
    async with send:
        for channel, _ in subscribed:
            message = NatsMessage(f"odin.token.{channel}", b"1", None, trio.current_time())
            send.send_nowait(message)
    await rig.hub.run(receive)
    return worker


async def channels(query: bytes, *workers: Worker) -> dict[str, Any]:
    async def gather() -> None:
        return None

    api = Api(gather, lambda: workers, Access([Address("127.0.0.1", 1)]))
    request = Request("GET", "/channels", [(b"host", b"localhost")], query=query)
    response = await api.respond(request)
    assert response is not None
    content: dict[str, Any] = json.loads(response.body)
    return content


async def test_a_process_sends_no_more_than_is_asked_for(nursery: trio.Nursery) -> None:
    some = [(f"T{number}.trade", 1 + (number == 7)) for number in range(20)]
    worker = await begin(nursery, 0, *some)
    listed = await channels(b"limit=3", worker)
    (reply,) = worker.lists
    assert [len(reply.rows), reply.total, listed["total"]] == [3, 20, 20]
    assert listed["channels"][0]["name"] == "T7.trade"
    assert [row["name"] for row in listed["channels"]] == [row.name for row in reply.rows]


async def test_what_is_busy_in_one_process_is_counted_in_all(nursery: trio.Nursery) -> None:
    quiet = [(f"T{number}.trade", 2) for number in range(10)]
    one = await begin(nursery, 1, ("BTC.trade", 5), *quiet)
    two = await begin(nursery, 2, ("BTC.trade", 1), *quiet)
    listed = await channels(b"limit=1", one, two)
    (row,) = listed["channels"]
    assert (row["name"], row["subscribers"]) == ("BTC.trade", 6)
    assert listed["total"] == 11
    assert [len(reply.rows) for reply in one.lists] == [1, 2]
    assert all(len(reply.rows) <= 2 for reply in two.lists)


async def test_all_that_fits_is_asked_for_once(nursery: trio.Nursery) -> None:
    one = await begin(nursery, 1, ("BTC.trade", 1))
    two = await begin(nursery, 2, ("BTC.trade", 1), ("ETH.trade", 1))
    listed = await channels(b"", one, two)
    assert [row["name"] for row in listed["channels"]] == ["BTC.trade", "ETH.trade"]
    assert (listed["total"], listed["channels"][0]["subscribers"]) == (2, 2)
    assert len(one.lists) == len(two.lists) == 1
