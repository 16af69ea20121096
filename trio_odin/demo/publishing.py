"""Publishing to NATS from trio, while one connection lasts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import trio_asyncio

from trio_odin.upstream.nats_link import NatsLink, nats_link

# Takes a subject and a payload.
Publish: TypeAlias = Callable[[str, bytes], Awaitable[None]]
# Takes any number of them.
PublishMany: TypeAlias = Callable[[Sequence[tuple[str, bytes]]], Awaitable[None]]


@asynccontextmanager
async def publishing(url: str, *, name: str) -> AsyncIterator[Publish]:
    """Connect to the NATS server at `url` as `name`, and yield a function that publishes.

    Raises:
        OSError, nats.errors.Error: there is no connection. The function raises them, too.
    """
    async with publishing_many(url, name=name) as publish_many:

        async def publish(subject: str, payload: bytes) -> None:
            await publish_many([(subject, payload)])

        yield publish


@asynccontextmanager
async def publishing_many(url: str, *, name: str) -> AsyncIterator[PublishMany]:
    """The same for several messages at a time: one change between trio and asyncio for all."""

    async def on_error(_: NatsLink, __: Exception) -> None:
        pass  # a publish that fails because of this error raises it

    async with (
        trio_asyncio.open_loop(),
        trio_asyncio.aio_as_trio(nats_link([url], name=name, on_error=on_error)) as link,
    ):

        async def publish_many(messages: Sequence[tuple[str, bytes]]) -> None:
            for subject, payload in messages:
                await link.client.publish(subject, payload)

        yield trio_asyncio.aio_as_trio(publish_many)
