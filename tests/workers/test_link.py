from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry.snapshots import balanced, snapshot
from trio_odin.ledger.reasons import Dropped, Invalid, Shed
from trio_odin.ledger.snapshot import Snapshot
from trio_odin.overload.load import OtherWorkers
from trio_odin.workers.link import (
    Answer,
    Ask,
    FromParent,
    FromWorker,
    HandOver,
    Link,
    Question,
    Reload,
    StatsReport,
    parent_decoder,
    worker_decoder,
)

NUMBERS = st.integers(0, 2**53)


@given(NUMBERS, balanced())
def test_figures_arrive_as_they_were_sent(number: int, state: Snapshot) -> None:
    sent = StatsReport(number, state)
    line = msgspec.json.encode(sent)
    assert b"\n" not in line
    came = parent_decoder().decode(line)
    assert came == sent
    counters = came.snapshot.ledger
    assert all(isinstance(key, Invalid) for key in counters.publications.invalid)
    assert all(isinstance(key, Shed) for key in counters.publications.shed)
    assert all(isinstance(key, Dropped) for key in counters.deliveries.dropped)
    assert counters.deliveries.imbalance() == 0
    assert counters.traffic.closed["not there"] == 0, "still a Counter"


@given(NUMBERS, NUMBERS, balanced())
def test_the_other_messages_arrive_too(number: int, count: int, state: Snapshot) -> None:
    reload = Reload({"WS_ADDR": b":3002", "odd": bytes(range(256))})
    others = OtherWorkers(count, cpu_cores=number / 8, memory_bytes=count)
    for message in (Ask(number), others, Answer(number, state), reload, HandOver()):
        assert worker_decoder().decode(msgspec.json.encode(message)) == message
    question = Question(number)
    assert parent_decoder().decode(msgspec.json.encode(question)) == question


def ends() -> tuple[Link[FromWorker], Link[FromParent], Any]:
    """The parent's end, the worker's, and the stream under the worker's."""
    near, far = trio.testing.memory_stream_pair()
    return Link(near, parent_decoder()), Link(far, worker_decoder()), far


async def test_messages_come_in_order_and_then_the_end(nursery: trio.Nursery) -> None:
    parent, worker, _ = ends()
    nursery.start_soon(worker.run_writer)
    sent: list[FromWorker] = [
        StatsReport(0, snapshot()),
        Question(1),
        StatsReport(2, snapshot(connections=9)),
    ]
    for message in sent:
        assert worker.send(message)
    await worker.finish()
    assert [await parent.receive() for _ in range(4)] == [*sent, None]
    assert not worker.send(Question(3))


@pytest.mark.parametrize("line", [b"{", b"", b"{}", b'{"type":"Newer"}', b"\xff", b"[1]"])
async def test_a_line_that_is_not_a_message_is_left_out(line: bytes) -> None:
    parent, _, stream = ends()
    await stream.send_all(line + b"\n" + msgspec.json.encode(Question(5)) + b"\n" + b"half a li")
    await stream.send_eof()
    assert await parent.receive() == Question(5)
    assert await parent.receive() is None


async def test_a_side_that_does_not_read_gets_no_more_and_blocks_nobody() -> None:
    parent, _, _ = ends()
    taken = 0
    while parent.send(Ask(1)):
        taken += 1
        assert taken < 1000
    assert taken > 1


async def test_the_end_of_the_other_side_ends_the_writer(nursery: trio.Nursery) -> None:
    parent, _, stream = ends()
    await stream.aclose()
    parent.send(Ask(1))
    with trio.fail_after(1):
        await parent.run_writer()
    assert not parent.send(Ask(2))
    assert await parent.receive() is None
