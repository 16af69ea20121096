"""What the kernel knows of a client's socket, so that nothing has to be counted for it."""

from __future__ import annotations

import socket
import struct
from typing import Final

import trio

from trio_odin.admin.questions import Transport
from trio_odin.net.tls_stream import socket_of

# struct tcp_info of Linux (include/uapi/linux/tcp.h), which only ever grows at its end.
_BYTES: Final = 168
_UNACKNOWLEDGED, _ROUND_TRIP_US, _RETRANSMITTED = 24, 68, 100
_BYTES_ACKNOWLEDGED, _BYTES_RECEIVED, _BYTES_UNSENT = 120, 128, 144
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")


def bytes_acknowledged(stream: trio.abc.Stream) -> int | None:
    """How many bytes the client's machine has acknowledged; None if the kernel does not know."""
    client = socket_of(stream)
    if client is None:
        return None
    try:  # no call between: a list sorted by it asks for thousands
        info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED)
        acknowledged: int = _U64.unpack_from(info, _BYTES_ACKNOWLEDGED)[0]
    except (OSError, struct.error):  # as in `_info`
        return None
    return acknowledged


def transport_of(stream: trio.abc.Stream) -> Transport | None:
    """What the kernel knows; None if that is nothing."""
    info = _info(stream)
    if info is None:
        return None
    return Transport(
        round_trip_ms=round(_U32.unpack_from(info, _ROUND_TRIP_US)[0] / 1000, 3),
        unacknowledged_segments=_U32.unpack_from(info, _UNACKNOWLEDGED)[0],
        unsent_bytes=_U32.unpack_from(info, _BYTES_UNSENT)[0],
        retransmitted_segments=_U32.unpack_from(info, _RETRANSMITTED)[0],
        bytes_acknowledged=_U64.unpack_from(info, _BYTES_ACKNOWLEDGED)[0],
        bytes_received=_U64.unpack_from(info, _BYTES_RECEIVED)[0],
    )


def _info(stream: trio.abc.Stream) -> bytes | None:
    client = socket_of(stream)
    if client is None:
        return None
    try:
        info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES)
    except OSError:  # closed meanwhile, or not TCP
        return None
    return info if len(info) == _BYTES else None
