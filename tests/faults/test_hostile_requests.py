"""A bad request is recognised before it costs anything, and gets one answer."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from tests.faults.attacker import Attackers
from tests.faults.conftest import Record
from tests.faults.rig import rig
from trio_odin.lab.fleet.dialects import masked_frame, upgrade_request

_REQUEST = upgrade_request("127.0.0.1", "/ws")
_QUICK = 60
_TIMES = 50


async def _cost_of(attackers: Attackers, request: bytes, status: int) -> float:
    """Send a request many times; returns milliseconds for each."""
    begun = time.monotonic()
    for _ in range(_TIMES):
        one = await attackers.tcp()
        await one.send(request)
        assert await one.status() == status
    return (time.monotonic() - begun) * 1000 / _TIMES


async def test_huge_heads_are_refused_before_they_are_parsed(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "attack",
        "Huge heads",
        "2,000 headers, and 32,000 spaces in Sec-WebSocket-Protocol, 50 times each",
        "431 before any costly parse, counted",
    )
    many = _REQUEST[:-2] + b"".join(b"X-%d: 1\r\n" % n for n in range(2000)) + b"\r\n"
    spaces = _REQUEST[:-2] + b"Sec-WebSocket-Protocol: a," + b" " * 32_000 + b"b\r\n\r\n"
    async with rig(tmp_path, clients=_QUICK) as it, it.watch(row):
        plain = await _cost_of(it.attackers, _REQUEST, 101)
        costs = [await _cost_of(it.attackers, request, 431) for request in (many, spaces)]
        refused = await it.server.metric("ws_connections_rejected_total", 'reason="bad_request"')
        assert refused == 2 * _TIMES
        dearest = max(costs)
        row.notes.append(f"{dearest:.1f} ms each, a good one {plain:.1f} ms")
        assert dearest < 100


@pytest.mark.faults
async def test_a_dribbled_head_ends_at_its_limit_or_at_the_deadline(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "attack",
        "A huge head, dribbled",
        "headers without end, 1 KiB every 20 ms",
        "431 as soon as the limit is reached, long before the deadline",
    )
    async with rig(tmp_path, clients=_QUICK) as it, it.watch(row):
        one = await it.attackers.tcp()
        await one.send(_REQUEST[:-2])
        sent = 0
        with trio.move_on_after(4) as patience:
            while not one.received:
                await one.send(b"X-%d: %b\r\n" % (sent, b"x" * 1000))
                sent += 1
                with trio.move_on_after(0.02):
                    await one.read_more()
        assert not patience.cancelled_caught
        assert await one.status() == 431
        assert sent < 20


async def test_a_bad_upgrade_gets_one_clean_answer(tmp_path: Path, record: Record) -> None:
    row = record(
        "attack",
        "Other protocols",
        "HTTP/1.0, POST, h2c, HTTP/2's preface, a body or bytes behind the request, TLS, garbage",
        "one status of HTTP and the end, never an upgrade",
    )
    old = _REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0")
    post = _REQUEST.replace(b"GET", b"POST")
    h2c = _REQUEST.replace(b"Upgrade: websocket", b"Upgrade: h2c")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9
    eager = _REQUEST + masked_frame(0x81, b'{"type":"heartbeat"}')
    body = _REQUEST[:-2] + b"Content-Length: 5\r\n\r\n"
    chunks = _REQUEST[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
    tls = bytes.fromhex("16030100a5010000a10303") + b"\0" * 160
    garbage = b"\0\xff\r\n\r\n"
    async with rig(tmp_path, clients=_QUICK) as it, it.watch(row):
        for request in (old, post, h2c, preface, eager, body, chunks, tls + b"\r\n\r\n", garbage):
            one = await it.attackers.tcp()
            await one.send(request)
            answer = await one.answer()
            assert answer.startswith(b"HTTP/1.1 "), request
            assert 400 <= int(answer[9:12]) < 600, request
            assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.faults
async def test_offered_compression_is_not_accepted(tmp_path: Path, record: Record) -> None:
    row = record(
        "attack",
        "permessage-deflate offered",
        "the extension offered, then a compressed frame",
        "not negotiated; the frame ends the connection with 1002",
    )
    async with rig(tmp_path, clients=_QUICK) as it, it.watch(row):
        one = await it.attackers.tcp()
        offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
        await one.send(_REQUEST[:-2] + offer.encode() + b"\r\n\r\n")
        assert await one.status() == 101
        head, _, one.received = one.received.partition(b"\r\n\r\n")
        assert b"sec-websocket-extensions" not in head.lower()
        await one.send(masked_frame(0xC1, b"\xaa\x56\x4a\x04\0"))
        assert await one.close_code() == 1002
