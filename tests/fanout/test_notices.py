from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import structlog
import trio
import trio.testing
from trio_websocket import WebSocketConnection

from tests.connection.client import objects_in
from tests.fanout.buffers import entered
from tests.logs_page import fields_of
from tests.server_rig import Rig
from trio_odin.fanout.hub import Hub
from trio_odin.fanout.notices import Notices
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.registry import Registry
from trio_odin.fanout.resume_buffer import ResumeBuffer
from trio_odin.ledger.counters import Ledger, Publications
from trio_odin.ledger.reasons import GapReason
from trio_odin.settings.reading import read_settings
from trio_odin.upstream.gaps import Gap, Gaps, Mark
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.upstream.status import NatsStatus


@attrs.define(eq=False)
class FakeListener:
    """A client that takes messages while it `is_reading`, and that can be lost."""

    is_reading: bool = True
    is_gone: bool = False
    sent: list[bytes] = attrs.field(factory=list)

    def send_soon(self, data: bytes) -> bool:
        if self.is_gone:
            return False
        if self.is_reading:
            self.sent.append(data)
        return self.is_reading

    def deliver(self, publication: Publication, frames: dict[int, bytes]) -> int:
        self.sent.append(b"event")
        return 0

    def told(self) -> list[dict[str, Any]]:
        objects = objects_in(b"".join(self.sent))
        self.sent.clear()
        for content in objects:
            assert content.pop("type") == "gap"
            assert content.pop("ts") > 10**12
        return objects


@attrs.define
class Desk:
    """The notices, with the counters that they use."""

    counters: Publications = attrs.field(factory=Publications)
    registry: Registry[Any] = attrs.field(factory=Registry)
    resume_buffer: ResumeBuffer = attrs.field(factory=entered)
    notices: Notices = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.notices = Notices(
            self.counters, self.registry, self.resume_buffer, NatsStatus(is_connected=True)
        )

    def listener(self, *, is_reading: bool = True, is_gone: bool = False) -> FakeListener:
        one = FakeListener(is_reading, is_gone)
        self.registry.tell_of_gaps(one, True)
        return one

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.notices.run)
            await trio.testing.wait_all_tasks_blocked()
            yield
            nursery.cancel_scope.cancel()


async def a_second() -> None:
    await trio.sleep(1.01)


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_a_subscribed_client_is_notified_once_within_a_second(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    listener = desk.listener()
    async with desk.running():
        desk.notices.declare(Gap(GapReason.WINDOW, 3, 7, 9))
        await a_second()
        assert listener.told() == [
            {"reason": "window", "missed": 3, "from": 7, "to": 9, "epoch": "e"}
        ]
        await a_second()
        assert listener.told() == []


async def test_clients_that_did_not_ask_or_have_left_are_not_notified(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    subscribed, left, changed = FakeListener(), desk.listener(), desk.listener()
    desk.registry.subscribe(subscribed, ["BTC.trade"])
    desk.registry.remove(left)
    desk.registry.tell_of_gaps(changed, False)
    async with desk.running():
        desk.notices.declare(Gap(GapReason.CORE))
        await a_second()
    assert (subscribed.sent, left.sent, changed.sent) == ([], [], [])
    assert desk.registry.audience == {}


async def test_the_losses_of_a_second_are_summed_up(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    listener = desk.listener()
    async with desk.running():
        for number in (3, 4):
            for offset in range(number):
                desk.notices.declare(Gap(GapReason.SHED, 1, offset, offset))
            await a_second()
            (gap,) = listener.told()
            assert (gap["reason"], gap["missed"]) == ("shed", number)
            assert (gap["from"], gap["to"]) == (0, number - 1)
        await a_second()
        assert listener.told() == []


async def test_a_blocked_socket_gets_one_notice_later(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    slow, quick = desk.listener(is_reading=False), desk.listener()
    async with desk.running():
        for first in range(1, 1000, 10):
            desk.notices.declare(Gap(GapReason.WINDOW, 2, first, first + 1))
            await a_second()
        assert len(quick.told()) == 100
        assert len(desk.registry.audience[slow]) == 1, "it does not grow"
        slow.is_reading = True
        await a_second()
        (gap,) = slow.told()
        assert (gap["missed"], gap["from"], gap["to"]) == (200, 1, 992)
        await a_second()
        assert slow.told() == []


async def test_a_notice_without_room_comes_before_the_next_event_sent() -> None:
    hub = Hub[Any](read_settings({}), Ledger())
    hub.note(Mark("e", 2))
    slow: Any = FakeListener(is_reading=False)
    hub.registry.subscribe(slow, ["BTC.trade"])
    hub.registry.tell_of_gaps(slow, True)
    hub.note(Mark("e", 4, gaps=(Gap(GapReason.WINDOW, 2, 3, 4),)))
    await hub.notices.tell_due()
    slow.is_reading = True
    for offset in (5, 6):
        hub.publish(NatsMessage("odin.token.BTC.trade", b"1", offset, trio.current_time()))
    gap, *events = slow.sent
    assert b'"to":4' in gap
    assert events == [b"event", b"event"]


async def test_a_pending_notice_does_not_delay_those_of_others(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    quick, slow = desk.listener(), desk.listener(is_reading=False)
    async with desk.running():
        desk.notices.declare(Gap(GapReason.WINDOW, 2, 3, 4))
        await desk.notices.tell_due()
        await trio.sleep(5.5)
        quick.told()
        slow.is_reading = True
        desk.notices.declare(Gap(GapReason.WINDOW, 1, 9, 9))
        await desk.notices.tell_due()
        assert [gap["from"] for gap in quick.told()] == [9]
        assert [(gap["from"], gap["to"]) for gap in slow.told()] == [(3, 9)]


async def test_a_lost_client_does_not_keep_the_others_from_their_notice(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    desk.listener(is_gone=True)
    listener = desk.listener()
    async with desk.running():
        desk.notices.declare(Gap(GapReason.STREAM))
        await a_second()
        assert [gap["reason"] for gap in listener.told()] == ["stream"]


async def test_gaps_are_counted_by_reason_once_a_second(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    async with desk.running():
        desk.notices.declare(Gap(GapReason.WINDOW, 3, 7, 9), Gap(GapReason.WINDOW, 1, 12, 12))
        desk.notices.declare(Gap(GapReason.STREAM))
        await a_second()
        desk.notices.declare(Gap(GapReason.SHED, 5))
        await a_second()
    reasons = {GapReason.WINDOW: 1, GapReason.STREAM: 1, GapReason.SHED: 1}
    assert (desk.counters.gaps, desk.counters.missed) == (reasons, 4 + 5)


async def test_the_log_reports_a_gap_at_once_and_sums_up_later_ones(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with desk.running():
            desk.notices.declare(Gap(GapReason.WINDOW, 3, 7, 9))
            for _ in range(15):
                desk.notices.declare(Gap(GapReason.SHED, 1))
                await a_second()
            await trio.sleep(10)
    assert lines[0] == {
        "event": "nats.gap", "log_level": "warning",
        "reason": "window", "missed": 3, "first": 7, "last": 9,
    }  # fmt: skip
    assert [line["missed"] for line in lines[1:]] == [1, 10, 4]
    assert lines[0].keys() - {"event", "log_level"} == fields_of("nats.gap")


async def test_a_listener_gets_a_notice_before_the_event_and_is_forgotten(
    nursery: trio.Nursery,
) -> None:
    rig = Rig(nursery)
    rig.hub.nats_status.is_connected = True
    hub = rig.hub
    client = await rig.connect()
    await client.send_message('{"type":"subscribe","channels":["BTC.trade"],"notices":true}')
    await client.get_message()
    inbound_send, inbound_receive = trio.open_memory_channel[NatsMessage | Mark](5)
    inbound_send.send_nowait(Mark("f", 0, 0, (Gap(GapReason.STREAM),)))
    inbound_send.send_nowait(NatsMessage("odin.token.BTC.trade", b"1", 1, trio.current_time()))
    inbound_send.close()
    await hub.run(inbound_receive)
    told = [json.loads(await client.get_message()) for _ in range(2)]
    assert [(one["type"], one.get("epoch"), one.get("offset")) for one in told] == [
        ("gap", "f", None),
        ("price:update", None, 1),
    ]
    assert [dict(owed) for owed in hub.registry.audience.values()] == [{}]
    await client.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert not hub.registry.audience


@pytest.mark.parametrize("channels", [["BTC.trade"], []])
async def test_a_listener_before_nats_is_notified_of_events_it_missed(
    channels: list[str],
) -> None:
    """This includes a client without a channel: without filtering it gets every event."""
    hub = Hub[Any](read_settings({}), Ledger())
    listener: Any = FakeListener()
    hub.registry.tell_of_gaps(listener, True)
    hub.registry.subscribe(listener, channels)
    hub.note(Mark("e", 6, 6))
    await hub.notices.tell_due()
    (gap,) = listener.told()
    assert (gap["reason"], gap["epoch"], gap["to"]) == ("start", "e", 6)


async def _notices_and_answer(
    client: WebSocketConnection, command: dict[str, Any]
) -> list[dict[str, Any]]:
    """The messages up to the answer to a command."""
    await client.send_message(json.dumps(command))
    messages = [json.loads(await client.get_message())]
    while messages[-1]["type"] == "gap":
        messages.append(json.loads(await client.get_message()))
    return messages


@pytest.mark.parametrize(
    "command",
    [
        {"type": "heartbeat", "nats": True},
        {"type": "subscribe", "channels": ["ETH.trade"], "notices": True},
        {"type": "subscribe", "channels": ["ETH.trade"], "after": 2, "epoch": "e"},
    ],
)
@pytest.mark.parametrize("gap", [Gap(GapReason.WINDOW, 4, 3, 6), Gap(GapReason.STREAM)])
async def test_no_position_is_stated_past_an_unreported_loss(
    nursery: trio.Nursery, command: dict[str, Any], gap: Gap
) -> None:
    rig = Rig(nursery)
    rig.hub.nats_status.is_connected = True
    rig.hub.note(Mark("e", 2))
    client = await rig.connect()
    subscribe = {"type": "subscribe", "channels": ["BTC.trade"], "notices": True}
    (ack,) = await _notices_and_answer(client, subscribe)
    assert (ack["epoch"], ack["offset"]) == ("e", 2)
    rig.hub.note(Mark("f" if gap.reason is GapReason.STREAM else "e", 6, gaps=(gap,)))
    first, *_, answer = await _notices_and_answer(client, command)
    assert (first["type"], first["reason"]) == ("gap", gap.reason.value)
    assert answer["type"] in {"pong", "subscription_ack"}


async def test_clients_that_ask_while_a_notice_is_due_are_all_answered(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    listeners = [desk.listener() for _ in range(1001)]
    desk.notices.declare(Gap(GapReason.SHED, 1, 7, 7))
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(desk.notices.tell_due)
    assert [len(listener.told()) for listener in listeners] == [1] * 1001
    with trio.testing.assert_no_checkpoints():
        await desk.notices.tell_due()


async def test_a_cancelled_notification_still_reaches_all_listeners(desk: Desk) -> None:
    listeners = [desk.listener() for _ in range(1001)]
    desk.notices.declare(Gap(GapReason.WINDOW, 1, 7, 7))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.notices.tell_due)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert [len(listener.told()) for listener in listeners] == [1] * 1001


async def test_a_notice_without_room_comes_before_the_next_position(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    rig.hub.note(Mark("e", 2))
    client = await rig.subscribe("BTC.trade")
    (connection,) = rig.hub.members
    rig.hub.registry.audience[connection.outbound] = {
        GapReason.WINDOW: Gap(GapReason.WINDOW, 1, 2, 2)
    }
    gap, pong = await _notices_and_answer(client, {"type": "heartbeat", "nats": True})
    assert (gap["type"], gap["to"], pong["offset"]) == ("gap", 2, 2)
    assert rig.hub.registry.audience[connection.outbound] == {}


async def test_a_notice_names_the_epoch_in_which_it_began(nursery: trio.Nursery) -> None:
    hub: Hub[Any] = Hub(read_settings({}), Ledger())
    hub.note(Mark("before", 7))
    listeners = [FakeListener() for _ in range(600)]
    audience: dict[Any, Gaps] = hub.registry.audience
    for listener in listeners:
        audience[listener] = {GapReason.SHED: Gap(GapReason.SHED, 1, 7, 7)}
    inbound_send, inbound_receive = trio.open_memory_channel[NatsMessage | Mark](2)
    nursery.start_soon(hub.run, inbound_receive)
    await trio.testing.wait_all_tasks_blocked()
    inbound_send.send_nowait(Mark("after", 0))
    await hub.notices.tell()
    assert {told["epoch"] for listener in listeners for told in listener.told()} == {"before"}
    await trio.testing.wait_all_tasks_blocked()
    assert hub.resume_buffer.epoch == "after"
    inbound_send.close()


# --- whether NATS is there


def kinds_of(listener: FakeListener) -> list[tuple[str, str]]:
    objects = objects_in(b"".join(listener.sent))
    listener.sent.clear()
    return [(one["type"], one["nats"]) for one in objects]


async def test_those_with_notices_learn_that_nats_is_gone_and_that_it_is_back(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    status = desk.notices._nats_status
    early, full = desk.listener(), desk.listener(is_reading=False)
    async with desk.running():
        await trio.sleep(2.5)
        assert kinds_of(early) == []
        status.is_connected = False
        await trio.sleep(2)
        assert kinds_of(early) == [("upstream", "disconnected")]
        late = desk.listener()
        await trio.sleep(3)
        assert kinds_of(early) == []
        assert kinds_of(late) == [("upstream", "disconnected")]
        status.is_connected = full.is_reading = True
        await trio.sleep(3)
        assert kinds_of(early) == kinds_of(late) == [("upstream", "connected")]
        assert kinds_of(full) == [], "it never knew"
        assert not desk.registry.told_gone
