"""nats-py's client, made total: no message that NATS delivers ends the connection.

nats-py raises in its reader at a subject that is not UTF-8, at white space that only Python takes
for such, and at malformed headers. The connection then ends, and the next one ends at the same
message, for as long as the stream keeps it. Here each part of the input has one rule:

    subject, reply subject   bytes that are not UTF-8 are escaped; no channel has such a subject
    headers                  read only in messages to an inbox; of an event's only traceparent
    -ERR                     ends the connection, in NATS' own words; a refused publish does not,
                             unless NATS waits for it, as for flow control
    INFO, PONG               ignored if they mean nothing
    any other line           ends the connection as `Unreadable`: where it ends is not known

Runs under asyncio. What is overridden is private to nats-py, so a test checks that it exists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.protocol.command import pub_cmd, sub_cmd, unsub_cmd
from trio_asyncio import BaseTrioEventLoop

from trio_odin.wire.trace_context import HEADER, traceparent_in

_READ_BYTES = 32_768
# nats-server accepts lines of 4 KiB from us; its own INFO names every server of a cluster.
_LINE_MAX_BYTES = 1024 * 1024
# The most that nats-server accepts, however it is configured.
_MESSAGE_MAX_BYTES = 64 * 1024 * 1024
_SHOWN_BYTES = 100
_SUBJECT_MAX = 1024
# An election takes some seconds, and a request should get through soon after its end.
_REQUEST_SECONDS = 5.0
_FIRST_TRY_SECONDS = 0.3
_TRY_MAX_SECONDS = 1.0
_LINE_END = b"\r\n"

# Of the lines that are no messages.
_VERBS = frozenset({b"PING", b"PONG", b"-ERR", b"INFO", b"+OK"})
_HEADERS_VERSION = b"NATS/1.0"

OnMessage: TypeAlias = Callable[[Msg], None]


class Unreadable(nats.errors.Error):
    """The input cannot be understood, and neither can what comes after it."""


class NoAnswer(nats.errors.Error):
    """No answer to a request has come in time."""


class Refused(nats.errors.Error):
    """NATS refuses, in its own words where it gave any (-ERR): trying again soon is of no use."""


class Unencrypted(Refused):
    """The server offers no encryption, which was asked for."""


class TotalClient(Client):
    """A connection to NATS.

    Args:
        on_lost: a callback for the reason why the connection has ended; may be called repeatedly.
        on_info: a callback for the server's INFO, at first and whenever that changes.
        is_encrypted_only: whether to send nothing before the connection is encrypted.
        has_certificate: whether there is a certificate to show to NATS.

    Attributes:
        is_certificate_wanted: whether NATS accepts only clients with a certificate.
    """

    def __init__(
        self,
        *,
        on_lost: Callable[[Exception], None],
        on_info: Callable[[Mapping[str, Any]], None],
        is_encrypted_only: bool,
        has_certificate: bool,
    ) -> None:
        super().__init__()
        self._received = bytearray()
        self._passed_on = bytearray()  # what has no listener, for the task of nats-py
        self._fault: Unreadable | None = None
        self._on_lost = on_lost
        self._on_info = on_info
        self._is_encrypted_only = is_encrypted_only
        self._has_certificate = has_certificate
        self.is_certificate_wanted = False
        self._listeners: dict[int, OnMessage] = {}

    @property
    def says_it_has_jetstream(self) -> bool:
        """Whether the server itself has JetStream; another one of its cluster may have it."""
        return self._server_info.get("jetstream") is True

    @property
    def says_its_version(self) -> str:
        """The version of the server, as it says."""
        return str(self._server_info.get("version", "of unknown version"))

    async def listen(self, subject: str, on_message: OnMessage) -> int:
        """Subscribe; returns a number for `unlisten`.

        `on_message` is called as soon as a message is there: no task has to wake up.
        Everything else, such as a pong, is taken by a task, maybe after messages that came later.
        An exception that `on_message` raises ends the connection as `Unreadable`.
        """
        self._sid += 1
        self._listeners[self._sid] = on_message
        await self._send_command(sub_cmd(subject, "", self._sid))
        # Until it is written: a ping is written at once, and its pong would come before a refusal.
        await self._flush_pending(force_flush=True)
        return self._sid

    async def unlisten(self, number: int) -> None:
        """End a subscription. What still comes for it is ignored."""
        if self._listeners.pop(number, None) is not None:
            await self._send_command(unsub_cmd(number, 0))
            await self._flush_pending()

    def publish_now(self, subject: str) -> None:
        """Publish an empty message. Does not wait; if the connection is lost, nothing happens.

        Nor for a subject that is none, or so long that NATS would end the connection.
        """
        is_subject = len(subject) <= _SUBJECT_MAX and not any(map(str.isspace, subject))
        if self._transport is not None and is_subject:
            self._transport.write(pub_cmd(subject, "", b""))

    # --- overrides of nats-py's methods

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = _REQUEST_SECONDS,  # noqa: ASYNC109 - nats-py's name
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """Send a request, and again while no answer comes, so it must be safe to do it twice.

        A request that reaches JetStream while it elects a leader is silently lost.

        Raises:
            NoAnswer: no answer came within `timeout` seconds.
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
        lost: Exception | None = None
        reader: Any = self._transport._io_reader  # type: ignore[union-attr]  # noqa: SLF001
        try:
            self._listen_before(reader)
            while self._transport is not None and (
                chunk := await self._transport.read(_READ_BYTES)
            ):
                self._passed_on += chunk
                while (first := _first_in(self._passed_on)) is not None:
                    del self._passed_on[: first.size]
                    await self._take_first(first)
        except (OSError, nats.errors.Error) as error:
            lost = error
        except Exception as error:  # noqa: BLE001 - our own fault, whatever came
            lost = _fault(error)
        finally:
            if self._fault is None:  # else it takes nothing more
                vars(reader).pop("feed_data", None)  # a reference cycle
        await self._process_op_err(self._fault or lost or nats.errors.UnexpectedEOF())

    def _listen_before(self, reader: Any) -> None:
        """From now on take what arrives before `reader` does, and pass on what has no listener.

        To wait for `reader`, as nats-py does, costs each message two more turns of the loop.
        """
        take_over = reader.feed_data

        def arrived(chunk: bytes, pass_on: Callable[[bytes], None] = take_over) -> None:
            self._received += chunk
            try:
                self._take_messages(pass_on)
            except Unreadable:
                reader.feed_data = take_over
                pass_on(bytes(self._received))  # `_read_loop` raises it, after all before it
            except Exception as error:  # noqa: BLE001 - our own fault, whatever came
                self._fault = _fault(error)
                reader.feed_data = _ignore
                reader.feed_eof()

        unread = bytes(reader._buffer)  # noqa: SLF001
        reader._buffer.clear()  # noqa: SLF001
        reader.feed_data = arrived
        arrived(unread, reader._buffer.extend)  # noqa: SLF001 - after the end it takes nothing

    def _take_messages(self, pass_on: Callable[[bytes], None]) -> None:
        received = self._received
        while (first := _first_in(received)) is not None:
            if isinstance(first, _Line) and first.verb not in _VERBS:
                raise Unreadable(_shown(first.text))  # what comes after it may be anything
            if isinstance(first, _Message) and (listener := self._listeners.get(first.sid)):
                del received[: first.size]
                listener(self._message_of(first))
            else:
                pass_on(bytes(received[: first.size]))
                del received[: first.size]

    def _message_of(self, message: _Message) -> Msg:
        headers: dict[str, str] | None = None
        if message.headers:
            if message.subject.startswith(self._inbox_prefix):
                headers = _headers_in(message.headers)
            elif (traceparent := traceparent_in(message.headers)) is not None:
                headers = {HEADER: traceparent}
        return self._build_message(
            message.sid, message.subject, message.reply, message.payload, headers
        )

    async def _take_first(self, first: _Line | _Message) -> None:
        if isinstance(first, _Line):
            await self._take(first.verb, first.text)
        else:
            sid, subject, reply, headers, payload = first[1:]
            await self._process_msg(sid, subject, reply, payload, headers)

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
        text = err_msg.lower()
        if not text.startswith(_HARMLESS) or _FLOW_CONTROL in text:
            raise refused
        await self._error_cb(refused)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self._is_encrypted_only:
            if not (info.get("tls_required") or info.get("tls_available")):
                raise Unencrypted(
                    "this side requires TLS, which it does not offer: nothing was sent to it"
                )
            info["tls_required"] = True  # it takes both, and nats-py would choose plain text
        if initial_connection and info.get("tls_verify"):
            self.is_certificate_wanted = True
            if not self._has_certificate:  # it would only cut the connection
                raise Refused("it requires a certificate from its clients: set NATS_TLS_CERT")
        self._on_info(info)

    async def _process_pong(self) -> None:
        if self._pongs:
            answered = self._pongs.pop(0)
            if not answered.done():  # else the caller has given up
                answered.set_result(True)
            self._pongs_received += 1
            self._pings_outstanding = 0

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        return _headers_in(headers)

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


def spare_detours(loop: BaseTrioEventLoop) -> None:
    """Let trio-asyncio read again at once, where a read has scheduled nothing.

    Between two reads it lets everything run that is scheduled, which takes two turns of trio even
    if that is nothing. A message that has a listener schedules nothing.
    """
    let_all_run = loop.synchronize

    async def let_all_run_if_any() -> None:
        queue = loop._q_send.statistics()  # noqa: SLF001
        if queue.current_buffer_used or not queue.tasks_waiting_receive:
            await let_all_run()

    vars(loop)["synchronize"] = let_all_run_if_any


# Only that publish is refused, and the task that waits for its answer notices.
_HARMLESS = ("permissions violation for publish", "invalid publish subject")
# But no task waits for an answer to flow control, and without it NATS delivers nothing more.
_FLOW_CONTROL = '"$js.fc.'


def escaped(text: bytes | bytearray) -> str:
    """Decode what should be UTF-8; any other byte becomes four characters, a backslash first."""
    return text.decode(errors="backslashreplace")


class _Message(NamedTuple):
    """A message, of `size` bytes in all."""

    size: int
    sid: int
    subject: bytes
    reply: bytes
    headers: bytes
    payload: bytes


class _Line(NamedTuple):
    """Any other line, of `size` bytes in all."""

    size: int
    verb: bytes
    text: bytes


def _first_in(received: bytearray) -> _Message | _Line | None:
    """The first message or line; None if it is not complete yet. Raises Unreadable.

    nats-server separates words by a space. White space in Python is more than that, and a subject
    may contain it.
    """
    end = received.find(_LINE_END)
    if end < 0:
        if len(received) > _LINE_MAX_BYTES:
            raise Unreadable(f"a line without an end: {_shown(received)}")
        return None
    line = bytes(received[:end])
    begin = end + len(_LINE_END)
    verb, *words = line.split(b" ")
    if verb not in {b"MSG", b"HMSG"}:
        return _Line(begin, verb, line)
    try:
        payload_begin = begin + (_number(words.pop(-2)) if verb == b"HMSG" else 0)
        subject, sid, *replies, size = words
        (reply,) = replies or (b"",)
        number, behind = _number(sid), begin + _number(size)
    except (ValueError, IndexError):
        raise Unreadable(_shown(line)) from None
    whole = behind + len(_LINE_END)
    if len(received) < whole:
        return None
    headers, payload = bytes(received[begin:payload_begin]), bytes(received[payload_begin:behind])
    return _Message(whole, number, subject, reply, headers, payload)


def _headers_in(block: bytes) -> dict[str, str] | None:
    """The headers, with the status under nats-py's names for it; None if there are none."""
    first, *lines = block.split(_LINE_END)
    version, _, status = first.partition(b" ")
    code, _, description = status.strip().partition(b" ")
    if version != _HEADERS_VERSION:
        return None
    headers = {"Status": escaped(code), "Description": escaped(description)}
    headers = {name: value for name, value in headers.items() if code.isdigit() and value}
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            headers[escaped(name)] = escaped(value.strip())
    return headers or None


def _number(word: bytes) -> int:
    """Parse a number as NATS writes it: digits only, and at most the largest size of a message."""
    if not word.isdigit() or int(word) > _MESSAGE_MAX_BYTES:
        raise ValueError
    return int(word)


def _object(text: bytes) -> dict[str, Any]:
    """The JSON object in `text`; an empty one if it is not an object."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _shown(line: bytes | bytearray) -> str:
    return f"NATS sent {escaped(line[:_SHOWN_BYTES])!r}"


def _fault(error: Exception) -> Unreadable:
    unreadable = Unreadable(f"{type(error).__name__}: {error}")
    unreadable.__cause__ = error
    return unreadable


def _ignore(_: bytes) -> None:
    """Take nothing more."""
