from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
import trio.testing

from tests.logs_page import fields_of
from tests.server_rig import UPGRADE, Rig
from trio_odin.auth.grants import Grant
from trio_odin.connection import connection_log
from trio_odin.ledger.reasons import CloseReason


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, **facts: Any) -> None:
        self.lines.append({"event": event, **facts})

    def debug(self, event: str, **facts: Any) -> None:
        self.lines.append({"event": event, "level": "debug", **facts})


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    lines = Lines()
    monkeypatch.setattr(connection_log, "_log", lines)
    return lines.lines


async def test_the_log_explains_an_eviction(
    nursery: trio.Nursery, log: list[dict[str, Any]], autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery, WS_OUTBOX_CAPACITY="2")
    await rig.subscribe("BTC.trade")
    (connection,) = rig.hub.members
    connection.outbound.socket.stream = trio.testing.lockstep_stream_pair()[0]
    await trio.sleep(2)
    rig.publish("BTC.trade")
    await trio.sleep(0.5)  # the writer has it
    for _ in range(5):
        rig.publish("BTC.trade")
    await rig.listener.wait_empty()
    (line,) = log
    assert line.keys() - {"event"} == fields_of("connection.evicted") - {"not_logged"}
    events = line.pop("events")
    assert "0.000s subscribe" in events
    assert events[-1] == "2.500s dropped: outbox full x3"
    assert line.pop("queued_bytes") > 0
    assert line == {
        "event": "connection.evicted",
        "connection": connection.number,
        "reason": "outbox_full",
        "seconds": 2.5,
        "silent_seconds": 2.5,
        "seq": 6,
        "queued": 3,
        "dropped": 3,
        "conflated": 0,
        "address": None,  # of a stream in memory
        "sub": None,
        "user_agent": "",
    }
    assert rig.hub.outbox_rules.budget.used_bytes == 0
    rig.check_balance()


@pytest.mark.parametrize(
    ("reason", "is_logged"),
    [
        (CloseReason.KEEPALIVE_TIMEOUT, True),
        (CloseReason.INTERNAL_ERROR, True),
        (CloseReason.TOKEN_EXPIRED, True),
        (CloseReason.PEER_GONE, False),  # the server did not close it
    ],
)
async def test_every_close_by_force_is_logged_once(
    reason: CloseReason, *, is_logged: bool, nursery: trio.Nursery, log: list[dict[str, Any]]
) -> None:
    rig = Rig(nursery)
    await rig.subscribe("BTC.trade")
    (connection,) = rig.hub.members
    connection.evict(reason)
    connection.evict(CloseReason.OUTBOX_FULL)
    await rig.listener.wait_empty()
    assert [line["reason"] for line in log] == [reason.label] * is_logged


async def test_a_flood_of_evictions_becomes_some_lines_and_a_number(
    nursery: trio.Nursery, log: list[dict[str, Any]], mock_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery)
    for _ in range(30):
        await rig.subscribe("BTC.trade")
    connections = list(rig.hub.members)
    for connection in connections[:25]:
        connection.evict(CloseReason.KEEPALIVE_TIMEOUT)
    assert len(log) == 20
    mock_clock.jump(1)
    for connection in connections[25:27]:
        connection.evict(CloseReason.KEEPALIVE_TIMEOUT)
    assert [line.get("not_logged") for line in log[20:]] == [5, None]
    rig.listener.connection_log.write_rest()
    assert len(log) == 22
    for _ in range(30):
        rig.listener.connection_log.evicted(connections[29], CloseReason.OUTBOX_FULL)
    rig.listener.connection_log.write_rest()
    rig.listener.connection_log.write_rest()
    assert log[-1] == {"event": "connection.evicted", "not_logged": 30 - 18}
    assert len(log) == 22 + 18 + 1


@pytest.fixture
def debug() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.DEBUG)
    yield
    root.setLevel(before)


@contextmanager
def info() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(before)


async def over_tcp(rig: Rig, nursery: trio.Nursery, request: bytes) -> trio.SocketStream:
    """A client at 127.0.0.1 whose request was answered."""
    (waiting,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with waiting:
        client = await trio.open_tcp_stream(*waiting.socket.getsockname())
        nursery.start_soon(rig.listener.serve, await waiting.accept())
    await client.send_all(request)
    assert (await client.receive_some()).startswith(b"HTTP/1.1 101")
    return client


def request(*headers: str, query: str = "") -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers).encode()
    return UPGRADE[:-2].replace(b"/ws", b"/ws" + query.encode()) + lines + b"\r\n"


async def test_each_connection_that_comes_and_goes_is_a_line_at_debug(
    nursery: trio.Nursery, log: list[dict[str, Any]], debug: None
) -> None:
    rig = Rig(nursery, WS_TRUSTED_PROXIES="127.0.0.1/32")
    client = await over_tcp(
        rig,
        nursery,
        request("X-Forwarded-For: 203.0.113.7", "User-Agent: a \x9bbrowser",
                query="?access_token=secret"),
    )  # fmt: skip
    (connection,) = rig.hub.members
    await client.aclose()
    await rig.listener.wait_empty()
    opened, closed = log
    assert opened.keys() - {"event", "level"} == fields_of("connection.opened")
    assert closed.keys() - {"event", "level"} == fields_of("connection.closed") - {"not_logged"}
    who = {
        "level": "debug",
        "connection": connection.number,
        "address": "203.0.113.7",
        "sub": None,
        "user_agent": r"a \xc2\x9bbrowser",
    }
    assert opened == {"event": "connection.opened"} | who
    assert closed.pop("seconds") >= 0
    counts = {"seq": 0, "dropped": 0, "conflated": 0}
    assert closed == {"event": "connection.closed", "reason": "peer_gone"} | who | counts


async def test_at_info_only_connections_that_lost_events_are_logged(
    nursery: trio.Nursery, log: list[dict[str, Any]]
) -> None:
    with info():
        rig = Rig(nursery, WS_OUTBOX_CAPACITY="2", WS_SLOW_POLICY="drop")
        good, bad = await rig.subscribe("ETH.trade"), await rig.subscribe("BTC.trade")
        (_, connection) = rig.hub.members
        connection.session.grant = Grant(0.0, "k", subject="u-4711")
        for _ in range(10):
            rig.publish("BTC.trade")
        await trio.testing.wait_all_tasks_blocked()
        for client in (good, bad):
            await client.aclose()
        await rig.listener.wait_empty()
    (line,) = log
    assert line.pop("seconds") >= 0
    assert line == {
        "event": "connection.closed",
        "reason": "peer_closed",
        "connection": connection.number,
        "address": None,
        "sub": "u-4711",
        "user_agent": "",
        "seq": 10,
        "dropped": rig.ledger.deliveries.dropped.total(),
        "conflated": 0,
    }
    assert line["dropped"] == 8, "two waited"


async def test_the_losses_of_a_connection_are_counted_over_its_lifetime(
    nursery: trio.Nursery, log: list[dict[str, Any]]
) -> None:
    with info():
        rig = Rig(nursery, WS_OUTBOX_CAPACITY="4", WS_SLOW_POLICY="conflate")
        client = await rig.subscribe("A.a", "B.b", "C.c", "D.d", "E.e", "F.f")
        for _ in range(2):
            for channel in ("A.a", "B.b", "B.b", "C.c", "D.d", "E.e", "F.f"):
                rig.publish(channel)
            await trio.testing.wait_all_tasks_blocked()
            while rig.ledger.deliveries.queued:
                await client.get_message()
        await client.aclose()
        await rig.listener.wait_empty()
    (line,) = log
    deliveries = rig.ledger.deliveries
    assert line["seq"] == 14
    assert line["dropped"] == deliveries.dropped.total() >= 2
    assert line["conflated"] == deliveries.conflated == 2


async def test_an_eviction_is_not_logged_twice_at_info(
    nursery: trio.Nursery, log: list[dict[str, Any]]
) -> None:
    with info():
        rig = Rig(nursery, WS_OUTBOX_CAPACITY="2")
        await rig.subscribe("BTC.trade")
        for _ in range(10):
            rig.publish("BTC.trade")
        await rig.listener.wait_empty()
    assert [line["event"] for line in log] == ["connection.evicted"]
    assert log[0]["dropped"] == 3
