"""A small server with rates and encodings, of nats-py and the `websockets` library.

`python -m tests.lab.bench.rated_server --addr HOST:PORT --nats URL` stands in for trio-odin.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from hashlib import sha256
from typing import Any

import nats
from nats.aio.msg import Msg
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tests.lab.fleet.wire import DICTIONARY, z1_payload

ID = sha256(DICTIONARY).hexdigest()[:16]
CLIENTS: set[Client] = set()


class Client:
    """One connection: what it waits for."""

    def __init__(self, connection: ServerConnection, channels: list[str], every_ms: int) -> None:
        self.connection = connection
        self.channels = frozenset(channels)
        self.every_ms = every_ms
        self.waiting: dict[str, tuple[int, int, bytes]] = {}
        self.seq = 0

    async def send(self, tail: bytes) -> None:
        self.seq += 1
        with suppress(ConnectionClosed):
            if self.connection.subprotocol:
                await self.connection.send(z1_payload(self.seq, tail))
            else:
                await self.connection.send((b'{"seq":%d' % self.seq + tail).decode())

    async def tick(self) -> None:
        waiting, self.waiting = self.waiting, {}
        events = [
            b'{"channel":"%b","offset":%d,"skipped":%d,"ts":1759027038365,"data":%b}'
            % (channel.encode(), offset, skipped, data)
            for channel, (offset, skipped, data) in waiting.items()
        ]
        if events:
            tail = b',"ts":1759027038365,"type":"price:batch","events":[%b]}' % b",".join(events)
            await self.send(tail)


async def handle(connection: ServerConnection) -> None:
    if connection.subprotocol:
        told = {"type": "dictionary", "id": ID, "bytes": 1, "url": f"/dictionary/{ID}"}
        await connection.send(json.dumps(told))
    asked: dict[str, Any] = json.loads(await connection.recv())
    client = Client(connection, asked["channels"], asked.get("every_ms", 0))
    reply = {"type": "subscription_ack", "subscribed": asked["channels"]}
    await connection.send(json.dumps(reply | {"every_ms": client.every_ms}))
    CLIENTS.add(client)
    with suppress(ConnectionClosed):
        while client.every_ms:
            await asyncio.sleep(client.every_ms / 1000)
            await client.tick()
        async for _ in connection:
            pass
    CLIENTS.discard(client)


class Market:
    """Hands each message to its subscribers, with its place in the stream."""

    offset = 0

    async def take(self, message: Msg) -> None:
        self.offset += 1
        channel = message.subject.removeprefix("odin.token.")
        tail = b',"type":"price:update","ts":1759027038365,"data":%b,"channel":"%b","offset":%d}'
        tail %= (message.data, channel.encode(), self.offset)
        for client in list(CLIENTS):
            if channel not in client.channels:
                continue
            if client.every_ms:
                older = client.waiting.get(channel)
                skipped = 0 if older is None else older[1] + 1
                client.waiting[channel] = (self.offset, skipped, message.data)
            else:
                await client.send(tail)


def page(connection: ServerConnection, request: Request) -> Response | None:
    if request.path == "/ws":
        return None
    return Response(200, "OK", Headers({"Content-Length": str(len(DICTIONARY))}), DICTIONARY)


async def main(address: str, nats_url: str) -> None:
    link = await nats.connect(nats_url)
    await link.subscribe("odin.token.>", cb=Market().take)
    host, _, port = address.rpartition(":")
    server = await serve(
        handle,
        host,
        int(port),
        process_request=page,
        select_subprotocol=lambda _, offered: offered[0] if offered else None,
        compression="deflate" if os.environ.get("WS_COMPRESSION") == "deflate" else None,
    )
    async with server:
        port_of_it = next(iter(server.sockets)).getsockname()[1]
        sys.stdout.write(f"listening on {host}:{port_of_it}\n")
        sys.stdout.flush()
        await server.serve_forever()


if __name__ == "__main__":
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    asyncio.run(main(options["--addr"], options["--nats"]))
