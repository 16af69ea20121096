"""The faults, drawn from a seed. A fault that has to heal does so after a while."""

from __future__ import annotations

import datetime as dt
import os
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeAlias

import attrs
import trio

from tests.e2e.nats import NatsServer
from tests.oracle.world import KEPT_SECONDS, STREAM, Odin, World

# The share of restarted servers left alone; the others may break again while they start.
_LEFT_ALONE = 0.85

# Injects the fault and describes it; empty if that was impossible.
Do: TypeAlias = Callable[[World, random.Random], Awaitable[str]]


@attrs.frozen
class Fault:
    """One kind of fault, with its weight. `is_gentle`: no event needs to be lost by it."""

    name: str
    weight: float
    do: Do
    is_of_cluster: bool = False
    is_gentle: bool = True


def draw(world: World, rng: random.Random) -> Fault:
    """Draw one of the faults that this world can have."""
    kind = world.kind
    faults = [
        fault
        for fault in _ALL
        if (kind.nodes > 1 or not fault.is_of_cluster) and (fault.is_gentle or not kind.is_gentle)
    ]
    return rng.choices(faults, [fault.weight for fault in faults])[0]


async def _cut(world: World, rng: random.Random) -> str:
    client, count = rng.choice(world.breakable), round(rng.lognormvariate(6, 1.5)) + 1
    client.cut_after(count)
    return f"{client.name} after {count} bytes"


async def _cut_command(world: World, rng: random.Random) -> str:
    client, share = rng.choice(world.breakable), rng.random()
    client.cut_command(share)
    return f"{client.name} in a command, at {share:.0%}"


async def _cut_all(world: World, rng: random.Random) -> str:
    for client in world.breakable:
        client.cut_after(rng.randrange(1, 400))
    return "every client"


async def _stall(world: World, rng: random.Random) -> str:
    client, seconds = rng.choice(world.breakable), rng.uniform(0.2, 2.0)
    client.stall(seconds)
    return f"{client.name} for {seconds:.1f} s"


async def _abandon(world: World, rng: random.Random) -> str:
    client = rng.choice(world.breakable)
    client.abandon()
    return client.name


async def _stay_away(world: World, rng: random.Random) -> str:
    client, seconds = rng.choice(world.breakable), rng.uniform(0.5, 2) * KEPT_SECONDS
    client.stay_away(seconds)
    return f"{client.name} for {seconds:.1f} s"


async def _move(world: World, rng: random.Random) -> str:
    client = rng.choice(world.breakable)
    client.move()
    return client.name


async def _move_all(world: World, rng: random.Random) -> str:
    del rng
    for client in world.breakable:
        client.move()
    return "every client"


def _later(
    world: World,
    seconds: float,
    target: NatsServer | Odin,
    heal: Callable[[], object],
    wait_healed: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint,
) -> None:
    """Heal the target after a while; until then it gets no other fault."""

    async def wait() -> None:
        await trio.sleep(seconds)
        heal()
        await wait_healed()
        target.is_busy = False
        world.healing -= 1

    target.is_busy = True
    world.healing += 1
    world.nursery.start_soon(wait)


def _whole(world: World, server: Odin, rng: random.Random) -> Callable[[], Awaitable[object]]:
    """The condition before another fault of a server; sometimes none, while it starts."""
    is_left_alone = rng.random() < _LEFT_ALONE or world.is_careful
    return server.wait_up if is_left_alone else trio.lowlevel.checkpoint


async def _kill_server(world: World, rng: random.Random) -> str:
    server, seconds = rng.choice(world.servers), rng.choice([0.0, rng.uniform(0, 1.5)])
    if server.is_busy or not await world.can_spare(server):
        return ""
    server.kill()
    _later(world, seconds, server, server.start, _whole(world, server, rng))
    return f"{server.folder.name} for {seconds:.1f} s"


async def _restart_server(world: World, rng: random.Random) -> str:
    server = rng.choice(world.servers)
    wait_healed = _whole(world, server, rng)
    if server.is_busy or not await world.can_spare(server):
        return ""

    async def restart() -> None:
        await server.leave()
        server.start()
        await wait_healed()
        server.is_busy = False
        world.healing -= 1

    server.is_busy = True
    world.healing += 1
    world.nursery.start_soon(restart)
    return server.folder.name


async def _stop_server(world: World, rng: random.Random) -> str:
    server, seconds = rng.choice(world.servers), rng.uniform(0.2, 2.5)
    if server.is_busy or server.process is None:
        return ""
    pids = server.process.pids()
    _signal(pids, signal.SIGSTOP)
    _later(world, seconds, server, partial(_signal, pids, signal.SIGCONT))
    return f"{server.folder.name} for {seconds:.1f} s"


async def _hold_back(world: World, rng: random.Random) -> str:
    """Delay the events to one server, so that clients with a later position come to it."""
    server, seconds = rng.choice(world.servers), rng.uniform(0.5, 2.0)
    if server.network is None:
        return ""
    server.network.hold(seconds)
    await trio.sleep(seconds * rng.uniform(0.2, 0.8))
    for client in rng.sample(world.breakable, len(world.breakable) // 2):
        client.move()
    return f"{server.folder.name} by {seconds:.1f} s"


async def _kill_worker(world: World, rng: random.Random) -> str:
    servers = [one for one in world.servers if one.workers > 1]
    server = rng.choice(servers or world.servers)
    if server.is_busy or server.process is None or server.workers == 1:
        return ""
    workers = server.process.workers()
    if not workers or not await world.can_spare(server):
        return ""
    _signal([rng.choice(workers)], signal.SIGKILL)
    return f"of {server.folder.name}"


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


async def _kill_node(world: World, rng: random.Random) -> str:
    node, seconds = rng.choice(world.nodes), rng.choice([0.0, rng.uniform(0, 2)])
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    # Without two of three nodes there is no cluster; that is another fault.
    if any(other.is_busy for other in world.nodes) or not await world.can_spare(node):
        return ""
    await trio.to_thread.run_sync(node.end, number)
    _later(world, seconds, node, node.start)
    return f"{number.name} of {_name(world, node)} for {seconds:.1f} s"


async def _stop_node(world: World, rng: random.Random) -> str:
    node, seconds = rng.choice(world.nodes), rng.uniform(0.2, 3.0)
    if any(other.is_busy for other in world.nodes):
        return ""
    node.signal(signal.SIGSTOP)
    _later(world, seconds, node, partial(node.signal, signal.SIGCONT))
    return f"{_name(world, node)} for {seconds:.1f} s"


async def _kill_leader(world: World, rng: random.Random) -> str:
    seconds = rng.uniform(0, 2)
    answer = await world.ask(f"$JS.API.STREAM.INFO.{STREAM}") or {}
    leader = answer.get("cluster", {}).get("leader")
    if leader is None or any(other.is_busy for other in world.nodes):
        return ""
    node = world.nodes[int(leader.removeprefix("n"))]
    if not await world.can_spare(node):
        return ""
    node.stop()
    _later(world, seconds, node, node.start)
    return f"{_name(world, node)} for {seconds:.1f} s"


async def _kill_all_nodes(world: World, rng: random.Random) -> str:
    seconds = rng.uniform(0, 1.5)
    if any(other.is_busy for other in world.nodes) or not await world.can_spare(world.nodes[0]):
        return ""
    for node in world.nodes:
        node.stop()
        _later(world, seconds, node, node.start)
    return f"for {seconds:.1f} s"


async def _step_down(world: World, rng: random.Random) -> str:
    del rng
    answer = await world.ask(f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}")
    return "" if answer is None or "error" in answer else "of the stream"


async def _lame_duck(world: World, rng: random.Random) -> str:
    node, seconds = rng.choice(world.nodes), rng.uniform(0.5, 3)
    if any(other.is_busy for other in world.nodes) or not await world.can_spare(node):
        return ""

    def restart() -> None:
        node.stop()
        node.start()

    node.enter_lame_duck_mode()
    _later(world, seconds, node, restart)
    return f"{_name(world, node)}, gone after {seconds:.1f} s"


async def _start_without_nats(world: World, rng: random.Random) -> str:
    """Start a server before NATS, with clients that already connect."""
    server, seconds = rng.choice(world.servers), rng.uniform(0.5, 6.5)
    if server.is_busy or any(node.is_busy for node in world.nodes) or not world.is_remembered:
        return ""
    for node in world.nodes:
        node.stop()
        _later(world, seconds, node, node.start)
    server.kill()
    server.start()
    return f"{server.folder.name}, NATS comes after {seconds:.1f} s"


async def _purge(world: World, rng: random.Random) -> str:
    del rng
    answer = await world.ask(f"$JS.API.STREAM.PURGE.{STREAM}")
    return f"{answer['purged']} events" if answer and "purged" in answer else ""


async def _remake(world: World, rng: random.Random) -> str:
    seconds = rng.choice([0.0, 0.0, rng.uniform(0, 1.5)])
    world.is_remaking = True
    try:
        answer = await world.ask(f"$JS.API.STREAM.DELETE.{STREAM}")
        if answer is None or "error" in answer:
            return ""
        await trio.sleep(seconds)
        with trio.move_on_after(10):
            while not await world.make_stream():
                await trio.sleep(0.1)
    finally:
        world.is_remaking = False
    return f"anew after {seconds:.1f} s"


async def _pause_consumers(world: World, rng: random.Random) -> str:
    until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=rng.choice([1, 5, 600]))
    names = await world.consumers()
    for name in names:
        subject = f"$JS.API.CONSUMER.PAUSE.{STREAM}.{name}"
        await world.ask(subject, {"pause_until": until.isoformat().replace("+00:00", "Z")})
    return f"{len(names)} until {until:%H:%M:%S}" if names else ""


async def _delete_consumers(world: World, rng: random.Random) -> str:
    names = await world.consumers()
    for name in names:
        if rng.random() < 0.7:
            await world.ask(f"$JS.API.CONSUMER.DELETE.{STREAM}.{name}")
    return f"some of {len(names)}" if names else ""


def _name(world: World, node: NatsServer) -> str:
    return f"node {world.nodes.index(node)}"


_ALL = [
    Fault("client cut", 14, _cut),
    Fault("client cut in a command", 3, _cut_command),
    Fault("all clients cut", 3, _cut_all),
    Fault("client stalls", 4, _stall),
    Fault("client half open", 4, _abandon),
    Fault("client away", 4, _stay_away, is_gentle=False),
    Fault("client moves", 6, _move),
    Fault("all clients move", 2, _move_all),
    Fault("server killed", 7, _kill_server),
    Fault("server restarted", 5, _restart_server),
    Fault("server hangs", 3, _stop_server),
    Fault("server behind", 4, _hold_back),
    Fault("worker killed", 5, _kill_worker),
    Fault("server before NATS", 2, _start_without_nats, is_gentle=False),
    Fault("NATS killed", 6, _kill_node),
    Fault("NATS hangs", 4, _stop_node),
    Fault("leader killed", 5, _kill_leader, is_of_cluster=True),
    Fault("cluster killed", 3, _kill_all_nodes, is_of_cluster=True, is_gentle=False),
    Fault("leader steps down", 4, _step_down, is_of_cluster=True),
    Fault("lame duck", 2, _lame_duck, is_of_cluster=True),
    Fault("stream purged", 4, _purge, is_gentle=False),
    Fault("stream made anew", 4, _remake, is_gentle=False),
    Fault("consumers paused", 2, _pause_consumers, is_gentle=False),
    Fault("consumers deleted", 2, _delete_consumers),
]
