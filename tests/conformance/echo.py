"""The server, but for what it does with a message: it sends it back.

Handshake, frames, outlet and close are under test, all as in production.
"""

from __future__ import annotations

from trio_odin.connection.connection import Connection
from trio_odin.settings.settings import Settings, read_settings
from trio_odin.wire.frames import FIN, text_frame

_BINARY_FRAME = bytes((FIN | 0x2,))


# Room for messages that are larger, and in more pieces, than a client's.
ENVIRONMENT = {
    "WS_MAX_MESSAGE_BYTES": str(64 * 1024 * 1024),
    "WS_MAX_FRAGMENTS": "1000000",
    "WS_COMMAND_RATE": "0",
    "WS_CPU_REJECT_THRESHOLD": "0",
    "WS_WRITE_DEADLINE": "30s",
    # A ping of ours in the middle of a case is right, and not what the case expects.
    "WS_PING_INTERVAL": "1h",
    "WS_KEEPALIVE_TIMEOUT": "2h",
}


def settings() -> Settings:
    """On a free port, without a NATS server."""
    nobody = {"WS_ADDR": "127.0.0.1:0", "NATS_URL": "nats://127.0.0.1:1"}
    return read_settings(ENVIRONMENT | nobody)


async def send_back(connection: Connection, message: str | bytes) -> None:
    """Stands where `Connection._take` executes a command."""
    if isinstance(message, str):
        await connection._send(text_frame(message.encode()))
    else:
        await connection._send(_BINARY_FRAME + text_frame(message)[1:])
