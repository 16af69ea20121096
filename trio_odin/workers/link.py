"""The link between the supervisor and a worker: a socket pair, one JSON object a line.

    supervisor ── Ask ──────────► worker    "how are you?"
    supervisor ◄── StatsReport ── worker    the answer; or unasked, with number 0: the worker has
                                            begun, has NATS, takes clients, or has finished
    supervisor ── Accept ───────► worker    "take clients from these queues, and from no others"
    supervisor ── OtherWorkers ─► worker    what the other workers hold: before it takes clients,
                                            and once all have answered
    supervisor ◄── Question ───── worker    "a client wants a page: how are all workers?"
    supervisor ── Answer ───────► worker
    supervisor ── Inspect ──────► worker    "an operator asks this about your connections"
    supervisor ◄── Inspected ──── worker    the answer
    supervisor ── Reload ───────► worker    "these are the settings now"
    supervisor ── HandOver ─────► worker    "your successor serves: leave the port to it, and drain"

The end of the stream is a message too: the other process has ended.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Generic, TypeAlias, TypeVar, get_args

import msgspec
import structlog
import trio

from trio_odin.admin import questions as admin
from trio_odin.ledger.snapshot import Snapshot
from trio_odin.overload.load import OtherWorkers

# If it is full, the other side has not read for long. The message is dropped; a task that waits for
# an answer to it has a deadline.
_OUTBOX_MESSAGES = 64
_RECEIVE_BYTES = 64 * 1024

_log = structlog.get_logger("workers")


class Ask(msgspec.Struct, tag=True, frozen=True):
    """The supervisor asks for the worker's stats."""

    number: int


class Accept(msgspec.Struct, tag=True, frozen=True):
    """The worker has to take clients from the queues of these numbers, and from no others."""

    queues: list[int]


class StatsReport(msgspec.Struct, tag=True, frozen=True):
    """The worker's stats, in answer to the `Ask` of that number; 0 if unasked."""

    number: int
    snapshot: Snapshot


class Question(msgspec.Struct, tag=True, frozen=True):
    """The worker asks for the stats of all workers together."""

    number: int


class Answer(msgspec.Struct, tag=True, frozen=True):
    """The stats of all workers, in answer to the `Question` of that number."""

    number: int
    snapshot: Snapshot


class Inspect(msgspec.Struct, tag=True, frozen=True):
    """The supervisor asks what an operator wants to know; `number` is that of the answer."""

    number: int
    question: admin.Question


class Inspected(msgspec.Struct, tag=True, frozen=True):
    """The answer to the `Inspect` of that number."""

    number: int
    reply: admin.Reply


class Reload(msgspec.Struct, tag=True, frozen=True):
    """The environment as it is now. The worker applies the settings that can change.

    Values are bytes, as the system has them: they need not be UTF-8.
    """

    environment: dict[str, bytes]


class HandOver(msgspec.Struct, tag=True, frozen=True):
    """The worker has to leave the port to its successor, and to drain."""


FromParent: TypeAlias = Ask | Accept | OtherWorkers | Answer | Inspect | Reload | HandOver
FromWorker: TypeAlias = StatsReport | Question | Inspected
M = TypeVar("M")


def _counter(kind: Any, content: Any) -> Any:
    """Decode a `Counter`, the one type that msgspec lacks. Its keys may be members of an enum."""
    (key,) = get_args(kind)
    return Counter({msgspec.convert(name, key): number for name, number in content.items()})


def parent_decoder() -> msgspec.json.Decoder[FromWorker]:
    """Return a decoder of messages from a worker."""
    return msgspec.json.Decoder(StatsReport | Question | Inspected, dec_hook=_counter)


def worker_decoder() -> msgspec.json.Decoder[FromParent]:
    """Return a decoder of messages from the supervisor."""
    return msgspec.json.Decoder(
        Ask | Accept | OtherWorkers | Answer | Inspect | Reload | HandOver, dec_hook=_counter
    )


class Link(Generic[M]):
    """One end: `send` never waits, `receive` waits for a message. `run_writer` has to be running.

    Resource handling: owns `stream`; `run_writer` closes it when it ends, however it does.
    """

    def __init__(self, stream: trio.abc.Stream, decoder: msgspec.json.Decoder[M]) -> None:
        self._stream = stream
        self._decoder = decoder
        self._received = bytearray()
        self._outbox_send, self._outbox_receive = trio.open_memory_channel[bytes](_OUTBOX_MESSAGES)
        self._is_written = trio.Event()

    def send(self, message: FromParent | FromWorker) -> bool:
        """Queue `message`. Returns False if the other side does not read, or the link has ended."""
        try:
            self._outbox_send.send_nowait(msgspec.json.encode(message) + b"\n")
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def finish(self) -> None:
        """Send no more messages, and wait until all queued ones are written."""
        self._outbox_send.close()
        await self._is_written.wait()

    async def run_writer(self) -> None:
        """Write queued messages until `finish`, cancellation, or the end of the other side."""
        async with self._stream:
            try:
                with self._outbox_receive:
                    async for line in self._outbox_receive:
                        await self._stream.send_all(line)
            except trio.BrokenResourceError:
                pass  # `receive` reports it
            finally:
                self._is_written.set()

    async def receive(self) -> M | None:
        """Return the next message; None once the link has ended.

        Error handling: a line that is not a message, for example from a worker of another version,
        is logged and skipped.
        """
        while (line := await self._receive_line()) is not None:
            try:
                return self._decoder.decode(line)
            except msgspec.MsgspecError as error:
                _log.error("link.not_understood", error=str(error))
        return None

    async def _receive_line(self) -> bytes | None:
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            try:
                chunk = await self._stream.receive_some(_RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not chunk:
                return None
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line
