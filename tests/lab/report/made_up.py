"""A made-up run with all ten stages, good and bad ones."""

from __future__ import annotations

import math
import random

import attrs

from tests.lab.origin import ORIGIN
from trio_odin.lab.fleet.latency import Durations
from trio_odin.lab.fleet.workload import Workload
from trio_odin.lab.load.criteria import Check
from trio_odin.lab.load.result import LoadResult, Reconnects, Sample, ServerFigures
from trio_odin.lab.machine import Machine
from trio_odin.lab.verdict import (
    HostSample,
    LabResult,
    Prediction,
    StageResult,
)

MACHINE = Machine(
    "Example EPYC 7B12", 4, 15.6, "Linux 6.8.0", "CPython 3.13.1", is_python_optimised=True
)
CHANNELS = [f"TOK{number:03}.trade" for number in range(200)]
BASE_MIB = 44.0
CONNECTION_KIB = 33.1
DELIVERY_US = 12.4
CONNECTS_PER_SECOND = 1900.0


def _durations(p50: float, rng: random.Random) -> Durations:
    return Durations(
        count=rng.randrange(10_000, 2_000_000),
        p50_ms=p50,
        p90_ms=round(p50 * 1.6, 2),
        p99_ms=round(p50 * 2.7, 2),
        p999_ms=round(p50 * 4.2, 2),
        max_ms=round(p50 * 9.1, 2),
        hdr="HISTFAAAA" + "".join(rng.choices("ABCDEFGHabcdefgh0123456789+/", k=900)),
    )


@attrs.frozen(kw_only=True)
class Scene:
    """The parameters of a made-up stage."""

    number: int
    title: str
    connections: int
    rate: float = 0.0
    hold: int = 120
    wanted: int = 120
    success: float = 1.0
    is_filtered: bool = True
    is_storm: bool = False
    churn: int = 0

    @property
    def deliveries(self) -> float:
        """Deliveries a second; on average 15.5 of 200 channels each, or all."""
        share = 15.5 / 200 if self.is_filtered else 1.0
        return self.rate * self.connections * self.success * share

    @property
    def phases(self) -> list[tuple[str, int]]:
        connecting = math.ceil(self.connections / CONNECTS_PER_SECOND) + 1
        middle = [("hold", self.hold)]
        if self.is_storm:
            middle = [("hold", self.hold // 2), ("reconnecting", 9), ("hold", self.hold // 2)]
        return [("connecting", connecting), ("idle", 10), *middle, ("closing", 4)]


def _series(scene: Scene, rng: random.Random) -> list[Sample]:
    samples: list[Sample] = []
    connections = 0.0
    whole = scene.connections * scene.success
    for phase, seconds in scene.phases:
        for second in range(seconds):
            if phase == "reconnecting":
                connections = whole * (second / seconds) ** 1.2
            elif phase == "closing":
                connections = whole * (1 - (second + 1) / seconds)
            else:
                connections = min(whole, connections + CONNECTS_PER_SECOND)
            at = len(samples) + 1 + round(rng.uniform(0, 0.01), 3)
            samples.append(_sample(scene, phase, at, round(connections), rng))
    return samples


def _sample(scene: Scene, phase: str, at: float, connections: int, rng: random.Random) -> Sample:
    is_loaded = phase in {"hold", "reconnecting"} and scene.rate > 0
    share = connections / (scene.connections * scene.success)
    received = round(scene.deliveries * share * rng.gauss(1, 0.03)) if is_loaded else 0
    connecting = 0.92 if phase in {"connecting", "reconnecting"} else 0.03
    cores = max(0.01, received * DELIVERY_US / 1e6 + connecting * rng.gauss(1, 0.06))
    spike = 12 if rng.random() < 0.01 else 1
    p50 = rng.gauss(4, 0.4) * (1 + scene.deliveries / 40_000)
    return Sample(
        at=at,
        phase=phase,
        connections=connections,
        received_per_second=received,
        p50_ms=round(p50, 2) if received else None,
        p99_ms=round(p50 * rng.gauss(3, 0.3), 2) if received else None,
        max_ms=round(p50 * rng.gauss(5, 0.6) * spike, 2) if received else None,
        server_cores=round(min(cores, 1.9), 3),
        server_percent=round(min(cores, 1.9) / 1.9 * 100, 1),
        server_mib=round(BASE_MIB + connections * CONNECTION_KIB / 1024 + rng.gauss(0, 0.4), 1),
        client_cores=round(0.02 + received * 7.5e-6 + connecting * 0.4, 3),
    )


def _host(series: list[Sample], rng: random.Random) -> list[HostSample]:
    """Samples half a second apart from the load's, with the kernel's part added."""
    return [
        HostSample(
            at=round(sample.at + 0.5, 3),
            cores=round((sample.server_cores or 0) * 1.15 + rng.uniform(0, 0.03), 3),
            memory_mib=round((sample.server_mib or 0) + 25 + sample.connections * 0.004, 1),
        )
        for sample in series
    ]


def _load(scene: Scene, rng: random.Random) -> LoadResult:
    connected = round(scene.connections * scene.success)
    expected = round(scene.deliveries * scene.hold)
    lost = 0 if scene.is_filtered else expected // 9
    cores = min(1.9, scene.deliveries * DELIVERY_US / 1e6 + 0.03)
    held = BASE_MIB + connected * CONNECTION_KIB / 1024
    is_loaded = scene.rate > 0
    refused = scene.connections - connected
    return LoadResult(
        url="ws://10.77.0.2:3002/ws",
        workload=Workload(channels=CHANNELS, home_share=0.5, is_filtered=scene.is_filtered),
        machine=MACHINE,
        date="2026-01-31T10:00:00Z",
        connections=scene.connections,
        rate=scene.rate,
        hold_seconds=float(scene.hold),
        connected=connected,
        rejections={"503": refused} if refused else {},
        failures={"no acknowledgement within 10 s": 3} if refused else {},
        connect_seconds=round(scene.connections / CONNECTS_PER_SECOND, 2),
        connect_ms=_durations(18.0, rng),
        disconnects={"4100 too slow": 41, "1006": 7} if refused else {},
        closed_cleanly=connected,
        churned=scene.churn,
        reconnects=Reconnects(
            lost=connected, back=connected, seconds=8.7, ms=_durations(2100.0, rng)
        )
        if scene.is_storm
        else None,
        received=expected,
        received_per_second=scene.deliveries,
        gaps=lost // 3,
        publications=round(scene.rate * scene.hold),
        published=round(scene.rate * scene.hold) if is_loaded else None,
        expected=expected,
        delivered=expected - lost,
        lost=lost,
        latency=_durations(round(4 * (1 + scene.deliveries / 40_000), 2), rng)
        if is_loaded
        else None,
        client_cores=round(scene.deliveries * 7.5e-6 + 0.02, 3),
        busiest_client_cores=round(scene.deliveries * 4e-6 + 0.01, 3),
        server=ServerFigures(
            connect_us=519.3,
            idle_cores=0.028,
            cores=round(cores, 3),
            percent=round(cores / 1.9 * 100, 1),
            percent_max=round(min(100, cores / 1.9 * 130), 1),
            delivery_us=DELIVERY_US if is_loaded else None,
            base_mib=BASE_MIB,
            connected_mib=round(held, 1),
            held_mib=round(held + rng.uniform(0, 8), 1),
            connection_kib=CONNECTION_KIB,
            rejected=float(refused),
            imbalance=0.0,
            received_from_nats=scene.rate * scene.hold,
        ),
        series=_series(scene, rng),
    )


def _checks(scene: Scene, load: LoadResult) -> list[Check]:
    cores = load.server.cores or 0.0
    return [
        Check(
            what="connections that came about",
            wanted="100 %",
            measured=f"{load.success:.1%}",
            is_met=load.success == 1,
        ),
        Check(
            what="server CPU in the hold",
            wanted="below 70 % of the limit",
            measured=f"{cores / 1.9:.1%}",
            is_met=cores / 1.9 < 0.7,
        ),
        Check(
            what="deliveries lost",
            wanted="0",
            measured=f"{load.lost:,}",
            is_met=load.lost == 0,
            source="ours",
        ),
        Check(
            what="events that reached nobody",
            wanted="at most 0",
            measured="unknown",
            is_met=True,
            is_known=False,
            source="ours",
        ),
    ]


def _stage(scene: Scene, rng: random.Random) -> StageResult:
    load = _load(scene, rng)
    cores, held = load.server.cores or 0.0, load.server.held_mib or 0.0
    predictions = [
        Prediction(
            what="CPU", unit="cores", predicted=round(cores * rng.gauss(1, 0.08), 3), measured=cores
        ),
        Prediction(
            what="memory",
            unit="MiB",
            predicted=round(held * rng.gauss(1, 0.04), 1),
            measured=held,
        ),
    ]
    return StageResult(
        number=scene.number,
        title=scene.title,
        plan="100 % success, CPU <30 %, memory ~7 GB" if scene.number < 7 else "",
        checks=_checks(scene, load),
        load=load,
        host=_host(load.series, rng),
        predictions=predictions if scene.number in {4, 5, 6, 7} else [],
        seconds=sum(seconds for _, seconds in scene.phases) + 6.0,
        wanted_seconds=float(scene.wanted),
        settings={} if scene.is_filtered else {"ENABLE_SUBSCRIPTION_FILTERING": "false"},
        note=""
        if scene.is_filtered
        else "This is the plan's root cause, reproduced: every event goes to everybody. That its "
        "criteria are not met is what the stage shows.",
    )


def commands_stage() -> StageResult:
    """The first stage: commands and answers only."""
    return StageResult(
        number=1,
        title="Subscribe, unsubscribe, and only what was subscribed",
        plan="subscriptions work, messages are filtered",
        checks=[
            Check(what=what, wanted="yes", measured="yes", is_met=True)
            for what in (
                "a subscription is acknowledged",
                "events of the channel arrive, of others do not",
                "nothing arrives after unsubscribing",
            )
        ],
        seconds=3.2,
    )


SCENES = [
    Scene(number=2, title="1,000 connections with filtering", connections=1_000, rate=12),
    Scene(number=3, title="5,000 connections", connections=5_000),
    Scene(number=4, title="10,000 connections", connections=10_000),
    Scene(
        number=5,
        title="10,000 connections, 12 messages/s",
        connections=10_000,
        rate=12,
        wanted=1800,
    ),
    Scene(number=6, title="10,000 connections, 30 messages/s", connections=10_000, rate=30),
    Scene(number=7, title="18,000 connections, 12 messages/s", connections=18_000, rate=12),
    Scene(
        number=8,
        title="5,000 connections without filtering, 20 messages/s",
        connections=5_000,
        rate=20,
        success=0.525,
        is_filtered=False,
    ),
    Scene(
        number=9,
        title="Reconnect storm: 10,000 cut at once",
        connections=10_000,
        rate=12,
        is_storm=True,
    ),
    Scene(
        number=10,
        title="Soak with churn",
        connections=10_000,
        rate=12,
        hold=600,
        churn=12_000,
    ),
]


def made_up(seed: int = 1) -> LabResult:
    """All ten stages: the eighth failed, the last has no result."""
    rng = random.Random(seed)
    stages = [commands_stage(), *(_stage(scene, rng) for scene in SCENES)]
    stages[-1] = attrs.evolve(
        stages[-1], checks=[], failure="The publisher ended early: nats: no servers available."
    )
    return LabResult(
        provenance=attrs.evolve(ORIGIN, machine=MACHINE),
        isolation=[
            "Three hosts, each a network namespace, joined by a bridge.",
            "The server's host has cores 0 and 1 and a memory limit of its own.",
            "Clients and backend share cores 2 and 3.",
        ],
        limits={"CPU": "1.9 cores", "memory": "7,168 MiB"},
        components={
            "server": ["trio-odin 0.4.0"],
            "backend": ["nats-server 2.15.1", "publisher", "scraper"],
            "clients": ["2 load processes"],
        },
        settings={
            "WS_CPU_LIMIT": "1.9",
            "WS_MEMORY_LIMIT": "7516192768",
            "WS_MAX_CONNECTIONS": "18000",
            "NATS_URL": "nats://10.77.0.3:4222",
        },
        command="trio-odin lab --stages 1-10 --out runs/2026-01-31",
        stages=stages,
        seconds=sum(stage.seconds for stage in stages),
    )
