"""What a bench does, as data."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from trio_odin.lab.bench.subjects import Subject
from trio_odin.lab.fleet.workload import Workload


@attrs.frozen(kw_only=True)
class BenchPlan:
    """What is done to each subject, in this order; a stage of 0 seconds is left out.

    Args:
        connections: that connect and subscribe as fast as they can (the storm).
        idle_seconds: nothing is published, but keepalive is at work.
        rate: publications a second of workload W, for `hold_seconds`.
        stalled_share: so many connections more that never read, while W goes on.
        ramp_seconds: a step of the ramp, on which the rate is doubled until p99 passes
            `ramp_p99_ms` or the cores are full.
        peers_nats_url: where the events for subjects that run elsewhere are published.
        plan_rate, plan_channels: the other workload, that of the plan's second phase.
    """

    subjects: Sequence[Subject]
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

    @property
    def workload(self) -> Workload:
        """W: what each connection subscribes to."""
        return Workload(
            channels=[f"TOKEN{number:03d}.trade" for number in range(self.tokens)],
            channels_per_connection=self.channels_per_connection,
            seed=self.seed,
        )

    def only_hold(self) -> BenchPlan:
        """The same without what comes after workload W."""
        return attrs.evolve(self, stalled_seconds=0.0, ramp_seconds=0.0, plan_seconds=0.0)

    def quick(self) -> BenchPlan:
        """The same in about a minute."""
        return attrs.evolve(
            self,
            connections=1_000,
            hold_seconds=2.0,
            idle_seconds=1.0,
            stalled_seconds=1.0,
            ramp_seconds=0.0,
            plan_seconds=0.0,
        )
