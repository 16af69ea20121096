"""A fleet's plan and its answers: the data between the processes of a load.

`merged` makes one answer of those of several fleets: each field is the sum, unless it declares
another rule.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import attrs

from trio_odin.lab.fleet.batches import Tally
from trio_odin.lab.fleet.books import Received
from trio_odin.lab.fleet.workload import Workload


@attrs.frozen(kw_only=True)
class FleetPlan:
    """A fleet's plan.

    Args:
        host, port, family: numeric address of the server.
        name: of the server, for the Host header and TLS; the host if empty.
        is_tls: speak TLS.
        authority: file of the authorities to trust then, in PEM; empty: those of the system.
        source: the address to connect from, with its own source ports; empty: any.
        path: of the WebSocket.
        dialect: a key of `DIALECTS`.
        kind: of the events, a key of `KINDS`.
        encoding: of the events on the wire, one of `ENCODINGS`.
        workload: subscriptions of each connection.
        first: the number of this fleet's first connection in the workload.
        connections: number of connections.
        in_flight: greatest number of concurrent connects.
        ramp_per_second: connects begun a second; 0: as fast as possible.
        is_reading: False: it reads nothing after the subscription, and has small buffers.
        reconnect_seconds: upper bound of the random wait before a connection that was lost or
            failed is replaced, doubled with each failure; 0: never.
        churn_per_second: connections closed and replaced a second.
        churners: number of connections, the last ones, that are replaced. Their events are checked
            by `seq`, but not counted in `deliveries`.
    """

    host: str
    port: int
    family: int = int(socket.AF_INET)
    name: str = ""
    is_tls: bool = False
    authority: str = ""
    source: str = ""
    path: str = "/ws"
    dialect: str = "odin"
    kind: str = "bench"
    encoding: str = "plain"
    workload: Workload
    first: int = 0
    connections: int
    in_flight: int = 200
    ramp_per_second: float = 0.0
    is_reading: bool = True
    reconnect_seconds: float = 0.0
    churn_per_second: float = 0.0
    churners: int = 0


def shares(connections: int, count: int) -> Iterator[tuple[int, int]]:
    """For each of `count` fleets the number of its first connection, and its connections."""
    first = 0
    for number in range(count):
        share = connections // count + (number < connections % count)
        yield first, share
        first += share


_T = TypeVar("_T")


def merged(parts: Sequence[_T]) -> _T:
    """Merge the answers of several fleets, or those of one fleet at several times."""
    columns: dict[str, Any] = {}
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(type(parts[0]))  # type: ignore[arg-type]
    for field in fields:
        merge = field.metadata.get("merge", _sum)
        columns[field.name] = merge([getattr(part, field.name) for part in parts])
    return type(parts[0])(**columns)


def _sum(values: Sequence[Any]) -> Any:
    match values[0]:
        case dict():
            total: Counter[Any] = Counter()
            for value in values:
                total.update(value)
            return dict(total)
        case list():
            return [entry for value in values for entry in value]
        case Received():
            return merged(values)
    return sum(values)


def _first(moments: Sequence[float]) -> float:
    return min(filter(None, moments), default=0.0)


@attrs.frozen(kw_only=True)
class Progress:
    """The progress of a fleet.

    Args:
        connections: subscribed now.
        pending: connections still to be made by the plan.
        received: events so far.
        skipped: events so far that were reported to have given way to these.
    """

    connections: int
    pending: int
    received: int
    skipped: int = 0


@attrs.define(kw_only=True)
class Collected:
    """The events and ends since the last collect.

    Args:
        received: events.
        connections: subscribed now.
        pending: still to be connected.
        reads: reads from sockets; fewer than events where the server joins frames.
        bytes: those of these reads: WebSocket frames with their heads, without TLS.
        packets: the fewest TCP segments of an Ethernet in which they can have come, 1,448 bytes
            each at most. What the server writes to a connection within a millisecond is one read.
        disconnects: connections that the server ended, by code and reason.
        churned: connections that were closed and replaced on purpose.
        error_replies: errors that the server sent.
        unreadable: frames that are not a message of a known form.
        cpu_seconds: of this process.
    """

    received: Received = attrs.field(factory=Received)
    connections: int = 0
    pending: int = 0
    reads: int = 0
    bytes: int = 0
    packets: int = 0
    disconnects: dict[str, int] = attrs.field(factory=Counter)
    churned: int = 0
    error_replies: int = 0
    unreadable: int = 0
    cpu_seconds: float = 0.0


@attrs.define(kw_only=True)
class Summary:
    """The connections' history so far.

    Args:
        connected: connections that were subscribed at least once.
        seconds: from the first connect to the last connection's first acknowledgement.
        rejections: by HTTP status.
        failures: everything else, by reason.
        connect_buckets: times from a connection's `connect` to its acknowledgement, in tenths of a
            millisecond, with counts.
        subscribers: counted connections of each channel.
        silent: subscribed connections that received nothing.
        closed_cleanly: connections that answered our close frame.
        lost: connections that were lost and will come back; `back` of them did.
        first_lost, last_back: monotonic seconds of this machine, 0 if there were none.
        back_buckets: times from a connection's loss to its acknowledged subscription.
        granted_ms: connections by the rate that they were granted, if they asked for one.
        tallies: events of each channel that counted connections account for, if they asked for a
            rate. Those that are not connected any more, or not for the first time, are left out.
        p99_steps: p99 of each counted connection since the command "watch"; see `p99_step`.
    """

    connected: int = 0
    seconds: float = attrs.field(default=0.0, metadata={"merge": max})
    rejections: dict[str, int] = attrs.field(factory=Counter)
    failures: dict[str, int] = attrs.field(factory=Counter)
    connect_buckets: dict[int, int] = attrs.field(factory=Counter)
    subscribers: dict[str, int] = attrs.field(factory=Counter)
    silent: int = 0
    closed_cleanly: int = 0
    lost: int = 0
    back: int = 0
    first_lost: float = attrs.field(default=0.0, metadata={"merge": _first})
    last_back: float = attrs.field(default=0.0, metadata={"merge": max})
    back_buckets: dict[int, int] = attrs.field(factory=Counter)
    granted_ms: dict[int, int] = attrs.field(factory=Counter)
    tallies: list[Tally] = attrs.field(factory=list)
    p99_steps: list[int] = attrs.field(factory=list)
