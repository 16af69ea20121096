"""Client libraries that play: each a process, or a task, whose lines the world can break."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import trio

from tests.oracle.libraries.line import Line, start_line
from tests.oracle.libraries.verdict import Item
from tests.oracle.truth import Evidence
from trio_odin.wire.channels import ChannelSet

LIBRARY = Path(os.environ.get("ORACLE_LIBRARY", Path(__file__).parents[3] / "clients" / "js"))
_FOLDER = Path(__file__).parent
# A dead network has to be noticed within the time of a fault.
_OPTIONS = {"heartbeatMs": 1000, "pongMs": 1500, "dialMs": 2500, "retryMaxMs": 1000}

Message: TypeAlias = dict[str, Any]


@attrs.define
class Part:
    """A subscription of a player, and what it got.

    Attributes:
        names: its channels and patterns.
        every_ms: its rate.
        channels: what the names stand for.
        numbers: of its events.
    """

    names: list[str]
    every_ms: int
    channels: frozenset[str]
    items: list[Item] = attrs.field(factory=list)
    numbers: set[int] = attrs.field(factory=set)


@attrs.define
class Player:
    """A library in a world.

    Attributes:
        name: of it in findings, `node0`.
        kind: `node`, `browser`, `trio` or `asyncio`.
        parts: its subscriptions.
        states: how often it was in which state.
        errors: what it complained about.
    """

    name: str
    kind: str
    parts: list[Part]
    evidence: Evidence
    nursery: trio.Nursery
    is_compressed: bool = False
    lines: list[Line] = attrs.field(factory=list)
    states: dict[str, int] = attrs.field(factory=dict)
    errors: list[str] = attrs.field(factory=list)

    # ---- faults, as those of `tests.oracle.client.Client`

    def cut_after(self, count: int) -> None:
        """Reset the connection after `count` more bytes from the server.

        Or reset it now, and the next one after as many bytes, which is often within a resume.
        """
        for line in self.lines:
            line.cut_after(count, is_next=count % 2 == 1)

    def cut_command(self, share: float) -> None:
        """Reset the connection in the middle of its next command."""
        del share
        for line in self.lines:
            line.cut_upwards()

    def stall(self, seconds: float) -> None:
        """Let nothing reach it for a while."""
        for line in self.lines:
            line.hold(seconds)

    def abandon(self) -> None:
        """Leave its connection half open."""
        for line in self.lines:
            line.abandon()

    def move(self) -> None:
        """Reset its connection."""
        for line in self.lines:
            line.cut()

    def stay_away(self, seconds: float) -> None:
        """Take the network from it for a while."""
        self.nursery.start_soon(self._be_away, seconds)

    async def _be_away(self, seconds: float) -> None:
        for line in self.lines:
            line.is_down = True
            line.cut()
        await trio.sleep(seconds)
        for line in self.lines:
            line.is_down = False

    # ---- playing

    async def run(self, ports: Sequence[int]) -> None:
        """Lay the lines and play, until cancelled."""
        self.lines = [await start_line(self.nursery, port) for port in ports]
        config = {
            "urls": [f"ws://127.0.0.1:{line.port}/ws" for line in self.lines],
            "options": _OPTIONS,
            "compressed": self.is_compressed,
            "subscriptions": [{"names": one.names, "everyMs": one.every_ms} for one in self.parts],
        }
        if self.kind in {"node", "browser"}:
            command = ["node", str(_FOLDER / f"{self.kind}.mjs"), str(LIBRARY)]
        else:
            command = [sys.executable, "-m", f"{__package__}.play", self.kind]
        await self._play([*command, json.dumps(config)])

    async def _play(self, command: list[str]) -> None:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
        )
        assert process.stdout is not None
        assert process.stdin is not None
        buffer = b""
        try:
            async for chunk in process.stdout:
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    self.take(json.loads(line))
            self.errors.append(f"ended with {await process.wait()}")
        finally:
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()  # which it takes for its end
                with trio.move_on_after(5):
                    await process.wait()
                if process.returncode is None:
                    process.kill()

    def take(self, message: Message) -> None:
        """Take a thing that the library has handed out."""
        kind, at_ms = message["kind"], float(message["at"])
        if kind == "state":
            self.states[message["name"]] = self.states.get(message["name"], 0) + 1
        elif kind == "event":
            self._take_event(message, at_ms)
        elif kind == "gap":
            part = self.parts[message["number"]]
            channels = ChannelSet(message["channels"])
            matched = frozenset(one for one in part.channels if one in channels)
            note = f"{message['reason']} {message['missed']}"
            part.items.append(Item(at_ms=at_ms, channels=matched, note=note))
        else:
            self.errors.append(json.dumps(message))

    def _take_event(self, message: Message, at_ms: float) -> None:
        part, number = self.parts[message["number"]], message["n"]
        part.numbers.add(number)
        part.items.append(
            Item(
                at_ms=at_ms,
                channels=frozenset([message["channel"]]),
                number=number,
                skipped=message["skipped"],
                is_snapshot=message["isSnapshot"],
                note=f"{message.get('offset')} of {message['epoch']}",
            )
        )
        offset, epoch = message.get("offset"), message["epoch"]
        if number in self.evidence.sent and offset is not None and epoch is not None:
            self.evidence.saw(number, offset, message["unixMs"])
            self.evidence.epochs[epoch].add(number)
            self.evidence.heard.setdefault(epoch, at_ms)


def draw_parts(channels: Sequence[str], rng: random.Random) -> list[Part]:
    """Some subscriptions: to every event, at a rate, and by patterns. Names may overlap."""
    some = rng.sample(channels, rng.randint(3, 8))
    fewer = rng.sample(channels, rng.randint(2, 6))
    patterns = rng.choice([["*.trade"], ["C1.*", "C2.>"], [">"], ["*.social", "C0.*"]])
    rates = rng.sample([0, 100, 250, 1000], 3)
    parts = [(some, 0), (fewer, rates[0]), (patterns, rates[1])][: rng.randint(2, 3)]
    return [
        Part(names, every_ms, frozenset(one for one in channels if one in ChannelSet(names)))
        for names, every_ms in parts
    ]


Make: TypeAlias = Callable[[Evidence, trio.Nursery], list[Player]]


def maker(kinds: Sequence[str], channels: Sequence[str], rng: random.Random) -> Make:
    """Makes players of these kinds, each with drawn subscriptions."""

    def make(evidence: Evidence, nursery: trio.Nursery) -> list[Player]:
        return [
            Player(
                f"{kind}{number}",
                kind,
                draw_parts(channels, rng),
                evidence,
                nursery,
                is_compressed=rng.random() < 0.5,
            )
            for number, kind in enumerate(kinds)
        ]

    return make
