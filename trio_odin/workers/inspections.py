"""Asks the process of a worker slot what an operator wants to know of its connections."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trio_odin.admin import questions as admin
from trio_odin.workers.link import Inspect, Inspected

if TYPE_CHECKING:
    from trio_odin.workers.slot import WorkerSlot

# A worker makes a list of ten thousand connections in a tenth of a second. It may be busy.
_ANSWER_SECONDS: Final = 3.0


@attrs.define
class _Wait:
    """Someone waits for an answer. Without a reply at the end, the process has ended."""

    is_over: trio.Event = attrs.field(factory=trio.Event)
    reply: admin.Reply | None = None


class Inspections:
    """The questions to one slot; see `admin.api.Process`."""

    def __init__(self, slot: WorkerSlot) -> None:
        self._slot = slot
        self._numbers = itertools.count(1)
        self._waits: dict[int, _Wait] = {}

    @property
    def worker(self) -> int:
        """The number of the worker."""
        return self._slot.number

    async def ask(self, question: admin.Question) -> admin.Reply:
        """Return the answer; `Refused` if the process ends first or does not answer in time."""
        number, wait = next(self._numbers), _Wait()
        self._waits[number] = wait
        extra = question.seconds if isinstance(question, admin.Channels) else 0.0
        try:
            with trio.move_on_after(_ANSWER_SECONDS + extra):
                if self._slot.tell(Inspect(number, question)):
                    await wait.is_over.wait()
        finally:
            del self._waits[number]
        if wait.reply is None:
            return admin.Refused(status=503, reason=f"Worker {self.worker} does not answer")
        return wait.reply

    def take(self, message: Inspected) -> None:
        """Take in an answer of the process."""
        wait = self._waits.get(message.number)
        if wait is not None:
            wait.reply = message.reply
            wait.is_over.set()

    def end(self) -> None:
        """Wait for no answers any longer: the process has ended."""
        for wait in self._waits.values():
            wait.is_over.set()
