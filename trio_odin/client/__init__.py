"""The client: events of a server, over restarts, lost networks and new tokens.

    async with trio_odin.client.connect("wss://prices.example.com/ws", ["BTC.trade"]) as feed:
        async for event in feed:
            print(event.channel, event.data["price"])

That is for trio. For asyncio it is `trio_odin.client.aio.connect`, of the extra `client`.

    core, link, items       what to ask for, what to believe: pure
    driver                  carries that out, on either library
    feed, subscription      what the user has; `queues` holds what waits for a slow one
    on_trio, aio            sockets and tasks
    z1, tokens, urls        compressed messages, expiry, addresses
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_odin.client.connection import Position
from trio_odin.client.errors import ClientError, ClientWarning
from trio_odin.client.feed import Feed
from trio_odin.client.items import Event, Gap, Options, Rate, Refused, State
from trio_odin.client.subscription import Subscription

if TYPE_CHECKING:
    from trio_odin.client.on_trio import connect

__all__ = [
    "ClientError",
    "ClientWarning",
    "Event",
    "Feed",
    "Gap",
    "Options",
    "Position",
    "Rate",
    "Refused",
    "State",
    "Subscription",
    "connect",
]


def __getattr__(name: str) -> Any:
    # Not before it is used, so that a program on asyncio does not load trio.
    if name == "connect":
        from trio_odin.client.on_trio import connect  # noqa: PLC0415

        return connect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
