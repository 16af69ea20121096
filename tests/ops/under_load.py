"""A server under load with a real Prometheus that scrapes it, for as long as a block takes."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tests.e2e.nats import free_port, running_nats
from tests.faults.server import serving
from tests.ops.conftest import OPS
from tests.ops.prometheus import Prometheus, running, running_prometheus

# The shipped one, but for how often, where the server is, and nobody to tell of alerts.
_CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: ws
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


@contextmanager
def prometheus_of(folder: Path, port: int) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `port`; nobody need be there."""
    rules = OPS / "prometheus" / "rules"
    config = _CONFIG.format(rules=f'"{rules}/*.yml"', port=port)
    (folder / "prometheus.yml").write_text(config)
    with running_prometheus(folder, free_port()) as prometheus:
        yield prometheus


@asynccontextmanager
async def under_load(folder: Path) -> AsyncIterator[Prometheus]:
    """Start all of it, with all that is written in `folder`; load and events flow in the block."""
    program = [sys.executable, "-m", "trio_odin"]
    publish = [*program, "publish", "--addr", f"127.0.0.1:{free_port()}", "--rate", "20"]
    load = [*program, "load", "--connections", "100", "--hold", "120"]
    load += ["--channels-per-connection", "3", "--reconnect"]
    with running_nats(folder / "nats") as nats:
        async with serving(folder, nats.url) as server:
            with (
                running([*publish, "--nats", nats.url], folder, "publisher"),
                prometheus_of(folder, server.port) as prometheus,
                running([*load, f"ws://127.0.0.1:{server.port}/ws"], folder, "load"),
            ):
                await prometheus.wait_ready()
                await prometheus.wait_until("rate(ws_messages_sent_total[5s]) > 0")
                yield prometheus
