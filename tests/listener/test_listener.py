from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.server_rig import Rig, receive_all
from trio_odin.ledger.counters import Ledger
from trio_odin.overload.load import Load

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


async def answer_to(rig: Rig, request: bytes) -> bytes:
    """The answer to `request`, up to the end of the connection."""
    stream = rig.open_stream()
    await stream.send_all(request)
    await stream.send_stream.aclose()
    with trio.fail_after(5):
        return await receive_all(stream)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_plain_http_is_answered_as_http(nursery: trio.Nursery) -> None:
    answer = await answer_to(Rig(nursery), b"GET /health?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert status_of(answer) == 200
    assert answer.endswith(b"\r\n\r\nGET /health\n")
    assert b"Access-Control-Allow-Origin: *\r\n" in answer


async def test_a_head_request_gets_no_body(nursery: trio.Nursery) -> None:
    answer = await answer_to(Rig(nursery), b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 17_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n", 431),
        (UPGRADE + b"X: y\r\n" * 100 + b"\r\n", 431),
        (UPGRADE + b"X: " + b"y" * 17_000 + b"\r\n\r\n", 431),
        (UPGRADE + b"X: \x7f\r\n\r\n", 400),
        (UPGRADE + b"\r\n\x81\x80\x00\x00\x00\x00", 400),
        (UPGRADE.replace(b"Version: 13", b"Version: 12") + b"\r\n", 426),
        (UPGRADE.replace(b"Sec-WebSocket-Key", b"X-Key") + b"\r\n", 400),
        (UPGRADE.replace(b"Host: localhost\r\n", b"") + b"\r\n", 400),
        (UPGRADE.replace(b"Host: localhost", b"Host: a b") + b"\r\n", 400),
        (UPGRADE.replace(b"Connection: Upgrade\r\n", b"") + b"\r\n", 400),
    ],
)
async def test_a_malformed_request_gets_a_clean_status(
    request_bytes: bytes, status: int, nursery: trio.Nursery
) -> None:
    rig = Rig(nursery)
    assert status_of(await answer_to(rig, request_bytes)) == status
    await trio.testing.wait_all_tasks_blocked()
    assert rig.listener.admitted == 0
    assert not rig.hub.members
    assert rig.ledger.traffic.rejected == {"bad_request": 1}


async def test_an_upgrade_is_answered_with_101(nursery: trio.Nursery) -> None:
    answer = await answer_to(Rig(nursery), UPGRADE + b"\r\n")
    assert status_of(answer) == 101
    assert b"sec-websocket-extensions" not in answer.lower()
    assert b"sec-websocket-protocol" not in answer.lower()


@pytest.mark.parametrize("head", [b"GET /ws?token=1 HTTP/1.1\r\n", b"GET /ws HTTP/1.1\r\n"])
async def test_the_upgrade_header_is_read_as_http_allows(
    head: bytes, nursery: trio.Nursery
) -> None:
    request = UPGRADE.replace(b"GET /ws HTTP/1.1\r\n", head)
    request = request.replace(b"Upgrade: websocket", b"uPgRaDe:WebSocket ")
    assert status_of(await answer_to(Rig(nursery), request + b"\r\n")) == 101


async def test_the_limit_of_connections_is_kept_before_the_upgrade(nursery: trio.Nursery) -> None:
    rig = Rig(nursery, WS_MAX_CONNECTIONS="2")
    clients = [await rig.connect(), await rig.connect()]
    answer = await answer_to(rig, UPGRADE + b"\r\n")
    assert status_of(answer) == 503
    assert b"\r\nRetry-After: " in answer
    assert answer.endswith(b"Server at capacity\n")
    assert rig.ledger.traffic.rejected == {"at_capacity": 1}
    await clients[0].aclose()
    await trio.testing.wait_all_tasks_blocked()
    await rig.connect()
    assert len(rig.hub.members) == 2


async def test_overload_and_draining_are_refused_with_their_reason(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    rig.admission.observe(Load(cpu_percent=99))
    assert (await answer_to(rig, UPGRADE + b"\r\n")).endswith(b"Server overloaded\n")
    rig.admission.is_draining = True
    assert (await answer_to(rig, UPGRADE + b"\r\n")).endswith(b"Server is shutting down\n")
    assert rig.ledger.traffic.rejected == {"overloaded": 1, "shutting_down": 1}


async def test_an_unfinished_request_is_timed_out(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery)
    stream = rig.open_stream()
    await stream.send_all(b"GET /ws HTTP/1.1\r\nHost: ")
    started = trio.current_time()
    assert status_of(await receive_all(stream)) == 408
    assert trio.current_time() - started == pytest.approx(5)
    assert rig.ledger.traffic.rejected == {"timeout": 1}


async def test_above_the_cap_the_oldest_pending_handshake_is_closed(nursery: trio.Nursery) -> None:
    rig = Rig(nursery, WS_MAX_HALF_OPEN="3")
    streams = []
    for _ in range(5):
        streams.append(rig.open_stream())
        await streams[-1].send_all(b"GET /ws HTTP/1.1\r\nHost: ")
        await trio.testing.wait_all_tasks_blocked()
    for ended in streams[:2]:
        with trio.fail_after(1):
            assert await receive_all(ended) == b""
    assert rig.listener.stats().pending_handshakes == 3
    assert rig.ledger.traffic.rejected == {"half_open": 2}
    # The others finish normally.
    for stream in streams[2:]:
        await stream.send_all(UPGRADE.split(b"Host: ")[1] + b"\r\n")
        assert status_of(bytes(await stream.receive_some())) == 101
    assert rig.listener.stats().pending_handshakes == 0


async def test_a_slowloris_keeps_nobody_out(nursery: trio.Nursery) -> None:
    rig = Rig(nursery, WS_MAX_HALF_OPEN="10")
    attackers = []
    for _ in range(50):
        attackers.append(rig.open_stream())
        await attackers[-1].send_all(b"G")
        await trio.testing.wait_all_tasks_blocked()
    await rig.connect()
    assert status_of(await answer_to(rig, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")) == 200
    assert rig.listener.stats().pending_handshakes <= 10
    assert rig.listener.admitted == 1


async def test_a_body_that_comes_slowly_counts_as_pending(nursery: trio.Nursery) -> None:
    rig = Rig(nursery, WS_MAX_HALF_OPEN="1")
    streams = []
    for _ in range(2):
        streams.append(rig.open_stream())
        await streams[-1].send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1")
        await trio.testing.wait_all_tasks_blocked()
    first, second = streams
    with trio.fail_after(1):
        assert await receive_all(first) == b""
    assert rig.ledger.traffic.rejected == {"half_open": 1}
    await second.send_all(b"23456789")
    assert status_of(await receive_all(second)) == 200


async def test_a_peer_that_connects_and_leaves_is_harmless(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    assert await answer_to(rig, b"") == b""
    assert rig.ledger == Ledger()


async def test_a_page_closed_in_favour_of_others_is_not_a_fault(
    nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(nursery, WS_MAX_HALF_OPEN="1")
    slow = rig.open_stream()
    await slow.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
    await trio.testing.wait_all_tasks_blocked()
    another = rig.open_stream()
    await another.send_all(b"GET /")
    await trio.testing.wait_all_tasks_blocked()
    assert rig.ledger.traffic.rejected == {"half_open": 1}
    assert await receive_all(slow) == b""
    assert "request.failed" not in capsys.readouterr().out
