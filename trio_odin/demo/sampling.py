"""Samples of the events that are published to NATS, while somebody waits for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import nats.errors
import trio
import trio_asyncio
from nats.aio.msg import Msg

from trio_odin.demo.samples import Sample
from trio_odin.upstream.access import OF_THE_URL, NatsAccess
from trio_odin.upstream.nats_link import NatsLink, nats_link
from trio_odin.wire.channels import channel_of_subject
from trio_odin.wire.errors import first_error
from trio_odin.wire.payload import why_invalid

_LOOK_SECONDS = 0.1
_FLUSH_SECONDS = 5
# Beyond that the sample is large enough, whatever was asked for.
_BYTES_MAX = 64 * 1024 * 1024


class SamplingError(Exception):
    """NATS cannot be sampled; the message is one sentence."""


async def sample(
    urls: Sequence[str],
    subject: str,
    *,
    most: int,
    seconds: float,
    tell: Callable[[str], object],
    stop: trio.CancelScope | None = None,
    access: NatsAccess = OF_THE_URL,
) -> list[Sample]:
    """Subscribe to `subject`, and return what is published: `most` events, or those of `seconds`.

    What a server would not send to anybody is left out. `tell` is called with the progress. If
    `stop` is cancelled, the events until then are returned.

    Raises:
        SamplingError: there is no connection to NATS, it was lost, or NATS refuses.

    Cancellation: nothing is left behind.
    """
    samples: list[Sample] = []
    room = _BYTES_MAX

    def take(message: Msg) -> None:
        nonlocal room
        channel = channel_of_subject(message.subject)
        room -= len(message.data)
        if channel and room > 0 and len(samples) < most and not why_invalid(message.data):
            samples.append(Sample(channel, message.data))

    try:
        with stop or trio.CancelScope():
            async with (
                trio_asyncio.open_loop(),
                trio_asyncio.aio_as_trio(
                    nats_link(urls, name="trio-odin dictionary", on_error=_ignore, access=access)
                ) as link,
            ):
                await trio_asyncio.aio_as_trio(link.client.listen)(subject, take)
                await trio_asyncio.aio_as_trio(link.client.flush)(timeout=_FLUSH_SECONDS)
                with trio.move_on_after(seconds):
                    while len(samples) < most and room > 0:
                        if link.lost_by is not None:
                            raise link.lost_by
                        tell(f"{len(samples):,} of {most:,} events")
                        await trio.sleep(_LOOK_SECONDS)
    except* (OSError, nats.errors.Error) as group:
        raise SamplingError(f"NATS: {first_error(group)}") from None
    return samples


async def _ignore(_: NatsLink, __: Exception) -> None:
    """What ends the connection is in `lost_by`."""
