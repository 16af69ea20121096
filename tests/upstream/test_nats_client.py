"""The client against bytes that a server may send, well-formed or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, TypeVar

import nats.errors
import pytest
import trio
import trio.testing
import trio_asyncio
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport

from trio_odin.upstream.nats_client import (
    NoAnswer,
    Refused,
    TotalClient,
    Unreadable,
    spare_detours,
)
from trio_odin.upstream.nats_link import NatsLink, nats_link

T = TypeVar("T")
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_INFO = b'INFO {"server_id":"x","version":"2.15.1","headers":true,"max_payload":1048576}\r\n'
_SECONDS = 20


def in_asyncio(work: Coroutine[Any, Any, T]) -> T:
    async def within() -> T:
        async with asyncio.timeout(_SECONDS):
            return await work

    return asyncio.run(within())


async def fake_nats(*sent: bytes, hangs_up: bool = False) -> tuple[asyncio.Server, str]:
    """A server that sends these chunks to a subscriber and continues to answer pings.

    If it `hangs_up`, it closes the connection instead.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_INFO)
        try:
            async for line in reader:
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
                elif line.startswith(b"SUB"):
                    for chunk in sent:
                        writer.write(chunk)
                        await writer.drain()
                        await asyncio.sleep(0)
                    if hangs_up:
                        break
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def received(count: int, *sent: bytes) -> list[Msg]:
    """The messages that a listener gets; the connection survives them."""
    messages: list[Msg] = []
    enough = asyncio.Event()

    def take(message: Msg) -> None:
        messages.append(message)
        if len(messages) == count:
            enough.set()

    server, url = await fake_nats(*sent)
    async with server, nats_link([url], name="test", on_error=_ignore) as link:
        await link.client.listen("a.>", take)
        await link.while_up(enough.wait())
        await link.client.flush(timeout=_SECONDS)
        assert link.is_up
    return messages


async def lost_by(
    *sent: bytes,
    take: Callable[[Msg], None] | None = None,
    is_the_last: bool = False,
) -> Exception:
    """The error with which the connection ends."""

    def ignore(_: Msg) -> None:
        pass

    server, url = await fake_nats(*sent, hangs_up=is_the_last)
    async with server, nats_link([url], name="test", on_error=_ignore) as link:
        await link.client.listen("a.>", take or ignore)
        await link.wait_lost()
    assert link.lost_by is not None
    return link.lost_by


async def _ignore(link: NatsLink, error: Exception) -> None:
    pass


LINES = (
    b"MSG a.b 1 2\r\n{}\r\n"
    b"PING\r\n"
    b"PONG\r\n"
    b"MSG a.\xdc\x0bx 1 reply\x0c\xff 4\r\n\r\n\r\n\r\n"
    b"+OK\r\n"
    b"INFO {not json\r\n"
    b"INFO [1]\r\n"
    b"HMSG a.c 1 17 19\r\nNATS/1.0\r\nA:b\r\n\r\n[]\r\n"
    b"-ERR 'Permissions Violation for Publish to \"x\"'\r\n"
    b"MSG other 99 1\r\n1\r\n"
    b"HMSG _INBOX.x 1 27 27\r\nNATS/1.0 100 Idle\r\nA: b\r\n\r\n\r\n"
    b"MSG a.d 1 0\r\n\r\n"
)
SUBJECTS = ["a.b", "a.\\xdc\x0bx", "a.c", "_INBOX.x", "a.d"]


@given(cuts=st.lists(st.integers(0, len(LINES)), max_size=8))
def test_messages_do_not_depend_on_how_the_bytes_are_cut(cuts: list[int]) -> None:
    ends = [*sorted(cuts), len(LINES)]
    chunks = [LINES[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    messages = in_asyncio(received(len(SUBJECTS), *chunks))
    assert [message.subject for message in messages] == SUBJECTS
    assert [message.data for message in messages] == [b"{}", b"\r\n\r\n", b"[]", b"", b""]
    assert messages[1].reply == "reply\x0c\\xff"


def test_headers_are_read_only_in_messages_to_an_inbox() -> None:
    *_, event, control, _ = in_asyncio(received(len(SUBJECTS), LINES))
    assert event.headers is None
    assert control.headers == {"Status": "100", "Description": "Idle", "A": "b"}


@pytest.mark.parametrize("header", [b"N", b"NATS/1.0", b"NATS/1.0 \xff\xff\xff", b"\xff" * 40])
def test_malformed_headers_are_empty(header: bytes) -> None:
    line = b"HMSG _INBOX.x 1 %d %d\r\n%b\r\n" % (len(header), len(header), header)
    (message,) = in_asyncio(received(1, line))
    assert not message.headers


@pytest.mark.parametrize(
    "line",
    [
        b"WHAT\r\n",
        b"\r\n",
        b"MSG\r\n",
        b"MSG a.b 1\r\n",
        b"MSG a.b x 1\r\n1\r\n",
        b"MSG a.b 1 reply more 1\r\n1\r\n",
        b"HMSG a.b 1 x 1\r\n1\r\n",
        b"HMSG\r\n",
        b"MSG a 1 -15\r\n",
        b"MSG a -1 1\r\n1\r\n",
        b"MSG a 1 1_0\r\n",
        b"MSG a 1 99999999999\r\n",
        b"MSG a 1 \xd9\xa1\r\n",
    ],
)
def test_a_meaningless_line_ends_the_connection_and_is_shown(line: bytes) -> None:
    error = in_asyncio(lost_by(line))
    assert isinstance(error, Unreadable)
    assert line.decode().partition("\r")[0] in str(error)


def test_a_line_without_an_end_is_not_collected_forever() -> None:
    error = in_asyncio(lost_by(*[b"x" * 65_536] * 20))
    assert isinstance(error, Unreadable)
    assert len(str(error)) < 200


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"-ERR 'Maximum Subscriptions Exceeded'\r\n", "Maximum Subscriptions Exceeded"),
        (b"-ERR Stale\r\n", "Stale"),
        (b"-ERR '\xdc'\r\n", "\\xdc"),
        (b"-ERR\r\n", ""),
    ],
)
def test_an_error_of_nats_ends_the_connection_in_its_own_words(line: bytes, sentence: str) -> None:
    error = in_asyncio(lost_by(line))
    assert isinstance(error, nats.errors.Error)
    assert str(error) == sentence


def test_an_exception_of_a_listener_ends_the_connection() -> None:
    def stumble(_: Msg) -> None:
        raise KeyError("ours")

    error = in_asyncio(lost_by(LINES, take=stumble))
    assert isinstance(error, Unreadable)
    assert isinstance(error.__cause__, KeyError)


@pytest.mark.parametrize(
    ("last_words", "kind", "text"),
    [
        (b"", nats.errors.UnexpectedEOF, "unexpected EOF"),
        (b"INFO {}\r\n", nats.errors.UnexpectedEOF, "unexpected EOF"),
        (b"-ERR 'Authorization Violation'\r\n", Refused, "Authorization Violation"),
        (b"nonsense\r\n", Unreadable, "nonsense"),
        (b"PING\r\nMSG", nats.errors.UnexpectedEOF, "unexpected EOF"),
    ],
)
def test_an_end_directly_after_the_handshake_is_noticed_with_its_reason(
    last_words: bytes, kind: type[Exception], text: str
) -> None:
    async def until_lost() -> Exception | None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(_INFO)
            await reader.readuntil(b"PING\r\n")
            writer.write(b"PONG\r\n" + last_words)
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, nats_link([url], name="test", on_error=_ignore) as link:
            await link.wait_lost()
        return link.lost_by

    error = in_asyncio(until_lost())
    assert isinstance(error, kind)
    assert text in str(error)


async def test_a_fault_of_a_listener_ends_the_connection_though_more_comes() -> None:
    """Under trio-asyncio, which ends its loop at an exception that nobody handles."""

    async def until_lost() -> Exception | None:
        def fail(_: Msg) -> None:
            raise RuntimeError("our fault")

        server, url = await fake_nats(*[b"MSG odin.token.BTC.trade 1 2\r\n{}\r\n" * 50] * 3000)
        async with server, nats_link([url], name="test", on_error=_ignore) as link:
            await link.client.listen("odin.token.>", fail)
            await link.wait_lost()
            await asyncio.sleep(0.1)
        return link.lost_by

    with trio.fail_after(_SECONDS):
        async with trio_asyncio.open_loop() as loop:
            spare_detours(loop)
            error = await trio_asyncio.aio_as_trio(until_lost)()
    assert isinstance(error, Unreadable)
    assert str(error) == "RuntimeError: our fault"


def test_a_late_pong_does_no_harm() -> None:
    async def ping_twice() -> bool:
        late = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(_INFO)
            await reader.readuntil(b"PING\r\n")
            writer.write(b"PONG\r\n")
            await reader.readuntil(b"PING\r\n")
            await late.wait()
            writer.write(b"PONG\r\n")
            await reader.readuntil(b"PING\r\n")
            writer.write(b"PONG\r\n")
            await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, nats_link([url], name="test", on_error=_ignore) as link:
            with pytest.raises(nats.errors.TimeoutError):
                await link.client.flush(timeout=0.05)  # type: ignore[arg-type]
            late.set()
            await link.client.flush(timeout=_SECONDS)
            return link.is_up

    assert in_asyncio(ping_twice())


PIECES = st.sampled_from(
    [b"MSG a.b 1 2\r\n{}\r\n", b"MSG", b"HMSG", b"INFO", b"PING", b"PONG", b"-ERR", b"+OK", b"a.b",
     b" ", b"\t", b"\r", b"\n", b"\r\n", b"1", b"-1", b"-9", b"99", b"{", b"'", b"\xff", b"\x0b",
     b'{"connect_urls":["[",5,"a:b@c"],"ldm":1}', b"NATS/1.0 100 Idle\r\n"]
)  # fmt: skip


@given(st.lists(PIECES | st.binary(max_size=8), max_size=30))
def test_any_bytes_end_the_connection_only_in_expected_ways(
    pieces: list[bytes],
) -> None:
    error = in_asyncio(lost_by(b"".join(pieces), is_the_last=True))
    assert isinstance(error, Unreadable | Refused | nats.errors.UnexpectedEOF | OSError)
    assert error.__cause__ is None, "a fault of ours"


def test_the_overridden_methods_still_exist_in_nats_py() -> None:
    ours = {name for name in vars(TotalClient) if not name.startswith("__")}
    new = {
        "says_it_has_jetstream",
        "says_its_version",
        "listen",
        "unlisten",
        "publish_now",
        "_listen_before",
    }
    new |= {"_take_messages", "_message_of", "_take_first", "_take"}
    assert ours - new
    for name in ours - new:
        assert callable(getattr(Client, name)), name
    assert not [name for name in new if hasattr(Client, name)]
    client = Client()
    for name in ("_pongs", "_pongs_received", "_pings_outstanding", "_inbox_prefix", "_sid"):
        assert hasattr(client, name)
    assert hasattr(TcpTransport(), "_io_reader")  # type: ignore[no-untyped-call]
    assert "_buffer" in in_asyncio(_attributes_of_a_reader())


async def _attributes_of_a_reader() -> Collection[str]:
    return vars(asyncio.StreamReader())


async def test_reading_goes_on_without_a_turn_if_nothing_was_scheduled() -> None:
    async with trio_asyncio.open_loop() as loop:
        await trio.testing.wait_all_tasks_blocked()
        with trio.testing.assert_checkpoints():
            await loop.synchronize()
        spare_detours(loop)
        await trio.testing.wait_all_tasks_blocked()
        with trio.testing.assert_no_checkpoints():
            await loop.synchronize()


@given(st.integers(1, 5))
async def test_what_reading_scheduled_runs_before_the_next_read(callbacks: int) -> None:
    async with trio_asyncio.open_loop() as loop:
        spare_detours(loop)
        await trio.testing.wait_all_tasks_blocked()
        done: list[int] = []
        for number in range(callbacks):
            loop.call_soon(done.append, number)
        await loop.synchronize()
        assert done == list(range(callbacks))


@pytest.mark.parametrize("lost", [0, 3])
def test_a_lost_request_is_repeated(lost: int) -> None:
    async def ask() -> bytes:
        asked = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            writer.write(_INFO)
            async for line in reader:
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
                elif line.startswith(b"PUB question"):
                    asked += 1
                    reply = line.split(b" ")[2]
                    if asked > lost:
                        writer.write(b"MSG %b 1 6\r\nanswer\r\n" % reply)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, nats_link([url], name="test", on_error=_ignore) as link:
            answer = await link.client.request("question", b"", timeout=_SECONDS)
            with pytest.raises(NoAnswer, match=r"no answer to another.one within 0.1 s"):
                await link.client.request("another.one", b"", timeout=0.1)
        assert asked == lost + 1
        data: bytes = answer.data
        return data

    assert in_asyncio(ask()) == b"answer"
