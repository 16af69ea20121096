"""`trio-odin watch`: a client for a person's eyes. Subscribes, and shows what comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    open_websocket_url,
)

_CONNECT_SECONDS = 10.0
_NORMAL_CODES = {1000, 1001}


class WatchError(Exception):
    """The server cannot be watched; the message is one sentence."""


async def watch(url: str, channels: Sequence[str], show: Callable[[str], None]) -> None:
    """Subscribe to `channels` at `url` and `show` each message as it came, the answer first.

    Returns when the server closes in order (1000, 1001).

    Raises:
        WatchError: no connection, refused, or closed for cause.

    Cancellation closes the connection.
    """
    try:
        async with open_websocket_url(
            url, connect_timeout=_CONNECT_SECONDS, disconnect_timeout=_CONNECT_SECONDS
        ) as websocket:
            command = {"type": "subscribe", "channels": list(channels)}
            await websocket.send_message(msgspec.json.encode(command).decode())
            while True:
                show(str(await websocket.get_message()))
    except ConnectionRejected as error:
        body = (error.body or b"").decode(errors="replace").strip()
        raise WatchError(f"{url} refused with {error.status_code}: {body}") from error
    except ConnectionClosed as closed:
        code = closed.reason.code if closed.reason else 1006
        if code not in _NORMAL_CODES:
            text = closed.reason.reason if closed.reason else None
            raise WatchError(f"{url} closed with {code} {text or ''}".rstrip()) from closed
    except (HandshakeError, ValueError, OSError) as error:
        raise WatchError(f"cannot connect to {url}: {error.__cause__ or error}") from error
