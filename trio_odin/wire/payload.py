"""Whether a payload from NATS can be the `data` of an event."""

from __future__ import annotations

import msgspec


def why_invalid(payload: bytes) -> str | None:
    """Why no browser could read a message with `payload` in it; None if it is JSON in UTF-8."""
    try:
        msgspec.json.decode(payload, type=msgspec.Raw)  # checks the grammar, keeps huge numbers
        payload.decode()  # the check above lets bad UTF-8 in strings pass
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error) or type(error).__name__
    return None
