"""A client's socket that can be cut at any byte, stall, or be left half open.

The frames are those of the `websockets` library, without its I/O.
"""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress

import trio
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from tests.oracle.follower import Follower, Message, Rate

_CONNECT_SECONDS = 4.0
# Longer than the server may wait for NATS before it answers.
_SILENCE_SECONDS = 9.0
_PIECE = 65_536
# What a narrow connection takes is little: its server's socket is full after some 30 KiB.
_NARROW_BYTES = 2048
_NARROW_SEGMENT = 536


class Broken(Exception):
    """The connection has ended; the message has the reason."""


class Link:
    """One connection. `budget`: bytes that may still be read before it is reset."""

    def __init__(self, stream: trio.SocketStream, protocol: ClientProtocol) -> None:
        self.budget: int | None = None
        self._turn = trio.Lock()
        self._stream = stream
        self._protocol = protocol
        self._texts: list[str] = []

    async def receive(self) -> list[str]:
        """The text messages in the next bytes, perhaps none."""
        data = await self._stream.receive_some(min(_PIECE, self.budget or _PIECE))
        if self.budget is not None:
            self.budget -= len(data)
        texts = self._parse(data)
        await self.flush()
        return texts

    def _parse(self, data: bytes) -> list[str]:
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        texts = []
        for event in self._protocol.events_received():
            assert isinstance(event, Frame)
            if event.opcode is Opcode.TEXT:
                assert event.fin, "a message in several frames"
                texts.append(bytes(event.data).decode())
        return texts

    @property
    def ended(self) -> str:
        """How it was closed; empty while it is open."""
        if self._protocol.state is OPEN:
            return ""
        return f"{self._protocol.close_code} {self._protocol.close_reason}"

    async def send(self, message: Message, cut_at: float = 1.0) -> None:
        """Send a command, or a part of its frame."""
        async with self._turn:
            if self.ended:
                raise Broken(self.ended)
            self._protocol.send_text(json.dumps(message).encode())
            data = b"".join(self._protocol.data_to_send())
            await self._stream.send_all(data[: round(len(data) * cut_at)])

    async def flush(self) -> None:
        """Send the pending protocol frames, such as pongs."""
        async with self._turn:
            with suppress(trio.BrokenResourceError):
                for data in self._protocol.data_to_send():
                    if data:
                        await self._stream.send_all(data)

    async def close(self) -> None:
        """Send a close frame, and do not wait for the answer."""
        if not self.ended:
            self._protocol.send_close(1000)
        await self.flush()
        await trio.aclose_forcefully(self._stream)

    def reset(self) -> None:
        """Close it by a RST, with bytes still waiting; nothing if it is already closed."""
        if self._stream.socket.fileno() == -1:
            return
        linger = struct.pack("ii", 1, 0)
        self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._stream.socket.close()


async def connect(port: int, *, is_narrow: bool = False) -> Link:
    """Open a WebSocket to a local port.

    Args:
        port: the port.
        is_narrow: whether a server with much to send soon finds that the socket takes nothing.

    Raises:
        Broken: the server cannot be reached, or refuses.
    """
    with trio.move_on_after(_CONNECT_SECONDS):
        try:
            stream = await _connected(port, is_narrow=is_narrow)
        except OSError as error:
            raise Broken("no server") from error
        try:
            return await _upgraded(stream, port)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
    raise Broken("no answer to the request")


async def _connected(port: int, *, is_narrow: bool) -> trio.SocketStream:
    end = trio.socket.socket()
    try:
        if is_narrow:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW_BYTES)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _NARROW_SEGMENT)
        await end.connect(("127.0.0.1", port))
    except BaseException:
        end.close()
        raise
    return trio.SocketStream(end)


async def _upgraded(stream: trio.SocketStream, port: int) -> Link:
    protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/ws"))
    protocol.send_request(protocol.connect())
    link = Link(stream, protocol)
    try:
        await link.flush()
        while True:
            # Byte by byte: this must not read any event.
            data = await stream.receive_some(1)
            if not data:
                raise Broken("closed before the upgrade")
            protocol.receive_data(data)
            for event in protocol.events_received():
                assert isinstance(event, Response)
                if protocol.state is not OPEN:
                    raise Broken(f"{event.status_code} {event.reason_phrase}")
                return link
    except trio.BrokenResourceError as error:
        raise Broken("reset before the upgrade") from error


class Client:
    """Follows its channels forever, whatever happens to its connections.

    Args:
        name: its name in findings.
        follower: see below.
        rng: of its decisions.
        spare: further channels that it may add.
        rate: the rate for these.
        choices: the rates between which it changes, by name; in the end it has the first one.
        is_narrow: see `connect`.

    Attributes:
        follower: its knowledge.
        refusals: number of refused connections.
    """

    def __init__(
        self,
        name: str,
        follower: Follower,
        rng: random.Random,
        spare: list[str],
        *,
        rate: Rate = 0,
        choices: Mapping[str, Sequence[Rate]] | None = None,
        is_narrow: bool = False,
    ) -> None:
        self.name = name
        self.follower = follower
        self.refusals = 0
        self._rng = rng
        self._spare = spare
        self._rate = rate
        self._choices = choices or {}
        self._is_narrow = is_narrow
        self._link: Link | None = None
        self._server = 0
        self._scope = trio.CancelScope()
        self._stalled_until = self._away_until = 0.0
        self._cut_at = 1.0
        self._parked: list[Link] = []
        self._is_changing = True

    def cut_after(self, count: int) -> None:
        """Reset the connection after `count` more bytes have been read."""
        if self._link is not None:
            self._link.budget = count

    def cut_command(self, share: float) -> None:
        """Send only a part of the next command's frame, and reset the connection."""
        self._cut_at = share

    def stall(self, seconds: float) -> None:
        """Do not read for a while."""
        self._stalled_until = trio.current_time() + seconds

    def abandon(self) -> None:
        """Connect elsewhere, and leave the connection half open: neither read nor closed."""
        if self._link is not None:
            self._parked.append(self._link)
            self._link = None
            self._scope.cancel()

    def move(self) -> None:
        """Close, and go to the other server."""
        self._server += 1
        self._scope.cancel()

    def stay_away(self, seconds: float) -> None:
        """Close, and come back after a while."""
        self._away_until = trio.current_time() + seconds
        self._scope.cancel()

    def settle(self) -> None:
        """Keep the channels from now on, end pauses, and close the half-open connection."""
        self._is_changing = False
        while self._parked:
            self._parked.pop().reset()

    async def run(self, ports: Sequence[int]) -> None:
        """Reconnect again and again, until cancelled."""
        try:
            while True:
                port = ports[self._server % len(ports)]
                try:
                    self._link = await connect(port, is_narrow=self._is_narrow)
                except Broken:
                    self.refusals += 1
                    self._server += 1
                    await trio.sleep(self._rng.uniform(0.02, 0.2))
                    continue
                self.follower.broke(await self._live(self._link))
                self._server = self._rng.randrange(len(ports))
                await trio.sleep(self._rng.choice([0.0, 0.02, 0.1, 0.4]))
                await trio.sleep_until(self._away_until)
        finally:
            self.settle()
            if self._link is not None:
                self._link.reset()

    async def _live(self, link: Link) -> str:
        """Talk until the connection has ended; returns the reason."""
        why = "left"
        self._cut_at = 1.0
        try:
            # The first command.
            command = self.follower.open()
            await link.send(command)
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._chat, link)
                    await self._read(link)
        except* (Broken, trio.BrokenResourceError, trio.ClosedResourceError) as errors:
            why = str(errors.exceptions[0]) or "reset"
        if self._link is not None:
            self._link = None
            if why == "left":
                with trio.move_on_after(1, shield=True):
                    await link.close()
            link.reset()
        return why

    async def _read(self, link: Link) -> None:
        while True:
            await trio.sleep_until(self._stalled_until)
            texts: list[str] | None = None
            with trio.move_on_after(_SILENCE_SECONDS):
                texts = await link.receive()
            if texts is None:
                raise Broken("silence")
            for text in texts:
                self.follower.receive(text)
            if (command := self.follower.next_command()) is not None:
                await link.send(command)
            if link.ended:
                raise Broken(link.ended)
            if link.budget is not None and link.budget <= 0:
                raise Broken("cut")

    async def _chat(self, link: Link) -> None:
        """Ask for the position from time to time, and change the channels."""
        while True:
            await trio.sleep(self._rng.uniform(0.2, 1.0))
            if self.follower.is_waiting:
                continue
            command = self._next_command()
            await link.send(command, self._cut_at)
            if self._cut_at < 1:
                raise Broken("cut in a command")

    def _next_command(self) -> Message:
        follower, rng = self.follower, self._rng
        if not self._is_changing:
            return self._last_rates() or follower.ask()
        if self._choices and rng.random() < 0.4:
            return self._another_rate()
        if rng.random() < 0.8:
            return follower.ask()
        matched = frozenset[str]().union(*follower.patterns.values())
        own = follower.names.keys() - follower.patterns.keys()
        single = sorted(one for one in own if one not in matched or one in self._choices)
        if len(single) > 2 and rng.random() < 0.5:
            dropped = rng.choice(single)
            self._spare.append(dropped)
            return follower.drop([dropped])
        if not self._spare:
            return follower.ask()
        added = self._spare.pop(rng.randrange(len(self._spare)))
        rate = rng.choice(self._choices[added]) if added in self._choices else self._rate
        return follower.add([added], rate, is_resume=rng.random() < 0.5)

    def _another_rate(self) -> Message:
        """Change the rate of a name, or of all that have the same one, or pause them."""
        follower, rng = self.follower, self._rng
        names = sorted(self._choices.keys() & follower.names.keys())
        if not names:
            return follower.ask()
        name = rng.choice(names)
        now, choices = follower.names[name], self._choices[name]
        alike = [one for one in self._choices if follower.names.get(one, -1) == now]
        rate = rng.choice([rate for rate in choices if rate != now])
        return follower.change_rate([name] if rng.random() < 0.5 else alike, rate)

    def _last_rates(self) -> Message | None:
        """Bring the names with choices to their last rate, those of one rate at a time."""
        follower = self.follower
        for rate in dict.fromkeys(choices[0] for choices in self._choices.values()):
            others = [
                name
                for name, choices in self._choices.items()
                if choices[0] == rate and follower.names.get(name, rate) != rate
            ]
            if others:
                return follower.change_rate(others, rate)
        return None
