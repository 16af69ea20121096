"""Fleets as processes, seen from the bench: start, connect, collect, end."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar, cast

import attrs
import msgspec
import trio

from trio_odin.lab.bench.fleet import Collected, Connected, FleetPlan
from trio_odin.lab.load.plan import LoadImpossible

_ANSWER_SECONDS = 60.0
_END_SECONDS = 5.0

T = TypeVar("T")
K = TypeVar("K")


class _Impossible(msgspec.Struct):
    impossible: str


class _Progress(msgspec.Struct):
    connected: int


class _Count(msgspec.Struct):
    received: int


class _Fleet:
    """One process."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._input = cast("trio.abc.SendStream", process.stdin)
        self._output = cast("trio.abc.ReceiveStream", process.stdout)
        self._buffer = bytearray()
        self.connected = 0

    async def ask(self, command: str, answer: type[T]) -> T:
        """Give a command and wait for its answer; progress in between is noted.

        Raises:
            LoadImpossible: the fleet says so, or has ended.
        """
        with suppress(trio.BrokenResourceError):  # then its last line says why
            await self._input.send_all(command.encode() + b"\n")
        while True:
            with trio.fail_after(_ANSWER_SECONDS):
                line = await self._line()
            for kind in (_Impossible, answer, _Progress):
                try:
                    said = msgspec.json.decode(line, type=kind)
                except msgspec.ValidationError:
                    continue
                if isinstance(said, _Impossible):
                    raise LoadImpossible(said.impossible)
                if isinstance(said, _Progress):
                    self.connected = said.connected
                    break
                return said  # type: ignore[return-value]

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

        async def one(fleet: _Fleet) -> None:
            answers.append(await fleet.ask(command, answer))

        async with trio.open_nursery() as nursery:
            for fleet in self._members:
                nursery.start_soon(one, fleet)
        return answers

    async def connect(self, progress: Callable[[int], None]) -> Connected:
        """Connect and subscribe everybody."""
        async with trio.open_nursery() as nursery:

            async def tell() -> None:
                while True:
                    await trio.sleep(0.25)
                    progress(sum(fleet.connected for fleet in self._members))

            nursery.start_soon(tell)
            parts = await self._all("connect", Connected)
            nursery.cancel_scope.cancel(reason="connected")
        return Connected(
            connected=sum(part.connected for part in parts),
            seconds=max(part.seconds for part in parts),
            failures=dict(_summed(part.failures for part in parts)),
            ms=[ms for part in parts for ms in part.ms],
            subscribers=dict(_summed(part.subscribers for part in parts)),
        )

    async def received(self) -> int:
        """How many events were received so far."""
        return sum(part.received for part in await self._all("count", _Count))

    async def collect(self) -> Collected:
        """The figures since the last time."""
        parts = await self._all("collect", Collected)
        sums = {
            field.name: sum(getattr(part, field.name) for part in parts)
            for field in attrs.fields(Collected)
            if field.name not in {"deliveries", "buckets"}
        }
        self.busiest_cpu_seconds = max(part.cpu_seconds for part in parts)
        return Collected(
            deliveries=dict(_summed(part.deliveries for part in parts)),
            buckets=dict(_summed(part.buckets for part in parts)),
            **sums,
        )


def _summed(parts: Iterable[Mapping[K, int]]) -> Counter[K]:
    total: Counter[K] = Counter()
    for part in parts:
        total.update(part)
    return total


@asynccontextmanager
async def fleets(plans: Sequence[FleetPlan]) -> AsyncIterator[Fleets]:
    """Fleets of clients, a process each, that end with the block."""
    members: list[_Fleet] = []
    try:
        for plan in plans:
            argument = msgspec.json.encode(plan).decode()
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "trio_odin.lab.bench.fleet", argument],
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
