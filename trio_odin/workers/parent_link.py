"""The parent link: through it a worker obeys its supervisor, and knows the other workers."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Collection
from typing import Protocol

import attrs
import structlog
import trio

from trio_odin.admin import questions as admin
from trio_odin.ledger.snapshot import Snapshot
from trio_odin.overload.load import OtherWorkers
from trio_odin.settings.reload import ReadEnvironment
from trio_odin.workers.link import (
    Accept,
    Answer,
    Ask,
    FromParent,
    HandOver,
    Inspect,
    Inspected,
    Link,
    Question,
    Reload,
    StatsReport,
    worker_decoder,
)

# The supervisor waits half as long for the other workers.
_ANSWER_SECONDS = 1.0
_FAREWELL_SECONDS = 0.5
_INSPECTIONS_MAX = 16
_TOO_MANY = admin.Refused(status=503, reason="Too many questions at once: ask again in a moment")
_FAULT = admin.Refused(status=500, reason="Internal error: the log of this worker says which")

_log = structlog.get_logger("workers")


class Governed(Protocol):
    """The server of this process, which the supervisor commands. Only `answer` waits."""

    def snapshot(self) -> Snapshot:
        """Return its state now."""
        ...

    async def answer(self, question: admin.Question) -> admin.Reply:
        """Answer what an operator asks about its connections."""
        ...

    def accept_from(self, queues: Collection[int]) -> None:
        """Take clients from the queues of these numbers, and from no others."""

    def learn(self, others: OtherWorkers) -> None:
        """Take in what the other processes of the server hold and use."""

    def reload(self, read: ReadEnvironment) -> None:
        """Apply the settings of another environment that can change."""

    def drain_alone(self) -> None:
        """Drain, without a supervisor."""

    def hand_over(self) -> None:
        """Leave the port to a successor, and drain."""


@attrs.define
class _Wait:
    """A page that waits for the stats of all workers."""

    is_over: trio.Event = attrs.field(factory=trio.Event)
    snapshot: Snapshot | None = None


class ParentLink:
    """The worker's end of the link to the supervisor. `file_number` is that of its socket.

    Attributes:
        number: the number of the worker; 0 if it does not matter.
    """

    def __init__(self, file_number: int, *, number: int = 0) -> None:
        self.number = number
        sock = socket.socket(fileno=file_number)
        sock.set_inheritable(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._link = Link(stream, worker_decoder())
        self._numbers = itertools.count(1)
        self._waits: dict[int, _Wait] = {}
        self._is_leaving = False
        self._inspections = 0

    async def gather(self) -> Snapshot | None:
        """Return the stats of all workers; None if the supervisor does not answer in time."""
        number, wait = next(self._numbers), _Wait()
        self._waits[number] = wait
        try:
            with trio.move_on_after(_ANSWER_SECONDS):
                if self._link.send(Question(number)):
                    await wait.is_over.wait()
        finally:
            del self._waits[number]
        if wait.snapshot is None:
            _log.warning("workers.parent_silent")
        return wait.snapshot

    async def run(self, server: Governed) -> None:
        """Report that `server` serves, then answer and obey the supervisor; if it ends, drain."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._link.run_writer)
            self._link.send(StatsReport(0, server.snapshot()))
            while (message := await self._link.receive()) is not None:
                if isinstance(message, Inspect):
                    self._begin_inspection(message, server, nursery)
                else:
                    self._obey(message, server)
            nursery.cancel_scope.cancel(reason="the parent has closed the link")
        for wait in self._waits.values():
            wait.is_over.set()
        if not self._is_leaving:
            _log.warning("workers.parent_gone")
            server.drain_alone()

    def _begin_inspection(self, message: Inspect, server: Governed, nursery: trio.Nursery) -> None:
        if self._inspections >= _INSPECTIONS_MAX:
            self._link.send(Inspected(message.number, _TOO_MANY))
            return
        self._inspections += 1
        nursery.start_soon(self._inspect, message, server)

    async def _inspect(self, message: Inspect, server: Governed) -> None:
        try:
            self._link.send(Inspected(message.number, await server.answer(message.question)))
        except Exception:  # noqa: BLE001 - a fault in one answer must not end the worker
            _log.exception("request.failed")
            self._link.send(Inspected(message.number, _FAULT))
        finally:
            self._inspections -= 1

    def _obey(self, message: FromParent, server: Governed) -> None:
        match message:
            case Ask():
                self._link.send(StatsReport(message.number, server.snapshot()))
            case Accept():
                server.accept_from(message.queues)
            case OtherWorkers():
                server.learn(message)
            case Answer():
                self._take(message)
            case Reload():
                texts = {name: os.fsdecode(text) for name, text in message.environment.items()}
                server.reload(lambda: texts)
            case HandOver():
                server.hand_over()

    def _take(self, answer: Answer) -> None:
        wait = self._waits.get(answer.number)
        if wait is not None:
            wait.snapshot = answer.snapshot
            wait.is_over.set()

    def tell(self, snapshot: Snapshot) -> None:
        """Report the stats of this worker to the supervisor. Does not wait."""
        self._link.send(StatsReport(0, snapshot))

    async def leave(self, last: Snapshot) -> None:
        """Report the `last` stats, so that connections closed in order do not count as lost."""
        self._is_leaving = True
        self._link.send(StatsReport(0, last))
        with trio.move_on_after(_FAREWELL_SECONDS):
            await self._link.finish()
