from __future__ import annotations

import socket
from collections.abc import Collection, Mapping

import pytest
import structlog.testing
import trio
import trio.testing

from tests.telemetry.snapshots import snapshot
from trio_odin.admin.questions import Close, Closed, Refused, Reply
from trio_odin.admin.questions import Question as Question_
from trio_odin.ledger.snapshot import Snapshot
from trio_odin.overload.load import OtherWorkers
from trio_odin.settings.reload import ReadEnvironment
from trio_odin.workers.link import (
    Accept,
    Answer,
    Ask,
    FromWorker,
    HandOver,
    Inspect,
    Inspected,
    Link,
    Question,
    Reload,
    StatsReport,
    parent_decoder,
)
from trio_odin.workers.parent_link import ParentLink


class Supervisor:
    """The other end of a worker's link, driven by the test, and the worker's server."""

    def __init__(self, nursery: trio.Nursery) -> None:
        near, far = socket.socketpair()
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
        self.link: Link[FromWorker] = Link(self.stream, parent_decoder())
        self.learnt: list[OtherWorkers] = []
        self.is_draining = self.is_relieved = False
        self.queues: Collection[int] = ()
        self.environment: Mapping[str, str] = {}
        self.reply: Reply | None = Closed()  # None: its fault
        self.parent_link = ParentLink(far.detach())
        nursery.start_soon(self.link.run_writer)
        nursery.start_soon(self.parent_link.run, self)

    # The part of the worker's server:

    def snapshot(self) -> Snapshot:
        return snapshot(connections=3)

    async def answer(self, question: Question_) -> Reply:
        if self.reply is None:
            raise ArithmeticError
        return self.reply

    def accept_from(self, queues: Collection[int]) -> None:
        self.queues = queues

    def learn(self, others: OtherWorkers) -> None:
        self.learnt.append(others)

    def reload(self, read: ReadEnvironment) -> None:
        self.environment = read()

    def drain_alone(self) -> None:
        self.is_draining = True

    def hand_over(self) -> None:
        self.is_relieved = True

    async def heard(self) -> FromWorker | None:
        with trio.fail_after(2):
            return await self.link.receive()


@pytest.fixture
async def parent(nursery: trio.Nursery) -> Supervisor:
    parent = Supervisor(nursery)
    first = await parent.heard()
    assert first == StatsReport(0, snapshot(connections=3)), "it tells that it serves"
    return parent


async def test_a_worker_answers_and_learns_the_figures_of_the_others(parent: Supervisor) -> None:
    others = OtherWorkers(42, cpu_cores=0.75, memory_bytes=2**33)
    parent.link.send(others)
    parent.link.send(Ask(7))
    assert await parent.heard() == StatsReport(7, snapshot(connections=3))
    assert parent.learnt == [others]


async def test_a_worker_serves_on_command_and_reports_its_state_unasked(
    parent: Supervisor,
) -> None:
    parent.parent_link.tell(snapshot(connections=9))
    assert await parent.heard() == StatsReport(0, snapshot(connections=9))
    assert not parent.queues
    parent.link.send(Accept([1, 3]))
    parent.link.send(Ask(1))
    await parent.heard()
    assert list(parent.queues) == [1, 3]


async def test_a_worker_takes_settings_of_any_bytes_and_hands_over(parent: Supervisor) -> None:
    parent.link.send(Reload({"WS_JWT_KEYS": b"/keys/\xff", "LOG_LEVEL": b"debug"}))
    parent.link.send(HandOver())
    parent.link.send(Ask(1))
    await parent.heard()
    assert parent.environment == {"WS_JWT_KEYS": "/keys/\udcff", "LOG_LEVEL": "debug"}
    assert (parent.is_relieved, parent.is_draining) == (True, False)


async def test_a_worker_answers_what_an_operator_asks(parent: Supervisor) -> None:
    parent.link.send(Inspect(4, Close(number=7)))
    assert await parent.heard() == Inspected(4, Closed())


@pytest.mark.parametrize("reply", [None, Refused(status=404, reason="\udcff")])
async def test_a_fault_in_an_answer_is_that_of_one_question(
    reply: Reply | None, parent: Supervisor
) -> None:
    parent.reply = reply
    with structlog.testing.capture_logs() as lines:
        parent.link.send(Inspect(4, Close(number=7)))
        heard = await parent.heard()
    assert isinstance(heard, Inspected)
    assert isinstance(heard.reply, Refused)
    assert (heard.number, heard.reply.status) == (4, 500)
    assert [line["event"] for line in lines] == ["request.failed"]
    parent.reply = Closed()
    parent.link.send(Inspect(5, Close(number=7)))
    assert await parent.heard() == Inspected(5, Closed())


async def test_a_page_gets_the_answer_to_its_own_question(parent: Supervisor) -> None:
    got = {}

    async def ask(name: str) -> None:
        got[name] = await parent.parent_link.gather()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "one")
        nursery.start_soon(ask, "two")
        numbers = []
        for _ in range(2):
            question = await parent.heard()
            assert isinstance(question, Question)
            numbers.append(question.number)
        parent.link.send(Answer(999, snapshot(connections=999)))
        for number in reversed(numbers):
            parent.link.send(Answer(number, snapshot(connections=number)))
    assert {state.fan_out.connections for state in got.values() if state} == set(numbers)


async def test_without_an_answer_in_time_there_is_none(
    autojump_clock: trio.testing.MockClock, parent: Supervisor
) -> None:
    began = trio.current_time()
    assert await parent.parent_link.gather() is None
    assert trio.current_time() - began == pytest.approx(1.0)


async def test_a_worker_whose_parent_has_ended_leaves(parent: Supervisor) -> None:
    await parent.stream.aclose()
    with trio.fail_after(2):
        while not parent.is_draining:
            await trio.sleep(0.01)
        assert await parent.parent_link.gather() is None


async def test_the_last_report_has_the_remaining_figures_and_is_not_a_loss(
    parent: Supervisor,
) -> None:
    await parent.parent_link.leave(snapshot(connections=0))
    assert await parent.heard() == StatsReport(0, snapshot(connections=0))
    assert await parent.heard() is None
    await trio.testing.wait_all_tasks_blocked()
    assert not parent.is_draining
