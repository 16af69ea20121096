"""Requests that are too long, malformed or too slow get a clean answer soon, and count."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing

from tests.server_rig import UPGRADE, Rig, receive_all
from trio_odin.listener.endpoints import Pages
from trio_odin.net.http import receive_head
from trio_odin.settings.reading import read_settings
from trio_odin.wire import handshake
from trio_odin.wire.handshake import Upgrade

HEADERS = UPGRADE[:-2]
HEAD_MAX_BYTES = 16 * 1024  # by default


async def open_socket(nursery: trio.Nursery, rig: Rig) -> trio.SocketStream:
    left, right = trio.socket.socketpair()
    nursery.start_soon(rig.listener.serve, trio.SocketStream(right))
    return trio.SocketStream(left)


async def answer_to(nursery: trio.Nursery, rig: Rig, request: bytes) -> bytes:
    async with await open_socket(nursery, rig) as client:
        with trio.fail_after(5):
            await client.send_all(request)
            await client.send_eof()
            return await receive_all(client)


async def never() -> None:
    raise AssertionError("no page of these needs a snapshot")


REFUSED = {
    "2,000 headers": (HEADERS + b"".join(b"X-%d: y\r\n" % n for n in range(2000)) + b"\r\n", 431),
    "2,000 headers before the upgrade": (
        HEADERS.replace(b"Host", b"".join(b"X-%d: y\r\n" % n for n in range(2000)) + b"Host"),
        431,
    ),
    "2,000 empty headers": (HEADERS + b"a:\r\n" * 1950 + b"\r\n", 431),
    "32,000 spaces": (HEADERS + b"Sec-WebSocket-Protocol:" + b" " * 32_000 + b"\r\n\r\n", 431),
    "32,000 tabs in the upgrade": (
        UPGRADE.replace(b"Upgrade: ", b"Upgrade:" + b"\t" * 32_000),
        431,
    ),
    "no end": (HEADERS + b"X: " + b"y" * 300_000, 431),
    "a long target": (UPGRADE.replace(b"/ws", b"/ws?" + b"x" * 17_000), 431),
    "HTTP/1.0": (UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"), 426),
    "HTTP/1.0 without a host": (b"GET /ws HTTP/1.0\r\nUpgrade: websocket\r\n\r\n", 426),
    "HTTP/2.0": (UPGRADE.replace(b"HTTP/1.1", b"HTTP/2.0"), 505),
    "HTTP/2 with prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 505),
    "h2c": (UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: h2c"), 426),
    "a length": (HEADERS + b"Content-Length: 5\r\n\r\n", 400),
    "a length and the body": (HEADERS + b"Content-Length: 5\r\n\r\nhello", 400),
    "two lengths": (HEADERS + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n", 400),
    "chunks": (HEADERS + b"Transfer-Encoding: chunked\r\n\r\n", 400),
    "another host in the target": (UPGRADE.replace(b"/ws", b"http://b/ws"), 400),
    "POST": (UPGRADE.replace(b"GET", b"POST"), 405),
    "POST with a body": (
        UPGRADE.replace(b"GET", b"POST").replace(b"Host", b"Content-Length: 5\r\nHost") + b"hello",
        405,
    ),
    "a lower-case method": (UPGRADE.replace(b"GET", b"get"), 405),
    "CONNECT": (UPGRADE.replace(b"GET", b"CONNECT"), 405),
    "frames behind the request": (UPGRADE + b"\x81\x80\x00\x00\x00\x00", 400),
    "a request behind the request": (UPGRADE + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a folded header": (HEADERS + b"X: y\r\n z\r\n\r\n", 400),
    "a space before the colon": (HEADERS + b"X : y\r\n\r\n", 400),
    "bare line feeds": (HEADERS + b"X: y\nZ: z\r\n\r\n", 400),
    "a zero byte": (HEADERS + b"X: \0\r\n\r\n", 400),
    "two hosts": (HEADERS + b"Host: b\r\n\r\n", 400),
    "two keys": (HEADERS + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 400),
}


@pytest.mark.parametrize(("request_bytes", "status"), REFUSED.values(), ids=REFUSED)
async def test_a_request_is_answered_and_counted_once(
    request_bytes: bytes, status: int, nursery: trio.Nursery
) -> None:
    rig = Rig(nursery)
    rig.listener._respond = Pages(never).respond  # type: ignore[arg-type]
    answer = await answer_to(nursery, rig, request_bytes)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1") == 1
    await trio.testing.wait_all_tasks_blocked()
    assert rig.ledger.traffic.rejected == {"bad_request": 1}
    assert rig.listener.admitted == 0


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (b"Upgrade: websocket", b"Upgrade: websocket, h2c"),
        (b"Upgrade: websocket", b"Upgrade: h2c, websocket"),
        (b"GET /ws", b"GET http://a/ws"),
        (b"GET /ws", b"GET ws://A/ws?x=1"),
    ],
)
async def test_a_request_that_http_allows_is_accepted(
    here: bytes, there: bytes, nursery: trio.Nursery
) -> None:
    assert here in UPGRADE
    answer = await answer_to(nursery, Rig(nursery), UPGRADE.replace(here, there))
    assert answer.startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    "extra",
    [
        b"Sec-WebSocket-Protocol:" + b" " * 7000,
        b"Sec-WebSocket-Protocol: " + b"," * 7000,
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        b"Sec-WebSocket-Extensions: permessage-deflate, x-webkit-deflate-frame",
        b"Expect: 100-continue",
        b"Content-Length: 0",
    ],
)
async def test_an_offered_extension_is_not_negotiated(extra: bytes, nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    answer = (await answer_to(nursery, rig, HEADERS + extra + b"\r\n\r\n")).lower()
    assert answer.startswith(b"http/1.1 101 ")
    assert b"sec-websocket-extensions" not in answer
    assert b"sec-websocket-protocol" not in answer


async def test_a_slow_head_is_refused_once_it_is_too_long(
    nursery: trio.Nursery,
) -> None:
    rig = Rig(nursery)
    stream = rig.open_stream()
    for piece in [HEADERS, *[b"x"] * (HEAD_MAX_BYTES - len(HEADERS))]:
        await stream.send_all(piece)
    await trio.testing.wait_all_tasks_blocked()
    assert rig.ledger.traffic.rejected == {}
    await stream.send_all(b"x")
    assert (await stream.receive_some()).startswith(b"HTTP/1.1 431 ")
    await stream.aclose()
    assert rig.ledger.traffic.rejected == {"bad_request": 1}


async def test_the_maximum_length_of_a_head_is_a_reloadable_setting(nursery: trio.Nursery) -> None:
    """A token of 4,096 bytes and a cookie of 4,096 are a head of more than 8 KiB."""
    long = HEADERS + b"Authorization: Bearer " + b"x" * 4096 + b"\r\nCookie: " + b"y" * 4096
    many = HEADERS + b"\r\n".join(b"X-%d: y" % n for n in range(59))  # 64 in all
    rig = Rig(nursery)
    for request in (long, many):
        answer = await answer_to(nursery, rig, request + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 ")
    rig.listener.reload(read_settings({"WS_MAX_HEAD_BYTES": "8192", "WS_MAX_HEADERS": "63"}))
    page = long.replace(b"/ws", b"/health").replace(b"Upgrade: websocket\r\n", b"")
    for request in (long, many, page):
        answer = await answer_to(nursery, rig, request + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b"8192" in answer


async def test_a_client_that_still_sends_its_head_gets_the_refusal(
    nursery: trio.Nursery,
) -> None:
    rig = Rig(nursery)
    async with await open_socket(nursery, rig) as client, trio.open_nursery() as sending:
        sending.start_soon(client.send_all, HEADERS + b"X: " + b"y" * 900_000)
        with trio.fail_after(5):
            answer = await receive_all(client)
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_good_request_for_a_page_is_not_counted(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    rig.listener._respond = Pages(never).respond  # type: ignore[arg-type]
    for target, status in ((b"/", 200), (b"/nothing", 404)):
        answer = await answer_to(nursery, rig, b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert rig.ledger.traffic.rejected == {}


def seconds_for(work: Callable[[], object]) -> float:
    """Processor time of `work`, without the other load of the machine."""

    def once() -> float:
        started = time.thread_time()
        work()
        return time.thread_time() - started

    return min(once() for _ in range(5))


SPACES = b"Sec-WebSocket-Protocol:%b\r\n"


@pytest.mark.parametrize(
    "grown",
    [
        lambda n: b"Sec-WebSocket-Protocol:" + b" " * n + b"\r\n",
        lambda n: b"Sec-WebSocket-Protocol:" + b" " * n + b"\x7f\r\n",
        lambda n: b"Upgrade:" + b" \t" * (n // 2) + b"x\r\n",
        lambda n: b"Upgrade:" + b", \t" * (n // 3) + b"x\r\n",
        lambda n: b"Upgrade: x\r\n" * (n // 12),
        lambda n: b"Connection: " + b"," * n + b"\r\n",
        lambda n: b"X" * n + b"\r\n",
        lambda n: b"a:\r\n" * (n // 4) + b"\0\r\n",
        lambda n: b"".join(b"X-%d:\r\n" % m for m in range(n // 8)),
    ],
)
def test_the_time_to_read_a_head_is_linear_in_its_length(
    grown: Callable[[int], bytes],
) -> None:
    def read(head: bytes) -> None:
        if handshake.is_websocket_request(head):
            handshake.parse(head)

    heads = [HEADERS + grown(n) + b"\r\n" for n in (100_000, 800_000)]
    short, long = (seconds_for(partial(read, head)) for head in heads)
    assert long < 8 * short * 3 + 0.001


class Dribble:
    """A stream that gives a byte at a time, forever."""

    def __init__(self) -> None:
        self.receives = 0

    async def receive_some(self, _: int) -> bytes:
        self.receives += 1
        return b"x"


async def test_a_head_is_received_up_to_its_limit_and_no_further() -> None:
    dribble = Dribble()
    head = await receive_head(dribble, max_bytes=HEAD_MAX_BYTES)  # type: ignore[arg-type]
    assert len(head) == dribble.receives == HEAD_MAX_BYTES + 1


def test_a_head_of_the_maximum_length_is_read() -> None:
    head = HEADERS + SPACES % (b" " * (HEAD_MAX_BYTES - len(HEADERS) - 30)) + b"\r\n"
    assert isinstance(handshake.parse(head), Upgrade)
