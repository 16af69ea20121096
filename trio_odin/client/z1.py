"""Reads what a server sends: text, and the binary messages of `trio-odin.z1`.

See "Fewer bytes" in docs/protocol.md. The name of a dictionary is the beginning of its SHA-256, so
one that was loaded once serves all feeds of the process.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any, Final

import h11
import msgspec

Message = dict[str, Any]

NAME: Final = "trio-odin.z1"
_PLAIN: Final = "trio-odin"
_ID_CHARS_MIN: Final = 16
_DICTIONARY_MAX_BYTES: Final = 1024 * 1024
_MESSAGE_MAX_BYTES: Final = 64 * 1024 * 1024
_KEPT_MAX: Final = 8  # the last ones; a server has one at a time
_VARINT_MAX_BYTES: Final = 10
# msgspec nests no deeper than Python does.
_UNREADABLE: Final = (ValueError, TypeError, zlib.error, IndexError, RecursionError)
# Python reads no longer ones from text.
_DIGITS_MAX: Final = 4_000
_dictionaries: dict[str, bytes] = {}
_decoder = msgspec.json.Decoder(Message)


class Unreadable(Exception):
    """The server sent what cannot be read; the message says what."""


class _Announcement(msgspec.Struct, tag_field="type", tag="dictionary"):
    id: str
    url: str


def offers(*, is_compressed: bool) -> list[str]:
    """The subprotocols to offer, the best one first."""
    if not is_compressed:
        return [_PLAIN]
    return [*(f"{NAME}.{one}" for one in reversed(_dictionaries)), NAME, _PLAIN]


class Reader:
    """Reads the messages of one socket that has `protocol`.

    Attributes:
        wanted: the path of the dictionary to load before any command is sent; None: none.
    """

    def __init__(self, protocol: str | None) -> None:
        name, _, identity = (protocol or "").removeprefix(NAME).partition(".")
        self.is_compressed = protocol is not None and protocol.startswith(NAME) and not name
        self._identity = identity
        self._dictionary = _dictionaries.get(identity)
        self.wanted: str | None = None

    @property
    def is_ready(self) -> bool:
        """Whether commands can be sent: otherwise the first message has to be `prepare`d for."""
        return not self.is_compressed or self._dictionary is not None

    def prepare(self, data: str | bytes) -> None:
        """Take the first message, which names the dictionary.

        Raises:
            Unreadable: it does not.
        """
        try:
            announced = msgspec.json.decode(data, type=_Announcement)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Unreadable(f"the first message names no dictionary: {error}") from error
        if len(announced.id) < _ID_CHARS_MIN or not announced.url.startswith("/"):
            raise Unreadable(f"the dictionary {announced.id!r} at {announced.url!r} has no name")
        self._identity = announced.id
        self._dictionary = _dictionaries.get(announced.id)
        self.wanted = None if self._dictionary is not None else announced.url

    def take_dictionary(self, dictionary: bytes) -> None:
        """Use a dictionary that was loaded, and keep it for the next connections.

        Raises:
            Unreadable: it is another one.
        """
        if not hashlib.sha256(dictionary).hexdigest().startswith(self._identity):
            raise Unreadable(f"the dictionary is not the announced one, {self._identity!r}")
        while len(_dictionaries) >= _KEPT_MAX:
            del _dictionaries[next(iter(_dictionaries))]
        self._dictionary = _dictionaries[self._identity] = dictionary
        self.wanted = None

    def read(self, data: str | bytes) -> Message:
        """Return the object in a message; an empty one for what is not for us.

        Raises:
            Unreadable: it is not one.
        """
        try:
            if isinstance(data, str):
                return _read(data)
            if self._dictionary is None:
                return {}
            seq, start = _varint(data)
            inflate = zlib.decompressobj(wbits=-15, zdict=self._dictionary)
            text = inflate.decompress(memoryview(data)[start:], _MESSAGE_MAX_BYTES)
            if inflate.unconsumed_tail:
                raise Unreadable(f"a message of more than {_MESSAGE_MAX_BYTES} bytes")
            return {"seq": seq, **_read(text)}
        except _UNREADABLE as error:
            raise Unreadable(f"a message cannot be read: {error}") from error


def _read(text: str | bytes) -> Message:
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError:
        # A number that is too large for a float is JSON all the same: as in JavaScript, infinite.
        message: Message = json.loads(text, parse_int=_whole)
        if not isinstance(message, dict):
            raise
        return message


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < _DIGITS_MAX else float(digits)


def _varint(data: bytes) -> tuple[int, int]:
    """The number at the beginning, and where it ends."""
    number = 0
    for at in range(_VARINT_MAX_BYTES):
        number |= (data[at] & 0x7F) << (7 * at)
        if data[at] < 0x80:
            return number, at + 1
    raise IndexError("its number is too long")


class Download:
    """A GET of a dictionary, without the socket.

    Attributes:
        request: the bytes to send.
    """

    def __init__(self, authority: str, path: str) -> None:
        self._path = path
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=16 * 1024)
        self._body = b""
        headers = [("Host", authority), ("Connection", "close")]
        try:
            head = self._connection.send(h11.Request(method="GET", target=path, headers=headers))
        except h11.LocalProtocolError as error:
            raise Unreadable(f"no dictionary at {path!r}: {error}") from error
        self.request = (head or b"") + (self._connection.send(h11.EndOfMessage()) or b"")

    def take(self, data: bytes | bytearray) -> bytes | None:
        """Take what was received, nothing at the end; return the body once it is complete.

        Raises:
            Unreadable: the answer is another one than expected, or too large.
        """
        try:
            self._connection.receive_data(bytes(data))
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Response) and event.status_code != 200:
                    raise Unreadable(f"no dictionary: {self._path!r} answers {event.status_code}")
                if isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > _DICTIONARY_MAX_BYTES:
                        raise Unreadable(f"{self._path!r} has over {_DICTIONARY_MAX_BYTES} bytes")
                if isinstance(event, h11.EndOfMessage):
                    return self._body
                if event is h11.NEED_DATA:
                    return None
                if isinstance(event, h11.ConnectionClosed):
                    raise Unreadable(f"no dictionary: {self._path!r} gives no answer")
        except h11.RemoteProtocolError as error:
            raise Unreadable(f"no dictionary: {error}") from error
