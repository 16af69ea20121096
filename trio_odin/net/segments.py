"""What TCP/IP adds to bytes on the wire."""

from __future__ import annotations

from typing import Final

# IPv4 without options, TCP with timestamps (RFC 7323); the rest of an Ethernet frame's 1,500.
HEADERS_BYTES: Final = 52
SEGMENT_BYTES: Final = 1500 - HEADERS_BYTES


def segments(size: int) -> int:
    """How many TCP segments `size` bytes take, if they are sent at once."""
    return -(-size // SEGMENT_BYTES)


def with_headers(size: int) -> int:
    """The bytes on the wire of `size` bytes that are sent at once."""
    return size + segments(size) * HEADERS_BYTES
