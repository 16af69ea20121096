from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import structlog
import trio
import trio.testing

from tests.core.client import objects_of
from tests.server.rig import Rig
from trio_odin.core.gaps import Gap, GapReason
from trio_odin.core.ledger import Publications, Shed
from trio_odin.core.registry import Registry
from trio_odin.core.upstream import Upstream
from trio_odin.server.notices import Notices


@attrs.define(eq=False)
class FakeListener:
    """Takes what it is sent while it `is_reading`, and can be gone."""

    is_reading: bool = True
    is_gone: bool = False
    sent: list[bytes] = attrs.field(factory=list)

    def send_nowait(self, data: bytes) -> bool:
        if self.is_gone:
            raise trio.BrokenResourceError
        if self.is_reading:
            self.sent.append(data)
        return self.is_reading

    def told(self) -> list[dict[str, Any]]:
        objects = objects_of_joined(self.sent)
        self.sent.clear()
        for content in objects:
            assert content.pop("type") == "gap"
            assert content.pop("ts") > 10**12
        return objects


def objects_of_joined(chunks: list[bytes]) -> list[dict[str, Any]]:
    """Each frame apart: they are short, so the second byte is the length, or two bytes behind."""
    frames, rest = [], b"".join(chunks)
    while rest:
        length = 2 + rest[1] if rest[1] < 126 else 4 + int.from_bytes(rest[2:4])
        frames.append(rest[:length])
        rest = rest[length:]
    return objects_of(frames)


@attrs.define
class Desk:
    """The notices, with the books that they look at."""

    books: Publications = attrs.field(factory=Publications)
    registry: Registry[FakeListener] = attrs.field(factory=Registry)
    upstream: Upstream = attrs.field(factory=lambda: Upstream(epoch="e"))

    def listener(self, *, is_reading: bool = True, is_gone: bool = False) -> FakeListener:
        one = FakeListener(is_reading, is_gone)
        self.registry.tell_of_gaps(one, True)
        return one

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Notices(self.books, self.registry, self.upstream).run)
            await trio.testing.wait_all_tasks_blocked()
            yield
            nursery.cancel_scope.cancel()


async def a_second() -> None:
    await trio.sleep(1.01)


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_who_asked_is_told_within_a_second_and_once(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    listener = desk.listener()
    async with desk.running():
        desk.upstream.declare(Gap(GapReason.WINDOW, 3, 7, 9))
        await a_second()
        assert listener.told() == [
            {"reason": "window", "missed": 3, "from": 7, "to": 9, "epoch": "e"}
        ]
        await a_second()
        assert listener.told() == []


async def test_who_did_not_ask_or_has_left_is_not_told(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    subscribed, left, changed = FakeListener(), desk.listener(), desk.listener()
    desk.registry.subscribe(subscribed, ["BTC.trade"])
    desk.registry.remove(left)
    desk.registry.tell_of_gaps(changed, False)
    async with desk.running():
        desk.upstream.declare(Gap(GapReason.CORE))
        await a_second()
    assert (subscribed.sent, left.sent, changed.sent) == ([], [], [])
    assert desk.registry.audience == {}


async def test_what_is_shed_is_summed_up_each_second(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    desk.books.shed[Shed.FEED_FULL] = 100
    listener = desk.listener()
    async with desk.running():
        for number in (3, 4):
            desk.books.shed[Shed.FEED_FULL] += number
            desk.books.shed[Shed.PAUSED] += 10
            await a_second()
            (gap,) = listener.told()
            assert (gap["reason"], gap["missed"]) == ("shed", number + 10)
            assert (gap["from"], gap["to"]) == (None, None)
        await a_second()
        assert listener.told() == [], "what was shed before it began is not news"


async def test_a_socket_that_takes_nothing_is_told_later_in_one(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    slow, quick = desk.listener(is_reading=False), desk.listener()
    async with desk.running():
        for first in range(1, 1000, 10):
            desk.upstream.declare(Gap(GapReason.WINDOW, 2, first, first + 1))
            await a_second()
        assert len(quick.told()) == 100
        assert len(desk.registry.audience[slow]) == 1, "it does not grow"
        slow.is_reading = True
        await a_second()
        (gap,) = slow.told()
        assert (gap["missed"], gap["from"], gap["to"]) == (200, 1, 992)
        await a_second()
        assert slow.told() == []


async def test_one_that_is_gone_does_not_keep_the_others_from_being_told(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    desk.listener(is_gone=True)
    listener = desk.listener()
    async with desk.running():
        desk.upstream.declare(Gap(GapReason.STREAM))
        await a_second()
        assert [gap["reason"] for gap in listener.told()] == ["stream"]


async def test_the_books_have_a_gap_for_each_reason_and_second(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    async with desk.running():
        desk.upstream.declare(Gap(GapReason.WINDOW, 3, 7, 9), Gap(GapReason.WINDOW, 1, 12, 12))
        desk.upstream.declare(Gap(GapReason.STREAM))
        await a_second()
        desk.books.shed[Shed.NATS_RATE] += 5
        await a_second()
    reasons = {GapReason.WINDOW: 1, GapReason.STREAM: 1, GapReason.SHED: 1}
    assert (desk.books.gaps, desk.books.missed) == (reasons, 4 + 5)


async def test_the_log_says_a_gap_at_once_and_sums_up_those_that_follow(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with desk.running():
            desk.upstream.declare(Gap(GapReason.WINDOW, 3, 7, 9))
            for _ in range(15):
                desk.books.shed[Shed.PAUSED] += 1
                await a_second()
            await trio.sleep(10)
    assert lines[0] == {
        "event": "nats.gap", "log_level": "warning",
        "reason": "window", "missed": 3, "first": 7, "last": 9,
    }  # fmt: skip
    assert [line["missed"] for line in lines[1:]] == [1, 10, 4]


async def test_a_connection_asks_is_told_and_is_forgotten_when_it_ends(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery)
    hub = rig.hub
    notices = Notices(rig.ledger.publications, hub.registry, hub.upstream)
    client = await rig.connect()
    await client.send_message('{"type":"subscribe","channels":[],"notices":true}')
    await client.get_message()
    hub.upstream.declare(Gap(GapReason.CORE))
    with trio.move_on_after(5):
        await notices.run()
    # In memory no socket takes anything without waiting: it is owed, and no more than once.
    assert [list(owed) for owed in hub.registry.audience.values()] == [[GapReason.CORE]]
    await client.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert not hub.registry.audience
