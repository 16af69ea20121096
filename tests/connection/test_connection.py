from __future__ import annotations

import gc
import json

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection

from tests.server_rig import UPGRADE, Rig, receive_all
from trio_odin.connection.connection import Connection
from trio_odin.connection.session import Session
from trio_odin.lab.fleet.dialects import masked_frame
from trio_odin.ledger.reasons import CloseReason, Dropped
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.frames import close_frame


async def closed_with(client: WebSocketConnection) -> tuple[int, str | None]:
    """Read to the end and return the close code and reason."""
    while True:
        try:
            await client.get_message()
        except ConnectionClosed as closed:
            return (closed.reason.code, closed.reason.reason) if closed.reason else (1006, None)


async def test_a_subscriber_gets_its_events_numbered(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    client = await rig.subscribe("BTC.trade")
    rig.publish("ETH.trade")
    for number in range(1, 4):
        rig.publish("BTC.trade", b'{"n":%d}' % number)
        message = json.loads(await client.get_message())
        assert list(message) == ["seq", "ts", "type", "priority", "data", "channel"]
        assert (message["seq"], message["data"]) == (number, {"n": number})
    await client.aclose()
    rig.check_balance()


async def test_the_peer_closing_ends_the_connection_and_its_subscriptions(
    nursery: trio.Nursery,
) -> None:
    rig = Rig(nursery)
    client = await rig.subscribe("BTC.trade")
    await client.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert rig.ledger.traffic.closed == {"peer_closed": 1}
    assert not rig.hub.members
    assert rig.hub.registry.channel_count() == 0
    assert rig.listener.admitted == 0


async def test_a_vanished_peer_ends_the_connection(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    client = await rig.subscribe("BTC.trade")
    await client._stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert rig.ledger.traffic.closed == {"peer_gone": 1}
    assert rig.listener.admitted == 0


class Steps(trio.abc.Instrument):
    """Counts the steps of all tasks but one."""

    def __init__(self) -> None:
        self._own = trio.lowlevel.current_task()
        self.count = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is not self._own


async def test_a_vanished_peer_ends_the_connection_in_two_steps(nursery: trio.Nursery) -> None:
    """Ten thousand may vanish at once, and each step delays the events of the others."""
    rig = Rig(nursery)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    far = await trio.testing.open_stream_to_socket_listener(listeners[0])
    near = await listeners[0].accept()
    await listeners[0].aclose()
    nursery.start_soon(rig.listener.serve, near)
    await far.send_all(UPGRADE)
    assert (await far.receive_some()).startswith(b"HTTP/1.1 101 ")
    await trio.testing.wait_all_tasks_blocked()
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    await far.aclose()
    while rig.listener.admitted:
        await trio.lowlevel.checkpoint()
    trio.lowlevel.remove_instrument(steps)
    assert rig.ledger.traffic.closed == {"peer_gone": 1}
    assert steps.count <= 2


async def test_a_binary_message_is_counted_and_ignored(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    client = await rig.connect()
    await client.send_message(b'{"type":"heartbeat"}')
    await client.send_message('{"type":"heartbeat","id":1}')
    assert json.loads(await client.get_message())["id"] == 1
    assert rig.ledger.traffic.binary_ignored == 1


async def test_a_message_over_the_limit_closes_with_1009(nursery: trio.Nursery) -> None:
    rig = Rig(nursery, WS_MAX_MESSAGE_BYTES="100")
    client = await rig.connect()
    await client.send_message("x" * 101)
    assert (await closed_with(client))[0] == 1009
    await trio.testing.wait_all_tasks_blocked()
    assert rig.ledger.traffic.closed == {"message_too_big": 1}


async def test_eviction_cancels_the_connection_with_its_first_reason(
    nursery: trio.Nursery,
) -> None:
    rig = Rig(nursery)
    await rig.subscribe("BTC.trade")
    (connection,) = rig.hub.members
    connection.evict(CloseReason.KEEPALIVE_TIMEOUT)
    connection.evict(CloseReason.OUTBOX_FULL)  # the first reason stays
    rig.publish("BTC.trade")
    await trio.testing.wait_all_tasks_blocked()
    assert rig.ledger.traffic.closed == {"keepalive_timeout": 1}
    assert not rig.hub.members
    rig.check_balance()


async def test_a_client_that_never_reads_is_evicted_and_the_others_are_not(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery, WS_OUTBOX_CAPACITY="8")
    good = await rig.subscribe("BTC.trade")
    bad = await rig.subscribe("BTC.trade")
    (_, stuck) = rig.hub.members
    stuck.outbound.socket.stream = trio.testing.lockstep_stream_pair()[0]
    for number in range(1, 21):
        rig.publish("BTC.trade")
        assert json.loads(await good.get_message())["seq"] == number
    await trio.testing.wait_all_tasks_blocked()
    assert rig.ledger.traffic.closed == {"outbox_full": 1}
    assert stuck.close_reason is CloseReason.OUTBOX_FULL
    assert len(rig.hub.members) == 1
    rig.check_balance()
    await bad._stream.aclose()


async def test_a_fault_of_the_server_ends_one_connection_only(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(nursery)
    good = await rig.subscribe("BTC.trade")
    bad = await rig.connect()

    def fail(*_: object, **__: object) -> list[bytes]:
        raise RuntimeError("a bug")

    with monkeypatch.context() as broken:
        broken.setattr(Session, "receive", fail)
        await bad.send_message("anything")
        await trio.testing.wait_all_tasks_blocked()
    assert rig.ledger.traffic.closed == {"internal_error": 1}
    rig.publish("BTC.trade")
    assert json.loads(await good.get_message())["seq"] == 1


async def test_leaving_empties_the_outbox_then_closes_with_1001(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    client = await rig.subscribe("BTC.trade")
    (connection,) = rig.hub.members
    for _ in range(5):
        rig.publish("BTC.trade")
    connection.leave()
    numbers = [json.loads(await client.get_message())["seq"] for _ in range(5)]
    assert numbers == [1, 2, 3, 4, 5]
    assert await closed_with(client) == (1001, "Server is shutting down")
    await trio.testing.wait_all_tasks_blocked()
    assert rig.ledger.traffic.closed == {"draining": 1}
    rig.check_balance()


async def test_leaving_does_not_wait_for_a_peer_that_never_reads(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery, WS_DRAIN_SECONDS="2s")
    await rig.subscribe("BTC.trade")
    (connection,) = rig.hub.members
    connection.outbound.socket.stream = trio.testing.lockstep_stream_pair()[0]
    rig.publish("BTC.trade")
    started = trio.current_time()
    connection.leave()
    await rig.listener.wait_empty()
    assert trio.current_time() - started <= 2 + 3 + 0.1
    rig.check_balance()


async def test_a_silent_client_ends_one_ping_interval_after_the_deadline(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery)
    nursery.start_soon(rig.wheel.run)
    alive = await rig.subscribe("BTC.trade")
    dead = await rig.subscribe("BTC.trade")
    (_, silent) = rig.hub.members
    silent.outbound.socket.stream = trio.testing.lockstep_stream_pair()[0]
    for _ in range(3):
        await trio.sleep(30)
        await alive.send_message('{"type":"heartbeat"}')
        assert json.loads(await alive.get_message())["type"] == "pong"
    assert silent.close_reason is CloseReason.KEEPALIVE_TIMEOUT
    assert len(rig.hub.members) == 1
    rig.publish("BTC.trade")
    assert json.loads(await alive.get_message())["seq"] == 1
    await dead._stream.aclose()


PING_OF_A_CLIENT = b"\x89\x80\x00\x00\x00\x00"


async def test_a_ping_during_a_drain_does_not_drop_queued_messages(
    nursery: trio.Nursery,
) -> None:
    rig = Rig(nursery)
    client = await rig.subscribe("BTC.trade")
    (connection,) = rig.hub.members
    for _ in range(50):  # a stream in memory takes nothing directly: every envelope waits
        rig.publish("BTC.trade")
    connection.leave()
    await client._stream.send_all(PING_OF_A_CLIENT)
    seqs = [json.loads(await client.get_message())["seq"] for _ in range(50)]
    assert seqs == list(range(1, 51))
    assert (await closed_with(client))[0] == 1001
    await rig.listener.wait_empty()
    assert rig.ledger.traffic.closed == {"draining": 1}
    assert rig.ledger.deliveries.dropped.total() == 0
    rig.check_balance()


async def test_a_ping_after_an_oversized_message_is_not_a_server_fault(
    nursery: trio.Nursery,
) -> None:
    rig = Rig(nursery, WS_MAX_MESSAGE_BYTES="100")
    client = await rig.connect()
    too_big = masked_frame(0x81, b"x" * 101)
    await client._stream.send_all(too_big + PING_OF_A_CLIENT + too_big)
    assert (await closed_with(client))[0] == 1009
    await rig.listener.wait_empty()
    assert rig.ledger.traffic.closed == {"message_too_big": 1}


async def test_pongs_are_signs_of_life_and_messages_between_them_arrive(
    nursery: trio.Nursery,
) -> None:
    left, right = trio.socket.socketpair()
    rig = Rig(nursery)
    pong = masked_frame(0x8A, b"")
    command = masked_frame(0x81, b'{"type":"heartbeat","id":1}')
    async with trio.SocketStream(left) as client:
        nursery.start_soon(rig.listener.serve, trio.SocketStream(right))
        await client.send_all(UPGRADE)
        await client.receive_some()
        (connection,) = rig.hub.members
        for piece in (pong, command, pong, pong + command, pong, command[:9], command[9:], pong):
            before = connection.outbound.heard_at
            await client.send_all(piece)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert connection.outbound.heard_at > before
        # Six bytes like those of a pong, but in the middle of a message.
        binary = masked_frame(0x82, b"x" * 9 + pong + b"x")
        for piece in (binary[:15], binary[15:21], binary[21:]):
            await client.send_all(piece)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert rig.ledger.traffic.messages_received == 4
        assert rig.ledger.traffic.binary_ignored == 1
    await rig.listener.wait_empty()
    assert rig.ledger.traffic.closed == {"peer_gone": 1}


async def test_empty_fragments_are_not_collected(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    client = await rig.connect()
    (connection,) = rig.hub.members
    fragment = masked_frame(0x00, b"")
    await client._stream.send_all(masked_frame(0x01, b"") + fragment * 63)
    await trio.testing.wait_all_tasks_blocked()
    assert len(connection._websocket._message_parts) == 0


async def test_a_close_unanswered_after_a_big_message_ends_in_three_seconds(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    left, right = trio.socket.socketpair()
    rig = Rig(nursery, WS_MAX_MESSAGE_BYTES="100")
    async with trio.SocketStream(left) as client:
        nursery.start_soon(rig.listener.serve, trio.SocketStream(right))
        await client.send_all(UPGRADE)
        with trio.fail_after(1000):
            assert (await client.receive_some()).startswith(b"HTTP/1.1 101")
            started = trio.current_time()
            await client.send_all(masked_frame(0x81, b"x" * 101))
            await rig.listener.wait_empty()
    assert trio.current_time() - started < 10
    assert rig.ledger.traffic.closed == {"message_too_big": 1}


async def test_a_failed_connection_is_freed_without_the_garbage_collector(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    rig = Rig(nursery)
    gc.collect()
    before = connections_alive()
    gc.disable()
    try:
        client = await rig.connect()
        monkeypatch.setattr(Session, "receive", fail)
        await client.send_message("{}")
        await closed_with(client)
        await rig.listener.wait_empty()
        await trio.testing.wait_all_tasks_blocked()
        assert rig.ledger.traffic.closed == {"internal_error": 1}
        assert connections_alive() == before
    finally:
        gc.enable()


async def test_no_envelope_follows_a_close_frame(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    client = await rig.subscribe("BTC.trade")
    (connection,) = rig.hub.members
    await connection.outbound.send_all(close_frame(1000, ""))
    rig.publish("BTC.trade")
    assert rig.ledger.deliveries.written == 0
    assert rig.ledger.deliveries.dropped == {Dropped.CLOSING: 1}
    assert await closed_with(client) == (1000, None)
    rig.check_balance()


def connections_alive() -> int:
    return sum(isinstance(thing, Connection) for thing in gc.get_objects())


async def test_an_ended_connection_is_freed_without_the_garbage_collector(
    nursery: trio.Nursery,
) -> None:
    rig = Rig(nursery)
    gc.collect()
    before = connections_alive()
    gc.disable()
    try:
        client = await rig.subscribe("BTC.trade")
        assert connections_alive() == before + 1
        await client.aclose()
        await rig.listener.wait_empty()
        await trio.testing.wait_all_tasks_blocked()
        assert connections_alive() == before
    finally:
        gc.enable()


async def test_no_reply_follows_a_close_frame(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    await rig.connect()
    (connection,) = rig.hub.members
    await connection.outbound.send_all(close_frame(1000, ""))
    with pytest.raises(trio.BrokenResourceError):
        await connection.outbound.send_all(b"late")


async def test_a_drain_does_not_wait_for_one_that_is_closing(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery, WS_MAX_MESSAGE_BYTES="100")
    client = await rig.subscribe("BTC.trade")
    (connection,) = rig.hub.members
    rig.publish("BTC.trade")
    started = trio.current_time()
    await client.send_message("x" * 101)
    await trio.testing.wait_all_tasks_blocked()
    connection.leave()
    assert json.loads(await client.get_message())["seq"] == 1
    assert (await closed_with(client))[0] in {1001, 1009}
    await rig.listener.wait_empty()
    assert trio.current_time() == started
    rig.check_balance()


async def test_a_drain_waits_three_seconds_for_the_close_answer(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery)
    stream = rig.open_stream()
    await stream.send_all(UPGRADE)
    await stream.receive_some()
    (connection,) = rig.hub.members
    started = trio.current_time()
    connection.leave()
    assert (await receive_all(stream)).startswith(b"\x88\x19\x03\xe9")
    assert trio.current_time() - started == pytest.approx(3)
    assert rig.ledger.traffic.closed == {"draining": 1}


async def test_deferred_events_are_numbered_before_resumed_ones(
    nursery: trio.Nursery,
) -> None:
    rig = Rig(nursery)
    rig.hub.nats_status.is_connected = True
    rig.hub.resume_buffer.add(
        NatsMessage("odin.token.ETH.trade", b"1", 1, trio.current_time()), "ETH.trade"
    )
    client = await rig.subscribe("BTC.trade")
    rig.ledger.publications.received += 1
    deferred = NatsMessage("odin.token.BTC.trade", b"2", 2, trio.current_time())
    rig.hub.publish(deferred, is_alone=False)  # the client is not flushed yet
    command = {"type": "subscribe", "channels": ["ETH.trade"], "after": 0}
    await client.send_message(json.dumps(command))
    received = [json.loads(await client.get_message()) for _ in range(3)]
    assert [(one.get("seq"), one["type"]) for one in received] == [
        (1, "price:update"),
        (None, "subscription_ack"),
        (2, "price:update"),
    ]
    rig.check_balance()


async def test_a_client_that_does_not_read_has_one_answer_waiting(
    nursery: trio.Nursery,
) -> None:
    """Answers are never refused, so only one waits, about as long as its command."""
    rig = Rig(nursery, WS_COMMAND_BURST="1000")
    stream = rig.open_stream()
    await stream.send_all(UPGRADE)
    await stream.receive_some()
    (connection,) = rig.hub.members
    unread = trio.testing.lockstep_stream_pair()[0]
    connection.outbound.socket.stream = trio.StapledStream(
        unread, connection.outbound.socket.stream
    )
    channels = [f"A{number:057}.trade" for number in range(200)]
    command = json.dumps({"type": "unsubscribe", "channels": channels}).encode()
    assert 10_000 < len(command) < 16_384
    with trio.move_on_after(0.5):
        for _ in range(50):
            await stream.send_all(masked_frame(0x81, command))
    await trio.testing.wait_all_tasks_blocked()
    used = rig.hub.outbox_rules.budget.used_bytes
    assert len(command) // 2 < used < len(command) + 1000
    assert rig.ledger.traffic.messages_received == 1, "the next one is read when it is out"
    connection.evict(CloseReason.OUTBOX_FULL)
    await rig.listener.wait_empty()
    rig.check_balance()
