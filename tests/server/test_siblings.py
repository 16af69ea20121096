from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from tests.telemetry.snapshots import snapshot
from trio_odin.core.admission import Admission
from trio_odin.server.siblings import Siblings
from trio_odin.server.worker_link import (
    Answer,
    Ask,
    Elsewhere,
    Figures,
    FromWorker,
    Link,
    Question,
    parent_decoder,
)


class Parent:
    """The other end of a worker's link, in the hands of the test."""

    def __init__(self, nursery: trio.Nursery) -> None:
        near, far = socket.socketpair()
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
        self.link: Link[FromWorker] = Link(self.stream, parent_decoder())
        self.admission = Admission(max_connections=10, cpu_reject_percent=0)
        self.is_draining = False
        self.siblings = Siblings(far.detach())
        nursery.start_soon(self.link.run_writer)
        nursery.start_soon(
            self.siblings.run, lambda: snapshot(connections=3), self.admission, self.drain
        )

    def drain(self) -> None:
        self.is_draining = True

    async def heard(self) -> FromWorker | None:
        with trio.fail_after(2):
            return await self.link.receive()


@pytest.fixture
async def parent(nursery: trio.Nursery) -> Parent:
    parent = Parent(nursery)
    first = await parent.heard()
    assert first == Figures(0, snapshot(connections=3)), "it tells that it serves"
    return parent


async def test_a_worker_answers_and_learns_what_the_others_hold(parent: Parent) -> None:
    parent.link.send(Elsewhere(42))
    parent.link.send(Ask(7))
    assert await parent.heard() == Figures(7, snapshot(connections=3))
    assert parent.admission.connections_elsewhere == 42


async def test_a_page_gets_the_answer_to_its_own_question(parent: Parent) -> None:
    got = {}

    async def ask(name: str) -> None:
        got[name] = await parent.siblings.gather()

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
    assert {state.connections for state in got.values() if state} == set(numbers)


async def test_without_an_answer_in_time_there_is_none(
    autojump_clock: trio.testing.MockClock, parent: Parent
) -> None:
    began = trio.current_time()
    assert await parent.siblings.gather() is None
    assert trio.current_time() - began == pytest.approx(1.0)


async def test_a_worker_whose_parent_is_gone_leaves(parent: Parent) -> None:
    await parent.stream.aclose()
    with trio.fail_after(2):
        while not parent.is_draining:
            await trio.sleep(0.01)
        assert await parent.siblings.gather() is None


async def test_the_last_word_is_what_was_left_and_not_a_loss(parent: Parent) -> None:
    await parent.siblings.leave(snapshot(connections=0))
    assert await parent.heard() == Figures(0, snapshot(connections=0))
    assert await parent.heard() is None
    await trio.testing.wait_all_tasks_blocked()
    assert not parent.is_draining
