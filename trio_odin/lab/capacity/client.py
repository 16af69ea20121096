"""A client of the `websockets` library: it says something, and receives until there is an answer.

An answer that does not come is a value, `Received.failure`; where a scenario cannot go on without,
it is `Stopped`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import trio
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.trio.client import ClientConnection, connect

from trio_odin.lab.capacity.judgement import Event, Message, Received, event_name, read_message

_CLOSE_SECONDS = 1.0


class Stopped(Exception):
    """A scenario cannot go on; the message is a sentence."""


@asynccontextmanager
async def open_client(url: str, step_seconds: float) -> AsyncIterator[Client]:
    """Connect to `url`; the connection is closed at the end.

    Args:
        url: such as ws://10.0.0.1:3002/ws.
        step_seconds: how long connecting may take, and later each answer.

    Raises:
        Stopped: there is no connection.
    """
    opening = connect(
        url,
        open_timeout=step_seconds,
        close_timeout=_CLOSE_SECONDS,
        compression=None,
        proxy=None,
    )
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(opening)
        except (OSError, ValueError, WebSocketException) as error:
            raise Stopped(f"cannot connect to {url}: {error}") from error
        yield Client(connection, step_seconds)


class Client:
    """One connection, and all that it received."""

    def __init__(self, connection: ClientConnection, step_seconds: float) -> None:
        self.received: list[Message] = []
        self._connection = connection
        self._step_seconds = step_seconds

    async def say(self, command: str) -> None:
        """Send `command`.

        Raises:
            Stopped: the connection does not take it.
        """
        with trio.move_on_after(self._step_seconds):
            try:
                return await self._connection.send(command)
            except ConnectionClosed as closed:
                raise Stopped(_ending(closed)) from closed
        raise Stopped(f"the server reads nothing for {self._step_seconds:g} s")

    async def ask(self, command: str, *types: str) -> Received:
        """Send `command` and receive until a message has one of `types`, or is an error."""
        wanted = (*types, "error")
        await self.say(command)
        return await self._until(lambda m: m.get("type") in wanted, " or ".join(types) or "error")

    async def subscribe(self, channels: Sequence[str]) -> Received:
        """Subscribe, and receive until that is answered."""
        return await self.ask(command("subscribe", channels), "subscription_ack")

    async def until(self, event: Event, seconds: float | None = None) -> Received:
        """Receive until `event` is there."""
        return await self._until(
            lambda message: event_name(message) == event.name, f"event of {event.channel}", seconds
        )

    async def _until(
        self, is_it: Callable[[Message], bool], what: str, seconds: float | None = None
    ) -> Received:
        seconds = self._step_seconds if seconds is None else seconds
        messages: list[Message] = []
        with trio.move_on_after(seconds):
            while not (messages and is_it(messages[-1])):
                try:
                    message = read_message(await self._connection.recv())
                except ConnectionClosed as closed:
                    return Received(messages, _ending(closed))
                messages.append(message)
                self.received.append(message)
            return Received(messages)
        return Received(messages, f"no {what} within {seconds:g} s")


def _ending(closed: ConnectionClosed) -> str:
    if closed.rcvd is None:
        return "the connection broke"
    return f"the server closed with {closed.rcvd.code} {closed.rcvd.reason}".rstrip()


def command(kind: str, channels: Sequence[str]) -> str:
    """A subscribe or an unsubscribe, as the plan writes them."""
    return msgspec.json.encode({"type": kind, "channels": channels}).decode()
