"""The feed of every peer: NATS `odin.token.>` → (channel, payload), by a core subscription.

It uses the link of trio-odin, so a comparison does not compare two NATS clients.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

import trio
import trio_asyncio
from nats.aio.msg import Msg

from trio_odin.upstream.nats_client import spare_detours
from trio_odin.upstream.nats_link import NatsLink, nats_link
from trio_odin.wire.channels import channel_of_subject

Event: TypeAlias = tuple[str, bytes]
Feed: TypeAlias = trio.MemoryReceiveChannel[Event]

_SUBJECT = "odin.token.>"
_CAPACITY = 8192  # that of trio-odin's inbound queue
_FLUSH_SECONDS = 5


class NatsLost(Exception):
    """NATS is lost. A peer does not reconnect: a measurement across a reconnect means nothing."""


async def run_feed(
    nats_url: str, dropped: Counter[str], *, task_status: trio.TaskStatus[Feed]
) -> None:
    """Put every event into a channel; events that find no place there are counted in `dropped`.

    Starts with the receiving end when NATS has accepted the subscription. Runs until cancelled.

    Raises:
        OSError, nats.errors.Error: NATS could not be reached.
        NatsLost: the connection was lost later.
    """
    send, receive = trio.open_memory_channel[Event](_CAPACITY)

    def on_message(message: Msg) -> None:
        channel = channel_of_subject(message.subject)
        if channel is None:
            dropped["bad_subject"] += 1
            return
        try:
            send.send_nowait((channel, message.data))
        except trio.WouldBlock:
            dropped["feed_full"] += 1

    async def on_error(_link: NatsLink, _error: Exception) -> None:
        pass  # what is of importance ends the link

    async def consume() -> None:  # under asyncio
        async with nats_link([nats_url], name="trio-odin-peer", on_error=on_error) as link:
            await link.client.listen(_SUBJECT, on_message)
            await link.client.flush(timeout=_FLUSH_SECONDS)
            task_status.started(receive)
            await link.wait_lost()
        raise NatsLost(f"the connection to {nats_url} is lost")

    async with send, trio_asyncio.open_loop() as loop:
        spare_detours(loop)
        await trio_asyncio.aio_as_trio(consume)()
