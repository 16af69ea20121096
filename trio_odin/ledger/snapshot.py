"""The state of a server at one moment, as metrics and health need it.

Each part is filled by the object whose state it is (`Hub.stats()`, …). Beside each field stands the
rule by which the figures of several workers become that of their server; `workers/merge.py`
applies them.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence

import attrs

from trio_odin import __version__
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.merging import (
    ALL,
    ANY,
    CONCATENATED,
    COUNTER,
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
    """What code runs; `revision` is empty if nobody said which."""

    version: str
    python: str
    revision: str

    @classmethod
    def here(cls, revision: str) -> Build:
        """That of this process."""
        return cls(__version__, platform.python_version(), revision)


@attrs.frozen
class Workers:
    """The processes of a server; a server without workers is one that serves alone.

    Attributes:
        configured: how many there should be.
        alive: how many take clients and answer.
        restarts: how often one was started again.
        connections: how many each holds, in the order of their numbers.
        missing_seconds: for how long the one that is missing longest has been; 0: all are there.
        rollings: how often one was replaced by a successor in order.
        trouble: why one does not take clients, in NATS' own sentence; None: not for that.
        is_whole: whether the figures beside it are those of all; else those of one that answers,
            as the parent does not.
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
        """The one process of a server without workers."""
        return cls(configured=1, alive=1, restarts=0, connections=[connections])


@attrs.frozen
class Trouble:
    """Why events cannot flow, in NATS' own sentence where it gave one, and for how long."""

    sentence: str
    seconds: float


@attrs.frozen
class NatsStats:
    """NATS, as this server knows it.

    A client may be with the worker for which NATS is away, so each claim is that of the worst
    worker that takes clients: one that leaves to a successor takes none any more, and one that has
    just been started takes none before it has NATS.

    Attributes:
        age_seconds: how long ago anything came from NATS; None: nothing ever did.
    """

    is_connected: bool = merged(ALL, TAKING)
    was_connected: bool = merged(ALL, TAKING)
    mode: str = merged(SAME)
    reconnects: int = merged(COUNTER)
    age_seconds: float | None = merged(LONGEST_OR_NEVER, TAKING)
    trouble: Trouble | None = merged(LONGEST, TAKING)


@attrs.frozen
class FanOutStats:
    """Connections and what waits for them.

    Attributes:
        subscription_counts: of each client that has any.
        channels: with a subscriber. Most are subscribed to in every worker, and to send their names
            would cost what clients care to make of it: so it is the number of the worker that has
            most.
        feed_waiting: events between the bridge and the hub.
    """

    connections: int = merged(SUM)
    subscription_counts: Sequence[int] = merged(CONCATENATED)
    channels: int = merged(MAX)
    inbound_waiting: int = merged(SUM)
    inbound_capacity: int = merged(SUM)
    outbox_bytes: int = merged(SUM)
    outbox_bytes_limit: int = merged(SUM)
    replay_bytes: int = merged(SUM)
    replay_bytes_limit: int = merged(SUM)


@attrs.frozen
class LoadStats:
    """How hard the server works, and what follows from that.

    Each worker judges the CPU of all by what it uses itself now and the others did a second ago, so
    the server's is the mean. How busy one loop is, how late, or what it sheds, is that of the
    worst. It refuses clients if all workers do: else another one still takes them.

    Attributes:
        loop_busy_percent: CPU of this process, or of the busiest one, of one core.
        turnover_percent: the part of it that goes into clients that come or go.
        lag_seconds: how late the scheduler was at worst, over the last second.
        is_overloaded: new connections are refused for the CPU; the next two: for the others.
        refusing_seconds: for how long they have been, for any of the three; None: they are not.
        paused_percent: the share of publications that is shed.
        paused_seconds: for how long any has been; None: none is.
        tasks: of trio.
        group_memory_bytes: of the control group, where its limit is the one that counts; else 0.
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
        """The CPU, by whichever limit is nearer."""
        return max(self.cpu_percent, self.loop_busy_percent)


@attrs.frozen
class ListenerStats:
    """Those who are not let in yet."""

    pending_handshakes: int = merged(SUM)
    is_out_of_files: bool = merged(ALL, STAYING)


@attrs.frozen
class ProcessStats:
    """What the process is and takes.

    Attributes:
        memory_bytes: resident.
        builds: of each process; more than one while a new version replaces another.
    """

    memory_bytes: int = merged(SUM)
    cpu_seconds: float = merged(COUNTER)
    log_lines_dropped: int = merged(COUNTER)
    builds: Sequence[Build] = merged(UNION)


@attrs.frozen
class Limits:
    """The settings that pages show. They are for the whole server, or the same for all workers."""

    max_connections: int = merged(SAME)
    max_tasks: int = merged(SAME)
    cpu_reject_percent: float = merged(SAME)
    cpu_pause_percent: float = merged(SAME)
    max_nats_rate: float = merged(SAME)
    max_broadcast_rate: float = merged(SAME)


@attrs.frozen(kw_only=True)
class Snapshot:
    """Figures of one server. `ledger` may be live; everything else is a copy.

    Attributes:
        is_draining: it leaves; `draining_seconds`: for how long it has.
        is_open: it listens, so that clients can come.
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
        """What counts against the limit."""
        return self.load.group_memory_bytes or self.process.memory_bytes

    @property
    def imbalance(self) -> int:
        """Publications and deliveries unaccounted for. Always 0."""
        return self.ledger.imbalance(self.fan_out.inbound_waiting)
