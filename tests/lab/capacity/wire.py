"""A server of the `websockets` library that speaks our wire protocol, correctly or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import attrs
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.server import ServerConnection, serve

Message: TypeAlias = dict[str, Any]

UNIX_MS = 1759027038365


@attrs.define(eq=False)
class Peer:
    """The server's state of one client."""

    connection: ServerConnection
    channels: set[str] = attrs.field(factory=set)
    history: list[Message] = attrs.field(factory=list)


def is_wanted(peer: Peer, channel: str) -> bool:
    return channel in peer.channels


def unspoilt(message: Message) -> Message | None:
    return message


@attrs.define
class FakeServer:
    """A server that is correct except for the faults in its arguments.

    Args:
        spoil: changes each message on its way out; None: it is lost.
        wants: whether a client gets the events of a channel.
        forgets: whether an unsubscribe has an effect.
        on_bad_command: called with the client of a bad command.
        spoil_replay: changes the envelopes of a replay.
        peers: the current clients.
    """

    spoil: Callable[[Message], Message | None] = unspoilt
    wants: Callable[[Peer, str], bool] = is_wanted
    forgets: bool = True
    on_bad_command: Callable[[Peer], None] = lambda _: None
    spoil_replay: Callable[[Iterable[Message]], Iterable[Message]] = iter
    peers: list[Peer] = attrs.field(factory=list)

    async def start(self, nursery: trio.Nursery) -> str:
        """Listen until the nursery is cancelled; returns the address."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        start = partial(serve, self._handle, listeners=listeners, close_timeout=0.1)
        nursery.start_soon(start)
        return f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/ws"

    async def publish(self, subject: str, payload: bytes) -> None:
        """Publish directly, in place of NATS."""
        channel = subject.removeprefix("odin.token.")
        for peer in [peer for peer in self.peers if self.wants(peer, channel)]:
            envelope = {
                "seq": len(peer.history) + 1,
                "ts": UNIX_MS,
                "type": "price:update",
                "priority": 1,
                "data": json.loads(payload),
                "channel": channel,
            }
            peer.history.append(envelope)
            await self._send(peer, envelope)

    async def _send(self, peer: Peer, message: Message) -> None:
        spoilt = self.spoil(message)
        if spoilt is not None:
            with suppress(ConnectionClosed):
                await peer.connection.send(json.dumps(spoilt))

    async def _handle(self, connection: ServerConnection) -> None:
        peer = Peer(connection)
        self.peers.append(peer)
        with suppress(ConnectionClosed):
            async for text in connection:
                for answer in self._answers(peer, str(text)):
                    await self._send(peer, answer)
        self.peers.remove(peer)

    def _answers(self, peer: Peer, text: str) -> Iterable[Message]:
        match _decoded(text):
            case {"type": "subscribe", "channels": [str(first), *_] as channels} if "." in first:
                peer.channels |= set(channels)
                count = len(peer.channels)
                yield {"type": "subscription_ack", "subscribed": channels, "count": count}
            case {"type": "unsubscribe", "channels": channels}:
                left = peer.channels - set(channels)
                if self.forgets:
                    peer.channels = left
                yield {"type": "unsubscription_ack", "unsubscribed": channels, "count": len(left)}
            case {"type": "replay", "data": {"from": first, "to": last}}:
                yield from self.spoil_replay(
                    {**envelope} for envelope in peer.history[first - 1 : last]
                )
            case {"type": "heartbeat"}:
                yield {"type": "pong", "ts": UNIX_MS}
            case None:
                self.on_bad_command(peer)
                yield {"type": "error", "code": "INVALID_JSON", "message": ""}
            case {"channels": str()}:
                yield {"type": "error", "code": "INVALID_COMMAND", "message": ""}
            case _:
                yield {"type": "error", "code": "INVALID_CHANNEL", "message": ""}


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
