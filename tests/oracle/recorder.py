"""Reads the stream continuously, so that its content is known after its deletion.

It uses direct gets, which any node with the stream answers: a consumer cannot be made while the
cluster has no leader, when the stream may still take events.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
from collections.abc import Callable
from contextlib import suppress

import trio

from tests.oracle.truth import Evidence

_CONNECT = b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n'
_HEAD = re.compile(rb"HMSG \S+ 1 (?:\S+ )?(\d+) (\d+)\r\n")
_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 0.5
_BATCH = 500


class Recorder:
    """Records every event in the stream until cancelled.

    Attributes:
        last: the offset up to which the stream has been read.
    """

    def __init__(self, evidence: Evidence, stream: str, next_port: Callable[[], int]) -> None:
        self.last = 0
        self._evidence = evidence
        self._subject = f"$JS.API.DIRECT.GET.{stream}"
        self._next_port = next_port
        self._inboxes = itertools.count(1)
        # The oldest message at the last reading; if it differs, the stream is another one.
        self._first = (0, "")

    async def run(self) -> None:
        """Poll, through one node after the other if one does not answer."""
        while True:
            with suppress(OSError, trio.TooSlowError, trio.BrokenResourceError, _Ended):
                with trio.fail_after(1):
                    stream = await trio.open_tcp_stream("127.0.0.1", self._next_port())
                try:
                    await stream.send_all(_CONNECT + b"SUB got.* 1\r\n")
                    while True:
                        await self._poll(stream)
                        await trio.sleep(_POLL_SECONDS)
                finally:
                    await trio.aclose_forcefully(stream)
            await trio.sleep(_POLL_SECONDS)

    async def _poll(self, stream: trio.SocketStream) -> None:
        """Read the new messages; all of them, if the oldest one shows another stream."""
        first = await self._get(stream, {"seq": 1, "batch": 1})
        if not first:
            return
        offset, stored, _ = first[0]
        known, when = self._first
        if offset < known or (offset == known and stored != when) or offset > self.last:
            self.last = 0
        self._first = (offset, stored)
        while found := await self._get(stream, {"seq": self.last + 1, "batch": _BATCH}):
            for offset, stored, body in found:
                self._take(offset, stored, body)

    def _take(self, offset: int, stored: str, body: bytes) -> None:
        self.last = offset
        stored_ms = int(
            dt.datetime.fromisoformat(stored[:23].rstrip("Z")).replace(tzinfo=dt.UTC).timestamp()
            * 1000
        )
        with suppress(ValueError, TypeError, KeyError):  # somebody else's message
            self._evidence.saw(json.loads(body)["n"], offset, stored_ms)

    async def _get(
        self, stream: trio.SocketStream, request: dict[str, int]
    ) -> list[tuple[int, str, bytes]]:
        """The messages of a direct get: offset, time and content."""
        inbox = f"got.{next(self._inboxes)}"
        payload = json.dumps(request).encode()
        head = f"PUB {self._subject} {inbox} {len(payload)}\r\n".encode()
        await stream.send_all(head + payload + b"\r\n")
        found: list[tuple[int, str, bytes]] = []
        buffer = b""
        with trio.fail_after(_ANSWER_SECONDS):
            while True:
                chunk = await stream.receive_some(262_144)
                if not chunk:
                    raise _Ended
                buffer += chunk
                if b"PING\r\n" in buffer:
                    await stream.send_all(b"PONG\r\n")
                while (match := _HEAD.search(buffer)) is not None:
                    start, size = int(match[1]), int(match[2])
                    end = match.end() + size
                    if len(buffer) < end + 2:
                        break
                    headers = buffer[match.end() : match.end() + start].decode()
                    body, buffer = buffer[match.end() + start : end], buffer[end + 2 :]
                    status = headers.split("\r\n", 1)[0].removeprefix("NATS/1.0").strip()
                    if status.startswith("503"):
                        raise _Ended
                    if status:  # 204, the end of the batch; 404, nothing there
                        return found
                    fields = dict(line.split(": ", 1) for line in headers.split("\r\n")[1:] if line)
                    found.append((int(fields["Nats-Sequence"]), fields["Nats-Time-Stamp"], body))


class _Ended(Exception):
    """This connection gives no more messages."""
