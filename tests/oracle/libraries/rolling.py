"""`python -m tests.oracle.libraries.rolling`: thousands of Python clients in a rolling restart.

Clients of `trio_odin.client` in some processes hold connections to two workers, which SIGUSR2
replaces one by one. The events of each channel are numbered, so a client sees by itself whether one
is missing or comes again. In the end each has to have the last event of each of its channels.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.e2e.nats import NatsClient, NatsServer, nats_client, running_nats
from tests.faults.server import ServerProcess, serving
from trio_odin.client import Event, Gap, Options, State, aio, connect

_CHANNELS = [f"T{number}.trade" for number in range(100)]
_EACH = 5
_AT_ONCE = 20
# All clients are on this machine, which has to connect them, too: on two cores it can connect 130 a
# second and nothing else. Twice as many are away for longer than the server keeps events.
_RECONNECTS = 60
_DRAIN_SECONDS = 300
_UP_SECONDS, _ROLLED_SECONDS, _LAST_SECONDS = 400.0, 800.0, 90.0


class _Crowd:
    """The clients of one process; `seen` counts what they got."""

    def __init__(
        self, connect: Callable[..., Any], starting: trio.Semaphore | asyncio.Semaphore
    ) -> None:
        self.seen: Counter[str] = Counter()
        self.newest: dict[int, dict[str, int]] = {}
        self._connect = connect
        self._starting = starting

    async def play(self, number: int, url: str) -> None:
        """One client, until cancelled."""
        newest = self.newest[number] = {}
        channels = random.Random(number).sample(_CHANNELS, _EACH)
        await self._starting.acquire()
        try:
            # A loop with thousands of clients that all connect at once is busy, and not frozen.
            options = Options(freeze_ms=60_000)
            async with self._connect(url, channels, queue="wait", options=options) as feed:
                await feed.wait_live()
                self.seen["began"] += 1
                self._starting.release()
                async for item in feed.items():
                    self._take(item, newest)
        finally:
            self.seen["ended"] += 1

    def answer(self, line: str) -> None:
        """Print what was seen; `line` has the last number of each channel."""
        answer = dict(self.seen) | {"lacking": self.lacking(json.loads(line))}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    def _take(self, item: object, newest: dict[str, int]) -> None:
        match item:
            case Event():
                count, before = item.data["n"], newest.get(item.channel)
                self.seen["events"] += 1
                if before is not None and count != before + 1:
                    self.seen["missing" if count > before else "repeated"] += 1
                newest[item.channel] = count
            case Gap():
                self.seen["gaps"] += 1
            case State():
                self.seen[item.name] += 1
            case _:
                self.seen["refused"] += 1

    def lacking(self, last: dict[str, int]) -> int:
        """How many clients lack the last event of a channel."""
        return sum(
            any(count != last.get(channel) for channel, count in newest.items())
            or len(newest) < _EACH
            for newest in self.newest.values()
        )


async def _play_on_trio(url: str, numbers: range) -> None:
    """Play clients; answer the lines of the standard input."""
    crowd = _Crowd(connect, trio.Semaphore(_AT_ONCE))
    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(crowd.play, number, url)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            crowd.answer(line)
        nursery.cancel_scope.cancel(reason="enough was seen")


async def _play_on_asyncio(url: str, numbers: range) -> None:
    crowd = _Crowd(aio.connect, asyncio.Semaphore(_AT_ONCE))
    async with asyncio.TaskGroup() as tasks:
        playing = [tasks.create_task(crowd.play(number, url)) for number in numbers]
        while line := await asyncio.to_thread(sys.stdin.readline):
            crowd.answer(line)
        for task in playing:
            task.cancel()


class _Children:
    def __init__(self, library: str, url: str, clients: int, processes: int) -> None:
        each = -(-clients // processes)
        self._processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", __spec__.name, "--child", library, url),
                    *(str(first), str(min(first + each, clients))),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for first in range(0, clients, each)
        ]

    async def ask(self, last: dict[str, int]) -> Counter[str]:
        """What all clients have seen until now."""
        return await trio.to_thread.run_sync(self._ask, last)

    def _ask(self, last: dict[str, int]) -> Counter[str]:
        seen: Counter[str] = Counter()
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(last).encode() + b"\n")
            process.stdin.flush()
            seen.update(json.loads(process.stdout.readline()))
        return seen

    def cpu_seconds(self) -> float:
        """The CPU time of all of them."""
        ticks = 0
        for process in self._processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def mib(self) -> float:
        """The memory of all of them."""
        pages = sum(
            int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            for process in self._processes
        )
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


async def _publish(nats: NatsServer, rate: float, last: dict[str, int], until: trio.Event) -> None:
    """Publish numbered events, `rate` a second, and in the end one of each channel."""
    async with nats_client(nats.url) as client:
        rng = random.Random(1)
        while not until.is_set():
            await _publish_one(client, rng.choice(_CHANNELS), last)
            await trio.sleep(1 / rate)
        for channel in _CHANNELS:
            await _publish_one(client, channel, last)
        await client.flush()


async def _publish_one(client: NatsClient, channel: str, last: dict[str, int]) -> None:
    last[channel] = last.get(channel, 0) + 1
    payload = json.dumps({"n": last[channel]}).encode()
    await client.publish(f"odin.token.{channel}", payload)


async def _drill(library: str, clients: int, processes: int, rate: float) -> int:
    with tempfile.TemporaryDirectory(prefix="rolling-") as name:
        folder = Path(name)
        with running_nats(folder) as nats:
            settings = {"WS_MAX_CONNECTIONS": "0", "WS_CPU_REJECT_THRESHOLD": "0"}
            settings |= {"WS_CPU_PAUSE_THRESHOLD": "0", "WS_LAG_REJECT_MS": "0"}
            settings |= {
                "WS_ACCEPT_RATE": str(_RECONNECTS),
                "WS_DRAIN_SECONDS": f"{_DRAIN_SECONDS}s",
            }
            async with serving(folder, nats.url, workers=2, **settings) as server:
                url = f"ws://127.0.0.1:{server.port}/ws"
                children = _Children(library, url, clients, processes)
                try:
                    return await _watch(server, nats, clients, children, rate)
                finally:
                    children.end()


async def _watch(
    server: ServerProcess, nats: NatsServer, clients: int, children: _Children, rate: float
) -> int:
    last: dict[str, int] = {}
    is_over = trio.Event()
    begun = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - begun:6.1f} s  {text}\n")
        sys.stdout.flush()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_publish, nats, rate, last, is_over)
        with trio.fail_after(_UP_SECONDS):
            while (seen := await children.ask(last))["began"] < clients:
                say(f"{seen['began']:,} of {clients:,} clients are live")
                await trio.sleep(5)
        say(f"all are live, {children.mib() * 1024 / clients:.1f} KiB a client")
        await trio.sleep(5)
        workers, cpu, at = server.workers(), children.cpu_seconds(), time.monotonic()
        server.signal(signal.SIGUSR2)
        with trio.fail_after(_ROLLED_SECONDS):
            while not any("rolling.finished" in line for line in server.log_lines()):
                await trio.sleep(1)
        took = time.monotonic() - at
        cpu = children.cpu_seconds() - cpu
        assert set(workers).isdisjoint(server.workers()), "the workers are the same ones"
        say(f"both workers are replaced, after {took:.0f} s; clients used {cpu:.0f} s of CPU")
        await trio.sleep(5)
        is_over.set()
    with trio.move_on_after(_LAST_SECONDS):
        while (seen := await children.ask(last))["lacking"]:
            await trio.sleep(1)
    seen = await children.ask(last)
    say(", ".join(f"{key} {count:,}" for key, count in sorted(seen.items())))
    bad = sum(seen[key] for key in ("missing", "repeated", "refused", "ended", "lacking"))
    say(f"{bad} of {clients:,} clients have a fault, {seen['gaps']} gaps")
    return 1 if bad or seen["gaps"] else 0


def main() -> int:
    """Run the drill; the exit code is 1 if anything was lost, told as lost, or repeated."""
    if sys.argv[1:2] == ["--child"]:
        library, url = sys.argv[2:4]
        numbers = range(int(sys.argv[4]), int(sys.argv[5]))
        if library == "trio":
            trio.run(_play_on_trio, url, numbers)
        else:
            asyncio.run(_play_on_asyncio(url, numbers))
        return 0
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument(
        "--rate",
        type=float,
        default=5.0,
        help="events a second; each is of a channel that one client in twenty has",
    )
    parser.add_argument("--library", choices=["trio", "asyncio"], default="asyncio")
    options = parser.parse_args()
    drill = partial(_drill, options.library, options.clients, options.processes, options.rate)
    return trio.run(drill)


if __name__ == "__main__":
    sys.exit(main())
