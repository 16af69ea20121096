"""The server, except that it sends each message back.

Handshake, frames, outbound side and close are under test, as in production.
"""

from __future__ import annotations

from trio_odin.connection.connection import Connection
from trio_odin.settings.reading import read_settings
from trio_odin.settings.settings import Settings
from trio_odin.wire.frames import Opcode, text_frame

_TEXT_TO_BINARY = Opcode.TEXT ^ Opcode.BINARY


# Room for larger messages, in more pieces, than those of a client.
ENVIRONMENT = {
    "WS_MAX_MESSAGE_BYTES": str(64 * 1024 * 1024),
    "WS_MAX_FRAGMENTS": "1000000",
    "WS_COMMAND_RATE": "0",
    "WS_CPU_REJECT_THRESHOLD": "0",
    "WS_WRITE_DEADLINE": "30s",
    "WS_COMPRESSION": "deflate",
    # A ping by the server in the middle of a case is correct, but the case does not expect it.
    "WS_PING_INTERVAL": "1h",
    "WS_KEEPALIVE_TIMEOUT": "2h",
}


def settings() -> Settings:
    """Settings for a free port, without a NATS server."""
    nobody = {"WS_ADDR": "127.0.0.1:0", "NATS_URL": "nats://127.0.0.1:1"}
    return read_settings(ENVIRONMENT | nobody)


async def send_back(connection: Connection, message: str | bytes) -> None:
    """Replaces `Connection._take`, which executes a command."""
    text = message.encode() if isinstance(message, str) else message
    frame = connection.outbound.encoding.ready(text_frame(text))
    if isinstance(message, bytes):
        frame = bytes((frame[0] ^ _TEXT_TO_BINARY,)) + frame[1:]
    await connection._send(frame)
