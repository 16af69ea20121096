"""A look at NATS without changing anything there: for `trio-odin serve --check`.

Runs under asyncio, but for `probe_nats` itself.
"""

from __future__ import annotations

from typing import Any

import attrs
import nats.errors
import trio_asyncio
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from trio_odin.settings.settings import Settings
from trio_odin.upstream.access import NatsAccess
from trio_odin.upstream.nats_client import Refused, TotalClient
from trio_odin.upstream.nats_link import NatsLink, describe, nats_link
from trio_odin.upstream.stream import SUBJECT, brings_ours, has_jetstream, why_unsuitable

_REQUEST_SECONDS = 5.0


@attrs.frozen
class Probe:
    """What was found out about one server, or about the stream: a sentence, and whether it is good.

    Attributes:
        is_of_stream: whether it is about the stream.
    """

    is_good: bool
    text: str
    is_of_stream: bool = False


async def probe_nats(settings: Settings, access: NatsAccess) -> list[Probe]:
    """Log in to each configured server, and look for the stream on the first that accepts.

    Returns within 15 s for each server. Called under trio.

    Cancellation: the connection is closed, within two seconds.
    """
    probes: list[Probe] = []
    async with trio_asyncio.open_loop():
        for url in settings.nats_urls:
            wants_stream = not any(probe.is_of_stream for probe in probes)
            probes += await trio_asyncio.aio_as_trio(_probe)(
                settings, access, url, wants_stream=wants_stream
            )
    return sorted(probes, key=lambda probe: probe.is_of_stream)


async def _probe(
    settings: Settings, access: NatsAccess, url: str, *, wants_stream: bool
) -> list[Probe]:
    async def on_error(link: NatsLink, error: Exception) -> None:
        if isinstance(error, Refused):
            link.lose(error)

    try:
        async with nats_link(
            [url], name="trio-odin check", on_error=on_error, access=access
        ) as link:
            version = link.client.says_its_version
            found = [Probe(True, f"{link.url}: logged in to nats-server {version}")]
            if wants_stream:
                found.append(await _probe_stream(settings, link))
            return found
    except (OSError, nats.errors.Error) as error:
        return [Probe(False, "; ".join(describe(error)))]


async def _probe_stream(settings: Settings, link: NatsLink) -> Probe:
    try:
        is_good, text = await link.while_up(_look(settings, link.client))
    except (OSError, nats.errors.Error) as error:
        return Probe(False, "; ".join(describe(error)), is_of_stream=True)
    return Probe(is_good, text, is_of_stream=True)


async def _look(settings: Settings, client: TotalClient) -> tuple[bool, str]:
    """Whether the server could consume events here, and how."""
    mode = settings.nats_mode
    if mode == "core":
        await client.listen(SUBJECT, _ignore)
        await client.flush(timeout=round(_REQUEST_SECONDS))
        return True, f"core NATS, without a stream; may subscribe to {SUBJECT}"
    if not await has_jetstream(client, request_seconds=_REQUEST_SECONDS):
        if mode == "auto":
            return True, "NATS has no JetStream: core NATS will be used"
        return False, "NATS has no JetStream, and NATS_MODE is jetstream"
    jetstream = client.jetstream(timeout=_REQUEST_SECONDS)
    name = settings.stream_name
    try:
        info: Any = await jetstream.stream_info(name)
    except NotFoundError:
        try:
            other = await jetstream.find_stream_name_by_subject(SUBJECT)
        except NotFoundError:
            return True, f"{name} is not there yet: the server will make it"
        info = await jetstream.stream_info(other)
        if not brings_ours(info):
            return False, f"{other} covers only a part of {SUBJECT}: name it in JS_STREAM_NAME"
    if why_not := why_unsuitable(info):
        return False, why_not
    if not brings_ours(info):
        return True, f"{name} lacks {SUBJECT}: the server will add it"
    state = info.state
    return True, f"{info.config.name} is there, with {state.messages:,} messages"


def _ignore(_: Msg) -> None:
    """Take nothing: whether it may be subscribed to is all there is to know."""
