#!/usr/bin/env python3
"""Make the mirror of the stream of events in another region, or make a mirror the stream.

    mirror.py --stream-at nats://10.1.0.1:4222 --mirror-at nats://10.2.0.1:4222
    mirror.py --promote --mirror-at nats://10.2.0.1:4222

The servers of a region read the mirror there, which has the same name and the same offsets as the
stream. Its metadata has the epoch of the stream, which these servers then use: so a client may
resume in any region. Make the mirror before the first server of its region starts. If it is there,
nothing changes; if the stream was made anew, the mirror is, too.

--promote, when the region of the stream is lost: the mirror takes what is published from now on,
after its last offset. Events that it had not copied yet are lost, and their offsets are given
again, so the epoch changes, and every client learns that events may be missing. Events from before
are removed, so that none comes twice. Before the lost region returns, delete its stream, and make a
mirror of this one there.

The login and TLS are those of a server: NATS_USER and NATS_PASSWORD_FILE, NATS_CREDS_FILE,
NATS_TLS_CA and the others, the same for both regions. The user needs the rights of a server, and
may delete and purge the stream (docs/scale.md).

Exit code 0: done. 1: NATS refuses; the message says why. 2: wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.js.api import ExternalStream, StreamConfig, StreamInfo, StreamSource
from nats.js.errors import NotFoundError

from trio_odin.settings.reading import NATS_ACCESS, read_settings
from trio_odin.settings.setting_field import SettingError
from trio_odin.settings.values import Unacceptable, stream_name
from trio_odin.upstream.access import AccessUnusable, NatsAccess, access_of
from trio_odin.upstream.nats_link import NatsLink, nats_link
from trio_odin.upstream.stream import EPOCH, SUBJECT, ask, state_of

_SECONDS = 5
_LOGIN = frozenset(NATS_ACCESS) - {"NATS_URL", "NATS_URL_FILE"}
# The servers look at the stream every two seconds.
_NOTICE_SECONDS = 5.0


class Stop(Exception):
    """It cannot be done. The message is for the operator."""


def main() -> int:
    """Do what the arguments ask for; returns the exit code."""
    options = _options()
    try:
        if options.stream_at:
            options.stream_at = _region(options.stream_at)
        options.mirror_at = _region(options.mirror_at)
    except SettingError as error:
        sys.stderr.write(f"mirror.py: {error}\n")
        return 2
    work = _promoted if options.promote else _mirrored
    try:
        with asyncio.Runner() as runner:
            done = runner.run(work(options))
    except (Stop, AccessUnusable, nats.errors.Error, OSError) as failure:
        sys.stderr.write(f"mirror.py: {str(failure) or type(failure).__name__}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(f"{done}\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stream-at", metavar="URL", help="NATS of the region of the stream")
    parser.add_argument("--mirror-at", metavar="URL", required=True, help="NATS of the other one")
    parser.add_argument(
        "--name", type=_name, default="ODIN_TOKENS", help="of stream and mirror (ODIN_TOKENS)"
    )
    parser.add_argument(
        "--replicas", type=int, choices=[1, 3, 5], default=3, help="of the mirror (3)"
    )
    parser.add_argument("--promote", action="store_true", help="make the mirror the stream")
    options = parser.parse_args()
    if options.promote == bool(options.stream_at):
        parser.error("allowed is one of --stream-at URL and --promote")
    if not options.mirror_at:
        parser.error("--mirror-at: allowed is the address of NATS, and it is empty")
    return options


def _name(text: str) -> str:
    """The name of a stream, as `JS_STREAM_NAME` of a server takes it."""
    try:
        return stream_name(text)
    except Unacceptable as error:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is {error}") from None


class _Region(NamedTuple):
    """How to reach NATS of a region."""

    urls: Sequence[str]
    access: NatsAccess


def _region(url: str) -> _Region:
    """The addresses in `url`, and the login by the variables of a server, as a server reads them.

    Raises:
        SettingError: a variable or an address cannot be used.
    """
    login = {name: value for name, value in os.environ.items() if name in _LOGIN}
    settings = read_settings({**login, "NATS_URL": url})
    return _Region(settings.nats_urls, access_of(settings))


@asynccontextmanager
async def _connected(region: _Region) -> AsyncIterator[Client]:
    """Like a server: nothing is sent unencrypted where TLS was asked for."""

    async def note(link: NatsLink, error: Exception) -> None:
        sys.stderr.write(f"mirror.py: {link.url}: {error}\n")

    urls, access = region
    async with nats_link(urls, name="mirror.py", on_error=note, access=access) as link:
        yield link.client


def _place(client: Client) -> str:
    url = client.connected_url
    return "" if url is None else url.netloc


async def _stream(client: Client, name: str) -> StreamInfo:
    try:
        info: StreamInfo = await client.jetstream(timeout=_SECONDS).stream_info(name)
    except NotFoundError:
        raise Stop(f"there is no stream {name} at {_place(client)}") from None
    return info


async def _domain(client: Client) -> str:
    """The JetStream domain of the region."""
    domain = (await ask(client, "INFO", None)).get("domain")
    if not domain:
        raise Stop(f"{_place(client)} has no JetStream domain; see first.conf")
    return str(domain)


async def _mirrored(options: argparse.Namespace) -> str:
    """Make the mirror, if it is missing or of another stream."""
    async with _connected(options.stream_at) as near, _connected(options.mirror_at) as far:
        stream, domain = await _stream(near, options.name), await _domain(near)
        if await _domain(far) == domain:
            raise Stop(f"both are in the domain {domain}: allowed are two regions")
        epoch, jetstream = state_of(stream).epoch, far.jetstream(timeout=_SECONDS)
        try:
            present = await jetstream.stream_info(options.name)
        except NotFoundError:
            present = None
        if present is not None:
            if present.config.mirror is None:
                raise Stop(
                    f"{options.name} there is a stream that is published to, not a mirror: "
                    "delete it, if no server needs its events"
                )
            if state_of(present).epoch == epoch:
                return f"{options.name} is a mirror already, epoch {epoch}"
            # The request is repeated where NATS is far away: the first one has then done it.
            with suppress(NotFoundError):
                await jetstream.delete_stream(options.name)
        await jetstream.add_stream(_mirror_of(stream, domain, epoch, options.replicas))
    return f"{options.name} is a mirror now, epoch {epoch}"


def _mirror_of(stream: StreamInfo, domain: str, epoch: str, replicas: int) -> StreamConfig:
    config = stream.config
    return StreamConfig(
        name=config.name,
        mirror=StreamSource(
            name=str(config.name), external=ExternalStream(api=f"$JS.{domain}.API")
        ),
        storage=config.storage,
        max_age=config.max_age,
        max_msgs=config.max_msgs,
        max_bytes=config.max_bytes,
        num_replicas=replicas,
        metadata={EPOCH: epoch},
    )


async def _promoted(options: argparse.Namespace) -> str:
    """Let the mirror take what is published."""
    async with _connected(options.mirror_at) as far:
        info = await _stream(far, options.name)
        if info.config.mirror is None:
            return f"{options.name} is not a mirror: nothing was changed"
        config: dict[str, Any] = (await ask(far, f"STREAM.INFO.{options.name}", None))["config"]
        epoch = f"{state_of(info).epoch}-{secrets.token_hex(4)}"
        config["metadata"] = {**config.get("metadata", {}), EPOCH: epoch}
        # First what came is removed, then all servers see the epoch, then events may come: none
        # is delivered under both epochs.
        await ask(far, f"STREAM.PURGE.{options.name}", {"seq": info.state.last_seq + 1})
        await ask(far, f"STREAM.UPDATE.{options.name}", config)
        await asyncio.sleep(_NOTICE_SECONDS)
        del config["mirror"]
        await ask(far, f"STREAM.UPDATE.{options.name}", {**config, "subjects": [SUBJECT]})
        last = (await _stream(far, options.name)).state.last_seq
    return f"{options.name} is the stream now, epoch {epoch}, after offset {last}"


if __name__ == "__main__":
    sys.exit(main())
