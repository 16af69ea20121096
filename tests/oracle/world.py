"""One world: NATS, two servers, a publisher, a recorder and clients, each breakable."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.e2e.nats import NatsServer, Network, free_port, nats_client, start_network
from tests.e2e.nats_cluster import cluster_in
from tests.faults.server import ServerProcess, start
from tests.oracle.client import Client
from tests.oracle.follower import Follower, Rate
from tests.oracle.libraries.players import Make, Player
from tests.oracle.publisher import Publisher
from tests.oracle.recorder import Recorder
from tests.oracle.truth import Evidence

STREAM = "ODIN_TOKENS"
CHANNELS = [f"C{number // 2}.{'trade' if number % 2 else 'social'}" for number in range(20)]
_WINDOW_SECONDS = 30
# The time for which a server keeps events to resume; in a gentle world that of the stream.
KEPT_SECONDS = 4
_ANSWER_SECONDS = 1.5
_GONE_SECONDS = 15.0
_UP_SECONDS = 15.0
_KEEP_SECONDS = 0.3
_NOT_FOUND = 10059  # NATS has no such stream
# A server looks at the stream every two seconds.
_NOTICED_SECONDS = 5.0
# The load of this machine is not a fault of the server.
_ENVIRONMENT: dict[str, Any] = {
    "WS_CPU_REJECT_THRESHOLD": "0",
    "WS_CPU_PAUSE_THRESHOLD": "0",
    "WS_LAG_REJECT_MS": "0",
    "WS_DRAIN_SECONDS": "1s",
    "LOG_LEVEL": "debug",
    "PYTHONFAULTHANDLER": "1",
}


@attrs.frozen
class Kind:
    """The NATS of a world: the number of nodes, and the storage of the stream."""

    name: str
    nodes: int
    storage: str
    replicas: int
    is_gentle: bool = False  # it gets no fault that must lose events

    @property
    def is_kept(self) -> bool:
        """Whether the stream outlives the end of all nodes."""
        return self.storage == "file"


KINDS = {
    kind.name: kind
    for kind in (
        Kind("single-memory", 1, "memory", 1),
        Kind("single-file", 1, "file", 1),
        Kind("cluster-r1-memory", 3, "memory", 1),
        Kind("cluster-r3-memory", 3, "memory", 3),
        Kind("cluster-r3-file", 3, "file", 3),
        Kind("gentle-single", 1, "file", 1, is_gentle=True),
        Kind("gentle-cluster", 3, "file", 3, is_gentle=True),
    )
}


@attrs.define
class Odin:
    """A server on a port that stays the same over restarts.

    `network`: between it and a single NATS node; the nodes of a cluster announce each other.
    """

    folder: Path
    nats_url: str
    workers: int
    kept_seconds: int = _WINDOW_SECONDS
    port: int = attrs.field(factory=free_port)
    process: ServerProcess | None = None
    network: Network | None = None
    # A fault or its healing is in progress.
    is_busy: bool = False

    def start(self) -> None:
        self.process = start(
            self.folder,
            self.nats_url if self.network is None else self.network.url,
            workers=self.workers,
            port=self.port,
            **_ENVIRONMENT,
            JS_STREAM_MAX_AGE=f"{self.kept_seconds}s",
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process = None

    async def wait_up(self) -> None:
        """Wait until it has NATS; with a deadline, as either may be killed meanwhile."""
        with trio.move_on_after(_UP_SECONDS):
            while not await self.is_connected():
                await trio.sleep(0.1)

    async def is_connected(self) -> bool:
        """Whether it reports that it has NATS."""
        health: dict[str, Any] = {}
        if self.process is not None:
            with trio.move_on_after(_ANSWER_SECONDS):
                health = await self.process.health()
        return bool(health.get("checks", {}).get("nats", {}).get("status") == "connected")

    async def leave(self) -> None:
        """Send SIGTERM, and wait for the end."""
        process, self.process = self.process, None
        if process is None:
            return
        try:
            process.signal(signal.SIGTERM)
            with suppress(trio.TooSlowError):
                await process.ended(_GONE_SECONDS)
        finally:
            process.kill()


class World:
    """A running world.

    Attributes:
        kind, rate: the kind of world, and events a second.
        is_as_wanted: the stream has the right storage, as far as is known.
        is_remaking: a fault has deleted the stream and makes it anew.
        evidence: the published events and the observations.
        players: client libraries.
        breakable: the clients, of either kind, to which faults happen.
        nodes: of NATS.
        nursery: for the tasks that heal faults.
    """

    def __init__(
        self,
        kind: Kind,
        folder: Path,
        rng: random.Random,
        nursery: trio.Nursery,
        make_players: Make | None = None,
    ) -> None:
        self.kind = kind
        # A resume brings 100 events of a channel: those of the chattiest one in 4 s at 80 events/s.
        self.rate = rng.uniform(50, 80 if kind.is_gentle else 200)
        self.evidence = Evidence()
        self.nursery = nursery
        self.healing = 0
        self.is_as_wanted = True
        self.is_remaking = False
        if kind.nodes == 1:
            self.nodes = [NatsServer(folder / "nats")]
        else:
            self.nodes = cluster_in(folder / "nats", grace_seconds=0.3).nodes
        url = ",".join(node.url for node in self.nodes)
        self.servers = []
        for number in range(2):
            home = folder / f"server{number}"
            home.mkdir(parents=True)
            workers = rng.choice([1, 1, 2]) if self.is_remembered else 1
            kept_seconds = _WINDOW_SECONDS if kind.is_gentle else KEPT_SECONDS
            self.servers.append(Odin(home, url, workers, kept_seconds))
        self._turn = itertools.count()
        self.recorder = Recorder(self.evidence, STREAM, self.next_port)
        self.publisher = Publisher(self.evidence, CHANNELS, self.rate, rng, self.next_port)
        self.players = make_players(self.evidence, nursery) if make_players else []
        self.clients = [
            _client(f"client{number}", habit, rng)
            for number, habit in enumerate(() if make_players else _HABITS)
        ]
        self.breakable: Sequence[Client | Player] = self.players or self.clients

    @property
    def ports(self) -> list[int]:
        return [server.port for server in self.servers]

    def next_port(self) -> int:
        """The port of a running NATS node, each in turn."""
        running = [node for node in self.nodes if node.is_running] or self.nodes
        return running[next(self._turn) % len(running)].port

    async def ask(self, subject: str, content: object = None) -> dict[str, Any] | None:
        """Ask the JetStream API; None if there is no answer."""
        with trio.move_on_after(_ANSWER_SECONDS):
            try:
                url = f"nats://127.0.0.1:{self.next_port()}"
                async with nats_client(url) as client:
                    return await client.request(subject, content)
            except (OSError, trio.BrokenResourceError, AssertionError):
                return None
        return None

    async def make_stream(self) -> bool:
        """Make the stream, unless it exists."""
        config = {
            "name": STREAM,
            "subjects": ["odin.token.>"],
            "storage": self.kind.storage,
            "num_replicas": self.kind.replicas,
            "max_age": _WINDOW_SECONDS * 1_000_000_000,
            "allow_direct": True,  # for the recorder
        }
        answer = await self.ask(f"$JS.API.STREAM.CREATE.{STREAM}", config)
        if answer is None or "error" not in answer:
            return answer is not None
        # A server may have made it first, in memory and without replicas.
        found = await self.ask(f"$JS.API.STREAM.INFO.{STREAM}")
        if found is None or "config" not in found:
            return False
        if self._is_as_wanted(found["config"]):
            config = found["config"] | {
                "allow_direct": True,
                "max_age": _WINDOW_SECONDS * 1_000_000_000,
            }
            answer = await self.ask(f"$JS.API.STREAM.UPDATE.{STREAM}", config)
        else:
            await self.ask(f"$JS.API.STREAM.DELETE.{STREAM}")
            answer = await self.ask(f"$JS.API.STREAM.CREATE.{STREAM}", config)
        return answer is not None and "error" not in answer

    async def last_offset(self) -> int | None:
        """The stream's last offset; None if it is not known."""
        answer = await self.ask(f"$JS.API.STREAM.INFO.{STREAM}")
        state = (answer or {}).get("state")
        return None if state is None else int(state["last_seq"])

    async def keep_stream(self) -> None:
        """Make or correct the stream whenever necessary, as an operator would."""
        while True:
            await trio.sleep(_KEEP_SECONDS)
            found = await self.ask(f"$JS.API.STREAM.INFO.{STREAM}") or {}
            is_gone = found.get("error", {}).get("err_code") == _NOT_FOUND
            if config := found.get("config"):
                self.is_as_wanted = self._is_as_wanted(config)
            # If a server has made it, the recorder cannot read it yet.
            is_read = config is None or bool(config.get("allow_direct"))
            if not self.is_remaking and (is_gone or not self.is_as_wanted or not is_read):
                await self.make_stream()

    def _is_as_wanted(self, config: dict[str, Any]) -> bool:
        kept = (config["storage"], config["num_replicas"])
        return kept == (self.kind.storage, self.kind.replicas)

    @property
    def is_remembered(self) -> bool:
        """Whether NATS itself distinguishes one life of the stream from another.

        A stream in the memory of a cluster comes back empty under the date at which it was made.
        Only a server that knew it before can see that. So servers and nodes end by turns there: a
        server while NATS is whole and known to the other one, a node while both know the stream.
        """
        return self.kind.nodes == 1 or (self.kind.storage == "file" and self.is_as_wanted)

    @property
    def is_careful(self) -> bool:
        """Whether servers and nodes end in turn. In a gentle world they do, too: a server that
        starts must reach NATS in time, or it declares a loss.
        """
        return self.kind.is_gentle or not self.is_remembered

    async def can_spare(self, target: Odin | NatsServer) -> bool:
        """Whether a server or a node may end now."""
        if not self.is_careful:
            return True
        if isinstance(target, Odin) and any(node.is_busy for node in self.nodes):
            return False
        return await self._is_known() and all(
            [await one.is_connected() for one in self.servers if one is not target]
        )

    async def _is_known(self) -> bool:
        """Whether the stream is old enough for each server to have noticed it."""
        found = await self.ask(f"$JS.API.STREAM.INFO.{STREAM}") or {}
        if "created" not in found:
            return False
        created = dt.datetime.fromisoformat(found["created"][:19] + "+00:00")
        return (dt.datetime.now(dt.UTC) - created).total_seconds() > _NOTICED_SECONDS

    async def consumers(self) -> list[str]:
        """The names of the servers' consumers."""
        answer = await self.ask(f"$JS.API.CONSUMER.NAMES.{STREAM}") or {}
        names: list[str] = answer.get("consumers") or []
        return names

    async def heal(self) -> None:
        """Wait until everything broken is back and complete."""
        while self.healing:
            await trio.sleep(0.05)
        for node in self.nodes:
            if node.is_running:
                node.signal(signal.SIGCONT)
            else:
                node.stop()
                node.start()
        for server in self.servers:
            if server.process is None:
                server.start()
        while not await self.make_stream():
            await trio.sleep(0.2)

    def end(self) -> None:
        """Kill every process."""
        for server in self.servers:
            server.kill()
        for node in self.nodes:
            node.stop()


# What a client requests by patterns; most have none.
_PATTERNS: list[list[str]] = [[], [], ["C1.*"], ["C2.*", "C3.>"], ["*.social"], [">"]]


@attrs.frozen
class _Habit:
    """What a client wants.

    Attributes:
        rate: for most names.
        patterns: from which it chooses.
        choices: the rates between which it changes for some names, the last one first.
        is_mixed: whether it has some of the channels of its patterns at another rate, too.
    """

    rate: Rate = 0
    patterns: list[list[str]] = attrs.field(factory=lambda: _PATTERNS)
    choices: tuple[Rate, ...] = ()
    is_mixed: bool = False

    @property
    def is_narrow(self) -> bool:
        """Whether its socket takes little. At a rate nothing is lost by that."""
        return self.rate != 0 and not self.choices


_HABITS = [
    _Habit(),
    _Habit(),
    _Habit(100),
    _Habit(250, patterns=[one for one in _PATTERNS if one]),
    _Habit(250, patterns=[["*.social"], ["*.trade"], [">"]], choices=(0, 100, None), is_mixed=True),
    _Habit(patterns=[[], ["C1.*"]], choices=(100, 0, 250, None)),
]


def _client(name: str, habit: _Habit, rng: random.Random) -> Client:
    channels = rng.sample(CHANNELS, rng.randint(2, 12))
    patterns = {name: _matched(name) for name in rng.choice(habit.patterns)}
    matched = frozenset[str]().union(*patterns.values())
    own = random.Random(rng.random())
    single = [one for one in channels if habit.is_mixed or one not in matched]
    names: dict[str, Rate] = dict.fromkeys([*single, *patterns], habit.rate)
    changing: dict[str, tuple[Rate, ...]] = {}
    if habit.choices:
        # Of the names of a channel, the fastest counts: its own or the pattern.
        often = [one for one in single if one in matched or rng.random() < 0.7] or single
        changing = dict.fromkeys(often, habit.choices)
        if not habit.is_mixed:
            changing |= dict.fromkeys(patterns, habit.choices)
        names.update({one: rng.choice(choices) for one, choices in changing.items()})
    spare = [one for one in CHANNELS if one not in single and one not in matched]
    follower = Follower(names, patterns=patterns, with_snapshot=rng.random() < 0.5)
    return Client(
        name,
        follower,
        own,
        spare,
        rate=habit.rate,
        choices=changing,
        is_narrow=habit.is_narrow,
    )


def _matched(pattern: str) -> frozenset[str]:
    symbol, _, event_type = pattern.partition(".")
    return frozenset(
        channel
        for channel in CHANNELS
        if symbol in {"*", ">", channel.split(".")[0]}
        and event_type in {"", "*", ">", channel.split(".")[1]}
    )


@asynccontextmanager
async def running_world(
    kind: Kind, folder: Path, rng: random.Random, *, make_players: Make | None = None
) -> AsyncIterator[World]:
    """Start all parts; they end with the block, whatever happens.

    `make_players` makes client libraries, instead of the clients that know only docs/protocol.md.
    """
    async with trio.open_nursery() as nursery:
        world = World(kind, folder, rng, nursery, make_players)
        try:
            for node in world.nodes:
                node.start()
            with trio.fail_after(60):
                while not await world.make_stream():
                    await trio.sleep(0.1)
            for server in world.servers:
                if kind.nodes == 1:
                    server.network = await start_network(nursery, world.nodes[0].port)
                server.start()
            nursery.start_soon(world.keep_stream)
            nursery.start_soon(world.recorder.run)
            nursery.start_soon(world.publisher.run)
            for client in world.breakable:
                nursery.start_soon(client.run, world.ports)
            yield world
        finally:
            world.end()
            nursery.cancel_scope.cancel(reason="the world is over")
