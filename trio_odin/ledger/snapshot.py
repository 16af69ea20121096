"""The state of a server at one moment, as metrics and health need it.

Each part is filled by the object whose state it is (`Hub.stats()`, …). Beside each field is the
rule that merges the values of several workers into that of their server; `workers/merge.py`
applies the rules.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import attrs

from trio_odin import __version__
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.merging import (
    ALL,
    ANY,
    CONCATENATED,
    COUNTER,
    COUNTS,
    LONGEST,
    LONGEST_OR_NEVER,
    MAX,
    MEAN,
    SAME,
    SHORTEST_OF_ALL,
    STAYING,
    SUM,
    TAKING,
    TOTAL,
    UNION,
    merged,
)


@attrs.frozen(order=True)
class Build:
    """The code that runs; `revision` is empty if it was not given."""

    version: str
    python: str
    revision: str

    @classmethod
    def here(cls, revision: str) -> Build:
        """The build of this process."""
        return cls(__version__, platform.python_version(), revision)


@attrs.frozen
class Workers:
    """The processes of a server; without workers, the one process that serves alone.

    Attributes:
        configured: how many there should be.
        alive: how many accept clients and answer.
        restarts: how often a worker was started again.
        connections: how many each worker holds, in the order of their numbers.
        missing_seconds: how long the worker that is missing longest has been; 0: none is missing.
        rollings: how often a worker was replaced by a successor as planned.
        trouble: why a worker does not accept clients, in NATS' own sentence; None: not because of
            NATS.
        is_whole: whether the rest of the snapshot is that of all workers. If not, the parent does
            not answer, and it is that of one worker which does.
    """

    configured: int
    alive: int
    restarts: int
    connections: Sequence[int]
    missing_seconds: float = 0.0
    rollings: int = 0
    trouble: str | None = None
    is_whole: bool = True

    @classmethod
    def alone(cls, connections: int) -> Workers:
        """The one process of a server without workers, which holds all its `connections`."""
        return cls(configured=1, alive=1, restarts=0, connections=[connections])


@attrs.frozen
class Trouble:
    """Why events cannot flow, in NATS' own sentence where it gave one, and for how long."""

    sentence: str
    seconds: float


@attrs.frozen
class NatsStats:
    """NATS, as this server knows it.

    A client may be connected to the worker for which NATS is away, so each claim is that of the
    worst worker that accepts clients. A worker that leaves to a successor no longer accepts any,
    and one that was just started accepts none before it has NATS.

    Attributes:
        age_seconds: how long ago anything last came from NATS; None: nothing ever did.
    """

    is_connected: bool = merged(ALL, TAKING)
    was_connected: bool = merged(ALL, TAKING)
    mode: str = merged(SAME)
    reconnects: int = merged(COUNTER)
    age_seconds: float | None = merged(LONGEST_OR_NEVER, TAKING)
    trouble: Trouble | None = merged(LONGEST, TAKING)


@attrs.frozen
class FanOutStats:
    """Connections, and what waits for them.

    Attributes:
        encodings: how many connections get their events in each encoding.
        subscription_counts: for each client that has any, the number of its subscriptions.
        channels: channels with a subscriber. Most have one in every worker, and sending all names
            would cost as much as clients care to make it cost, so this is the number of the worker
            that has most.
        snapshot_channels: channels with a newest event, for clients that subscribe. Every worker
            has them, so this is the number of the worker that has most.
        snapshot_bytes: the payloads of these events, in one worker.
        inbound_waiting: events in the inbound queue, between the bridge and the hub.
    """

    connections: int = merged(SUM)
    encodings: Mapping[str, int] = merged(COUNTS)
    subscription_counts: Sequence[int] = merged(CONCATENATED)
    channels: int = merged(MAX)
    inbound_waiting: int = merged(SUM)
    inbound_capacity: int = merged(SUM)
    outbox_bytes: int = merged(SUM)
    outbox_bytes_limit: int = merged(SUM)
    replay_bytes: int = merged(SUM)
    replay_bytes_limit: int = merged(SUM)
    snapshot_channels: int = merged(MAX)
    snapshot_bytes: int = merged(MAX)


@attrs.frozen
class LoadStats:
    """How hard the server works, and what follows from that.

    Each worker estimates the CPU of all from its own use now and that of the others a second ago,
    so the server's is the mean. How busy a loop is, how late, and what it sheds are those of the
    worst worker. The server rejects clients if all workers do: otherwise another one still accepts
    them.

    Attributes:
        loop_busy_percent: CPU of this process, or of the busiest worker, as percent of one core.
        turnover_percent: the part of it that goes into clients that connect or leave.
        lag_seconds: how late the scheduler was at worst, over the last second.
        is_overloaded: whether new connections are rejected because of the CPU.
        is_memory_short: whether they are because of the memory.
        is_lagging: whether they are because of the lag.
        refusing_seconds: how long they have been, for any of these three; None: they are not.
        paused_percent: the share of publications that is shed.
        paused_seconds: how long any have been shed; None: none are.
        tasks: the number of trio's tasks.
        group_memory_bytes: memory of the control group, if its limit is the one that counts; else
            0.
    """

    cpu_percent: float = merged(MEAN)
    loop_busy_percent: float = merged(MAX)
    turnover_percent: float = merged(MAX)
    lag_seconds: float = merged(MAX)
    is_overloaded: bool = merged(ALL, STAYING)
    is_memory_short: bool = merged(ALL, STAYING)
    is_lagging: bool = merged(ALL, STAYING)
    refusing_seconds: float | None = merged(SHORTEST_OF_ALL, STAYING)
    paused_percent: float = merged(MAX)
    paused_seconds: float | None = merged(LONGEST)
    tasks: int = merged(SUM)
    group_memory_bytes: int = merged(MAX)
    memory_limit_bytes: int = merged(SAME)

    @property
    def busiest_percent(self) -> float:
        """The higher of the two CPU values, which is the one nearer to its limit."""
        return max(self.cpu_percent, self.loop_busy_percent)


@attrs.frozen
class ListenerStats:
    """Pending handshakes, and whether the process is out of file descriptors.

    Attributes:
        certificate_seconds_left: how long the certificate of the port is valid, negative after
            that; None: the port does not speak TLS.
    """

    pending_handshakes: int = merged(SUM)
    is_out_of_files: bool = merged(ALL, STAYING)
    certificate_seconds_left: float | None = merged(SHORTEST_OF_ALL)


@attrs.frozen
class ProcessStats:
    """The process: what it uses, and which code it runs.

    Attributes:
        memory_bytes: resident memory.
        builds: the builds that run; more than one while a new version replaces another.
        dictionaries: the ids of the dictionaries in use: more than one if the file was replaced
            while the server ran.
    """

    memory_bytes: int = merged(SUM)
    cpu_seconds: float = merged(COUNTER)
    log_lines_dropped: int = merged(COUNTER)
    builds: Sequence[Build] = merged(UNION)
    dictionaries: Sequence[str] = merged(UNION)


@attrs.frozen
class Limits:
    """The settings that pages show. Each is for the whole server, or the same for all workers."""

    max_connections: int = merged(SAME)
    max_tasks: int = merged(SAME)
    cpu_reject_percent: float = merged(SAME)
    cpu_pause_percent: float = merged(SAME)
    max_nats_rate: float = merged(SAME)
    max_broadcast_rate: float = merged(SAME)


@attrs.frozen(kw_only=True)
class Snapshot:
    """The state of one server. `ledger` may be live; everything else is a copy.

    Attributes:
        is_draining: whether it is draining.
        draining_seconds: how long it has been; None: it is not.
        is_open: whether it listens, so that clients can connect.
    """

    ledger: Ledger = merged(TOTAL)
    nats: NatsStats
    fan_out: FanOutStats
    load: LoadStats
    listener: ListenerStats
    process: ProcessStats
    limits: Limits
    workers: Workers = merged(SAME)
    uptime_seconds: float = merged(MAX)
    is_draining: bool = merged(ALL)
    draining_seconds: float | None = merged(SHORTEST_OF_ALL)
    is_open: bool = merged(ANY)

    @property
    def used_memory_bytes(self) -> int:
        """The memory that counts against the limit."""
        return self.load.group_memory_bytes or self.process.memory_bytes

    @property
    def imbalance(self) -> int:
        """Publications and deliveries unaccounted for. Always 0."""
        return self.ledger.imbalance(self.fan_out.inbound_waiting)
