"""The encodings in which trio_odin sends events: plain text, or compressed once for all. Pure.

    plain     text frames
    z1        binary frames: `seq` as a varint, then a deflate body against a dictionary, which
              the server announces and the fleet fetches
    deflate   text frames of permessage-deflate (RFC 7692): a stored block with the connection's own
              `{"seq":N`, then a deflate body

The body after `seq` has the same bytes for all subscribers, so it is inflated once. A message of
another form, such as a compressed acknowledgement, is inflated whole.
"""

from __future__ import annotations

import zlib
from hashlib import sha256
from typing import Final

import msgspec

ENCODINGS: Final = ("plain", "z1", "deflate")
_MESSAGE_MAX_BYTES = 64 * 1024 * 1024
_END_OF_FLUSH = b"\0\0\xff\xff"  # cut off by the sender (RFC 7692, 7.2.1)
_ID_DIGITS = 16
# A stored block: its type, length, and the complement of the length (RFC 1951, 3.2.4).
_STORED = 0
_STORED_HEAD_BYTES = 5
_SEQ = b'{"seq":'
_VARINT_MAX_BYTES = 10


class Unreadable(ValueError):
    """Bytes that are not of this encoding."""


class Encoding:
    """Plain text: no frame is compressed.

    Attributes:
        head: the first byte of a frame that is compressed; -1: there is none.
        header: of the opening handshake, offers the encoding; "": nothing to offer.
        accepted: text in the server's answer that accepts it.
    """

    head = -1
    header = ""
    accepted = ""

    def split(self, payload: bytes) -> tuple[int, bytes]:
        """The number of a compressed message, and the bytes that all subscribers get.

        Raises:
            Unreadable: the payload is of another form.
        """
        raise Unreadable

    def text(self, shared: bytes) -> bytes:
        """The text of the bytes that all subscribers get.

        Raises:
            Unreadable: they cannot be inflated.
        """
        raise Unreadable

    def whole(self, payload: bytes) -> bytes:
        """The text of a compressed message of another form.

        Raises:
            Unreadable: it cannot be inflated.
        """
        raise Unreadable


class Z1(Encoding):
    """The subprotocol trio-odin.z1.

    Attributes:
        dictionary: with which bodies are inflated; None until it is known.
    """

    head = 0x82
    header = "Sec-WebSocket-Protocol: trio-odin.z1\r\n"
    accepted = "sec-websocket-protocol: trio-odin.z1\r\n"

    def __init__(self) -> None:
        self.dictionary: bytes | None = None

    def split(self, payload: bytes) -> tuple[int, bytes]:
        """`seq` is an unsigned LEB128 varint."""
        seq = 0
        for place, byte in enumerate(payload[:_VARINT_MAX_BYTES]):
            seq |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return seq, payload[place + 1 :]
        raise Unreadable

    def text(self, shared: bytes) -> bytes:
        """A body is deflated against the dictionary."""
        if self.dictionary is None:
            raise Unreadable
        return _inflated(shared, self.dictionary)


class Deflate(Encoding):
    """permessage-deflate without context takeover."""

    head = 0xC1
    header = (
        "Sec-WebSocket-Extensions: permessage-deflate; "
        "server_no_context_takeover; client_no_context_takeover\r\n"
    )
    accepted = "permessage-deflate"

    def split(self, payload: bytes) -> tuple[int, bytes]:
        """`seq` is in a stored block."""
        if not payload.startswith(_SEQ, _STORED_HEAD_BYTES) or payload[0] != _STORED:
            raise Unreadable
        end = _STORED_HEAD_BYTES + (payload[1] | payload[2] << 8)
        digits = payload[_STORED_HEAD_BYTES + len(_SEQ) : end]
        if not digits.isdigit():
            raise Unreadable
        return int(digits), payload[end:]

    def text(self, shared: bytes) -> bytes:
        """A body is compressed alone."""
        return _inflated(shared)

    def whole(self, payload: bytes) -> bytes:
        """A message without a number, or compressed as a whole."""
        return _inflated(payload)


def encoding_of(name: str) -> Encoding:
    """A new encoding of that name, one of `ENCODINGS`."""
    return {"plain": Encoding, "z1": Z1, "deflate": Deflate}[name]()


def _inflated(body: bytes, dictionary: bytes = b"") -> bytes:
    try:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS, zdict=dictionary)
        text = inflate.decompress(body + _END_OF_FLUSH, _MESSAGE_MAX_BYTES)
    except zlib.error as error:
        raise Unreadable(str(error)) from error
    if inflate.unconsumed_tail:
        raise Unreadable("too long")
    return text


class _Announcement(msgspec.Struct, tag="dictionary"):
    id: str
    url: str


_read_announcement = msgspec.json.Decoder(_Announcement).decode


def announced(unit: bytes) -> tuple[str, str] | None:
    """The id and the path of the dictionary that a message announces; None: it does not."""
    try:
        found = _read_announcement(unit)
    except msgspec.DecodeError:
        return None
    return found.id, found.url


def has_id(dictionary: bytes, identity: str) -> bool:
    """Whether the dictionary is the announced one: its id is the beginning of its digest."""
    return sha256(dictionary).hexdigest()[:_ID_DIGITS] == identity
