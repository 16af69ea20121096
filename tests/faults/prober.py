"""Clients that come one after the other, each for a handshake, and their outcomes."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import trio

from trio_odin.lab.fleet.dialects import upgrade_request

_PATIENCE_SECONDS = 20.0
_REQUEST = upgrade_request("127.0.0.1", "/ws")


class Prober:
    """Connects `per_second`, whatever the outcome of the previous one.

    Attributes:
        outcomes: how often each came: a status, `refused`, `reset` or `late`.
        slowest_seconds: from the connect to the answer, of those with an answer.
    """

    def __init__(self, port: int, per_second: float) -> None:
        self.outcomes: Counter[str] = Counter()
        self.slowest_seconds = 0.0
        self._port = port
        self._per_second = per_second

    async def run(self, seconds: float) -> None:
        """Connect for `seconds`, and wait for the last one."""
        async with trio.open_nursery() as nursery:
            begun = trio.current_time()
            for number in range(int(seconds * self._per_second)):
                await trio.sleep_until(begun + number / self._per_second)
                nursery.start_soon(self._come)

    async def _come(self) -> None:
        begun = trio.current_time()
        outcome = "late"
        with trio.move_on_after(_PATIENCE_SECONDS):
            outcome = await self._ask()
        self.outcomes[outcome] += 1
        if outcome.isdecimal():
            self.slowest_seconds = max(self.slowest_seconds, trio.current_time() - begun)

    async def _ask(self) -> str:
        sock = trio.socket.socket()
        with sock:
            try:
                await sock.connect(("127.0.0.1", self._port))
            except OSError:
                return "refused"
            with suppress(OSError):
                await sock.send(_REQUEST)
                head = await sock.recv(4096)
                if head.startswith(b"HTTP/1.1 "):
                    return head[9:12].decode()
        return "reset"
