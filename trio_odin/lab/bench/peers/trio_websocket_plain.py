"""Peer: trio-websocket as in its manual, with a queue and a writer task for each connection.

By default its server accepts no extensions, so nothing is compressed. Its backlog is trio's, the
largest possible. There is no keepalive. One fault of the library ends the server: a client that
sends something other than a handshake and resets before it gets the answer.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from functools import partial

import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    WebSocketServer,
    serve_websocket,
)

from trio_odin.lab.bench.peers.feed import Feed
from trio_odin.lab.bench.peers.program import run
from trio_odin.lab.bench.peers.wire import (
    Subscriptions,
    acknowledgement,
    asked_channels,
    delivery,
)
from trio_odin.net.address import Address

_OUTBOX_CAPACITY = 512


async def serve(
    feed: Feed,
    address: Address,
    dropped: Counter[str],
    *,
    task_status: trio.TaskStatus[Address],
) -> None:
    """Serve until cancelled. A full outbox drops the delivery."""
    subscriptions: Subscriptions[trio.MemorySendChannel[str]] = Subscriptions()

    async def read(websocket: WebSocketConnection, outbox: trio.MemorySendChannel[str]) -> None:
        try:
            while True:
                if channels := asked_channels(await websocket.get_message()):
                    # Through the outbox, so that it comes before every delivery.
                    await outbox.send(acknowledgement(channels).decode())
                    subscriptions.add(outbox, channels)
        finally:
            subscriptions.remove(outbox)

    async def handle(request: WebSocketRequest) -> None:
        outbox, to_write = trio.open_memory_channel[str](_OUTBOX_CAPACITY)
        with suppress(ConnectionClosed):
            websocket = await request.accept()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_write, websocket, to_write)
                with suppress(ConnectionClosed):  # outside of the nursery it would be in a group
                    await read(websocket, outbox)
                nursery.cancel_scope.cancel(reason="closed")

    async with trio.open_nursery() as nursery:
        server: WebSocketServer = await nursery.start(
            partial(serve_websocket, handle, address.host or None, address.port, None)
        )
        task_status.started(Address(address.host, server.port))
        async for channel, payload in feed:
            text = delivery(channel, payload).decode()
            for outbox in subscriptions.of(channel):
                try:
                    outbox.send_nowait(text)
                except trio.WouldBlock:
                    dropped["outbox_full"] += 1


async def _write(websocket: WebSocketConnection, texts: trio.MemoryReceiveChannel[str]) -> None:
    with suppress(ConnectionClosed):  # the reader sees it too, and ends the connection
        async for text in texts:
            await websocket.send_message(text)


def main() -> None:
    """Run the peer."""
    run(serve)


if __name__ == "__main__":
    main()
