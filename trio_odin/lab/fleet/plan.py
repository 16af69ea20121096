"""What a fleet is to do, and what it answers: the data between the processes of a load.

The answers of several fleets become one by `merged`: each field is the sum, unless it says what
else it is.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import attrs

from trio_odin.lab.fleet.books import Received
from trio_odin.lab.fleet.workload import Workload


@attrs.frozen(kw_only=True)
class FleetPlan:
    """What a fleet is to do.

    Args:
        host, port, family: of the server, an address as numbers.
        name: of the server, for the Host header and TLS; the host if empty.
        is_tls: speak TLS.
        source: the address to connect from, each has source ports of its own; empty: any.
        path: of the WebSocket.
        dialect: a key of `DIALECTS`.
        kind: of the events, a key of `KINDS`.
        workload: what each connection subscribes to.
        first: the number of this fleet's first connection in the workload.
        connections: how many.
        in_flight: how many connects may be under way at a time.
        ramp_per_second: how many connects are begun a second; 0: as fast as it goes.
        is_reading: False: after the subscription nothing is read any more, with small buffers.
        reconnect_seconds: a connection that was lost, or not made, is made anew after a random
            share of so long, doubled with each failure; 0: never.
        churn_per_second: so many connections are closed in order and made anew, a second.
        churners: so many of the connections, the last ones, take part in that. What reaches them is
            checked by `seq`, but not counted in `deliveries`.
    """

    host: str
    port: int
    family: int = int(socket.AF_INET)
    name: str = ""
    is_tls: bool = False
    source: str = ""
    path: str = "/ws"
    dialect: str = "odin"
    kind: str = "bench"
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
    """Of each of `count` fleets the number of its first connection, and how many it has."""
    first = 0
    for number in range(count):
        share = connections // count + (number < connections % count)
        yield first, share
        first += share


_T = TypeVar("_T")


def merged(parts: Sequence[_T]) -> _T:
    """What several fleets answered as if they were one, or one of them at several times."""
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
    """Where a fleet is.

    Args:
        connections: subscribed now.
        pending: still to be connected, as far as the plan goes.
        received: events so far.
    """

    connections: int
    pending: int
    received: int


@attrs.define(kw_only=True)
class Collected:
    """What happened since the last time.

    Args:
        received: events.
        connections: subscribed now.
        pending: still to be connected.
        reads: from sockets; fewer than events where the server joins.
        disconnects: connections that the server ended, by code and reason.
        churned: connections that were closed and made anew on purpose.
        error_replies: what the server refused.
        unreadable: frames that are no message of a known form.
        cpu_seconds: of this process.
    """

    received: Received = attrs.field(factory=Received)
    connections: int = 0
    pending: int = 0
    reads: int = 0
    disconnects: dict[str, int] = attrs.field(factory=Counter)
    churned: int = 0
    error_replies: int = 0
    unreadable: int = 0
    cpu_seconds: float = 0.0


@attrs.define(kw_only=True)
class Summary:
    """What became of the connections so far.

    Args:
        connected: connections that were subscribed at least once.
        seconds: from the first connect to the last first acknowledgement.
        rejections: by HTTP status.
        failures: everything else, by reason.
        connect_buckets: times from a connection's `connect` to its acknowledgement, in tenths of a
            millisecond, with counts.
        subscribers: of each channel, connections that count.
        silent: subscribed connections that received nothing.
        closed_cleanly: connections that answered our close frame.
        lost: connections that were lost and are to come back; `back` of them did.
        first_lost, last_back: monotonic seconds of this machine, 0 if there were none.
        back_buckets: times from a connection's loss to its acknowledged subscription.
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
