"""The protocols in which a fleet speaks to servers. Pure: bytes in, bytes out."""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

_TEXT: Final = 0x81
_BINARY: Final = 0x82
_LENGTH_7_BITS_MAX: Final = 125
_NO_MASK: Final = b"\0\0\0\0"  # a mask of zeros leaves the payload as it is


def masked_frame(head: int, payload: bytes) -> bytes:
    """Make a client's frame (RFC 6455, 5.2), of less than 64 KiB."""
    if len(payload) <= _LENGTH_7_BITS_MAX:
        return bytes((head, 0x80 | len(payload))) + _NO_MASK + payload
    return bytes((head, 0x80 | 126)) + len(payload).to_bytes(2, "big") + _NO_MASK + payload


def upgrade_request(host: str, path: str, offer: str = "") -> bytes:
    """The opening handshake (RFC 6455, 4.1). `offer`: more header lines, each with its end."""
    key = b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n"
    ).encode()


class _Message(msgspec.Struct):
    type: str


class _Acknowledgement(msgspec.Struct):
    """An acknowledgement. Without `count`, the channels themselves give it.

    `every_ms` is the granted rate, absent if none was asked for, or none is known.
    """

    type: Literal["subscription_ack"]
    subscribed: list[str] = []  # msgspec copies it for every instance
    count: int | None = None
    every_ms: int = 0


_read_message = msgspec.json.Decoder(_Message).decode
_read_acknowledgement = msgspec.json.Decoder(_Acknowledgement).decode


class Dialect:
    """The particulars of one kind of server; this base has none."""

    def greeting(self, channels: Sequence[str], every_ms: int = 0) -> bytes:
        """The frames that subscribe to `channels`, at a rate if the dialect has rates."""
        raise NotImplementedError

    def granted_ms(self, payload: bytes) -> int:
        """The rate that the acknowledgement `payload` grants; 0: every event."""
        return 0

    def subscribed(self, payload: bytes, asked: int) -> int | None:
        """The number of `asked` channels that `payload` confirms; None: it confirms nothing.

        A smaller number is final: no further confirmation follows.
        """
        raise NotImplementedError

    def is_error(self, payload: bytes) -> bool:
        """Whether `payload` reports that something was refused."""
        raise NotImplementedError

    def is_known(self, payload: bytes) -> bool:
        """Whether `payload` is a message of a known form."""
        raise NotImplementedError

    def seq_and_rest(self, payload: bytes) -> tuple[int, bytes]:
        """An envelope's number on its connection, or 0, and the bytes that all subscribers get."""
        return 0, payload

    def answer(self, payload: bytes) -> bytes | None:
        """The frame that answers `payload`, if that is the dialect's own ping."""
        return None

    def units(self, buffered: bytes) -> tuple[list[bytes], bytes]:
        """The whole messages in the bytes that frames carried, and the rest."""
        return [buffered], b""


class Odin(Dialect):
    """trio_odin's wire (docs/protocol.md), and that of the bench's peers, without `seq`."""

    _SEQ: Final = b'{"seq":'

    def greeting(self, channels: Sequence[str], every_ms: int = 0) -> bytes:
        """One command."""
        command: dict[str, Any] = {"type": "subscribe", "channels": list(channels)}
        if every_ms:
            command["every_ms"] = every_ms
        return masked_frame(_TEXT, json.dumps(command, separators=(",", ":")).encode())

    def subscribed(self, payload: bytes, asked: int) -> int | None:
        """The reply to the command has the count."""
        try:
            reply = _read_acknowledgement(payload)
        except msgspec.DecodeError:
            return None
        return len(reply.subscribed) if reply.count is None else reply.count

    def granted_ms(self, payload: bytes) -> int:
        """The reply to the command has it."""
        return _read_acknowledgement(payload).every_ms

    def is_error(self, payload: bytes) -> bool:
        """The reply to a command that was not carried out."""
        return b'"type":"error"' in payload

    def is_known(self, payload: bytes) -> bool:
        """A JSON object that names its type, but not an unreadable envelope."""
        if payload.startswith(self._SEQ):
            return False
        try:
            _read_message(payload)
        except msgspec.DecodeError:
            return False
        return True

    def seq_and_rest(self, payload: bytes) -> tuple[int, bytes]:
        """`seq` is the first key."""
        comma = payload.find(b",")
        try:
            if payload.startswith(b'{"seq":'):
                return int(payload[7:comma]), payload[comma:]
        except ValueError:
            pass
        return 0, payload


class Nats(Dialect):
    """The NATS client protocol over WebSocket, as nats-server's own listener speaks it."""

    _MSG = re.compile(rb"MSG \S+ \S+ (?:\S+ )?(\d+)\r\n")

    def greeting(self, channels: Sequence[str], every_ms: int = 0) -> bytes:
        """CONNECT, the SUBs, and a PING; its PONG shows that they were carried out."""
        lines = ['CONNECT {"verbose":false,"pedantic":false,"lang":"bench","version":"1"}']
        lines += [f"SUB odin.token.{channel} {channel}" for channel in channels]
        lines += ["PING", ""]
        return masked_frame(_BINARY, "\r\n".join(lines).encode())

    def subscribed(self, payload: bytes, asked: int) -> int | None:
        """The PONG comes after all commands."""
        return asked if payload.startswith(b"PONG") else None

    def is_error(self, payload: bytes) -> bool:
        """-ERR."""
        return payload.startswith(b"-ERR")

    def is_known(self, payload: bytes) -> bool:
        """Lines; there are many kinds."""
        return payload.endswith(b"\r\n")

    def answer(self, payload: bytes) -> bytes | None:
        """A PING is answered with PONG."""
        return masked_frame(_BINARY, b"PONG\r\n") if payload.startswith(b"PING\r\n") else None

    def units(self, buffered: bytes) -> tuple[list[bytes], bytes]:
        """Protocol lines, each MSG with its payload; they do not follow the frames."""
        units = []
        start = 0
        while (end := self._end_of_unit(buffered, start)) is not None:
            units.append(buffered[start:end])
            start = end
        return units, buffered[start:]

    def _end_of_unit(self, buffered: bytes, start: int) -> int | None:
        line_end = buffered.find(b"\r\n", start)
        if line_end < 0:
            return None
        message = self._MSG.match(buffered, start)
        end = line_end + 2 if message is None else message.end() + int(message[1]) + 2
        return end if end <= len(buffered) else None


class Centrifugo(Dialect):
    """Centrifugo's JSON protocol over its bidirectional WebSocket, a line each."""

    def greeting(self, channels: Sequence[str], every_ms: int = 0) -> bytes:
        """Connect is command 1, then one subscribe for each channel; the last id stands for all."""
        commands = [{"id": 1, "connect": {}}]
        commands += [
            {"id": 2 if channel == channels[-1] else 3, "subscribe": {"channel": channel}}
            for channel in channels
        ]
        text = "\n".join(json.dumps(command, separators=(",", ":")) for command in commands)
        return masked_frame(_TEXT, text.encode())

    def subscribed(self, payload: bytes, asked: int) -> int | None:
        """The reply to the last subscribe; errors of the others came before it."""
        return asked if b'"id":2,' in payload and b'"error"' not in payload else None

    def is_error(self, payload: bytes) -> bool:
        """A reply with an error."""
        return b'"error":' in payload

    def is_known(self, payload: bytes) -> bool:
        """A reply or a push, or the empty end of a line."""
        return not payload or payload.startswith(b"{")

    def answer(self, payload: bytes) -> bytes | None:
        """An empty object is a ping, and its pong."""
        return masked_frame(_TEXT, b"{}") if payload.strip() == b"{}" else None

    def units(self, buffered: bytes) -> tuple[list[bytes], bytes]:
        """A frame holds whole replies, one a line."""
        return buffered.split(b"\n"), b""


DIALECTS: Final[dict[str, Dialect]] = {"odin": Odin(), "nats": Nats(), "centrifugo": Centrifugo()}
