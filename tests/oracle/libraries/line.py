"""A line between a client library and a server, which can be cut, held and left half open."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

import trio

_PIECE = 65_536
_RESET = struct.pack("ii", 1, 0)


class Line:
    """A local port behind which a server is.

    Attributes:
        port: that port.
        is_down: whether new connections are refused.
    """

    def __init__(self, nursery: trio.Nursery, listener: trio.SocketListener, to: int) -> None:
        self.port: int = listener.socket.getsockname()[1]
        self.is_down = False
        self._nursery = nursery
        self._to = to
        self._next_budget: int | None = None
        self._wires: set[_Wire] = set()

    def cut(self) -> None:
        """Reset every connection, with bytes still under way."""
        for wire in list(self._wires):
            wire.reset()

    def cut_after(self, count: int, *, is_next: bool = False) -> None:
        """Reset each connection, or the next one, after so many more bytes from the server."""
        if is_next:
            self._next_budget = count
            self.cut()
        for wire in self._wires:
            wire.budget = count

    def cut_upwards(self) -> None:
        """Reset each connection within the next bytes from the client."""
        for wire in self._wires:
            wire.is_last_command = True

    def hold(self, seconds: float) -> None:
        """Pass on nothing from the server for a while."""
        for wire in self._wires:
            wire.held_until = trio.current_time() + seconds

    def abandon(self) -> None:
        """Pass on nothing any longer on today's connections, and close none of them."""
        for wire in self._wires:
            wire.held_until = float("inf")

    async def carry(self, near: trio.SocketStream) -> None:
        """Serve one connection."""
        if self.is_down:
            near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            near.socket.close()
            return
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self._to)
        except OSError:  # nobody listens yet
            await near.aclose()
            return
        wire = _Wire(near, far)
        wire.budget, self._next_budget = self._next_budget, None
        self._wires.add(wire)
        try:
            await wire.run()
        finally:
            self._wires.discard(wire)


class _Wire:
    def __init__(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        self.budget: int | None = None
        self.is_last_command = False
        self.held_until = float("-inf")
        self._near, self._far = near, far
        self._scope = trio.CancelScope()

    def reset(self) -> None:
        with suppress(OSError):
            self._near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._scope.cancel(reason="cut")

    async def run(self) -> None:
        async with self._near, self._far:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._up)
                    # Not around the nursery, which puts errors into a group.
                    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        await self._down()
                    nursery.cancel_scope.cancel(reason="the server has closed")

    async def _up(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for chunk in self._near:
                if self.is_last_command:
                    await self._far.send_all(bytes(chunk[: len(chunk) // 2]))
                    self.reset()
                    return
                if self.held_until < float("inf"):
                    await self._far.send_all(chunk)
        self._scope.cancel(reason="the client has closed")

    async def _down(self) -> None:
        while chunk := await self._far.receive_some(_PIECE):
            while trio.current_time() < self.held_until:
                await trio.sleep(0.05)
            if self.budget is not None:
                chunk = chunk[: self.budget]
                self.budget -= len(chunk)
            await self._near.send_all(chunk)
            if self.budget == 0:
                self.reset()
                await trio.sleep_forever()


async def start_line(nursery: trio.Nursery, to: int) -> Line:
    """Lay a line to a port of this machine."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    line = Line(nursery, listener, to)
    nursery.start_soon(trio.serve_listeners, line.carry, [listener])
    return line
