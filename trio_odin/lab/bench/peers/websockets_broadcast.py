"""Peer: the `websockets` library on trio, with its own `broadcast`.

On asyncio, `broadcast` returns at once. On trio, it starts a task for each connection and returns
when all of them have sent, so a client that does not read delays the feed until the keepalive
closes it. Concurrent broadcasts could overtake each other and would queue without bound, so each
one is awaited, as the library intends.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.server import Server, ServerConnection, broadcast
from websockets.trio.server import serve as serve_websockets

from trio_odin.lab.bench.peers.feed import Feed
from trio_odin.lab.bench.peers.program import run
from trio_odin.lab.bench.peers.wire import (
    Subscriptions,
    acknowledgement,
    asked_channels,
    delivery,
)
from trio_odin.net.address import Address
from trio_odin.net.listening import bound_address, open_listeners


async def serve(
    feed: Feed,
    address: Address,
    dropped: Counter[str],
    *,
    task_status: trio.TaskStatus[Address],
) -> None:
    """Serve until cancelled. Nothing is added to `dropped`, as broadcast waits."""
    subscriptions: Subscriptions[ServerConnection] = Subscriptions()

    async def handle(connection: ServerConnection) -> None:
        try:
            async for command in connection:
                if channels := asked_channels(command):
                    # `send` frames the message before it waits, so nothing can come before it.
                    subscriptions.add(connection, channels)
                    await connection.send(acknowledgement(channels), text=True)
        except ConnectionClosed:
            pass  # closed by the keepalive, or without a handshake
        finally:
            subscriptions.remove(connection)

    listeners = await open_listeners(address)
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(
            partial(serve_websockets, handle, listeners=listeners, compression=None)
        )
        task_status.started(bound_address(server.listeners[0]))
        async for channel, payload in feed:
            # As bytes, to avoid decoding and encoding.
            await broadcast(subscriptions.of(channel), delivery(channel, payload), text=True)


def main() -> None:
    """Run the peer."""
    run(serve)


if __name__ == "__main__":
    main()
