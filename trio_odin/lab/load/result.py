"""The result of a load, as data. Units are in the names; an unknown figure is None."""

from __future__ import annotations

import attrs
import msgspec

from trio_odin.lab.fleet.latency import Durations, Fairness
from trio_odin.lab.fleet.workload import Workload
from trio_odin.lab.machine import Machine


@attrs.frozen(kw_only=True)
class Sample:
    """A second of a load.

    Args:
        at: seconds since the first connect.
        phase: "connecting", "idle", "hold", "reconnecting", "after", "closing".
        connections: subscribed connections, as the clients count them.
        received_per_second: envelopes.
        p50_ms, p99_ms, max_ms: latency; None if nothing was received.
        server_cores: CPU of the server since the previous sample, by time.
        server_percent: the same by the server's own report, in percent of its limit.
        server_mib: resident memory of the server.
        client_cores: CPU of all clients.
    """

    at: float
    phase: str
    connections: int
    received_per_second: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    server_cores: float | None = None
    server_percent: float | None = None
    server_mib: float | None = None
    client_cores: float = 0.0


@attrs.frozen
class Progress:
    """The progress of a running load.

    Args:
        sample: the newest.
        wanted: number of planned connections.
        seconds_left: of this phase; None if unknown.
    """

    sample: Sample
    wanted: int
    seconds_left: float | None = None

    def line(self) -> str:
        """One line for people, at most 80 columns."""
        now = self.sample
        parts = [f"{now.phase}: {now.connections:,} of {self.wanted:,}"]
        if now.received_per_second:
            parts.append(f"{now.received_per_second:,.0f} events/s")
        if now.p99_ms is not None:
            parts.append(f"p99 {now.p99_ms:.0f} ms")
        if now.server_percent is not None:
            parts.append(f"CPU {now.server_percent:.0f} %")
        if self.seconds_left is not None:
            parts.append(f"{self.seconds_left:.0f} s left")
        return ", ".join(parts)


@attrs.frozen(kw_only=True)
class ServerFigures:
    """Figures from the server's own pages, or from its processes.

    Args:
        connect_us: CPU of one connect and subscription.
        idle_cores: CPU while all were connected and nothing was published.
        cores: CPU during the hold, by time.
        percent: mean of the server's own report during the hold, in percent of its limit.
        percent_max: the highest of these reports.
        delivery_us: CPU of the hold by its deliveries; `delivery_user_us` is the part outside the
            kernel, known only if the processes themselves were observed.
        others_cores: CPU of the machine in the hold that neither the load nor the server used, if
            they share a machine.
        base_mib, connected_mib, held_mib: resident memory before the connects, after the
            subscriptions, and at the end of the hold.
        connection_kib: memory that a connection added, at the end of the hold.
        rejected: connections that the server refused during the load.
        imbalance: publications and deliveries that its counters do not account for.
        received_from_nats: messages during the hold.
    """

    connect_us: float | None = None
    idle_cores: float | None = None
    cores: float | None = None
    percent: float | None = None
    percent_max: float | None = None
    delivery_us: float | None = None
    delivery_user_us: float | None = None
    others_cores: float | None = None
    base_mib: float | None = None
    connected_mib: float | None = None
    held_mib: float | None = None
    connection_kib: float | None = None
    rejected: float | None = None
    imbalance: float | None = None
    received_from_nats: float | None = None


@attrs.frozen(kw_only=True)
class Reconnects:
    """The return of lost connections.

    Args:
        lost: connections that were cut by the load or by the server.
        back: number of these that were connected and subscribed again.
        seconds: from the first loss to the last return.
        ms: from the loss of a connection to its acknowledged subscription.
    """

    lost: int
    back: int
    seconds: float
    ms: Durations | None


@attrs.frozen(kw_only=True)
class LoadResult:
    """The result of a load.

    Args:
        url: of the server.
        date: of the first connect, ISO 8601 with milliseconds.
        connections: number of planned connections.
        rate: events a second requested from the publisher, None if the load did not control it.
        hold_seconds: actual length of the hold.
        encoding: of the events on the wire, one of `ENCODINGS`.
        granted_ms: connections by the rate that they were granted, if they asked for one.
        arrival_seconds: from the start of the hold until the last event had come.
        interrupted: the user ended it early.
        connected: connections whose handshake succeeded and whose subscription to all their
            channels was acknowledged.
        rejections: connections refused before the upgrade, by HTTP status ("503").
        failures: connections that failed in another way, by reason.
        connect_seconds: time until the last of them was subscribed.
        connect_ms: time of a connection from its connect to its acknowledgement.
        disconnects: connections that ended before the load closed them, by code and reason
            ("1001 server is draining"); 1006 is an end without a close frame.
        closed_cleanly: connections that answered our close.
        churned: connections that were closed and replaced on purpose, by `churn_per_second`.
        received: all received envelopes.
        silent: connections that received nothing.
        quiet_channels: channels of `channels` with a subscriber, but without a received event.
        gaps: numbers missing from the connections' `seq`.
        repeated: envelopes that came again, or after a later one.
        foreign: envelopes of a channel that the connection did not subscribe to.
        unreadable: frames that are not a message of a known form.
        error_replies: errors that the server sent.
        unexplained: events before which one is missing in their channel, by `prev`, although none
            was reported as skipped.
        frames_per_read: events by reads from sockets in the hold; above 1 if the server joins
            frames.
        frames_per_second: messages with events in the hold: one each, or the batch of a tick.
        delivery_bytes: bytes of the WebSocket in the hold, heads included, by received events.
        delivery_wire_bytes: the same with 52 bytes for each TCP segment of up to 1,448 bytes, an
            IPv4 header and a TCP header with timestamps. Segments are counted from the reads, so
            what the server sends to a connection within a millisecond counts as sent together.
            TLS, acknowledgements and the frames of Ethernet are not included.
        publications: received events within the window of the hold; all events of the hold if the
            publisher lists them.
        published: events during the hold by the publisher's own count, if it was asked.
        unseen: number of these, on channels with a subscriber, that reached nobody.
        expected, delivered, lost: deliveries of the publications to the connections that are not
            replaced on purpose. With a rate the events that a channel's newest one replaced are
            `skipped`; lost is what a connection neither received nor was told of, or was told of
            too much.
        latency: from the planned moment of an event to its receipt, so lateness cannot hide (no
            coordinated omission). Events after the end of the hold are included, unless all
            connections were cut then.
        fairness: the latencies of the worst off, beside those of the median connection.
        health: the server's own report before the first connect and before the last close.
        client_cores, busiest_client_cores: CPU of all clients, and of the busiest process.
    """

    url: str
    workload: Workload
    machine: Machine
    date: str
    connections: int
    rate: float | None = None
    encoding: str = "plain"
    granted_ms: dict[int, int] = attrs.field(factory=dict)
    hold_seconds: float = 0.0
    arrival_seconds: float = 0.0
    interrupted: bool = False
    connected: int = 0
    rejections: dict[str, int] = attrs.field(factory=dict)
    failures: dict[str, int] = attrs.field(factory=dict)
    connect_seconds: float = 0.0
    connect_ms: Durations | None = None
    disconnects: dict[str, int] = attrs.field(factory=dict)
    closed_cleanly: int = 0
    churned: int = 0
    churn_per_second: float = 0.0
    reconnects: Reconnects | None = None
    received: int = 0
    received_per_second: float = 0.0
    silent: int = 0
    quiet_channels: int = 0
    channels: int = 0
    gaps: int = 0
    repeated: int = 0
    foreign: int = 0
    unreadable: int = 0
    error_replies: int = 0
    unexplained: int = 0
    frames_per_read: float = 0.0
    frames_per_second: float = 0.0
    delivery_bytes: float = 0.0
    delivery_wire_bytes: float = 0.0
    publications: int = 0
    published: int | None = None
    unseen: int | None = None
    expected: int = 0
    delivered: int = 0
    lost: int = 0
    skipped: int = 0
    latency: Durations | None = None
    fairness: Fairness | None = None
    client_cores: float = 0.0
    busiest_client_cores: float = 0.0
    server: ServerFigures = attrs.field(factory=ServerFigures)
    health: list[str] = attrs.field(factory=list)
    series: list[Sample] = attrs.field(factory=list)

    @property
    def success(self) -> float:
        """The share of the connections that succeeded."""
        return self.connected / self.connections

    @property
    def is_plain(self) -> bool:
        """Whether every event came by itself, as text."""
        return not self.workload.every_ms and self.encoding == "plain"

    def as_json(self) -> bytes:
        """Indented JSON with the names of the attributes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)
