"""A real server that can come and go, and a client on either library that notes what it gets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, TypeAlias

import attrs
import trio

from tests.e2e.conftest import check_balance, wait_for_nats
from tests.e2e.nats import free_port
from tests.waiting import wait_until
from trio_odin.client import Event, Feed, Gap, Refused, State, aio, on_trio
from trio_odin.client.queues import Item
from trio_odin.server import Server, serve
from trio_odin.settings.reading import read_settings

Library: TypeAlias = Literal["trio", "asyncio"]
_WITHOUT_GUARD = {
    "WS_CPU_REJECT_THRESHOLD": "0",
    "WS_CPU_PAUSE_THRESHOLD": "0",
    "WS_LAG_REJECT_MS": "0",
    "WS_DRAIN_SECONDS": "3s",
}


@attrs.define
class Place:
    """A port where a server may be."""

    nats_url: str = "nats://127.0.0.1:1"
    port: int = attrs.field(factory=free_port)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    @asynccontextmanager
    async def serving(self, **variables: str) -> AsyncIterator[Server]:
        """A server that has NATS, if there is one. It is cut at the end of the block."""
        where = {"WS_ADDR": f"127.0.0.1:{self.port}", "NATS_URL": self.nats_url}
        settings = read_settings({**_WITHOUT_GUARD, **where, **variables})
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(serve, settings)
            if self.nats_url != "nats://127.0.0.1:1":
                await wait_for_nats(server)
            yield server
            check_balance(server)
            nursery.cancel_scope.cancel(reason="the end of the server")


@attrs.define
class Recording:
    """What a client got. The list grows in another thread, if the client is on asyncio.

    While it `is_paused`, it takes no further item. `call` calls a function where the client runs.
    """

    items: list[Item] = attrs.field(factory=list)
    failure: BaseException | None = None
    is_over: bool = False
    feed: Feed | None = None
    is_paused: bool = False
    sleep: Callable[[float], Awaitable[None]] = trio.sleep
    call: Callable[[Callable[[], object]], object] = lambda function: function()

    @property
    def events(self) -> list[Event]:
        return [item for item in self.items if isinstance(item, Event)]

    @property
    def gaps(self) -> list[Gap]:
        return [item for item in self.items if isinstance(item, Gap)]

    @property
    def refused(self) -> list[Refused]:
        return [item for item in self.items if isinstance(item, Refused)]

    @property
    def states(self) -> list[State]:
        return [item for item in self.items if isinstance(item, State)]

    @property
    def data(self) -> list[Any]:
        return [event.data for event in self.events]

    async def until_live(self, times: int = 1) -> None:
        """Wait until it was live so often."""
        names = [state.name for state in self.states]
        await wait_until(
            lambda: [state.name for state in self.states].count("live") >= times,
            what=f"it is live {times} times: {names} {self.failure}",
        )

    async def until_connected(self) -> None:
        """Wait until it has what it wants of a server, which may have no NATS."""
        await wait_until(lambda: {"live", "stale"} & {state.name for state in self.states})

    async def until_data(self, *data: Any) -> None:
        """Wait until the last events had these data."""
        await wait_until(lambda: self.data[-len(data) :] == [*data], what=f"events {data}")

    async def until_over(self) -> None:
        await wait_until(lambda: self.is_over, what="the feed has ended")

    async def follow(self, connection: Any) -> None:
        try:
            async with connection as feed:
                self.feed = feed
                async for item in feed.items():
                    self.items.append(item)
                    while self.is_paused:
                        await self.sleep(0.01)
        except Exception as error:  # noqa: BLE001 - what the test looks at
            self.failure = error
        finally:
            self.is_over = True


@asynccontextmanager
async def recording(
    library: Library,
    url: str | list[str],
    *channels: str,
    **options: Any,
) -> AsyncIterator[Recording]:
    """A client that notes every item until the block ends."""
    record = Recording()
    make = _on_trio if library == "trio" else _on_asyncio
    async with make(record, (url, channels), options):
        yield record


@asynccontextmanager
async def _on_trio(record: Recording, where: Any, options: Any) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(record.follow, on_trio.connect(*where, **options))
        yield
        nursery.cancel_scope.cancel(reason="the end of the client")


@asynccontextmanager
async def _on_asyncio(record: Recording, where: Any, options: Any) -> AsyncIterator[None]:
    """The same in a thread, as the server is in the loop of this one."""
    started = threading.Event()
    loop: asyncio.AbstractEventLoop | None = None
    task: asyncio.Task[None] | None = None

    async def main() -> None:
        nonlocal loop, task
        loop = asyncio.get_running_loop()
        connection = aio.connect(*where, **options)
        task = asyncio.create_task(record.follow(connection))
        record.sleep = asyncio.sleep
        record.call = loop.call_soon_threadsafe
        started.set()
        await asyncio.wait([task])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, _run, main)
        await trio.to_thread.run_sync(started.wait, 10)
        try:
            yield
        finally:
            assert loop is not None
            assert task is not None
            with suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(task.cancel)


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    # trio-asyncio, which the server uses, has put its own loop in the place of asyncio's.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())
