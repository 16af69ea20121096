"""A client of the admin API: plain HTTP over a socket, so that each header is the test's own."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import attrs
import trio

from trio_odin.net.address import Address


@attrs.frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    @property
    def content(self) -> Any:
        return json.loads(self.body)


class AdminClient:
    """Asks one server. `everything` is all that it has answered, to search it for secrets."""

    def __init__(self, address: Address | str, token: str = "") -> None:
        self._host, _, port = str(address).rpartition(":")
        self._port = int(port)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.everything = ""

    @asynccontextmanager
    async def _sent(
        self, method: str, target: str, headers: dict[str, str]
    ) -> AsyncIterator[trio.SocketStream]:
        lines = {"Host": f"{self._host}:{self._port}", **self._headers, **headers}
        head = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
        with trio.fail_after(30):
            async with await trio.open_tcp_stream(self._host, self._port) as stream:
                await stream.send_all(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode())
                yield stream

    async def ask(self, target: str, method: str = "GET", **headers: str) -> Answer:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        received = b""
        async with self._sent(method, target, named) as stream:
            async for chunk in stream:
                received += chunk
        head, _, body = received.decode().partition("\r\n\r\n")
        status, *lines = head.split("\r\n")
        self.everything += head + body
        pairs = (line.partition(": ") for line in lines)
        return Answer(int(status.split()[1]), {name.lower(): text for name, _, text in pairs}, body)

    async def get(self, target: str) -> Any:
        """The content of a page that has to be there."""
        answer = await self.ask(target)
        assert answer.status == 200, answer.body
        return answer.content

    @asynccontextmanager
    async def trace(self, target: str) -> AsyncIterator[AsyncIterator[Any]]:
        """The lines of a trace, each as it comes."""
        async with self._sent("GET", target, {}) as stream, aclosing(self._lines(stream)) as lines:
            yield lines

    async def _lines(self, stream: trio.SocketStream) -> AsyncGenerator[Any, None]:
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some()
        head, _, rest = received.partition(b"\r\n\r\n")
        assert b" 200 " in head, received
        while True:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                self.everything += line.decode()
                yield json.loads(line)
            chunk = await stream.receive_some()
            if not chunk:
                assert not rest, "whole lines"
                return
            rest += chunk
