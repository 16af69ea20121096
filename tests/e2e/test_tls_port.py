"""The port with TLS of its own: real clients, slow ones, broken ones, and a new certificate."""

from __future__ import annotations

import datetime as dt
import json
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from websockets.trio.client import ClientConnection, connect

import trio_odin.client
from tests.certificates import Certificates, make_certificates
from tests.e2e.admin_client import AdminClient
from tests.e2e.conftest import StartServer, ending_of, receive, wait_for_nats
from tests.e2e.nats import NatsServer, free_port, nats_client, running_nats
from tests.e2e.test_cli import ended, ready, start
from tests.e2e.test_workers import ENOUGH
from tests.waiting import wait_until
from trio_odin.lab.load.pages import get, parse_metrics
from trio_odin.server import Server
from trio_odin.settings.setting_field import SettingError

pytestmark = pytest.mark.e2e

SUBSCRIBE = '{"type":"subscribe","channels":["BTC.trade"]}'


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "tls", "localhost", serial=1)


def variables(files: Certificates) -> dict[str, str]:
    return {"WS_TLS_CERT": str(files.certificate), "WS_TLS_KEY": str(files.key)}


def trusting(files: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(files.authority))


def rejected(server: Server) -> dict[str, int]:
    return dict(server.ledger.traffic.rejected)


def url_of(server: Server) -> str:
    return f"wss://localhost:{server.addresses[0].port}/ws"


@asynccontextmanager
async def tls_client(
    server: Server, files: Certificates, *channels: str
) -> AsyncIterator[ClientConnection]:
    async with connect(url_of(server), ssl=trusting(files)) as client:
        if channels:
            await client.send(json.dumps({"type": "subscribe", "channels": channels}))
            assert (await receive(client))["type"] == "subscription_ack"
        yield client


async def tcp(server: Server) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", server.addresses[0].port)


async def page(server: Server, files: Certificates, path: str) -> str:
    """A page of the server, read over TLS to its end."""
    with trio.fail_after(10):
        plain = await tcp(server)
        async with trio.SSLStream(
            plain, trusting(files), server_hostname="localhost", https_compatible=True
        ) as stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            received = b""
            async for chunk in stream:
                received += chunk
    return received.decode()


@pytest.fixture
def nats(tmp_path: Path) -> Any:
    with running_nats(tmp_path / "nats") as nats:
        yield nats


async def test_events_and_pages_come_encrypted(
    start_server: StartServer, files: Certificates, nats: NatsServer
) -> None:
    server = await start_server(NATS_URL=nats.url, WS_OUTBOX_BYTES="9000000", **variables(files))
    await wait_for_nats(server)
    async with (
        tls_client(server, files, "BTC.trade") as client,
        nats_client(nats.url) as publisher,
    ):
        for number in range(300):
            await publisher.publish(
                "odin.token.BTC.trade", json.dumps(["x" * 5000, number]).encode()
            )
        for number in range(300):
            assert (await receive(client))["data"][1] == number
        assert (await page(server, files, "/ready")).startswith("HTTP/1.1 200 OK")
        assert (await page(server, files, "/nowhere")).startswith("HTTP/1.1 404")
        metrics = parse_metrics((await page(server, files, "/metrics")).partition("\r\n\r\n")[2])
    left = metrics["ws_tls_certificate_seconds_left"]
    assert 0 < left <= dt.timedelta(days=1).total_seconds()
    assert rejected(server) == {}


async def test_a_trace_leaves_the_stream_as_it_was(
    start_server: StartServer, files: Certificates, nats: NatsServer
) -> None:
    server = await start_server(NATS_URL=nats.url, **variables(files))
    await wait_for_nats(server)
    admin = AdminClient(server.admin_addresses[0])
    async with (
        tls_client(server, files, "BTC.trade") as client,
        nats_client(nats.url) as publisher,
    ):

        async def publish(number: int) -> None:
            await publisher.publish("odin.token.BTC.trade", str(number).encode())
            await publisher.flush()
            assert (await receive(client))["data"] == number

        async with admin.trace("/trace?channel=BTC.trade&frames=2") as lines:
            assert (await anext(lines))["connections"] == 1
            for number in range(2):
                await publish(number)
                assert json.loads((await anext(lines))["content"])["data"] == number
            assert (await anext(lines))["reason"] == "frames"
        await publish(2)


async def test_the_kernel_is_asked_about_encrypted_connections_too(
    start_server: StartServer, files: Certificates
) -> None:
    server = await start_server(NATS_URL="nats://127.0.0.1:9", **variables(files))
    admin = AdminClient(server.admin_addresses[0])
    async with tls_client(server, files, "BTC.trade"):
        (row,) = (await admin.get("/connections"))["connections"]
        assert row["bytes"] > 0
        transport = (await admin.get(f"/connections/{row['id']}"))["transport"]
        assert transport["bytes_received"] > 0


async def test_a_fault_in_one_handshake_ends_no_other_client(
    start_server: StartServer,
    files: Certificates,
    nats: NatsServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise ArithmeticError

    server = await start_server(NATS_URL=nats.url, **variables(files))
    await wait_for_nats(server)
    async with tls_client(server, files, "BTC.trade") as client:
        with monkeypatch.context() as patched, trio.fail_after(10):
            patched.setattr("trio_odin.listener.listener.accept_tls", fails)
            async with await tcp(server) as other:
                await other.send_all(b"\x16\x03\x01")
                with suppress(trio.BrokenResourceError):
                    assert await other.receive_some() == b""
        async with tls_client(server, files), nats_client(nats.url) as publisher:
            await publisher.publish("odin.token.BTC.trade", b"1")
            assert (await receive(client))["data"] == 1


async def test_the_client_library_connects_with_wss(
    start_server: StartServer, files: Certificates, nats: NatsServer
) -> None:
    server = await start_server(NATS_URL=nats.url, **variables(files))
    await wait_for_nats(server)
    with trio.fail_after(20):
        async with (
            nats_client(nats.url) as publisher,
            trio_odin.client.connect(
                url_of(server), ["BTC.trade"], ssl=trusting(files), snapshot=True
            ) as feed,
        ):
            await publisher.publish("odin.token.BTC.trade", b"7")
            async for item in feed:
                if isinstance(item, trio_odin.client.Event):
                    assert item.data == 7
                    break


async def test_a_command_larger_than_a_record_is_read(
    start_server: StartServer, files: Certificates
) -> None:
    server = await start_server(WS_MAX_MESSAGE_BYTES="200000", **variables(files))
    async with tls_client(server, files) as client:
        await client.send(SUBSCRIBE + " " * 150_000)
        assert (await receive(client))["type"] == "subscription_ack"
        for _ in range(5):
            await client.send('{"type":"heartbeat"}')
        for _ in range(5):
            assert (await receive(client))["type"] == "pong"


async def test_a_slow_reader_gets_everything_that_was_not_dropped(
    start_server: StartServer, files: Certificates, nats: NatsServer
) -> None:
    server = await start_server(
        NATS_URL=nats.url, WS_SLOW_POLICY="drop", WS_OUTBOX_CAPACITY="20", **variables(files)
    )
    await wait_for_nats(server)
    plain = await tcp(server)
    plain.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    async with (
        connect(url_of(server), stream=plain, ssl=trusting(files), max_queue=1) as client,
        nats_client(nats.url) as publisher,
    ):
        await client.send(SUBSCRIBE)
        assert (await receive(client))["type"] == "subscription_ack"
        payload = json.dumps("x" * 20_000).encode()
        for _ in range(400):
            await publisher.publish("odin.token.BTC.trade", payload)
        await publisher.flush()
        deliveries = server.ledger.deliveries
        await wait_until(lambda: server.ledger.publications.received == 400)
        await wait_until(lambda: sum(deliveries.dropped.values()) > 0)
        seqs: list[int] = []
        data = ""
        is_last_published = False
        with trio.fail_after(60):
            while data != "last":
                event = await receive(client)
                seqs.append(event["seq"])
                data = event["data"]
                # Now there is room for it. A second one would stay unread in the client, which then
                # does not close.
                if deliveries.queued == 0 and not is_last_published:
                    await publisher.publish("odin.token.BTC.trade", b'"last"')
                    is_last_published = True
    assert seqs == sorted(set(seqs)), "in order, and none twice"
    assert len(seqs) < seqs[-1], "some were dropped"


async def test_a_client_that_does_not_read_is_evicted(
    start_server: StartServer, files: Certificates, nats: NatsServer
) -> None:
    server = await start_server(
        NATS_URL=nats.url, WS_OUTBOX_CAPACITY="10", WS_WRITE_DEADLINE="1s", **variables(files)
    )
    await wait_for_nats(server)
    async with (
        tls_client(server, files, "BTC.trade") as reading,
        nats_client(nats.url) as publisher,
    ):
        plain = await tcp(server)
        plain.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with trio.SSLStream(plain, trusting(files), server_hostname="localhost") as silent:
            await silent.send_all(
                b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert b"101" in await silent.receive_some()
            frame = bytes([0x81, 0x80 | len(SUBSCRIBE), 0, 0, 0, 0]) + SUBSCRIBE.encode()
            await silent.send_all(frame)
            await wait_until(lambda: server.snapshot().fan_out.channels == 1)
            await wait_until(lambda: sum(server.snapshot().fan_out.subscription_counts) == 2)
            payload = json.dumps("x" * 20_000).encode()
            with trio.fail_after(30):
                while server.connections == 2:
                    await publisher.publish("odin.token.BTC.trade", payload)
                    assert (await receive(reading))["type"] == "price:update"
            closed = server.ledger.traffic.closed
            assert closed["outbox_full"] + closed["write_deadline"] == 1
            plain.socket.close()
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await silent.aclose()


# --- what is no TLS, or not to its end


async def test_plain_http_gets_an_answer_that_says_what_to_use(
    start_server: StartServer, files: Certificates
) -> None:
    server = await start_server(**variables(files))
    async with await tcp(server) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        received = b""
        with trio.fail_after(5):
            async for chunk in stream:
                received += chunk
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.endswith(b"This port speaks TLS: use wss:// or https://\n")
    assert rejected(server) == {"bad_request": 1}


@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_handshake_without_an_end_is_closed_in_time(
    start_server: StartServer, files: Certificates, sent: bytes
) -> None:
    server = await start_server(WS_HANDSHAKE_TIMEOUT="300ms", **variables(files))
    async with await tcp(server) as stream:
        if sent:
            await stream.send_all(sent)
        await wait_until(lambda: server.listener.stats().pending_handshakes == 1)
        with trio.fail_after(5), suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
    assert rejected(server) == {"timeout": 1}
    assert server.listener.stats().pending_handshakes == 0
    await wait_until(lambda: server.listener.unanswered == 0)


async def test_a_request_without_an_end_is_closed_in_the_same_time(
    start_server: StartServer, files: Certificates
) -> None:
    server = await start_server(WS_HANDSHAKE_TIMEOUT="300ms", **variables(files))
    plain = await tcp(server)
    async with trio.SSLStream(
        plain, trusting(files), server_hostname="localhost", https_compatible=True
    ) as stream:
        await stream.send_all(b"GET /ws HTTP/1.1\r\n")
        received = b""
        with trio.fail_after(5):
            async for chunk in stream:
                received += chunk
    assert received.startswith(b"HTTP/1.1 408 ")
    assert rejected(server) == {"timeout": 1}


async def test_newer_sockets_end_the_oldest_handshake(
    start_server: StartServer, files: Certificates
) -> None:
    server = await start_server(WS_MAX_HALF_OPEN="2", **variables(files))
    streams = [await tcp(server) for _ in range(3)]
    try:
        with trio.fail_after(5):
            assert await streams[0].receive_some() == b""
        assert rejected(server) == {"half_open": 1}
        async with tls_client(server, files) as client:
            await client.send('{"type":"heartbeat"}')
            assert (await receive(client))["type"] == "pong"
    finally:
        for stream in streams:
            await stream.aclose()


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01" + b"\xff" * 99])
async def test_a_failed_handshake_is_counted(
    start_server: StartServer, files: Certificates, sent: bytes
) -> None:
    server = await start_server(**variables(files))
    async with await tcp(server) as stream:
        await stream.send_all(sent)
        with suppress(trio.BrokenResourceError):
            await stream.send_eof()
        await wait_until(lambda: rejected(server) == {"tls": 1})
    await wait_until(lambda: server.listener.unanswered == 0)


async def test_a_client_that_does_not_trust_the_certificate_is_counted(
    start_server: StartServer, files: Certificates
) -> None:
    server = await start_server(**variables(files))
    plain = await tcp(server)
    stream = trio.SSLStream(plain, ssl.create_default_context(), server_hostname="localhost")
    with pytest.raises(trio.BrokenResourceError):
        await stream.do_handshake()
    await plain.aclose()
    await wait_until(lambda: rejected(server) == {"tls": 1})


# --- the end


async def test_a_drain_closes_clients_with_1001(
    start_server: StartServer, files: Certificates
) -> None:
    server = await start_server(**variables(files))
    async with tls_client(server, files, "BTC.trade") as client:
        server.drain()
        with trio.fail_after(10):
            ending = await ending_of(client)
        assert ending.code == 1001
    with trio.fail_after(10):
        await server.finished.wait()


# --- a new certificate


async def serial_of(server: Server, files: Certificates) -> int:
    plain = await tcp(server)
    async with trio.SSLStream(plain, trusting(files), server_hostname="localhost") as stream:
        await stream.do_handshake()
        return int(stream.getpeercert()["serialNumber"], 16)


async def test_a_reload_takes_on_a_new_certificate_for_new_connections(
    start_server: StartServer,
    files: Certificates,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = variables(files)
    server = await start_server(**given)
    assert await serial_of(server, files) == 1
    async with tls_client(server, files) as old:
        renewed = make_certificates(
            tmp_path / "tls", "localhost", serial=2, valid_for=dt.timedelta(days=30)
        )
        server.reload(lambda: given)
        assert await serial_of(server, renewed) == 2
        assert (server.listener.stats().certificate_seconds_left or 0) > 2_000_000
        await old.send('{"type":"heartbeat"}')
        assert (await receive(old))["type"] == "pong"
        capsys.readouterr()

        files.key.write_text("broken")
        server.reload(lambda: given)
        assert "it has no private key in PEM" in capsys.readouterr().out
        assert await serial_of(server, renewed) == 2
        server.reload(dict)
        assert "cannot be set or removed while the server runs" in capsys.readouterr().out
        assert await serial_of(server, renewed) == 2
    assert server.ledger.traffic.reloads == {"ok": 1, "failed": 2}


async def test_workers_take_on_a_new_certificate(
    files: Certificates, tmp_path: Path, nats: NatsServer
) -> None:
    port, admin = free_port(), free_port()
    given = variables(files) | {"NATS_URL": nats.url, "WS_ADMIN_ADDR": f"127.0.0.1:{admin}"}
    process = await start("serve", "--workers", "2", "--addr", f"127.0.0.1:{port}", **given)
    try:
        await ready(admin)

        def serials(of: Certificates) -> set[int]:
            """Those of enough connections to meet both workers."""
            found = set()
            for _ in range(ENOUGH):
                with (
                    socket.create_connection(("127.0.0.1", port), 10) as plain,
                    trusting(of).wrap_socket(plain, server_hostname="localhost") as stream,
                ):
                    found.add(int(str((stream.getpeercert() or {})["serialNumber"]), 16))
            return found

        assert await trio.to_thread.run_sync(serials, files) == {1}
        renewed = make_certificates(tmp_path / "tls", "localhost", serial=2)
        process.send_signal(signal.SIGHUP)
        with trio.fail_after(20):
            while True:
                with suppress(ssl.SSLError):  # the old one is of another authority
                    if await trio.to_thread.run_sync(serials, renewed) == {2}:
                        break
                await trio.sleep(0.1)
        page = await get(f"http://127.0.0.1:{admin}/metrics")
        assert page is not None
        assert 0 < parse_metrics(page.body.decode())["ws_tls_certificate_seconds_left"] < 86_401
    finally:
        process.terminate()
        code, _, errors = await ended(process)
    assert code == 0, errors


async def test_a_certificate_that_cannot_be_used_ends_the_start(
    start_server: StartServer, files: Certificates
) -> None:
    with pytest.raises(SettingError, match="WS_TLS_CERT='/nowhere': No such file"):
        await start_server(WS_TLS_CERT="/nowhere")
    with pytest.raises(SettingError, match="WS_TLS_KEY='/nowhere': No such file"):
        await start_server(WS_TLS_CERT=str(files.certificate), WS_TLS_KEY="/nowhere")
    with pytest.raises(SettingError, match="WS_TLS_KEY needs WS_TLS_CERT"):
        await start_server(WS_TLS_KEY=str(files.key))
