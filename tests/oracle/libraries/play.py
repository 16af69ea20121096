"""The Python client plays, as `player.mjs` does: `python -m … trio|asyncio CONFIG`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import trio

from trio_odin.client import Event, Feed, Gap, Options, State, Subscription, aio, connect

Report = Callable[[str, dict[str, Any]], None]


def report(kind: str, content: dict[str, Any]) -> None:
    """Print a line."""
    line = {"kind": kind, "at": time.time() * 1000, **content}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What `connect` takes, of the options of the TypeScript client."""
    options = config["options"]
    numbers = Options(
        heartbeat_ms=options["heartbeatMs"],
        pong_ms=options["pongMs"],
        dial_ms=options["dialMs"],
        retry_max_ms=options["retryMaxMs"],
    )
    return {"options": numbers, "queue": "wait", "compression": config["compressed"]}


async def follow(number: int, subscription: Subscription) -> None:
    """Report everything that a subscription gets."""
    async for item in subscription.items():
        if isinstance(item, Event):
            content = {
                "number": number,
                "channel": item.channel,
                "n": item.data["n"],
                "epoch": item.epoch,
                "skipped": item.skipped,
                "isSnapshot": item.is_snapshot,
                "unixMs": item.unix_ms,
            }
            offset = {} if item.offset is None else {"offset": item.offset}
            report("event", content | offset)
        elif isinstance(item, Gap):
            gap = {"channels": item.channels, "missed": item.missed, "reason": item.reason}
            report("gap", {"number": number, **gap})
        else:
            report("refused", {"number": number, "text": str(item)})


async def states(feed: Feed) -> None:
    """Report the states."""
    async for item in feed.items():
        if isinstance(item, State):
            report("state", {"name": item.name, "cause": item.cause})


def subscribed(feed: Feed, config: dict[str, Any]) -> list[Subscription]:
    """The subscriptions that the config asks for."""
    return [
        feed.subscribe(one["names"], every_ms=one["everyMs"]) for one in config["subscriptions"]
    ]


async def play_on_trio(config: dict[str, Any]) -> None:
    """Play until the standard input ends."""
    async with connect(config["urls"], **settings(config)) as feed, trio.open_nursery() as nursery:
        nursery.start_soon(states, feed)
        for number, one in enumerate(subscribed(feed, config)):
            nursery.start_soon(follow, number, one)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel(reason="nobody reads any longer")


async def play_on_asyncio(config: dict[str, Any]) -> None:
    """Play until the standard input ends."""
    async with aio.connect(config["urls"], **settings(config)) as feed:
        tasks = [asyncio.create_task(states(feed))]
        tasks += [
            asyncio.create_task(follow(number, one))
            for number, one in enumerate(subscribed(feed, config))
        ]
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()


def main() -> None:
    """Play as the arguments say."""
    config = json.loads(sys.argv[2])
    if sys.argv[1] == "trio":
        trio.run(play_on_trio, config)
    else:
        asyncio.run(play_on_asyncio(config))


if __name__ == "__main__":
    main()
