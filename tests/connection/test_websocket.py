from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from wsproto import ConnectionType
from wsproto.connection import Connection as Protocol
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    TextMessage,
)

from trio_odin.connection import websocket as websocket_module
from trio_odin.connection.websocket import ServerWebSocket

Taken = list[str | bytes]


class Client:
    """The other end: wsproto as a client after its handshake."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._protocol = Protocol(ConnectionType.CLIENT)

    async def send(self, *events: Event) -> None:
        """Send all of `events` in one piece, so that one read of the server gets them."""
        await self._stream.send_all(b"".join(self._protocol.send(event) for event in events))

    async def receive(self, number: int = 1) -> list[Event]:
        """The next events from the server, in however many pieces they come."""
        events: list[Event] = []
        with trio.fail_after(5):
            while len(events) < number:
                data = bytes(await self._stream.receive_some())
                assert data, "the server has closed the stream"
                self._protocol.receive_data(data)
                events += self._protocol.events()
        return events

    async def receive_end(self) -> None:
        """Fail if there is anything but the end of the stream."""
        with trio.fail_after(5):
            assert await self._stream.receive_some() == b""


def pair(
    take: Callable[[str | bytes], Awaitable[None]], **limits: Any
) -> tuple[ServerWebSocket, Client]:
    near, far = trio.testing.memory_stream_pair()
    return websocket(near, take, **limits), Client(far)


def websocket(
    stream: trio.abc.Stream,
    take: Callable[[str | bytes], Awaitable[None]],
    *,
    max_message_bytes: int = 1024,
    max_fragments: int = 64,
    may_answer_ping: Callable[[], bool] = lambda: True,
) -> ServerWebSocket:
    return ServerWebSocket(
        stream,
        max_message_bytes=max_message_bytes,
        max_fragments=max_fragments,
        take=take,
        may_answer_ping=may_answer_ping,
    )


def taking() -> tuple[Taken, Callable[[str | bytes], Awaitable[None]]]:
    taken: Taken = []

    async def take(message: str | bytes) -> None:
        taken.append(message)

    return taken, take


CLOSE = CloseConnection(code=1000, reason="bye")


def test_trio_websocket_sets_what_we_know_and_no_more() -> None:
    """Fails when it has a new attribute: see whether all connections can share it."""
    own = {"_stream", "_stream_lock", "_wsproto"}
    plain = {"_id", "_path", "_subprotocol", "_initial_request", "_max_message_size"}
    plain |= {"_receive_buffer_size", "_handshake_headers", "_message_size", "_close_reason"}
    plain |= {"_reject_status", "_reject_headers", "_reject_body", "_reader_running"}
    unused = {"_recv_channel", "_send_channel", "_pings", "_connection_proposal", "_message_parts"}
    unused |= {"_open_handshake", "_close_handshake", "_for_testing_peer_closed_connection"}
    assert vars(websocket_module._MADE_ONCE).keys() == own | plain | unused


async def test_what_ends_one_connection_leaves_all_others_alone(nursery: trio.Nursery) -> None:
    """All connections share what trio-websocket's constructor makes, as none of them uses it."""
    taken, take = taking()
    (ended, leaver), (server, client) = pair(take), pair(take)
    nursery.start_soon(server.read)
    async with trio.open_nursery() as ending:
        ending.start_soon(ended.read)
        await leaver.send(Ping(), Pong(b"x"), CLOSE)
        assert await leaver.receive(2) == [Pong(b""), CloseConnection(1000, "bye")]
    late, latest = pair(take)
    nursery.start_soon(late.read)
    for one in (client, latest):
        await one.send(TextMessage("still here"), Ping(b"p"))
        assert await one.receive() == [Pong(b"p")]
    assert taken == ["still here"] * 2
    assert ended.closed is not None
    assert server.closed is late.closed is None
    await latest.send(CLOSE)
    assert await latest.receive() == [CloseConnection(1000, "bye")]


async def test_messages_are_handed_over_in_order_and_fragmented_ones_whole(
    nursery: trio.Nursery,
) -> None:
    taken, take = taking()
    server, client = pair(take)
    nursery.start_soon(server.read)
    fragments: list[Message[str]] = [
        TextMessage("a ", message_finished=False),
        TextMessage("message ", message_finished=False),
        TextMessage("in parts", message_finished=True),
    ]
    await client.send(TextMessage("first"), fragments[0], Ping(b"between"), *fragments[1:])
    await client.send(BytesMessage(b"\0\xff"), TextMessage(""), TextMessage("last"), CLOSE)
    assert await client.receive(2) == [Pong(b"between"), CLOSE]
    await trio.testing.wait_all_tasks_blocked()
    assert taken == ["first", "a message in parts", b"\0\xff", "", "last"]


async def test_nothing_is_read_while_a_message_is_handled(nursery: trio.Nursery) -> None:
    taken: Taken = []
    may_go_on = trio.Event()
    reads = 0

    async def take(message: str | bytes) -> None:
        taken.append(message)
        await may_go_on.wait()

    async def count_read() -> None:
        nonlocal reads
        reads += 1

    near, far = trio.testing.memory_stream_pair()
    near.receive_stream.receive_some_hook = count_read
    server = websocket(near, take)
    client = Client(far)
    nursery.start_soon(server.read)
    await client.send(TextMessage("one"))
    await trio.testing.wait_all_tasks_blocked()
    await client.send(TextMessage("two"))
    await trio.testing.wait_all_tasks_blocked()
    assert (taken, reads) == (["one"], 1)
    may_go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (taken, reads) == (["one", "two"], 3)
    await client.send(CLOSE)


@pytest.mark.parametrize("fault", [KeyError("x"), ValueError("x"), trio.TooSlowError("x")])
async def test_a_fault_in_handling_a_message_is_raised(fault: Exception) -> None:
    async def take(_: str | bytes) -> None:
        raise fault

    server, client = pair(take)
    await client.send(TextMessage("x"), CLOSE)
    with pytest.raises(type(fault)) as caught:
        await server.read()
    assert caught.value is fault


@pytest.mark.parametrize("event", [Ping(b"x"), CLOSE])
async def test_a_peer_that_has_gone_before_its_answer_ends_the_connection(event: Event) -> None:
    _, take = taking()
    server, client = pair(take)
    await client.send(event)

    async def gone() -> None:
        raise trio.BrokenResourceError

    server._stream.send_stream.send_all_hook = gone  # type: ignore[attr-defined]
    with trio.fail_after(1):
        await server.read()


async def test_a_ping_gets_its_pong(nursery: trio.Nursery) -> None:
    taken, take = taking()
    server, client = pair(take)
    nursery.start_soon(server.read)
    await client.send(Ping(b"are you there"))
    assert await client.receive() == [Pong(b"are you there")]
    await client.send(Ping(b""), CLOSE)
    assert await client.receive(2) == [Pong(b""), CLOSE]
    assert taken == []


async def test_an_unsolicited_pong_is_ignored(nursery: trio.Nursery) -> None:
    taken, take = taking()
    server, client = pair(take)
    nursery.start_soon(server.read)
    await client.send(Pong(b"unasked"), TextMessage("and on"), CLOSE)
    assert await client.receive() == [CLOSE]
    assert taken == ["and on"]


async def test_an_oversized_message_is_closed_and_not_taken(nursery: trio.Nursery) -> None:
    taken, take = taking()
    server, client = pair(take, max_message_bytes=3)
    nursery.start_soon(server.read)
    await client.send(
        TextMessage("abc"), TextMessage("ab", message_finished=False), TextMessage("cd")
    )
    (close,) = await client.receive()
    assert isinstance(close, CloseConnection)
    assert close.code == 1009
    await client.send(close.response())
    assert taken == ["abc"]
    assert server.closed is not None
    assert server.closed.code == 1009


async def test_the_message_limit_is_in_bytes_and_not_characters(
    nursery: trio.Nursery,
) -> None:
    taken, take = taking()
    server, client = pair(take, max_message_bytes=8)
    nursery.start_soon(server.read)
    await client.send(TextMessage("\N{ELEPHANT}" * 2), TextMessage("\N{ELEPHANT}" * 3))
    (close,) = await client.receive()
    assert close == CloseConnection(code=1009, reason="Exceeded maximum message size: 8 bytes")
    await client.send(CLOSE)
    assert taken == ["\N{ELEPHANT}" * 2]


@pytest.mark.parametrize("part", ["x", ""])
async def test_a_message_in_too_many_fragments_is_closed_and_not_taken(
    part: str, nursery: trio.Nursery
) -> None:
    taken, take = taking()
    server, client = pair(take, max_fragments=3)
    nursery.start_soon(server.read)
    fragment = TextMessage(part, message_finished=False)
    last = TextMessage(part)
    await client.send(fragment, Ping(b"between"), fragment, last, fragment, fragment, last)
    await client.send(fragment, fragment, fragment, fragment)
    pong, close = await client.receive(2)
    assert pong == Pong(b"between")
    assert close == CloseConnection(code=1009, reason="Exceeded maximum number of fragments: 3")
    assert taken == [part * 3] * 2
    assert server.refused_with == 1009
    await client.send(close.response())


async def test_the_pieces_of_a_frame_do_not_count_as_fragments(
    nursery: trio.Nursery,
) -> None:
    taken, take = taking()
    near, far = trio.testing.memory_stream_pair()
    server = websocket(near, take, max_fragments=1)
    nursery.start_soon(server.read)
    text = "\N{ELEPHANT} never forgets " * 20
    for event in (TextMessage(text), BytesMessage(text.encode())):
        for byte in Protocol(ConnectionType.CLIENT).send(event):
            await far.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
            assert len(server._pieces) <= 65
    assert taken == [text, text.encode()]
    assert server.refused_with is None
    await far.aclose()


async def test_bytes_after_the_violating_frame_are_ignored(
    nursery: trio.Nursery,
) -> None:
    taken, take = taking()
    server, client = pair(take, max_message_bytes=3)
    await client.send(TextMessage("abcd"), TextMessage("abc"), CLOSE)
    with trio.fail_after(5):
        await server.read()
    assert server.closed is not None
    assert (server.refused_with, taken) == (1009, [])


@pytest.mark.parametrize("code", [1000, 1002, 1007, 1009])
async def test_a_peer_may_close_with_a_private_code(code: int) -> None:
    _, take = taking()
    server, client = pair(take)
    await client.send(CloseConnection(code=code))
    with trio.fail_after(5):
        await server.read()
    assert server.closed is not None
    assert server.closed.code == code
    assert server.refused_with is None


async def test_a_ping_over_the_rate_is_not_answered(nursery: trio.Nursery) -> None:
    _, take = taking()
    allowed = iter([True, False, True])
    server, client = pair(take, may_answer_ping=lambda: next(allowed))
    nursery.start_soon(server.read)
    await client.send(Ping(b"1"), Ping(b"2"), Ping(b"3"), CLOSE)
    assert await client.receive(3) == [Pong(b"1"), Pong(b"3"), CLOSE]


async def test_a_peer_that_vanishes_ends_the_reading_with_1006() -> None:
    near, far = trio.testing.memory_stream_pair()
    _, take = taking()
    server = websocket(near, take)
    await far.aclose()
    with trio.fail_after(5):
        await server.read()
    assert server.closed is not None
    assert server.closed.code == 1006


async def test_the_server_closes_once_and_the_answer_completes_it() -> None:
    near, far = trio.testing.memory_stream_pair()
    _, take = taking()
    server = websocket(near, take)
    client = Client(far)
    frame = server.start_closing(1001, "leaving")
    assert frame == b"\x88\x09\x03\xe9leaving"
    assert server.start_closing(1001, "leaving") is None
    await near.send_all(frame)
    (close,) = await client.receive()
    assert isinstance(close, CloseConnection)
    await client.send(close.response())
    with trio.fail_after(5):
        await server.read()
    await client.receive_end()
    assert server.closed is not None
    assert server.closed.code == 1001


async def test_after_a_close_by_the_peer_the_server_sends_no_close() -> None:
    _, take = taking()
    server, client = pair(take)
    await client.send(CLOSE)
    with trio.fail_after(5):
        await server.read()
    assert server.start_closing(1001, "leaving") is None
    assert server.closed is not None
    assert (server.closed.code, server.closed.reason) == (1000, "bye")


async def test_others_have_a_turn_between_the_commands_of_one_read(nursery: trio.Nursery) -> None:
    """A hundred commands in one piece must not hold up everyone for all of their work."""
    turns = 0
    taken_at: list[int] = []

    async def take(_: str | bytes) -> None:
        taken_at.append(turns)

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    server, client = pair(take)
    await client.send(*(TextMessage(data=str(number)) for number in range(5)))
    nursery.start_soon(other)
    nursery.start_soon(server.read)
    with trio.fail_after(5):
        while len(taken_at) < 5:
            await trio.lowlevel.checkpoint()
    assert len(set(taken_at)) > 2
    nursery.cancel_scope.cancel(reason="the test is over")
