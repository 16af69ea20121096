"""The plan of a bench, as data."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from trio_odin.lab.bench.targets import Place, Target
from trio_odin.lab.fleet.workload import Workload


@attrs.frozen(kw_only=True)
class BenchPlan:
    """The stages of each benchmark target, in this order; a stage of 0 seconds is left out.

    Args:
        connections: number of clients that connect and subscribe as fast as they can (the storm).
        idle_seconds: time in which nothing is published, but keepalive works.
        rate: publications a second of workload W, for `hold_seconds`.
        stalled_share: share of additional connections that never read, during another W.
        ramp_seconds: length of a step of the ramp; each step doubles the rate, until p99
            exceeds `ramp_p99_ms`, or something is lost.
        peers_nats_url: the NATS server for the events of targets that run elsewhere.
        plan_rate, plan_channels: the second workload, that of the plan's second phase.
        network: between clients and server, for the report.
        server_at, broker_at: where the target and its nats-server run.
    """

    targets: Sequence[Target]
    connections: int = 10_000
    channels_per_connection: int = 24
    tokens: int = 200
    payload_bytes: int = 200
    rate: float = 30.0
    hold_seconds: float = 30.0
    idle_seconds: float = 15.0
    stalled_share: float = 0.01
    stalled_seconds: float = 20.0
    ramp_seconds: float = 6.0
    ramp_p99_ms: float = 1000.0
    plan_rate: float = 12.0
    plan_channels: int = 16
    plan_seconds: float = 12.0
    seed: int = 0
    peers_nats_url: str = "nats://127.0.0.1:4222"
    network: str = "loopback"
    server_at: Place = attrs.field(factory=Place)
    broker_at: Place = attrs.field(factory=Place)

    @property
    def workload(self) -> Workload:
        """W: what each connection subscribes to."""
        return Workload(
            channels=[f"TOKEN{number:03d}.trade" for number in range(self.tokens)],
            channels_per_connection=self.channels_per_connection,
            seed=self.seed,
        )

    def only_hold(self) -> BenchPlan:
        """The same without the stages after workload W."""
        return attrs.evolve(self, stalled_seconds=0.0, ramp_seconds=0.0, plan_seconds=0.0)

    def quick(self) -> BenchPlan:
        """The same, but it takes about a minute."""
        return attrs.evolve(
            self,
            connections=1_000,
            hold_seconds=2.0,
            idle_seconds=1.0,
            stalled_seconds=1.0,
            ramp_seconds=0.0,
            plan_seconds=0.0,
        )
