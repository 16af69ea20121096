"""Fleets as processes, seen from whoever runs a load: start, connect, collect, end."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar, cast

import msgspec
import trio

from trio_odin.lab.fleet.books import Received
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.fleet.plan import Collected, Connected, FleetPlan, Progress, Summary

_ANSWER_SECONDS = 60.0
_END_SECONDS = 5.0
_LOOK_SECONDS = 0.25

T = TypeVar("T")
K = TypeVar("K")


class _Impossible(msgspec.Struct, forbid_unknown_fields=True):
    impossible: str


class _Fleet:
    """One process."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._input = cast("trio.abc.SendStream", process.stdin)
        self._output = cast("trio.abc.ReceiveStream", process.stdout)
        self._buffer = bytearray()

    async def ask(self, command: str, answer: type[T]) -> T:
        """Give a command and wait for its answer.

        Raises:
            LoadImpossible: the fleet says so, has ended, or does not answer.

        Cancellation: waits for the answer, which is not to be taken for that to the next command.
        """
        with trio.move_on_after(_ANSWER_SECONDS, shield=True):
            with suppress(trio.BrokenResourceError):  # then its last line says why
                await self._input.send_all(command.encode() + b"\n")
            line = await self._line()
            with suppress(msgspec.ValidationError):
                raise LoadImpossible(msgspec.json.decode(line, type=_Impossible).impossible)
            return msgspec.json.decode(line, type=answer)
        raise LoadImpossible(f"a fleet of clients has not answered for {_ANSWER_SECONDS:.0f} s")

    async def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            chunk = await self._output.receive_some()
            if not chunk:
                raise LoadImpossible("a fleet of clients has ended unexpectedly")
            self._buffer += chunk
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line

    async def end(self) -> None:
        """Tell it to quit; kill it if it does not."""
        await self._input.aclose()
        with trio.move_on_after(_END_SECONDS):
            await self._process.wait()
        self._process.kill()
        await self._process.wait()
        await self._output.aclose()


class Fleets:
    """Some fleets as one. Made by `fleets`.

    Attributes:
        busiest_cpu_seconds: CPU of the busiest process between the last two collects.
    """

    def __init__(self, members: Sequence[_Fleet]) -> None:
        self._members = members
        self.busiest_cpu_seconds = 0.0

    async def _all(self, command: str, answer: type[T]) -> list[T]:
        answers: list[T] = []
        failures: list[LoadImpossible] = []

        async def one(fleet: _Fleet) -> None:
            try:
                answers.append(await fleet.ask(command, answer))
            except LoadImpossible as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for fleet in self._members:
                nursery.start_soon(one, fleet)
        if failures:
            raise failures[0]
        return answers

    async def begin(self, command: str) -> Progress:
        """Give a command that goes on after its answer: "connect", "cut", "churn", "close"."""
        parts = await self._all(command, Progress)
        return Progress(
            connections=sum(part.connections for part in parts),
            pending=sum(part.pending for part in parts),
            received=sum(part.received for part in parts),
        )

    async def progress(self) -> Progress:
        """Where they are."""
        return await self.begin("progress")

    async def connect(self, progress: Callable[[int], None]) -> Connected:
        """Connect and subscribe everybody, and wait until that is over."""
        at = await self.begin("connect")
        while at.pending:
            await trio.sleep(_LOOK_SECONDS)
            at = await self.progress()
            progress(at.connections)
        return await self.connects()

    async def connects(self) -> Connected:
        """How the connects went so far."""
        parts = await self._all("connects", Connected)
        return Connected(
            connected=sum(part.connected for part in parts),
            seconds=max(part.seconds for part in parts),
            rejections=_summed(part.rejections for part in parts),
            failures=_summed(part.failures for part in parts),
            buckets=_summed(part.buckets for part in parts),
            subscribers=_summed(part.subscribers for part in parts),
        )

    async def collect(self) -> Collected:
        """What happened since the last time. An event has an entry for each fleet it reached."""
        parts = await self._all("collect", Collected)
        self.busiest_cpu_seconds = max(part.cpu_seconds for part in parts)
        books = [part.received for part in parts]
        return Collected(
            received=Received(
                received=sum(book.received for book in books),
                deliveries=[entry for book in books for entry in book.deliveries],
                buckets=_summed(book.buckets for book in books),
                gaps=sum(book.gaps for book in books),
                repeated=sum(book.repeated for book in books),
                foreign=sum(book.foreign for book in books),
            ),
            connections=sum(part.connections for part in parts),
            pending=sum(part.pending for part in parts),
            reads=sum(part.reads for part in parts),
            disconnects=_summed(part.disconnects for part in parts),
            churned=sum(part.churned for part in parts),
            error_replies=sum(part.error_replies for part in parts),
            unreadable=sum(part.unreadable for part in parts),
            cpu_seconds=sum(part.cpu_seconds for part in parts),
        )

    async def summary(self) -> Summary:
        """What is known at the end."""
        parts = await self._all("summary", Summary)
        lost = [part.first_lost for part in parts if part.first_lost]
        return Summary(
            silent=sum(part.silent for part in parts),
            closed_cleanly=sum(part.closed_cleanly for part in parts),
            lost=sum(part.lost for part in parts),
            back=sum(part.back for part in parts),
            first_lost=min(lost, default=0.0),
            last_back=max(part.last_back for part in parts),
            buckets=_summed(part.buckets for part in parts),
        )


def _summed(parts: Iterable[Mapping[K, int]]) -> dict[K, int]:
    total: Counter[K] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


@asynccontextmanager
async def fleets(plans: Sequence[FleetPlan]) -> AsyncIterator[Fleets]:
    """Fleets of clients, a process each, that end with the block."""
    members: list[_Fleet] = []
    try:
        for plan in plans:
            argument = msgspec.json.encode(plan).decode()
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "trio_odin.lab.fleet.client", argument],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            members.append(_Fleet(process))
        yield Fleets(members)
    finally:
        with trio.CancelScope(shield=True):
            for member in members:
                await member.end()
