"""The state of a server at one moment, as metrics and health need it."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import attrs

from trio_odin import __version__
from trio_odin.core.ledger import Ledger


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
class Snapshot:
    """Figures of one server. `ledger` may be live; everything else is a copy.

    Attributes:
        is_open: it listens, so that clients can come.
        loop_busy_percent: CPU of this process, or of the busiest one, of one core.
        turnover_percent: the part of it that goes into clients that come or go.
        nats_trouble: why events cannot flow, in NATS' own sentence; None while they can.
        nats_trouble_seconds: for how long; the other `…_seconds` of a state are None like that too.
        lag_seconds: how late the scheduler was at worst, over the last second.
        is_overloaded: new connections are refused for the CPU; the next three: for the others.
        refusing_seconds: for how long they have been, for any of CPU, memory and lateness.
        paused_percent: the share of publications that is shed.
        memory_bytes: resident, of all processes of the server.
        group_memory_bytes: of the control group, where its limit is the one that counts; else 0.
        builds: of each process; more than one while a new version replaces another.
        nats_age_seconds: how long ago anything came from NATS; None: nothing ever did.
    """

    ledger: Ledger
    uptime_seconds: float
    is_draining: bool
    draining_seconds: float | None
    connections: int
    max_connections: int
    subscription_counts: Sequence[int]
    channels: int
    is_nats_connected: bool
    was_nats_connected: bool
    nats_mode: str
    nats_reconnects: int
    nats_age_seconds: float | None
    nats_trouble: str | None
    nats_trouble_seconds: float | None
    feed_waiting: int
    feed_capacity: int
    outbox_bytes: int
    outbox_bytes_limit: int
    replay_bytes: int
    replay_bytes_limit: int
    tasks: int
    max_tasks: int
    cpu_percent: float
    loop_busy_percent: float
    turnover_percent: float
    lag_seconds: float
    cpu_reject_percent: float
    cpu_pause_percent: float
    is_overloaded: bool
    is_memory_short: bool
    is_lagging: bool
    is_out_of_files: bool
    refusing_seconds: float | None
    paused_percent: float
    paused_seconds: float | None
    half_open: int
    memory_bytes: int
    group_memory_bytes: int
    memory_limit_bytes: int
    max_nats_rate: float
    max_broadcast_rate: float
    cpu_seconds: float
    log_lines_dropped: int
    builds: Sequence[Build]
    workers: Workers
    is_open: bool = True

    @property
    def used_memory_bytes(self) -> int:
        """What counts against the limit."""
        return self.group_memory_bytes or self.memory_bytes

    @property
    def busiest_percent(self) -> float:
        """The CPU, by whichever limit is nearer."""
        return max(self.cpu_percent, self.loop_busy_percent)
