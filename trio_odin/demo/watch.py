"""`trio-odin watch`: follows channels, for people as a table, for programs as lines of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs
import trio

from trio_odin.client import ClientError, Event, Feed, Options, Position, Rate, State, connect
from trio_odin.client.errors import shown_url
from trio_odin.client.queues import Item, Policy
from trio_odin.client.tokens import TokenSource
from trio_odin.demo.watch_words import question_for
from trio_odin.wire.channels import CHANNEL_RULE, is_name

_REDRAW_SECONDS = 0.25
_POSITION_SECONDS = 1.0


@attrs.frozen(kw_only=True)
class Wanted:
    """What to watch; see `connect`. It ends after `count` events, if that is not None."""

    urls: Sequence[str]
    channels: Sequence[str]
    every_ms: Rate = 0
    with_snapshot: bool = True
    after: Position | None = None
    token: TokenSource | None = None
    options: Options | None = None
    count: int | None = None


@attrs.frozen
class Ending:
    """Why it ended, in words, and whether that is a failure."""

    sentence: str
    is_failure: bool = False


class View(Protocol):
    """What people or programs see."""

    policy: Policy

    async def take(self, item: Item) -> None:
        """Show an item; raises BrokenPipeError when nobody looks any more."""

    async def reach(self, position: Position) -> None:
        """Note a position up to which everything was taken; raises BrokenPipeError as `take`."""

    def draw(self, feed: Feed) -> None:
        """Show how things are now; called a few times a second."""


async def watch(wanted: Wanted, view: View) -> Ending:
    """Connect, connect again whenever that is needed, and have `view` show what comes.

    It ends after `count` events; when nobody looks any more; when the server cannot be reached at
    the first try; or when it says no for good.

    Raises:
        ClientError: a URL or the name of a channel is malformed.

    Cancellation cuts the connection.
    """
    for name in wanted.channels:
        if not is_name(name):
            raise ClientError(f"{name!r}: {CHANNEL_RULE}{question_for(name)}")
    async with connect(
        wanted.urls,
        wanted.channels,
        every_ms=wanted.every_ms,
        snapshot=wanted.with_snapshot,
        after=wanted.after,
        token=wanted.token,
        options=wanted.options,
        queue=view.policy,
    ) as feed:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_redraw, feed, view)
            ending = await _show_all(feed, wanted, view)
            nursery.cancel_scope.cancel(reason="watching has ended")
        view.draw(feed)
    return ending


async def _redraw(feed: Feed, view: View) -> None:
    while True:
        view.draw(feed)
        await trio.sleep(_REDRAW_SECONDS)


async def _show_all(feed: Feed, wanted: Wanted, view: View) -> Ending:
    has_connected = False
    tries, events = 0, 0
    position_at = trio.current_time()
    try:
        async for item in feed.items():
            if isinstance(item, State) and not has_connected:
                has_connected = item.name in {"live", "stale"}
                tries += item.name == "offline"
                if tries == len(wanted.urls):
                    return _unreachable(wanted, item.cause)
            await view.take(item)
            events += isinstance(item, Event)
            is_last = events == wanted.count
            now = trio.current_time()
            if is_last or isinstance(item, State) or now >= position_at:
                position_at = now + _POSITION_SECONDS
                if (position := feed.position()) is not None:
                    await view.reach(position)
            if is_last:
                return Ending(f"{events} events")
    except ClientError as error:
        if not has_connected:
            return _unreachable(wanted, feed.state.cause)
        return Ending(str(error), is_failure=True)
    except BrokenPipeError:
        return Ending("nobody reads any more")
    return Ending("closed")


def _unreachable(wanted: Wanted, cause: str) -> Ending:
    where = " or ".join(map(shown_url, wanted.urls))
    return Ending(f"cannot connect to {where}: {cause}", is_failure=True)
