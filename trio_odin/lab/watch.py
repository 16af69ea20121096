"""`trio-odin watch`: a client for a person's eyes. Subscribes, and shows what comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import msgspec
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    open_websocket_url,
)

from trio_odin.core.names import CHANNEL_RULE, is_channel

_CONNECT_SECONDS = 10.0
_NORMAL_CODES = {1000, 1001}
_REFUSALS = {400, 403, 429, 503}


class WatchError(Exception):
    """The server cannot be watched; the message is one sentence."""


async def watch(url: str, channels: Sequence[str], show: Callable[[str], bool]) -> str:
    """Subscribe to `channels` at `url` and `show` each message as it came, the answer first.

    Returns why it ended: the server closed in order (1000, 1001), or `show` returned False.

    Raises:
        WatchError: a name is no channel, no connection, refused, or closed for cause.

    Cancellation closes the connection.
    """
    bad = [channel for channel in channels if not is_channel(channel)]
    if bad:
        raise WatchError(f"{bad[0]!r}: {CHANNEL_RULE}")
    try:
        async with open_websocket_url(
            url, connect_timeout=_CONNECT_SECONDS, disconnect_timeout=_CONNECT_SECONDS
        ) as websocket:
            command = {"type": "subscribe", "channels": list(channels)}
            await websocket.send_message(msgspec.json.encode(command).decode())
            while show(str(await websocket.get_message())):
                pass
            return "nobody reads any more"
    except ConnectionRejected as error:
        why = (error.body or b"").decode(errors="replace").strip().partition("\n")[0]
        if error.status_code not in _REFUSALS:
            why = f"there is no WebSocket, is it {urlsplit(url)._replace(path='/ws').geturl()} ?"
        raise WatchError(f"{url} answers {error.status_code}: {why}") from error
    except ConnectionClosed as closed:
        code = closed.reason.code if closed.reason else 1006
        text = closed.reason.reason if closed.reason else None
        ending = f"{url} closed with {code} {text or ''}".rstrip()
        if code not in _NORMAL_CODES:
            raise WatchError(ending) from closed
        return ending
    except (HandshakeError, ValueError, OSError) as error:
        raise WatchError(f"cannot connect to {url}: {error.__cause__ or error}") from error
