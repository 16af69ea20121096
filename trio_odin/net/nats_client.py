"""nats-py's client, made total: no message that NATS hands on ends the connection.

nats-py raises in its reader at a subject that is not UTF-8, at white space that only Python takes
for such, and at headers out of shape. The connection ends then, and the next one ends at the same
message, for as long as the stream keeps it. Here each piece of what comes has one decision:

    subject, reply subject   bytes that are not UTF-8 are escaped; such a subject is no channel's
    headers                  read only of what is sent to an inbox: an event's concern nobody
    -ERR                     ends the connection, in NATS' own words; a refused publish does not,
                             unless it is one that NATS waits for, such as for flow control
    INFO, PONG               what means nothing is passed over
    any other line           ends the connection as `Unreadable`: where it ends is not known

Runs under asyncio. What is overridden is private to nats-py, so a test holds its names.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.protocol.command import sub_cmd

_READ_BYTES = 32_768
# nats-server's own limit is 4 KiB for a line of ours; its INFO names every server of a cluster.
_LINE_MAX_BYTES = 1024 * 1024
# What nats-server takes at most, however it is configured.
_MESSAGE_MAX_BYTES = 64 * 1024 * 1024
_SHOWN_BYTES = 100
# An election takes some seconds, and what is asked right after it should not come long after it.
_REQUEST_SECONDS = 5.0
_FIRST_TRY_SECONDS = 0.3
_TRY_MAX_SECONDS = 1.0
_LINE_END = b"\r\n"

OnMessage: TypeAlias = Callable[[Msg], Awaitable[None]]


class Unreadable(nats.errors.Error):
    """What came cannot be understood, and neither can what comes after it."""


class NoAnswer(nats.errors.Error):
    """Nobody has answered a request in time."""


class Refused(nats.errors.Error):
    """NATS says no: -ERR, in its own words."""


class Unencrypted(Refused):
    """The server takes only what everybody can read."""


class TotalClient(Client):
    """A connection to NATS.

    Args:
        on_lost: called when the connection has ended, with the reason; maybe more than once.
        on_info: called with what the server says of itself, at first and whenever that changes.
        is_encrypted_only: nothing is sent before the connection is encrypted.
    """

    def __init__(
        self,
        *,
        on_lost: Callable[[Exception], None],
        on_info: Callable[[Mapping[str, Any]], None],
        is_encrypted_only: bool,
    ) -> None:
        super().__init__()
        self._received = bytearray()
        self._on_lost = on_lost
        self._on_info = on_info
        self._is_encrypted_only = is_encrypted_only
        self._listeners: dict[int, OnMessage] = {}

    @property
    def says_it_has_jetstream(self) -> bool:
        """Whether the server itself has JetStream; another one of its cluster may."""
        return self._server_info.get("jetstream") is True

    async def listen(self, subject: str, on_message: OnMessage) -> None:
        """Subscribe. The reader itself calls `on_message`, so that nothing waits in between.

        What that raises ends the connection as `Unreadable`.
        """
        self._sid += 1
        self._listeners[self._sid] = on_message
        await self._send_command(sub_cmd(subject, "", self._sid))
        # Until it is written: a ping is written at once, and its pong would come before a refusal.
        await self._flush_pending(force_flush=True)

    # --- in place of nats-py's

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = _REQUEST_SECONDS,  # noqa: ASYNC109 - nats-py's name
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """Ask, and ask again while nobody answers; so what is asked for must bear being done twice.

        A request that reaches JetStream while it elects a leader is lost without a word.

        Raises:
            NoAnswer: nobody did within `timeout` seconds.
            nats.errors.NoRespondersError: there is nobody to answer.
        """
        rest, patience = timeout, _FIRST_TRY_SECONDS
        while rest > 0:
            seconds = min(patience, rest)
            with suppress(nats.errors.TimeoutError):
                return await super().request(subject, payload, seconds, old_style, headers)
            rest -= seconds
            patience = min(patience * 1.5, _TRY_MAX_SECONDS)
        raise NoAnswer(f"no answer to {subject} within {timeout:g} s")

    async def _read_loop(self) -> None:
        lost: Exception = nats.errors.UnexpectedEOF()
        try:
            while self._transport is not None and (
                chunk := await self._transport.read(_READ_BYTES)
            ):
                self._received += chunk
                await self._parse()
        except (OSError, nats.errors.Error) as error:
            lost = error
        except Exception as error:  # noqa: BLE001 - a fault of ours, at whatever came
            lost = Unreadable(f"{type(error).__name__}: {error}")
            lost.__cause__ = error
        await self._process_op_err(lost)

    async def _parse(self) -> None:
        """Take the lines that are complete.

        nats-server separates words by a space. White space as Python knows it is more than that,
        and may be within a subject.
        """
        received = self._received
        while (end := received.find(_LINE_END)) >= 0:
            line = bytes(received[:end])
            begin = end + len(_LINE_END)
            verb, *words = line.split(b" ")
            if verb not in {b"MSG", b"HMSG"}:
                del received[:begin]
                await self._take(verb, line)
                continue
            try:
                headers_bytes = _number(words.pop(-2)) if verb == b"HMSG" else 0
                subject, sid, *replies, size = words
                (reply,) = replies or (b"",)
                number, behind = _number(sid), begin + _number(size)
            except (ValueError, IndexError):
                raise Unreadable(_shown(line)) from None
            if len(received) < behind + len(_LINE_END):
                return
            headers = bytes(received[begin : begin + headers_bytes])
            payload = bytes(received[begin + headers_bytes : behind])
            del received[: behind + len(_LINE_END)]
            await self._process_msg(number, subject, reply, payload, headers)
        if len(received) > _LINE_MAX_BYTES:
            raise Unreadable(f"a line without an end: {_shown(received)}")

    async def _take(self, verb: bytes, line: bytes) -> None:
        rest = line[len(verb) :].strip()
        match verb:
            case b"PING":
                await self._process_ping()
            case b"PONG":
                await self._process_pong()
            case b"-ERR":
                await self._process_err(escaped(rest).strip("'"))
            case b"INFO":
                if info := _object(rest):
                    await self._process_info(info)
            case b"+OK":
                pass
            case _:
                raise Unreadable(_shown(line))

    async def _process_op_err(self, e: Exception) -> None:
        self._on_lost(e)
        await super()._process_op_err(e)

    async def _process_err(self, err_msg: str) -> None:
        refused = Refused(err_msg)
        said = err_msg.lower()
        if not said.startswith(_HARMLESS) or _FLOW_CONTROL in said:
            raise refused
        await self._error_cb(refused)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self._is_encrypted_only:
            if not (info.get("tls_required") or info.get("tls_available")):
                raise Unencrypted(
                    "tls:// was asked for, and it offers no TLS: nothing was sent to it"
                )
            info["tls_required"] = True  # it takes both, and nats-py would choose the other
        self._on_info(info)

    async def _process_pong(self) -> None:
        if self._pongs:
            answered = self._pongs.pop(0)
            if not answered.done():  # else its asker has given up
                answered.set_result(True)
            self._pongs_received += 1
            self._pings_outstanding = 0

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        if not subject.startswith(self._inbox_prefix):
            headers = b""
        listener = self._listeners.get(sid)
        if listener is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        parsed = await self._process_headers(headers)
        await listener(self._build_message(sid, subject, reply, data, parsed))

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except (IndexError, UnicodeDecodeError):
            return None

    def _build_message(
        self,
        sid: int,
        subject: bytes,
        reply: bytes,
        data: bytes,
        headers: dict[str, str] | None,
    ) -> Msg:
        return self.msg_class(
            _client=self,
            subject=escaped(subject),
            reply=escaped(reply),
            data=data,
            headers=headers,
            _sid=sid,
        )


# The one publish is refused, and whoever waits for its answer notices.
_HARMLESS = ("permissions violation for publish", "invalid publish subject")
# But nobody waits for an answer to this one, and without it NATS delivers nothing more.
_FLOW_CONTROL = '"$js.fc.'


def escaped(text: bytes | bytearray) -> str:
    """Text that should be UTF-8; a byte that is not becomes four characters, a backslash first."""
    return text.decode(errors="backslashreplace")


def _number(word: bytes) -> int:
    """A number as NATS writes it: digits only, and none is as large as a message cannot be."""
    if not word.isdigit() or int(word) > _MESSAGE_MAX_BYTES:
        raise ValueError
    return int(word)


def _object(text: bytes) -> dict[str, Any]:
    """The JSON object that `text` is; else an empty one."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _shown(line: bytes | bytearray) -> str:
    return f"NATS sent {escaped(line[:_SHOWN_BYTES])!r}"
