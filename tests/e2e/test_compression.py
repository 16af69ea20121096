"""Clients of every encoding, of several libraries, over real sockets."""

from __future__ import annotations

import json
import re
import socket
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from tests.e2e.conftest import StartServer, check_balance, url_of, wait_for_nats
from tests.e2e.nats import nats_client
from tests.waiting import wait_until
from trio_odin.server import Server
from trio_odin.settings.setting_field import SettingError
from trio_odin.wire.dictionary import built_in

pytestmark = pytest.mark.e2e

Z1 = Subprotocol("trio-odin.z1")
TRADE = b'{"type":"price:update","tokenId":"BTC","price":%d,"source":"simulator","text":"%b"}'


class Z1Reader:
    """What the protocol page tells a client of `trio-odin.z1` to do, in a few lines."""

    def __init__(self, dictionary: bytes) -> None:
        self._dictionary = dictionary

    def read(self, message: str | bytes) -> dict[str, Any]:
        if isinstance(message, str):
            content: dict[str, Any] = json.loads(message)
            return content
        seq = shift = at = 0
        while True:
            octet = message[at]
            at += 1
            seq |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                break
        inflate = zlib.decompressobj(-15, zdict=self._dictionary)
        return {"seq": seq, **json.loads(inflate.decompress(message[at:]) + inflate.flush())}


class Client:
    """A client of the `websockets` library, with one encoding or another."""

    def __init__(self, connection: ClientConnection, reader: Z1Reader | None) -> None:
        self.connection = connection
        self._reader = reader or Z1Reader(b"")
        self.kinds: set[type] = set()

    async def say(self, **command: Any) -> None:
        await self.connection.send(json.dumps(command))

    async def receive(self) -> dict[str, Any]:
        with trio.fail_after(20):
            message = await self.connection.recv()
        content = self._reader.read(message)
        if "seq" in content:
            self.kinds.add(type(message))
        return content

    async def receive_until(self, kind: str) -> list[dict[str, Any]]:
        """The messages up to the next one of this type, with it."""
        messages = [await self.receive()]
        while messages[-1]["type"] != kind:
            messages.append(await self.receive())
        return messages


async def fetched(server: Server, path: str, method: str = "GET") -> tuple[str, bytes]:
    """The head and the body of a page."""
    stream = await trio.open_tcp_stream("127.0.0.1", server.addresses[0].port)
    async with stream:
        await stream.send_all(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        received = b""
        while chunk := await stream.receive_some():
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return head.decode(), body


@asynccontextmanager
async def client_of(server: Server, encoding: str) -> AsyncIterator[Client]:
    if encoding == "plain":
        async with connect(url_of(server), compression=None) as connection:
            yield Client(connection, None)
    elif encoding == "deflate":
        async with connect(url_of(server)) as connection:
            assert connection.protocol.extensions != []
            yield Client(connection, None)
    else:
        async with connect(url_of(server), subprotocols=[Z1]) as connection:
            assert connection.protocol.extensions == []
            greeting = json.loads(await connection.recv())
            _, dictionary = await fetched(server, greeting["url"])
            assert len(dictionary) == greeting["bytes"]
            yield Client(connection, Z1Reader(dictionary))


def has_received(server: Server, number: int) -> bool:
    return server.ledger.publications.received == number


ENCODINGS = ["plain", "deflate", "z1"]


async def session_of(server: Server, url: str, encoding: str) -> list[dict[str, Any]]:
    """All that a client gets that uses every way to get events. Events begin with channel 1."""
    received = []
    async with nats_client(url) as nats, client_of(server, encoding) as client:
        await client.say(type="subscribe", channels=["A.trade", "B.trade"], snapshot=True, id=1)
        received += await client.receive_until("snapshot_done")
        start = received[-2]["offset"]
        for number in range(10):
            await nats.publish(
                f"odin.token.{'AB'[number % 2]}.trade", TRADE % (number, b"x" * 300 * number)
            )
        await nats.flush()
        received += [await client.receive() for _ in range(10)]
        await client.say(type="replay", data={"since": 3}, id=2)
        received += await client.receive_until("replay_done")
        await client.say(type="heartbeat")
        received += await client.receive_until("pong")
        await client.say(type="unsubscribe", channels=["A.trade", "B.trade"])
        received += await client.receive_until("unsubscription_ack")
        epoch = server.hub.resume_buffer.epoch
        await client.say(type="subscribe", channels=["A.trade"], after=start, epoch=epoch)
        received += await client.receive_until("resumed")
        await client.say(type="subscribe", channels=["bad name"])
        received += await client.receive_until("error")
        assert client.kinds == {bytes if encoding == "z1" else str}
    return received


async def test_every_encoding_carries_the_same_session(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url, WS_COMPRESSION="deflate")
    await wait_for_nats(server)
    async with nats_client(nats_url) as nats:
        for channel in "AB":
            await nats.publish(f"odin.token.{channel}.trade", TRADE % (0, b""))
        await nats.flush()
    await wait_until(lambda: server.ledger.publications.received == 2)
    sessions = [await session_of(server, nats_url, encoding) for encoding in ENCODINGS]
    varying = {"offset", "prev", "ts", "data", "epoch"}
    plain, *others = [
        [{key: value for key, value in one.items() if key not in varying} for one in session]
        for session in sessions
    ]
    assert len(plain) > 30
    assert all(other == plain for other in others)
    datas = [
        [one["data"] for one in session if "seq" in one and "snapshot" not in one]
        for session in sessions
    ]
    assert datas[0] == datas[1] == datas[2]
    check_balance(server)


async def test_clients_of_all_encodings_get_the_same_events_at_once(
    start_server: StartServer, nats_url: str
) -> None:
    """Beside one another they share bodies and frames; a burst goes out joined."""
    server = await start_server(NATS_URL=nats_url, WS_COMPRESSION="deflate")
    await wait_for_nats(server)
    events: dict[int, list[dict[str, Any]]] = {}

    async def be_a_client(number: int, *, task_status: trio.TaskStatus[None]) -> None:
        async with client_of(server, ENCODINGS[number % 3]) as client:
            await client.say(type="subscribe", channels=[">"])
            await client.receive_until("subscription_ack")
            if number % 2:  # other numbers for the same events
                await client.say(type="subscribe", channels=[])
            task_status.started()
            events[number] = [
                one for _ in range(200 + number % 2) if "seq" in (one := await client.receive())
            ]

    async with trio.open_nursery() as clients, nats_client(nats_url) as nats:
        for number in range(6):
            await clients.start(be_a_client, number)
        for number in range(200):
            await nats.publish(f"odin.token.T{number % 7}.trade", TRADE % (number, b"y" * number))
        await nats.flush()
    assert [len(one) for one in events.values()] == [200] * 6
    assert all(one == events[0] for one in events.values())
    check_balance(server)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("policy", ["conflate", "drop"])
async def test_a_slow_client_gets_whole_messages(
    start_server: StartServer, nats_url: str, encoding: str, policy: str
) -> None:
    server = await start_server(
        NATS_URL=nats_url,
        WS_COMPRESSION="deflate",
        WS_SLOW_POLICY=policy,
        WS_OUTBOX_CAPACITY="8",
    )
    await wait_for_nats(server)
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", server.addresses[0].port))
    extras: dict[str, Any] = {} if encoding == "deflate" else {"compression": None}
    if encoding == "z1":
        extras["subprotocols"] = [Z1]
    noise = zlib.compress(bytes(range(256)) * 8).hex().encode()
    async with connect(url_of(server), stream=trio.SocketStream(sock), **extras) as connection:
        client = Client(connection, Z1Reader(built_in().content))
        await client.say(type="subscribe", channels=["A.trade", "B.trade"])
        await client.receive_until("subscription_ack")
        published = 0
        async with nats_client(nats_url) as nats:
            deliveries = server.ledger.deliveries
            while not (deliveries.conflated if policy == "conflate" else deliveries.dropped):
                for _ in range(200):
                    published += 1
                    text = b"%x" % zlib.crc32(b"%d" % published) * 500 + noise
                    await nats.publish(
                        f"odin.token.{'AB'[published % 2]}.trade", TRADE % (published, text)
                    )
                await nats.flush()
                await wait_until(partial(has_received, server, published))
            messages: list[dict[str, Any]] = []
            await client.say(type="heartbeat")
            while not messages or messages[-1]["type"] != "pong":
                messages.append(await client.receive())
    prices = [one["data"]["price"] for one in messages if "seq" in one]
    assert prices == [one["seq"] for one in messages if "seq" in one]
    assert prices == sorted(set(prices))
    if policy == "conflate":
        assert max(one.get("skipped_total", 0) for one in messages) > 0
    check_balance(server)


async def test_wsproto_reads_deflated_events(start_server: StartServer, nats_url: str) -> None:
    server = await start_server(NATS_URL=nats_url, WS_COMPRESSION="deflate")
    await wait_for_nats(server)
    wire = WSConnection(ConnectionType.CLIENT)
    texts: list[str] = []
    is_accepted = False
    stream = await trio.open_tcp_stream("127.0.0.1", server.addresses[0].port)
    async with stream, nats_client(nats_url) as nats:
        extension = PerMessageDeflate()
        request = Request(host="a", target="/ws", extensions=[extension])
        await stream.send_all(wire.send(request))

        async def receive(number: int) -> None:
            nonlocal is_accepted
            partial = ""
            with trio.fail_after(10):
                while len(texts) < number:
                    wire.receive_data(bytes(await stream.receive_some()))
                    for event in wire.events():
                        if isinstance(event, AcceptConnection):
                            is_accepted = True
                            command = '{"type":"subscribe","channels":["A.trade"]}'
                            await stream.send_all(wire.send(TextMessage(command)))
                        elif isinstance(event, TextMessage):
                            partial += event.data
                            if event.message_finished:
                                texts.append(partial)
                                partial = ""

        await receive(1)
        assert is_accepted
        assert extension.enabled()
        for number in range(5):
            await nats.publish("odin.token.A.trade", TRADE % (number, b"z" * 30_000 * number))
        await nats.flush()
        await receive(6)
    prices = [json.loads(text)["data"]["price"] for text in texts[1:]]
    assert prices == list(range(5))


async def test_a_bomb_closes_the_connection_and_nothing_else(start_server: StartServer) -> None:
    server = await start_server(WS_COMPRESSION="deflate", NATS_URL="nats://127.0.0.1:1")
    async with connect(url_of(server)) as bomber, connect(url_of(server)) as other:
        await bomber.send("x" * 50_000_000)
        with trio.fail_after(10), pytest.raises(ConnectionClosed) as closed:
            await bomber.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        await other.send('{"type":"heartbeat"}')
        assert json.loads(await other.recv())["type"] == "pong"


async def test_the_default_is_a_dictionary_for_those_who_ask(start_server: StartServer) -> None:
    server = await start_server(NATS_URL="nats://127.0.0.1:1")
    async with connect(url_of(server)) as client:
        assert client.protocol.extensions == []
        assert client.subprotocol is None
    known = Subprotocol(f"trio-odin.z1.{built_in().id}")
    for offered, selected in (
        ([Z1, Subprotocol("trio-odin")], Z1),
        ([Z1, known], known),
        ([Subprotocol("trio-odin.z1.0000000000000000"), Subprotocol("trio-odin")], "trio-odin"),
    ):
        async with connect(url_of(server), subprotocols=offered) as client:
            assert client.subprotocol == selected
            await client.send('{"type":"heartbeat"}')
            types = [json.loads(await client.recv())["type"] for _ in range(1 + ("z1" in selected))]
            assert types == (["dictionary", "pong"] if "z1" in selected else ["pong"])


async def test_the_dictionary_is_a_page_that_a_cache_may_keep(start_server: StartServer) -> None:
    server = await start_server(NATS_URL="nats://127.0.0.1:1")
    path = built_in().path
    head, body = await fetched(server, path)
    assert head.startswith("HTTP/1.1 200 ")
    assert body == built_in().content
    for line in (
        "Content-Type: application/octet-stream",
        f"Content-Length: {len(body)}",
        "Cache-Control: public, max-age=31536000, immutable",
        "Access-Control-Allow-Origin: *",
    ):
        assert line in head.split("\r\n")
    assert await fetched(server, path, "HEAD") == (head, b"")
    for wrong in (path[:-1], path + "0", "/dictionary/", "/dictionary/0000000000000000"):
        assert (await fetched(server, wrong))[0].startswith("HTTP/1.1 404 ")
    assert (await fetched(server, path, "POST"))[0].startswith("HTTP/1.1 405 ")


async def test_a_dictionary_comes_from_a_file_or_not_at_all(
    start_server: StartServer, tmp_path: Path
) -> None:
    file = tmp_path / "odin.dict"
    file.write_bytes(b'{"type":"price:update"}')
    server = await start_server(NATS_URL="nats://127.0.0.1:1", WS_DICTIONARY=str(file))
    async with connect(url_of(server), subprotocols=[Z1]) as client:
        greeting = json.loads(await client.recv())
    assert (greeting["type"], greeting["bytes"]) == ("dictionary", 23)
    assert (await fetched(server, greeting["url"]))[1] == file.read_bytes()
    assert greeting["url"].encode() in (await fetched(server, "/"))[1]
    assert json.loads((await fetched(server, "/health"))[1])["dictionary"] == greeting["id"]
    assert (await fetched(server, built_in().path))[0].startswith("HTTP/1.1 404 ")
    server = await start_server(NATS_URL="nats://127.0.0.1:1", WS_DICTIONARY="off")
    async with connect(url_of(server), subprotocols=[Z1, Subprotocol("trio-odin")]) as client:
        assert client.subprotocol == "trio-odin"
    assert (await fetched(server, built_in().path))[0].startswith("HTTP/1.1 404 ")
    assert b"/dictionary/" not in (await fetched(server, "/"))[1]
    assert json.loads((await fetched(server, "/health"))[1])["dictionary"] == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "it is empty"),
        (bytes(32 * 1024 + 1), "it has more than 32,768 bytes"),
    ],
)
async def test_a_bad_dictionary_is_an_error_at_the_start(
    start_server: StartServer, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "odin"
    if content is not None:
        file.write_bytes(content)
    complaint = f"WS_DICTIONARY='{re.escape(str(file))}': allowed is .*{reason}"
    with pytest.RaisesGroup(
        pytest.RaisesExc(SettingError, match=complaint), flatten_subgroups=True
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start_with, start_server, str(file))


async def start_with(start_server: StartServer, path: str) -> None:
    await start_server(WS_DICTIONARY=path)


async def test_a_refusal_after_the_upgrade_is_in_a_subprotocol_of_the_client(
    start_server: StartServer,
) -> None:
    server = await start_server(
        NATS_URL="nats://127.0.0.1:1",
        WS_CLOSE_REFUSED="true",
        WS_COMPRESSION="deflate",
        WS_ALLOWED_ORIGINS="https://odin.example",
    )
    for name in (Z1, Subprotocol("trio-odin")):
        async with connect(
            url_of(server), subprotocols=[name], origin=Origin("https://other.example")
        ) as client:
            assert client.subprotocol == name
            assert client.protocol.extensions == []
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4403


async def test_a_reload_changes_what_new_connections_get(start_server: StartServer) -> None:
    server = await start_server(NATS_URL="nats://127.0.0.1:1")
    environment = {"NATS_URL": "nats://127.0.0.1:1", "WS_COMPRESSION": "deflate"}
    async with connect(url_of(server)) as before:
        server.reload(lambda: environment)
        async with connect(url_of(server)) as after:
            for client, extensions in ((before, 0), (after, 1)):
                assert len(client.protocol.extensions) == extensions
                await client.send('{"type":"heartbeat"}')
                assert json.loads(await client.recv())["type"] == "pong"
            assert server.snapshot().fan_out.encodings == {"plain": 1, "deflate": 1}
    await wait_until(lambda: not any(server.snapshot().fan_out.encodings.values()))
