"""The plan of a bench, as data."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import attrs

from trio_odin.lab.bench.targets import Place, Target
from trio_odin.lab.fleet.encodings import ENCODINGS
from trio_odin.lab.fleet.workload import Workload

STAGES = ("hold", "rates", "compression", "tls")
"""What can be chosen: W and all stages after it, and those of trio-odin alone."""

HOME_SHARE = 0.8
_RAW_MULTIPLES = (1, 2, 4)
_MARKET_MULTIPLES = (1, 10, 100)
_EVERY_MS = (1000, 250)


@attrs.frozen(kw_only=True)
class Case:
    """A load of the stage of rates or compression.

    Args:
        users: name of the workload: "mix", "home" or "W".
        rate: events a second of the market.
    """

    users: str
    workload: Workload
    rate: float
    encoding: str = "plain"


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
        is_held: False: without W and the stages after it.
        rates_seconds: length of each load of the stage of rates, in which clients of trio-odin ask
            for at most one update of a channel in some time.
        compression_seconds: the same with the encodings of trio-odin.
        tls_seconds: the same at W, without and with TLS of trio-odin.
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
    is_held: bool = True
    rates_seconds: float = 10.0
    compression_seconds: float = 10.0
    tls_seconds: float = 10.0
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

    @property
    def mix(self) -> Workload:
        """The plan's users: most have the home page with the same tokens, the others one token."""
        return attrs.evolve(self.workload, home_share=HOME_SHARE)

    def rate_cases(self) -> Iterator[Case]:
        """The loads of the stage of rates: without a rate first, the fastest market last.

        With random channels no two users share a batch, so W is the worst case.
        """
        for multiple in _RAW_MULTIPLES:
            yield Case(users="mix", workload=self.mix, rate=self.rate * multiple)
        yield Case(users="W", workload=self.workload, rate=self.rate)
        for users, workload in (("mix", self.mix), ("W", self.workload)):
            for every_ms in _EVERY_MS:
                for multiple in _MARKET_MULTIPLES:
                    # Each batch of W is made for one user, and read by one: too much for a core.
                    if users == "mix" or every_ms == _EVERY_MS[0] or multiple == 1:
                        yield Case(
                            users=users,
                            workload=attrs.evolve(workload, every_ms=every_ms),
                            rate=self.rate * multiple,
                        )

    def compression_cases(self) -> Iterator[Case]:
        """The loads of the stage of compression: in each encoding W, and home users at a rate.

        These also with a faster market: the cost of a batch follows from batches of two sizes.
        """
        home = attrs.evolve(self.workload, home_share=1.0, every_ms=_EVERY_MS[0])
        loads = (("W", self.workload, 1), ("home", home, 1), ("home", home, 10))
        for users, workload, multiple in loads:
            for encoding in ENCODINGS:
                yield Case(
                    users=users,
                    workload=workload,
                    rate=self.rate * multiple,
                    encoding=encoding,
                )

    def only_hold(self) -> BenchPlan:
        """The same without the stages after workload W."""
        return attrs.evolve(
            self,
            stalled_seconds=0.0,
            ramp_seconds=0.0,
            plan_seconds=0.0,
            rates_seconds=0.0,
            compression_seconds=0.0,
            tls_seconds=0.0,
        )

    def only(self, stages: Collection[str]) -> BenchPlan:
        """The same with these of `STAGES` only, also if they would be left out."""
        least = min(self.hold_seconds, 10.0)
        return attrs.evolve(
            self,
            is_held="hold" in stages,
            rates_seconds=(self.rates_seconds or least) * ("rates" in stages),
            compression_seconds=(self.compression_seconds or least) * ("compression" in stages),
            tls_seconds=(self.tls_seconds or least) * ("tls" in stages),
        )

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
            rates_seconds=0.0,
            compression_seconds=0.0,
            tls_seconds=0.0,
        )
