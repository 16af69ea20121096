"""Runs the drill: a cluster of NATS, nodes, HAProxies, fleets and users; and what is killed."""

from __future__ import annotations

import math
import os
import re
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from tests.e2e.nats_cluster import NatsCluster, running_cluster
from tests.faults.publisher import CHANNELS, Publisher
from tests.ops.nodes import CONFIG, Node, Proxy
from tests.ops.users import Away, Crowd, User, Verdict, verdict
from trio_odin.lab.fleet.events import Event
from trio_odin.lab.fleet.fleets import Fleets, fleets
from trio_odin.lab.fleet.latency import percentile_ms
from trio_odin.lab.fleet.plan import FleetPlan, Summary, shares
from trio_odin.lab.fleet.workload import Workload
from trio_odin.lab.hosts.run import run as run_program

_STREAM = {
    "name": "ODIN_TOKENS",
    "subjects": ["odin.token.>"],
    "storage": "file",
    "num_replicas": 3,
    "max_age": 60_000_000_000,
}
# A HAProxy takes two files for each client.
_CLIENTS_OF_A_PROXY = 8000
_CONNECTS_PER_SECOND = 1500.0
# The client library's: the first delay is a random part of it, doubled with each failure.
_RETRY_SECONDS = 0.5
_BACK_SECONDS = 240.0
_SETTLE_SECONDS = 60.0
_LOOK_SECONDS = 0.25
# Around a loss: what was published then may have been missed by a client without resume.
_EDGE_NS = 1_000_000_000
_NETWORK = (
    "ip link set lo up",
    "echo 20000 65535 > /proc/sys/net/ipv4/ip_local_port_range",
    "echo 16384 > /proc/sys/net/core/somaxconn",
)
_SERVER = re.compile(r"(?m)^    server ws-2 .*\n")

_NEVER_AWAY = (Away(0, 0),)

Say = Callable[[str], object]


@attrs.frozen(kw_only=True)
class Plan:
    """What to run.

    Args:
        nodes: servers behind the proxies.
        connections: of the fleets, which reconnect and do not resume.
        users: clients that resume, with books of their own.
        rate: events a second, over ten channels, of which each connection has one.
        steady_seconds: before the first loss, between the two, and after the second.
    """

    nodes: int = 4
    connections: int = 40_000
    users: int = 200
    rate: int = 4
    steady_seconds: int = 10

    @property
    def proxies(self) -> int:
        return -(-(self.connections + self.users) // _CLIENTS_OF_A_PROXY)

    @property
    def files_limit(self) -> int:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    @property
    def files_of_a_node(self) -> int:
        """Of each node that remains, when all clients are there."""
        return math.ceil((self.connections + self.users) / (self.nodes - 1))

    @property
    def most_seconds(self) -> float:
        """The drill is over by then, whatever happens."""
        connecting = 60 + self.connections / _CONNECTS_PER_SECOND * 4
        return connecting + 3 * self.steady_seconds + 2 * _BACK_SECONDS + 2 * _SETTLE_SECONDS


@attrs.define(kw_only=True)
class Result:
    """What happened.

    Attributes:
        shares: connections of each node before the loss, and after it.
        killed: connections that the killed node had.
        node_back_seconds: from its end until all clients were subscribed again.
        away_p50_ms, away_p99_ms: of a connection of the fleets, from its end to its subscription.
        refused: answers to an upgrade other than 101, and connects that failed.
        nats_pause_seconds: from the end of the NATS node until an event that was published after
            it had reached everybody.
        nats_publisher_seconds: the same until NATS had taken that event.
        ended_by_nats: connections that ended meanwhile.
        published: events that NATS has taken; `deliveries` of them to the fleets.
        missed_away: deliveries missing because the connection was away; it does not resume.
        lost: those missing without such a reason: silent losses.
        gaps, repeated, foreign: as in the fleets' `Received`.
        users: the books of those who resume, after all.
        p99_ms: of latency in the steady times.
        node_mib: resident memory of each node at the end.
        checks: sentences, and whether they hold.
    """

    shares: list[list[int]] = attrs.field(factory=list)
    killed: int = 0
    node_back_seconds: float = 0.0
    away_p50_ms: float = 0.0
    away_p99_ms: float = 0.0
    refused: int = 0
    nats_pause_seconds: float = 0.0
    nats_publisher_seconds: float = 0.0
    ended_by_nats: int = 0
    published: int = 0
    deliveries: int = 0
    missed_away: int = 0
    lost: int = 0
    gaps: int = 0
    repeated: int = 0
    foreign: int = 0
    users: Verdict | None = None
    p99_ms: float = 0.0
    node_mib: list[float] = attrs.field(factory=list)
    checks: dict[str, bool] = attrs.field(factory=dict)

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(self.checks.values())


class _WideProxy(Proxy):
    """HAProxy with the configuration of ops/haproxy, for any number of nodes."""

    def environment(self) -> dict[str, str]:
        own = {}
        for number, node in enumerate(self.nodes, 1):
            own[f"WS{number}_ADDR"] = f"127.0.0.1:{node.port}"
            own[f"WS{number}_CHECK_PORT"] = str(node.admin_port)
        return {
            **os.environ,
            "HAPROXY_ADDR": f"127.0.0.1:{self.port}",
            "HAPROXY_TLS": "off",
            "HAPROXY_ADMIN_ADDR": f"127.0.0.1:{self.admin_port}",
            "HAPROXY_SOCKET": self.socket,
            "HAPROXY_MAXCONN": str(self.files // 2 - 100),
            **own,
        }

    async def wait_up(self, *names: str) -> None:
        await self.wait_status("UP", *(names or [node.name for node in self.nodes]))

    async def connections(self) -> list[int]:
        return [int((await self.stat(node.name))["scur"]) for node in self.nodes]


def proxy_config(folder: Path, nodes: int) -> Path:
    """The configuration of ops/haproxy with a line for each node."""
    (line,) = _SERVER.findall(CONFIG.read_text())
    numbers = range(2, nodes + 1)
    lines = "".join(line.replace("ws-2", f"ws-{n}").replace("WS2_", f"WS{n}_") for n in numbers)
    path = folder / "haproxy.cfg"
    path.write_text(_SERVER.sub(lines, CONFIG.read_text()))
    return path


@attrs.define
class _Site:
    """Everything that runs."""

    plan: Plan
    cluster: NatsCluster
    nodes: Sequence[Node]
    proxies: Sequence[_WideProxy]
    publisher: Publisher
    crowd: Crowd
    crowds: Fleets
    say: Say
    result: Result = attrs.field(factory=Result)
    deliveries: Counter[int] = attrs.field(factory=Counter)
    losses: list[tuple[int, int]] = attrs.field(factory=list)

    async def node_connections(self) -> list[int]:
        each = [await proxy.connections() for proxy in self.proxies]
        return [sum(counts) for counts in zip(*each, strict=True)]

    async def collect(self) -> float:
        """Add up what has come to the fleets; returns p99 of the latency in ms."""
        collected = await self.crowds.collect()
        for entry in collected.received.deliveries:
            self.deliveries[entry.number] += entry.times
        self.result.gaps += collected.received.gaps
        self.result.repeated += collected.received.repeated
        self.result.foreign += collected.received.foreign
        return percentile_ms(collected.received.buckets, 0.99)

    async def steady(self) -> None:
        await self.collect()
        await trio.sleep(self.plan.steady_seconds)
        self.result.p99_ms = max(self.result.p99_ms, await self.collect())

    async def wait_all_back(self) -> None:
        """Wait until everybody is subscribed."""
        with trio.fail_after(_BACK_SECONDS):
            while (await self.crowds.progress()).connections < self.plan.connections:
                await trio.sleep(_LOOK_SECONDS)
            await self.crowd.wait_all(_BACK_SECONDS)


async def run(plan: Plan, folder: Path, say: Say) -> Result:
    """Run the drill in namespaces of its own.

    Raises:
        trio.TooSlowError: it is not over in time.
    """
    for command in _NETWORK:
        done = await run_program(["sh", "-c", command])
        assert done.is_fine, done.complaint
    with trio.fail_after(plan.most_seconds):
        async with _site(plan, folder, say) as it:
            await _drill(it)
            return it.result


@asynccontextmanager
async def _site(plan: Plan, folder: Path, say: Say) -> AsyncIterator[_Site]:
    say(f"three nodes of NATS, {plan.nodes} servers, {plan.proxies} × HAProxy")
    room = str(plan.files_of_a_node + plan.files_of_a_node // 4)
    async with running_cluster(folder / "nats") as cluster:
        made = await cluster.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", _STREAM)
        assert "error" not in made, made
        await cluster.wait_replicated("ODIN_TOKENS")
        nodes = [
            Node(f"ws-{n}", folder, cluster.url, {"WS_MAX_CONNECTIONS": room})
            for n in range(1, plan.nodes + 1)
        ]
        config = proxy_config(folder, plan.nodes)
        proxies = [_WideProxy(folder, nodes, config) for _ in range(plan.proxies)]
        try:
            for node in nodes:
                node.start()
            for proxy in proxies:
                proxy.start()
            for node in nodes:
                await node.wait_ready()
            for proxy in proxies:
                await proxy.wait_up()
            async with trio.open_nursery() as nursery:
                home, *others = cluster.nodes
                publisher = Publisher(home.port, plan.rate, others=[node.port for node in others])
                nursery.start_soon(publisher.run)
                crowd = Crowd(nursery, proxies[0].port)
                async with fleets(_fleet_plans(plan, proxies)) as crowds:
                    yield _Site(plan, cluster, nodes, proxies, publisher, crowd, crowds, say)
                nursery.cancel_scope.cancel(reason="the drill is over")
        finally:
            for proxy in proxies:
                proxy.kill()
            for node in nodes:
                node.kill()


def _fleet_plans(plan: Plan, proxies: Sequence[Proxy]) -> list[FleetPlan]:
    workload = Workload(channels=CHANNELS, channels_per_connection=1)
    return [
        FleetPlan(
            host="127.0.0.1",
            port=proxy.port,
            workload=workload,
            first=first,
            connections=count,
            ramp_per_second=_CONNECTS_PER_SECOND / len(proxies),
            reconnect_seconds=_RETRY_SECONDS,
        )
        for proxy, (first, count) in zip(
            proxies, shares(plan.connections, len(proxies)), strict=True
        )
    ]


# ---- the drill


async def _drill(it: _Site) -> None:
    # The users come first, so that HAProxy gives each node some of them.
    users = await it.crowd.join(it.plan.users, resumes=True)
    connected = await it.crowds.connect()
    assert connected.connected == it.plan.connections, (connected.rejections, connected.failures)
    it.result.shares.append(await it.node_connections())
    it.say(
        f"{connected.connected:,} connections after {connected.seconds:.1f} s, "
        f"{len(users)} users who resume; of each node {_listed(it.result.shares[-1])}"
    )
    it.publisher.is_paused = False
    await it.steady()
    await _lose_node(it, connected)
    await it.steady()
    await _lose_nats(it)
    await it.steady()
    it.publisher.is_paused = True
    await it.crowd.wait_quiet(_SETTLE_SECONDS)
    await _wait_quiet(it)
    await it.collect()
    await _count(it, connected, users)


def _listed(counts: Sequence[float]) -> str:
    return ", ".join(f"{count:,.0f}" for count in counts)


async def _lose_node(it: _Site, before: Summary) -> None:
    result = it.result
    result.killed = it.result.shares[0][0]
    since = time.monotonic_ns()
    it.nodes[0].kill()
    it.say(f"SIGKILL of {it.nodes[0].name} with {result.killed:,} connections")
    await trio.sleep(1.0)  # until the ends of all have been seen
    await it.wait_all_back()
    it.losses.append((since, time.monotonic_ns()))
    after = await it.crowds.summary()
    last_ns = max(away.until_ns for user in it.crowd.users for away in user.away or _NEVER_AWAY)
    result.node_back_seconds = max(after.last_back, last_ns / 1e9) - since / 1e9
    result.away_p50_ms = percentile_ms(after.back_buckets, 0.5)
    result.away_p99_ms = percentile_ms(after.back_buckets, 0.99)
    result.refused = _failed(after) - _failed(before)
    result.shares.append(await it.node_connections())
    it.say(
        f"all are back after {result.node_back_seconds:.1f} s; of each node "
        f"{_listed(result.shares[-1])}"
    )


def _failed(summary: Summary) -> int:
    return sum(summary.rejections.values()) + sum(summary.failures.values())


async def _lose_nats(it: _Site) -> None:
    lost = (await it.crowds.summary()).lost
    leader = await it.cluster.stream_leader("ODIN_TOKENS")
    last = it.publisher.number
    begun = trio.current_time()
    leader.stop()
    it.say("SIGKILL of the node of NATS that leads the stream")
    with trio.fail_after(_BACK_SECONDS):
        while not (taken := [number for number in it.publisher.taken if number > last]):
            await trio.sleep(0.01)
        it.result.nats_publisher_seconds = trio.current_time() - begun
        first = it.publisher.taken[min(taken)]
        subscribers = (await it.crowds.summary()).subscribers.get(first.channel, 0)
        while it.deliveries[first.number] < subscribers:
            await trio.sleep(0.05)
            await it.collect()
    it.result.nats_pause_seconds = trio.current_time() - begun
    it.say(f"an event reaches everybody again after {it.result.nats_pause_seconds:.1f} s")
    leader.start()
    await it.cluster.wait_ready()
    it.result.ended_by_nats = (await it.crowds.summary()).lost - lost


async def _wait_quiet(it: _Site) -> None:
    """Wait until nothing more comes to the fleets."""
    last = -1
    with trio.move_on_after(_SETTLE_SECONDS):
        while (received := (await it.crowds.progress()).received) != last:
            last = received
            await trio.sleep(2.0)


async def _count(it: _Site, before: Summary, users: Sequence[User]) -> None:
    """Account for every delivery, and check."""
    result, taken = it.result, it.publisher.taken
    for number, event in taken.items():
        expected = before.subscribers.get(event.channel, 0)
        missing = max(0, expected - it.deliveries[number])
        result.deliveries += expected - missing
        if _is_near_a_loss(it, event):
            result.missed_away += missing
        else:
            result.lost += missing
    result.published = len(taken)
    result.users = own = verdict(users, taken.values())
    balances = []
    for node in it.nodes[1:]:
        metrics = await node.admin.metrics()
        balances.append(metrics["ws_ledger_imbalance"])
        result.node_mib.append(node.process.footprint().mib)
    # A connection misses what is published between its end and its return, no other one does.
    most_away = result.killed * (result.node_back_seconds + 2) * it.plan.rate / len(CHANNELS)
    silent = own.missed - own.declared + own.lost
    result.checks = {
        "every connection is back": result.shares[-1][0] == 0
        and sum(result.shares[-1]) == it.plan.connections + it.plan.users,
        "no connection lost an event while it was open": (result.lost, result.gaps) == (0, 0),
        "those that were away missed no more than the others were sent": result.missed_away
        <= most_away,
        "nothing came to the wrong connection": result.foreign == 0,
        "users who resume have every event, once, or a notice": (
            silent,
            own.repeated,
            own.gaps,
        )
        == (0, 0, 0),
        "the loss of a NATS node ended no connection": result.ended_by_nats == 0,
        "every node accounts for every event": not any(balances),
    }


def _is_near_a_loss(it: _Site, event: Event) -> bool:
    return any(since - _EDGE_NS <= event.due_ns <= until + _EDGE_NS for since, until in it.losses)
