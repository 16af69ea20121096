"""Runs fleets as processes: start, connect, collect, end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar, cast

import msgspec
import trio

from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.fleet.plan import (
    Collected,
    FleetPlan,
    Progress,
    Summary,
    merged,
)

_ANSWER_SECONDS = 60.0
_END_SECONDS = 5.0
_LOOK_SECONDS = 0.25

T = TypeVar("T")


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
            LoadImpossible: the fleet reports it, has ended, or does not answer.

        Cancellation: waits for the answer, which must not be taken for that of the next command.
        """
        with trio.move_on_after(_ANSWER_SECONDS, shield=True):
            with suppress(trio.BrokenResourceError):  # then its last line gives the reason
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
        """Ask it to quit; kill it if it does not."""
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

    async def _ask(self, command: str, answer: type[T]) -> list[T]:
        """Ask all of them; returns each one's answer.

        Raises:
            LoadImpossible: one of them reports it, has ended, or does not answer.
        """
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
        """Give a command that continues after its answer: "connect", "cut", "churn", "close"."""
        return merged(await self._ask(command, Progress))

    async def progress(self) -> Progress:
        """Their progress."""
        return await self.begin("progress")

    async def connect(self) -> Summary:
        """Connect and subscribe all clients, and wait until that is done."""
        at = await self.begin("connect")
        while at.pending:
            await trio.sleep(_LOOK_SECONDS)
            at = await self.progress()
        return await self.summary()

    async def collect(self) -> Collected:
        """The events since the last collect. An event has an entry for each fleet it reached."""
        parts = await self._ask("collect", Collected)
        self.busiest_cpu_seconds = max(part.cpu_seconds for part in parts)
        return merged(parts)

    async def summary(self) -> Summary:
        """The connections' history so far."""
        return merged(await self._ask("summary", Summary))


@asynccontextmanager
async def fleets(plans: Sequence[FleetPlan]) -> AsyncIterator[Fleets]:
    """Start fleets of clients, a process each, that end with the block."""
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
