"""A JetStream cluster of three real nats-servers, each of which a test can break.

A node is a `NatsServer`: `stop()` kills it, `start()` brings it back on the same port and store,
`signal(SIGSTOP)` hangs it, `enter_lame_duck_mode()` announces its end to its clients.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.e2e.nats import NatsServer, free_port, nats_client
from trio_odin.lab.load.pages import get_object

_SIZE = 3
_READY_SECONDS = 90.0  # an election may fail several times where others have the processors
_ANSWER_SECONDS = 1.0
_LOOK_SECONDS = 0.05
_NO_PEERS_YET = 10005  # "no suitable peers for placement"
_SYSTEM = {"user": "system", "pass": "system"}

# The system account has a user for its own requests; all others need none. The duration is the
# shortest that NATS accepts; a node in lame duck mode begins to cut clients after the grace period.
_CONFIG = """
server_name: {name}
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitoring}"
cluster {{ name: drill, listen: "127.0.0.1:{route}", routes: [{routes}] }}
log_file: "{log}"
jetstream {{ store_dir: "{folder}" }}
accounts {{ $SYS {{ users: [{{user: system, password: system}}] }} }}
lame_duck_duration: "30s"
lame_duck_grace_period: "{grace_seconds}s"
"""


@attrs.define
class NatsCluster:
    """Three nodes; `nodes[0]` is named n0."""

    nodes: list[NatsServer]

    @property
    def url(self) -> str:
        """The URLs of all three, as for `NATS_URL`."""
        return ",".join(node.url for node in self.nodes)

    @property
    def running(self) -> list[NatsServer]:
        return [node for node in self.nodes if node.is_running]

    def start(self) -> None:
        for node in self.nodes:
            node.start()

    def stop(self) -> None:
        """Kill all running nodes."""
        for node in self.nodes:
            node.stop()

    async def wait_ready(self, seconds: float = _READY_SECONDS) -> None:
        """Wait until each running node knows the others and the same leader of JetStream.

        Raises:
            trio.TooSlowError: not within `seconds`.
        """
        with trio.fail_after(seconds):
            while True:
                seen = [await self._meta_of(node) for node in self.running]
                leaders = {meta.get("leader") for meta in seen}
                if len(leaders) == 1 and leaders.pop() and await self._has_jetstream():
                    return
                await trio.sleep(_LOOK_SECONDS)

    async def request(
        self, subject: str, content: object = None, *, seconds: float = _READY_SECONDS
    ) -> dict[str, Any]:
        """Ask the JetStream API through one running node after the other, until there is an answer.

        Where the leader of JetStream does not know what its peers have yet, that is none. So a
        request may be carried out twice, if an answer is lost.

        Raises:
            trio.TooSlowError: nobody has answered within `seconds`.
        """
        with trio.fail_after(seconds):
            while True:
                for node in self.running:
                    with trio.move_on_after(_ANSWER_SECONDS):
                        answer = await self._ask(node, subject, content)
                        if answer and answer.get("error", {}).get("err_code") != _NO_PEERS_YET:
                            return answer
                await trio.sleep(_LOOK_SECONDS)

    async def meta_leader(self) -> NatsServer:
        """The node that leads JetStream, which makes and places streams."""
        with trio.fail_after(_READY_SECONDS):
            while True:
                for node in self.running:
                    if leader := (await self._meta_of(node)).get("leader"):
                        return self._named(leader)
                await trio.sleep(_LOOK_SECONDS)

    async def stream_leader(self, stream: str) -> NatsServer:
        """The node that takes the stream's messages; waits for the end of an election."""
        with trio.fail_after(_READY_SECONDS):
            while True:
                info = await self.request(f"$JS.API.STREAM.INFO.{stream}")
                if leader := info.get("cluster", {}).get("leader"):
                    return self._named(leader)
                await trio.sleep(_LOOK_SECONDS)

    async def wait_replicated(self, stream: str) -> None:
        """Wait until all nodes have all of the stream: until then a leader may have no successor.

        Raises:
            trio.TooSlowError: they still do not.
        """
        with trio.fail_after(_READY_SECONDS):
            while True:
                info = await self.request(f"$JS.API.STREAM.INFO.{stream}")
                replicas = info.get("cluster", {}).get("replicas", [])
                if len(replicas) == _SIZE - 1 and all(one.get("current") for one in replicas):
                    return
                await trio.sleep(_LOOK_SECONDS)

    async def step_down(self, stream: str) -> None:
        """Make the stream's leader step down; with one replica it stays."""
        await self.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}")

    async def step_down_meta(self) -> None:
        """Make the leader of JetStream step down."""
        leader = await self.meta_leader()
        async with nats_client(leader.url, **_SYSTEM) as client:
            answer = await client.request("$JS.API.META.LEADER.STEPDOWN", None)
        assert answer.get("success"), answer

    async def nodes_with(self, client_name: str) -> list[NatsServer]:
        """The nodes to which clients with this word in their name are connected."""
        found = []
        for node in self.running:
            page = await get_object(f"http://127.0.0.1:{node.monitoring}/connz?limit=1024")
            connections = (page or {}).get("connections", [])
            if any(client_name in one.get("name", "") for one in connections):
                found.append(node)
        return found

    def _named(self, name: str) -> NatsServer:
        return self.nodes[int(name.rpartition("n")[2])]

    async def _has_jetstream(self) -> bool:
        for node in self.running:
            with trio.move_on_after(_ANSWER_SECONDS) as waiting:
                answer = await self._ask(node, "$JS.API.INFO", None)
            if waiting.cancelled_caught or answer is None or "error" in answer:
                return False
        return True

    async def _meta_of(self, node: NatsServer) -> dict[str, Any]:
        page = None
        with trio.move_on_after(_ANSWER_SECONDS):  # a node that hangs does not answer
            page = await get_object(f"http://127.0.0.1:{node.monitoring}/jsz")
        meta: dict[str, Any] = (page or {}).get("meta_cluster", {})
        return meta

    async def _ask(self, node: NatsServer, subject: str, content: object) -> dict[str, Any] | None:
        """The answer of `node`; None if it is lost."""
        try:
            async with nats_client(node.url) as client:
                return await client.request(subject, content)
        except (OSError, trio.BrokenResourceError, AssertionError):
            return None


def cluster_in(folder: Path, *, grace_seconds: float = 1.0) -> NatsCluster:
    """Write the configuration of three nodes below `folder`; they do not run yet.

    Args:
        folder: for configuration and stores.
        grace_seconds: in lame duck mode, from the notice to the first client that is cut.
    """
    routes = [free_port() for _ in range(_SIZE)]
    nodes = []
    for number, route in enumerate(routes):
        home = folder / f"n{number}"
        home.mkdir(parents=True)
        config, port, monitoring = home / "nats.conf", free_port(), free_port()
        config.write_text(
            _CONFIG.format(
                name=f"n{number}",
                port=port,
                monitoring=monitoring,
                route=route,
                routes=", ".join(f'"nats://127.0.0.1:{other}"' for other in routes),
                folder=home / "store",
                log=home / "log",
                grace_seconds=grace_seconds,
            )
        )
        nodes.append(NatsServer(home, False, port, monitoring, ("-c", str(config))))
    return NatsCluster(nodes)


@asynccontextmanager
async def running_cluster(
    folder: Path, *, grace_seconds: float = 1.0
) -> AsyncIterator[NatsCluster]:
    """A cluster that is ready; it ends with the block."""
    cluster = cluster_in(folder, grace_seconds=grace_seconds)
    cluster.start()
    try:
        await cluster.wait_ready()
        # Two would be ready as well, but never make a stream of three replicas.
        ended = [node.folder.name for node in cluster.nodes if not node.is_running]
        assert not ended, f"{ended} could not start, see the log in their folder"
        yield cluster
    finally:
        cluster.stop()
