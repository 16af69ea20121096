"""A client of the `websockets` library: it sends a command, and receives until the answer.

It takes nothing from the server for granted, as the server is what it checks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import attrs
import msgspec
import trio
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.trio.client import ClientConnection, connect

# A message of the server, decoded.
Message: TypeAlias = dict[str, Any]

_CLOSE_SECONDS = 1.0
_UNREADABLE = "unreadable"


class Unmet(Exception):
    """An expectation is not met; the message says what was found instead."""


def expect(is_met: bool, found: str) -> None:
    """Assert, even under `python -O`."""
    if not is_met:
        raise Unmet(found)


def read_message(text: str | bytes) -> Message:
    """Decode one message; a frame that is not a JSON object in text becomes a message about it."""
    if isinstance(text, str):
        try:
            return msgspec.json.decode(text, type=Message)
        except (msgspec.DecodeError, RecursionError):
            pass
    return {_UNREADABLE: str(text)}


def event_name(message: Message) -> str | None:
    """The name of the event in `message`; None if it is not an envelope, or a foreign one."""
    data = message.get("data")
    name = data.get("event") if isinstance(data, dict) else None
    return name if isinstance(name, str) else None


def envelopes_of(messages: Sequence[Message]) -> list[Message]:
    """The envelopes, well-formed or not; answers have neither of these keys."""
    return [m for m in messages if "seq" in m or "data" in m or _UNREADABLE in m]


@attrs.frozen
class Client:
    """One connection, and all that it received."""

    _connection: ClientConnection
    _step_seconds: float
    received: list[Message] = attrs.field(factory=list)

    async def say(self, command: str) -> None:
        """Send `command`."""
        with trio.move_on_after(self._step_seconds) as deadline, _closed_is_unmet():
            await self._connection.send(command)
        expect(not deadline.cancelled_caught, "the server reads nothing")

    async def ask(self, command: str, kind: str = "error") -> Message:
        """Send `command`, and receive until a message is of that type, or an error."""
        await self.say(command)
        await self._until(lambda message: message.get("type") in {kind, "error"}, kind)
        return self.received[-1]

    async def tell(self, kind: str, *channels: str) -> Message:
        """Subscribe or unsubscribe; returns the acknowledgement."""
        command = msgspec.json.encode({"type": kind, "channels": channels}).decode()
        return await self.ask(command, kind.replace("scribe", "scription_ack"))

    async def events_until(self, name: str) -> list[str | None]:
        """Receive until the event `name`; returns the names of all events since the last call."""
        begin = len(self.received)
        await self._until(lambda message: event_name(message) == name, f"event {name}")
        return [event_name(message) for message in envelopes_of(self.received[begin:])]

    async def _until(self, is_it: Callable[[Message], bool], what: str) -> None:
        with trio.move_on_after(self._step_seconds), _closed_is_unmet():
            while True:
                self.received.append(read_message(await self._connection.recv()))
                if is_it(self.received[-1]):
                    return
        raise Unmet(f"no {what} within {self._step_seconds:g} s")


@contextmanager
def _closed_is_unmet() -> Iterator[None]:
    try:
        yield
    except ConnectionClosed as closed:
        ending = closed.rcvd and f"the server closed with {closed.rcvd.code} {closed.rcvd.reason}"
        raise Unmet((ending or "the connection broke").rstrip()) from closed


@asynccontextmanager
async def open_client(url: str, step_seconds: float) -> AsyncIterator[Client]:
    """Connect to `url`; the connection is closed at the end.

    Args:
        url: such as ws://10.0.0.1:3002/ws.
        step_seconds: deadline of the connect, and later of each answer.

    Raises:
        Unmet: there is no connection.
    """
    opening = connect(
        url, open_timeout=step_seconds, close_timeout=_CLOSE_SECONDS, compression=None, proxy=None
    )
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(opening)
        except (OSError, ValueError, WebSocketException) as error:
            raise Unmet(f"cannot connect to {url}: {error}") from error
        yield Client(connection, step_seconds)
