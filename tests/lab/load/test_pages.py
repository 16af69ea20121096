from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.lab.load import pages
from trio_odin.lab.load.pages import Page, get, get_object, labelled, parse_metrics, post

PAGE = """\
# HELP ws_connections_rejected_total Connections refused
# TYPE ws_connections_rejected_total counter
ws_connections_rejected_total{reason="at_capacity"} 2
ws_connections_rejected_total{reason="over{loaded}"}\t3 1700000000000
ws_connections_active 1.5e3
ws_up +Inf

ws_odd{reason="x"} much
{no} name
"""


def test_a_metric_is_the_sum_over_its_labels() -> None:
    assert parse_metrics(PAGE) == {
        "ws_connections_rejected_total": 5.0,
        "ws_connections_active": 1500.0,
        "ws_up": float("inf"),
    }


def test_a_metric_has_a_value_for_each_of_its_labels() -> None:
    assert labelled(PAGE, "ws_connections_rejected_total") == {
        '{reason="at_capacity"}': 2,
        '{reason="over{loaded}"}': 3,
    }
    for without in ("ws_connections_active", "ws_connections", "ws_odd", "ws_missing"):
        assert labelled(PAGE, without) == {}


@given(st.text())
def test_malformed_metrics_are_empty_and_break_nothing(text: str) -> None:
    found = parse_metrics(text)
    assert all(labelled(text, name) is not None for name in found)


class StandIn:
    """A server that answers every request with these pieces, with a pause after each one."""

    def __init__(self, *pieces: bytes, pause: float = 0.0) -> None:
        self.asked = b""
        self.url = ""
        self._pieces = pieces
        self._pause = pause

    async def answer(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async with stream:
                self.asked = await stream.receive_some()
                while self.asked.startswith(b"POST") and not self.asked.endswith(b"}"):
                    self.asked += await stream.receive_some()
                for piece in self._pieces:
                    await stream.send_all(piece)
                    await trio.sleep(self._pause)


@asynccontextmanager
async def answering(*pieces: bytes, pause: float = 0.0) -> AsyncIterator[StandIn]:
    it = StandIn(*pieces, pause=pause)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    it.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/page"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, it.answer, [listener])
        yield it
        nursery.cancel_scope.cancel(reason="the test is over")


def response(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> float:
    """A deadline that a test can wait for."""
    monkeypatch.setattr(pages, "_PAGE_SECONDS", 0.2)
    return 2.0


async def test_a_page_is_its_status_and_its_body() -> None:
    async with answering(response(b"all is well")) as it:
        assert await get(it.url) == Page(200, b"all is well")
    assert it.asked.startswith(b"GET /page HTTP/1.1\r\n")


async def test_a_page_with_an_error_status_is_still_a_page() -> None:
    async with answering(response(b"{}", "503 Service Unavailable")) as it:
        assert await get(it.url) == Page(503, b"{}")
        assert await get_object(it.url) == {}


async def test_a_page_may_come_in_pieces() -> None:
    whole = response(b"0123456789")
    async with answering(*(whole[n : n + 9] for n in range(0, len(whole), 9)), pause=0.01) as it:
        assert await get(it.url) == Page(200, b"0123456789")


async def test_a_refused_connection_is_no_page() -> None:
    async with answering() as it:
        pass
    assert await get(it.url) is None
    assert await post(it.url, {}) is None


@pytest.mark.parametrize(
    "nonsense", [b"", b"what?\r\n\r\n", response(b"half of it")[:-3], b"HTTP/1.1 many"]
)
async def test_an_incomplete_answer_is_not_a_page(nonsense: bytes) -> None:
    async with answering(nonsense) as it:
        assert await get(it.url) is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/", "http://a b/"])
async def test_a_malformed_address_has_no_page(url: str) -> None:
    assert await get(url) is None


@pytest.mark.parametrize(
    "pieces",
    [
        [b" "],  # connected, but without an answer
        [response(b"half of it")[:-3]],
        [response(b"half of it", "503 Service Unavailable")[:-3]],
        [bytes((byte,)) for byte in response(b"x" * 100)],  # each read is in time
    ],
)
async def test_a_server_that_hangs_gives_no_page_by_the_deadline(
    pieces: list[bytes], soon: float
) -> None:
    async with answering(*pieces, pause=0.1 if len(pieces) > 1 else 60) as it:
        with trio.fail_after(soon):
            assert await get(it.url) is None
            assert await post(it.url, {}) is None


async def test_a_cancelled_fetch_does_not_wait_for_its_page() -> None:
    async with answering(b" ", pause=60) as it:
        with trio.fail_after(2), trio.move_on_after(0.1) as impatient:
            await get(it.url)
        assert impatient.cancelled_caught


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    async with answering(response(b"direct")) as it:
        assert await get(it.url) == Page(200, b"direct")


async def test_a_command_is_an_object_that_an_object_answers() -> None:
    async with answering(response(b'{"success":true}')) as it:
        assert await post(it.url, {"action": "start", "tokens": ["BTC"]}) == {"success": True}
    head, _, body = it.asked.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /page HTTP/1.1\r\n")
    assert b"application/json" in head
    assert json.loads(body) == {"action": "start", "tokens": ["BTC"]}


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b"7", b"\xff\xfe{"])
async def test_an_answer_that_is_not_an_object_is_none(body: bytes) -> None:
    async with answering(response(body)) as it:
        assert await post(it.url, {}) is None
        assert await get_object(it.url) is None
