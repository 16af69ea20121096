"""Inflates what a client deflated with permessage-deflate (RFC 7692, 7.2.2), piece by piece.

A client was asked not to refer to its earlier messages. One that does it all the same is served,
too, for which the end of what it sent is kept. Most clients do as they were asked, so nothing is
kept any longer after some messages that were complete in themselves.
"""

from __future__ import annotations

import zlib
from typing import Final

# RFC 7692, 7.2.2: the end of each message, which is not sent.
_FLUSH_END: Final = b"\0\0\xff\xff"
# So many messages that refer to nothing before them show that the client keeps no window. Commands
# are JSON objects with a `type`: one that is as long as this would refer to an earlier one.
_PROOFS: Final = 4
_PROOF_MIN_BYTES: Final = 12
# A character that is cut at the limit may be counted by its receiver only when it is complete.
_CHARACTER_BYTES: Final = 4


class InflateError(Exception):
    """The data is not deflated, or refers to something that was never sent."""


class Inflate:
    """Inflates the messages of one client, one after the other.

    What goes beyond `max_bytes` is not inflated: a little more than that comes out, so that the
    receiver sees that the message is too large.
    """

    __slots__ = ("_alone", "_max_bytes", "_message", "_proofs", "_room", "_window", "_window_bits")

    def __init__(self, *, window_bits: int, max_bytes: int) -> None:
        """Start before the first message.

        Args:
            window_bits: how far back a message may refer, as a power of two.
            max_bytes: the longest message, inflated.
        """
        self._window_bits = window_bits
        self._max_bytes = max_bytes
        self._room = 0
        self._window: bytes | None = b""  # the end of what was inflated; None: it does not matter
        self._proofs: int | None = 0  # None: the client needs the window
        # While a message is incomplete. The second one is without the window, as long as that does.
        self._message: zlib._Decompress | None = None
        self._alone: zlib._Decompress | None = None

    @property
    def keeps_window(self) -> bool:
        """Whether the end of what was inflated is kept."""
        return self._window is not None

    def feed(self, data: bytes) -> bytes:
        """Inflate a part of a message.

        Raises:
            InflateError: this is not what a client may send.
        """
        if self._message is None:
            self._message = zlib.decompressobj(-zlib.MAX_WBITS, zdict=self._window or b"")
            self._room = self._max_bytes + _CHARACTER_BYTES
            if self._window and self._proofs is not None:
                self._alone = zlib.decompressobj(-zlib.MAX_WBITS)
        if not self._room:  # zlib takes 0 for no limit
            return b""
        if self._alone is not None:
            try:
                self._alone.decompress(data, self._room)
            except zlib.error:
                self._alone = self._proofs = None
        try:
            inflated = self._message.decompress(data, self._room)
        except zlib.error as error:
            raise InflateError(str(error)) from None
        self._room -= len(inflated)
        if self._window is not None:
            self._window = (self._window + inflated)[-(2**self._window_bits) :]
        return inflated

    def end(self) -> bytes:
        """End a message; returns the last part of it.

        Raises:
            InflateError: this is not what a client may send.
        """
        rest = self.feed(_FLUSH_END)
        length = self._max_bytes + _CHARACTER_BYTES - self._room
        if self._alone is not None and self._proofs is not None and length >= _PROOF_MIN_BYTES:
            self._proofs += 1
            if self._proofs >= _PROOFS:
                self._window = None
        self._message = self._alone = None
        self._room = 0
        return rest
