"""The port that clients connect to: its queues, and which of them are accepted from.

Workers share a port. Each has a queue there, numbered as the worker, with a socket for each address
of the port. A server without workers has one queue, number 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TypeAlias

import trio

from trio_odin.listener.listener import Listener
from trio_odin.net.listening import Address, bound_address, listen_on
from trio_odin.overload.turnover import LISTENER

Queues: TypeAlias = Mapping[int, Sequence[trio.socket.SocketType]]

_ANSWER_CHECK_SECONDS = 0.01


class Port:
    """Accepts from the queues that `accept_from` has set, as they change.

    Resource handling: the sockets belong to the caller; `leave` closes them.

    Attributes:
        queues: the sockets of each queue.
        addresses: addresses that it listens on, with the ports that the kernel chose.
        changed: set, and replaced, when `accept_from` is called.
    """

    def __init__(self, queues: Queues, listener: Listener) -> None:
        self.queues = queues
        self._listener = listener
        self._accepted_from: Collection[int] = ()
        self._listens = False
        self._accepting = trio.CancelScope()
        self.changed = trio.Event()
        # Any queue will do: each has a socket for each address.
        sockets = next(iter(queues.values()))
        self.addresses: list[Address] = [bound_address(sock) for sock in sockets]

    @property
    def is_open(self) -> bool:
        """Whether clients can connect: any queue is accepted from, and has been listened on."""
        return self._listens and bool(self._accepted_from)

    def accept_from(self, queues: Collection[int] | None = None) -> None:
        """Take clients from the queues of these numbers, and from no others; None: from all."""
        self._accepted_from = self.queues if queues is None else queues
        self.changed.set()
        self.changed = trio.Event()

    async def run(self, connections: trio.Nursery) -> None:
        """Accept until `leave` is called, or cancelled. Clients are tasks in `connections`."""
        scopes: dict[int, list[trio.CancelScope]] = {}
        with self._accepting:
            async with trio.open_nursery() as nursery:
                while True:
                    wanted = set(self._accepted_from)
                    for number in scopes.keys() - wanted:
                        for scope in scopes.pop(number):
                            scope.cancel(reason="another worker takes clients from this queue")
                    for number in wanted - scopes.keys():
                        scopes[number] = []
                        for sock in self.queues[number]:
                            scope = trio.CancelScope()
                            scopes[number].append(scope)
                            accept = partial(self._accept, listen_on(sock), connections, scope)
                            nursery.start_soon(accept, name=LISTENER)
                            self._listens = True
                    await self.changed.wait()

    async def _accept(
        self, listener: trio.SocketListener, connections: trio.Nursery, scope: trio.CancelScope
    ) -> None:
        with scope:
            await self._listener.run(listener, connections)

    async def leave(self, seconds: float) -> None:
        """Leave the port to another process: stop accepting and close the queues.

        Returns when all accepted sockets have their answer, or after `seconds`.
        """
        self._accepting.cancel(reason="a successor serves")
        self._accepted_from = ()
        for sock in chain.from_iterable(self.queues.values()):
            sock.close()
        with trio.move_on_after(seconds):
            while True:
                await trio.sleep(_ANSWER_CHECK_SECONDS)
                if not self._listener.unanswered:
                    break
