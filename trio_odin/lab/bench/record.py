"""The record of a bench: for each target the storm of connections, and its stages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import attrs
import msgspec

from trio_odin.lab.load.result import LoadResult
from trio_odin.lab.model.wire import Sample
from trio_odin.lab.provenance import Provenance

KIB = 1024
_RECORD_BYTES = 22


@attrs.frozen(kw_only=True)
class Storm:
    """All clients connect as fast as the server permits, 200 at a time.

    The time of a client begins at its own connect; handshake, subscribe and acknowledgement are
    in it.
    """

    connected: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_us_each: float | None
    failures: dict[str, int]


@attrs.frozen(kw_only=True)
class Stage:
    """Some seconds of publishing.

    Args:
        rate: publications a second.
        expected, received: deliveries; `lost` and `repeated` explain the difference.
        gaps: missing numbers of `seq`, where there is a `seq`.
        user_us, system_us: CPU of the target per delivery; None if it runs elsewhere.
        cores: CPU of the target by time.
        p50_ms, p99_ms, p999_ms: latency from the planned moment of the publication.
        median_p99_ms, worst_p99_ms: p99 of the median connection, and of the worst hundred.
        frames_per_read: frames in one read; above 1 where the server joins frames.
        client_us: CPU of the clients per delivery.
        client_cores: CPU of the clients by time; `busiest_client_cores`: of the busiest process.
        others_cores: CPU of the machine by time that was used by other programs.
        users, every_ms, encoding: of the stages "rates" and "compression": the workload, the rate
            that each connection asks for, and how its events are encoded.
        skipped: deliveries that gave way to newer ones of their channel, as was reported.
        unexplained: breaks of a channel's chain that were not reported.
        frames_per_second: messages with events: the server's writes, unless it joins them.
        frames_events: events of such a message.
        delivery_bytes, delivery_wire_bytes: of one delivery, see `LoadResult`.
        connection_kib: memory that a connection has added to a new server.
        connect_us: CPU of one connect and subscription, with the handshake of TLS if there is one.
        is_tls: whether the connections were encrypted.
        published_late_ms: greatest delay of a publication; the latencies include it.
    """

    name: str
    rate: float
    seconds: float
    expected: int
    received: int
    lost: int
    repeated: int
    foreign: int
    gaps: int
    disconnects: int
    user_us: float | None
    system_us: float | None
    cores: float | None
    p50_ms: float
    p99_ms: float
    p999_ms: float
    frames_per_read: float
    client_us: float
    client_cores: float
    busiest_client_cores: float = 0.0
    others_cores: float | None = None
    published_late_ms: float = 0.0
    median_p99_ms: float = 0.0
    worst_p99_ms: float = 0.0
    users: str = "W"
    every_ms: int = 0
    encoding: str = "plain"
    skipped: int = 0
    unexplained: int = 0
    frames_per_second: float = 0.0
    frames_events: float = 1.0
    delivery_bytes: float = 0.0
    delivery_wire_bytes: float = 0.0
    connection_kib: float | None = None
    connect_us: float | None = None
    is_tls: bool = False

    @classmethod
    def of(cls, name: str, load: LoadResult, published_late_ms: float, users: str = "W") -> Stage:
        """Make a stage from the figures of a load's hold."""
        server, latency = load.server, load.latency
        user_us, cpu_us = server.delivery_user_us, server.delivery_us
        return cls(
            name=name,
            rate=load.rate or 0.0,
            seconds=load.arrival_seconds,
            expected=load.expected,
            received=load.delivered,
            lost=load.lost,
            repeated=load.repeated,
            foreign=load.foreign,
            gaps=load.gaps,
            disconnects=sum(load.disconnects.values()),
            user_us=user_us,
            system_us=None if cpu_us is None or user_us is None else cpu_us - user_us,
            cores=server.cores,
            p50_ms=latency.p50_ms if latency else 0.0,
            p99_ms=latency.p99_ms if latency else 0.0,
            p999_ms=latency.p999_ms if latency else 0.0,
            frames_per_read=load.frames_per_read,
            client_us=1e6 * load.client_cores / (load.received_per_second or math.inf),
            client_cores=load.client_cores,
            busiest_client_cores=load.busiest_client_cores,
            others_cores=server.others_cores and max(0.0, server.others_cores),  # ticks of 10 ms
            published_late_ms=published_late_ms,
            median_p99_ms=load.fairness.median_p99_ms if load.fairness else 0.0,
            worst_p99_ms=load.fairness.worst_p99_ms if load.fairness else 0.0,
            users=users,
            every_ms=load.workload.every_ms,
            encoding=load.encoding,
            skipped=load.skipped,
            unexplained=load.unexplained,
            frames_per_second=load.frames_per_second,
            frames_events=load.received_per_second / (load.frames_per_second or math.inf),
            delivery_bytes=load.delivery_bytes,
            delivery_wire_bytes=load.delivery_wire_bytes,
            connection_kib=server.connection_kib,
            connect_us=server.connect_us,
            is_tls=load.url.startswith("wss:"),
        )

    @property
    def bytes_on_wire(self) -> float:
        """Of a delivery, with TCP/IP headers, and with the records of TLS.

        A read of a client returns one record at most, and a record adds 22 bytes: its header, the
        type of its content and a tag (RFC 8446, 5.2).
        """
        events_of_record = self.frames_per_read * self.frames_events
        added = _RECORD_BYTES / events_of_record if self.is_tls and events_of_record else 0.0
        return self.delivery_wire_bytes + added

    @property
    def cpu_us(self) -> float | None:
        """User and system CPU per delivery."""
        if self.user_us is None or self.system_us is None:
            return None
        return self.user_us + self.system_us

    @property
    def per_second(self) -> float:
        """Deliveries a second."""
        return self.received / self.seconds

    @property
    def per_core(self) -> float | None:
        """Deliveries a second that a full core would make at this cost."""
        return 1e6 / self.cpu_us if self.cpu_us else None

    @property
    def is_complete(self) -> bool:
        """Whether every delivery was made exactly once, or reported as skipped."""
        return not (self.lost or self.repeated or self.foreign or self.gaps or self.unexplained)

    @property
    def title(self) -> str:
        """Its name, with what distinguishes it from others of that name."""
        rate = f"every {self.every_ms:,} ms" if self.every_ms else "every event"
        if self.name == "rates":
            return f"rates ({self.users}, {rate})"
        if self.name == "compression":
            return f"compression ({self.users}, {rate}, {self.encoding})"
        if self.name == "tls":
            return f"tls ({'TLS' if self.is_tls else 'plain'})"
        return self.name


@attrs.frozen(kw_only=True)
class TargetReport:
    """The findings about one target; `failure` is the reason why the rest is missing.

    `rss_base_bytes` is measured before the storm; `kib_connected` and `kib_loaded` are per
    connection, after the storm and after workload W. `connections_by_worker` shows the spread.
    """

    name: str
    title: str
    is_ours: bool = False
    storm: Storm | None = None
    rss_base_bytes: int | None = None
    kib_connected: float | None = None
    kib_loaded: float | None = None
    idle_percent: float | None = None
    connections_by_worker: list[int] | None = None
    stages: list[Stage] = attrs.field(factory=list)
    failure: str | None = None

    def with_connections(self, load: LoadResult, spread: Sequence[int]) -> TargetReport:
        """The same with the first load's figures of connections and memory."""
        server, times = load.server, load.connect_ms
        base, connected = server.base_mib, server.connected_mib
        return attrs.evolve(
            self,
            storm=Storm(
                connected=load.connected,
                seconds=load.connect_seconds,
                p50_ms=times.p50_ms if times else 0.0,
                p99_ms=times.p99_ms if times else 0.0,
                cpu_us_each=server.connect_us,
                failures=why_not(load),
            ),
            rss_base_bytes=None if base is None else round(base * KIB * KIB),
            kib_connected=None
            if base is None or connected is None
            else (connected - base) * KIB / load.connected,
            kib_loaded=server.connection_kib,
            idle_percent=None if server.idle_cores is None else server.idle_cores * 100,
            connections_by_worker=list(spread) or None,
        )

    def stage(self, name: str) -> Stage | None:
        """The stage of that name; the last one if there are several."""
        return next((stage for stage in reversed(self.stages) if stage.name == name), None)

    def named(self, name: str) -> list[Stage]:
        """All stages of that name."""
        return [stage for stage in self.stages if stage.name == name]

    def wire_samples(self) -> Iterator[Sample]:
        """What the stage of compression says about the bytes of an event."""
        for stage in self.named("compression"):
            if stage.is_complete and stage.frames_per_second:
                yield Sample(
                    encoding=stage.encoding,
                    is_batched=bool(stage.every_ms),
                    bytes_of_event=stage.delivery_wire_bytes,
                    events_of_write=stage.frames_events,
                    us_of_event=stage.cpu_us,
                )

    @property
    def peak(self) -> Stage | None:
        """The fastest step of the ramp of those that lost nothing."""
        ramp = [stage for stage in self.stages if stage.name == "ramp" and stage.is_complete]
        return max(ramp, key=lambda stage: stage.per_second, default=None)

    @property
    def is_held(self) -> bool:
        """Whether it has, or should have, other stages than those of trio-odin alone."""
        alone = self.named("rates") + self.named("compression") + self.named("tls")
        return len(alone) < len(self.stages) or not self.stages

    def is_perfect(self, connections: int) -> bool:
        """Whether all `connections` were made, and nothing was lost or repeated below the ramp.

        Without W there must be nothing but the stages of trio-odin alone.
        """
        is_connected = self.storm is not None and self.storm.connected == connections
        return (
            self.failure is None
            and (not self.is_held or (is_connected and self.stage("W") is not None))
            and all(
                stage.is_complete and not stage.disconnects
                for stage in self.stages
                if stage.name != "ramp"
            )
        )

    @property
    def steps(self) -> list[Stage]:
        """W, and the steps of the ramp above it."""
        return [stage for stage in self.stages if stage.name in {"W", "ramp"}]


@attrs.frozen(kw_only=True)
class BenchReport:
    """One run.

    Args:
        versions: those of the compared servers and of their parts.
        network: between clients and server: "loopback", or the "bridge" of the lab.
    """

    provenance: Provenance
    connections: int
    channels_per_connection: int
    tokens: int
    payload_bytes: int
    rate: float
    hold_seconds: float
    targets: list[TargetReport]
    seed: int = 0
    versions: dict[str, str] = attrs.field(factory=dict)
    network: str = "loopback"

    @property
    def is_perfect(self) -> bool:
        """Whether trio-odin connected everybody, and lost and repeated nothing below the ramp.

        This does not apply to the others: a loss is one of their figures.
        """
        ours = [target for target in self.targets if target.is_ours]
        return all(target.is_perfect(self.connections) for target in ours)


def why_not(load: LoadResult) -> dict[str, int]:
    """The number of failed connections, by reason."""
    return load.rejections | load.failures


def as_json(runs: Sequence[BenchReport]) -> bytes:
    """A list of the runs, indented, with the names of the attributes."""
    return msgspec.json.format(msgspec.json.encode(runs), indent=1)


def w_of(name: str, targets: Sequence[TargetReport]) -> Stage | None:
    """Workload W of the target of that name."""
    return next((target.stage("W") for target in targets if target.name == name), None)
