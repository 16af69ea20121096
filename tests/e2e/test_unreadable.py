"""Unreadable messages from NATS cost only themselves, never the events after them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.e2e.conftest import StartServer, check_balance, client_of, receive, wait_for_nats
from tests.e2e.nats import nats_client, running_nats, start_network
from tests.waiting import wait_until
from trio_odin.ledger.reasons import GapReason, Invalid

pytestmark = pytest.mark.e2e

# Far less than the 9 s after which a dead connection is noticed, and enough for a busy machine.
_AT_ONCE_SECONDS = 5


def hpub(header: bytes, payload: bytes = b"{}") -> bytes:
    sizes = (len(header), len(header) + len(payload))
    return b"HPUB odin.token.BTC.trade %d %d\r\n" % sizes + header + payload + b"\r\n"


UNREADABLE = {
    "a Latin-1 byte in the subject": b"PUB odin.token.B\xdcRO.trade 2\r\n{}\r\n",
    "a vertical tab in the subject": b"PUB odin.token.B\x0bRO.trade 2\r\n{}\r\n",
    "a form feed in the subject": b"PUB odin.token.B\x0cRO.trade 2\r\n{}\r\n",
    "a carriage return in the subject": b"PUB odin.token.B\rRO.trade 2\r\n{}\r\n",
    "a NUL in the subject": b"PUB odin.token.B\x00RO.trade 2\r\n{}\r\n",
}
# The event itself is valid; its headers do not matter.
ODD_HEADERS = {
    "headers without an end": hpub(b"NATS/1.0"),
    "headers without a beginning": hpub(b"\r\n\r\n"),
    "an undecodable status": hpub(b"NATS/1.0 \xff\xff\xff\r\nA: b\r\n\r\n"),
    "an undecodable description": hpub(b"NATS/1.0 404 \xff\r\nA: b\r\n\r\n"),
    "an undecodable header": hpub(b"NATS/1.0\r\n\xff\xfe: \xfd\r\n\r\n"),
}
# Signals that only the server may send to a consumer, here from a publisher.
FORGED = {
    "a heartbeat": hpub(b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: x\r\n\r\n", b""),
    "a stalled consumer": hpub(
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Consumer-Stalled: a b\r\n\r\n", b""
    ),
    "a heartbeat of a number that Python refuses": hpub(
        b"NATS/1.0 100 x\r\nNats-Last-Consumer: " + b"1" * 5000 + b"\r\n\r\n", b""
    ),
    "a stalled consumer with a long subject": hpub(
        b"NATS/1.0 100 x\r\nNats-Consumer-Stalled: " + b"a" * 5000 + b"\r\n\r\n", b""
    ),
    "flow control": hpub(b"NATS/1.0 100 FlowControl Request\r\nA: b\r\n\r\n", b""),
}


@contextmanager
def nats_in_mode(mode: str, folder: Path) -> Iterator[str]:
    with running_nats(folder, jetstream=mode == "jetstream") as nats:
        yield nats.url


@pytest.mark.parametrize("mode", ["jetstream", "core"])
@pytest.mark.parametrize("raw", UNREADABLE.values(), ids=UNREADABLE)
async def test_an_unreadable_message_costs_only_itself(
    start_server: StartServer, tmp_path: Path, mode: str, raw: bytes
) -> None:
    with nats_in_mode(mode, tmp_path) as url:
        server = await start_server(NATS_URL=url, NATS_MODE=mode)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as client, nats_client(url) as publisher:
            await publisher.send(raw)
            await publisher.publish("odin.token.BTC.trade", b"1")
            with trio.fail_after(_AT_ONCE_SECONDS):
                assert (await receive(client))["data"] == 1
        assert server.snapshot().nats.reconnects == 0
        counters = server.ledger.publications
        assert counters.invalid == {Invalid.SUBJECT: 1}
        assert (counters.received, counters.fanned_out) == (2, 1)


@pytest.mark.parametrize("mode", ["jetstream", "core"])
@pytest.mark.parametrize("raw", ODD_HEADERS.values(), ids=ODD_HEADERS)
async def test_unreadable_headers_do_not_hold_an_event_back(
    start_server: StartServer, tmp_path: Path, mode: str, raw: bytes
) -> None:
    with nats_in_mode(mode, tmp_path) as url:
        server = await start_server(NATS_URL=url, NATS_MODE=mode)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as client, nats_client(url) as publisher:
            await publisher.send(b'CONNECT {"verbose":false,"headers":true}\r\n' + raw)
            await publisher.publish("odin.token.BTC.trade", b"1")
            with trio.fail_after(_AT_ONCE_SECONDS):
                assert [(await receive(client))["data"] for _ in range(2)] == [{}, 1]
        assert server.snapshot().nats.reconnects == 0


@pytest.mark.parametrize("raw", FORGED.values(), ids=FORGED)
async def test_a_publisher_cannot_forge_signals_to_the_consumer(
    start_server: StartServer, tmp_path: Path, raw: bytes
) -> None:
    with nats_in_mode("jetstream", tmp_path) as url:
        server = await start_server(NATS_URL=url)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as client, nats_client(url) as publisher:
            await publisher.send(b'CONNECT {"verbose":false,"headers":true}\r\n' + raw)
            await publisher.publish("odin.token.BTC.trade", b"1")
            with trio.fail_after(_AT_ONCE_SECONDS):
                assert (await receive(client))["data"] == 1
        assert server.snapshot().nats.reconnects == 0
        assert server.ledger.publications.invalid == {Invalid.PAYLOAD: 1}


async def test_an_unreadable_reply_subject_changes_nothing(
    start_server: StartServer, tmp_path: Path
) -> None:
    with nats_in_mode("core", tmp_path) as url:
        server = await start_server(NATS_URL=url)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as client, nats_client(url) as publisher:
            for reply in (b"\xdc", b"a\x0bb", b"a\x0cb", b"5"):
                await publisher.send(b"PUB odin.token.BTC.trade %b 2\r\n{}\r\n" % reply)
                with trio.fail_after(_AT_ONCE_SECONDS):
                    assert (await receive(client))["data"] == {}
        assert server.snapshot().nats.reconnects == 0


async def test_a_message_that_ends_two_connections_is_skipped_and_declared(
    start_server: StartServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """The cause does not matter: here the wire to NATS spoils one line each time it passes."""
    with running_nats(tmp_path) as nats:
        network = await start_network(nursery, nats.port)
        network.spoil = (b"MSG odin.token.EVIL.trade", b"MSX odin.token.EVIL.trade")
        server = await start_server(NATS_URL=network.url)
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as client, nats_client(nats.url) as publisher:
            for subject in ("BTC.trade", "BTC.trade", "EVIL.trade", "BTC.trade"):
                await publisher.publish(f"odin.token.{subject}", b"{}")
            with trio.fail_after(_AT_ONCE_SECONDS):
                assert [(await receive(client))["offset"] for _ in range(3)] == [1, 2, 4]
        await wait_until(lambda: server.ledger.publications.gaps)
        assert server.ledger.publications.gaps == {GapReason.UNREADABLE: 1}
        assert server.ledger.publications.missed == 1
        check_balance(server)
