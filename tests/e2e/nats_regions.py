"""Two regions on loopback, each a cluster of three real nats-servers, joined by leaf nodes.

They run with the configuration of ops/nats/regions.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from tests.e2e.nats import NatsServer, free_port
from tests.e2e.nats_cluster import NatsCluster
from trio_odin.lab.load.pages import get_object

CONFIGS = Path(__file__).parents[2] / "ops" / "nats" / "regions"
_SIZE = 3
_LINKED_SECONDS = 60.0


@attrs.frozen
class Regions:
    """The region of the stream, and another one."""

    first: NatsCluster
    other: NatsCluster

    async def wait_linked(self) -> None:
        """Wait until each node of the other region has its link to the first one."""
        with trio.fail_after(_LINKED_SECONDS):
            while not all([await _leaves_of(node) for node in self.other.running]):
                await trio.sleep(0.05)


async def run_mirror(*options: str) -> tuple[int, str]:
    """Run mirror.py; its exit code and what it said."""
    done = await trio.run_process(
        [sys.executable, str(CONFIGS / "mirror.py"), *options],
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode().strip()


async def _leaves_of(node: NatsServer) -> int:
    page = await get_object(f"http://127.0.0.1:{node.monitoring}/leafz")
    return int((page or {}).get("leafnodes", 0))


def _cluster(folder: Path, region: str, config: Path, **common: str) -> NatsCluster:
    routes = [free_port() for _ in range(_SIZE)]
    nodes = []
    for number, route in enumerate(routes):
        home = folder / region / f"n{number}"
        home.mkdir(parents=True)
        port, monitoring = free_port(), free_port()
        own = {
            "NATS_NAME": f"{region}-n{number}",
            "NATS_REGION": region,
            "NATS_LISTEN": f'"127.0.0.1:{port}"',
            "NATS_HTTP": f'"127.0.0.1:{monitoring}"',
            "NATS_ROUTE": f'"127.0.0.1:{route}"',
            "NATS_ROUTES": json.dumps([f"nats://127.0.0.1:{other}" for other in routes]),
            "NATS_STORE": json.dumps(str(home / "store")),
            **common,
        }
        for link in ("NATS_LEAF", "NATS_GATEWAY"):
            own[link] = f'"127.0.0.1:{free_port()}"'
        options = ("-l", str(home / "log"), "-c", str(config))
        nodes.append(NatsServer(home, False, port, monitoring, options, own))
    return NatsCluster(nodes)


@asynccontextmanager
async def running_regions(folder: Path) -> AsyncIterator[Regions]:
    """Two regions that are ready and joined; they end with the block."""
    first = _cluster(folder, "r1", CONFIGS / "first.conf")
    leaves = [node.environment["NATS_LEAF"].strip('"') for node in first.nodes]
    remotes = json.dumps([f"nats://{leaf}" for leaf in leaves])
    other = _cluster(folder, "r2", CONFIGS / "other.conf", NATS_REMOTES=remotes)
    regions = Regions(first, other)
    try:
        first.start()
        other.start()
        await first.wait_ready()
        await other.wait_ready()
        await regions.wait_linked()
        yield regions
    finally:
        first.stop()
        other.stop()


_GATEWAYS = """
server_name: $NATS_NAME
listen: $NATS_LISTEN
http: $NATS_HTTP
cluster { name: $NATS_REGION, listen: $NATS_ROUTE, routes: $NATS_ROUTES }
gateway {
  name: $NATS_REGION
  listen: $NATS_GATEWAY
  gateways: [{ name: r1, urls: $NATS_FIRST }]
}
jetstream { store_dir: $NATS_STORE }
"""


@asynccontextmanager
async def running_gateways(folder: Path) -> AsyncIterator[Regions]:
    """Two regions that are one JetStream, joined by gateways: what is not recommended."""
    config = folder / "gateways.conf"
    config.write_text(_GATEWAYS)
    first = _cluster(folder, "r1", config)
    gates = [node.environment["NATS_GATEWAY"].strip('"') for node in first.nodes]
    urls = json.dumps([f"nats://{gate}" for gate in gates])
    other = _cluster(folder, "r2", config)
    regions = Regions(first, other)
    nodes = first.nodes + other.nodes
    for node in nodes:
        node.environment = {**node.environment, "NATS_FIRST": urls}
        node.start()
    try:
        await NatsCluster(nodes).wait_ready()
        yield regions
    finally:
        first.stop()
        other.stop()
