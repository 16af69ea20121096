"""Inflates what a client deflated with permessage-deflate (RFC 7692, 7.2.2), message by message.

A message is kept as it came until it is complete. So an incomplete one takes no more memory than a
plain one: what zlib needs for each stream is more than a message may have.

A client was asked not to refer to its earlier messages. One that does it all the same is served,
too, for which the end of what it sent is kept. Most clients do as they were asked, so nothing is
kept any longer after some messages that were complete in themselves.
"""

from __future__ import annotations

import zlib
from typing import Final, Protocol

# RFC 7692, 7.2.2: the end of each message, which is not sent.
_FLUSH_END: Final = b"\0\0\xff\xff"
# Deflated text is longer than the text by a few bytes for each block, and each flush ends one.
_BLOCK_HEADS_BYTES: Final = 1024
# RFC 7692, 7.2.1: blocks may follow one that is marked as the last. Each takes a new stream, which
# costs far more than the two bytes of an empty block.
_LAST_BLOCKS_MAX: Final = 64
# So many messages that refer to nothing before them show that the client keeps no window. Commands
# are JSON objects with a `type`: one that is as long as this would refer to an earlier one.
_PROOFS: Final = 4
_PROOF_MIN_BYTES: Final = 12


class InflateError(Exception):
    """The data is not deflated, or refers to something that was never sent or is not kept."""


class Budget(Protocol):
    """The bytes that the windows of all clients take, and whether there may be more."""

    used_bytes: int

    def has_room_for(self, size: int) -> bool:
        """Whether `size` more bytes may be kept."""
        ...


class Inflate:
    """Inflates the messages of one client, one after the other.

    Resource handling: what is kept of earlier messages counts against a budget until `let_go`.

    Attributes:
        is_excessive: whether a message was too large, deflated or inflated. Nothing is kept or
            inflated from then on.
    """

    __slots__ = (
        "_budget",
        "_max_bytes",
        "_message",
        "_proofs",
        "_window",
        "_window_bytes",
        "is_excessive",
    )

    def __init__(self, *, window_bits: int, max_bytes: int, budget: Budget) -> None:
        """Start before the first message.

        Args:
            window_bits: how far back a message may refer, as a power of two.
            max_bytes: the longest message, inflated. Deflated it may be a little longer.
            budget: of what is kept of earlier messages. Without room nothing is kept, and a message
                that refers to it is an error.
        """
        self._window_bytes = 2**window_bits
        self._max_bytes = max_bytes
        self._budget = budget
        self._message = b""  # the beginning of a message, as it came
        self._window: bytes | None = b""  # the end of what was inflated; None: it is not kept
        self._proofs: int | None = 0  # None: the client needs the window
        self.is_excessive = False

    @property
    def keeps_window(self) -> bool:
        """Whether the end of what was inflated is kept."""
        return self._window is not None

    def feed(self, data: bytes) -> None:
        """Add a part of a message. Look at `is_excessive` then."""
        if len(self._message) + len(data) > self._max_bytes + _BLOCK_HEADS_BYTES:
            self.is_excessive = True
        self._message = b"" if self.is_excessive else self._message + data

    def end(self) -> bytes:
        """End a message and inflate it. It is empty if it is too large, see `is_excessive`.

        Raises:
            InflateError: this is not what a client may send.
        """
        if self.is_excessive:
            return b""
        data, self._message = self._message + _FLUSH_END, b""
        text = _inflated(data, self._window or b"", self._max_bytes + 1)
        if len(text) > self._max_bytes:
            self.is_excessive = True
            return b""
        if self._window and self._proofs is not None and len(text) >= _PROOF_MIN_BYTES:
            self._proofs = self._proofs + 1 if self._stands_alone(data) else None
        self._keep(text)
        return text

    def _stands_alone(self, data: bytes) -> bool:
        try:
            _inflated(data, b"", self._max_bytes)
        except InflateError:
            return False
        return True

    def _keep(self, text: bytes) -> None:
        """Have the window end with `text`, unless it is not needed or there is no room for it."""
        if self._window is None:
            return
        window = (self._window + text)[-self._window_bytes :]
        growth = len(window) - len(self._window)
        if self._proofs == _PROOFS or not self._budget.has_room_for(growth):
            self.let_go()
        else:
            self._budget.used_bytes += growth
            self._window = window

    def let_go(self) -> None:
        """Drop what is kept of earlier messages."""
        self._budget.used_bytes -= len(self._window or b"")
        self._window = None


def _inflated(data: bytes, past: bytes, most: int) -> bytes:
    """Inflate `data`, which may refer to `past`, as far as it gives no more than `most` bytes."""
    text = b""
    for _ in range(_LAST_BLOCKS_MAX):
        stream = zlib.decompressobj(-zlib.MAX_WBITS, zdict=past + text)
        try:
            text += stream.decompress(data, most - len(text))
        except zlib.error as error:
            raise InflateError(str(error)) from None
        if not stream.eof or len(text) == most:  # zlib would take 0 for no limit
            return text
        data = stream.unused_data
    raise InflateError(f"it has more than {_LAST_BLOCKS_MAX} blocks marked as the last")
