"""The client processes of a load."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import trio

from trio_odin.lab.fleet.limits import FLEET_MAX, LoadImpossible, require_ports, sources_towards
from trio_odin.lab.fleet.plan import FleetPlan, shares
from trio_odin.lab.load.plan import LoadPlan

_IN_FLIGHT = 200


async def fleet_plans(plan: LoadPlan) -> list[FleetPlan]:
    """A plan for each client process.

    Raises:
        LoadImpossible: there are too few ports, or the server has no address.
    """
    parts = urlsplit(plan.url)
    is_tls = parts.scheme == "wss"
    family, host, port = await _resolved(
        parts.hostname or "", parts.port or (443 if is_tls else 80), plan.url
    )
    count = max(plan.processes, -(-plan.connections // FLEET_MAX))
    count = min(count, plan.connections)
    sources = sources_towards(host, family, count)
    require_ports(-(-plan.connections // len(sources)))
    return [
        FleetPlan(
            host=host,
            port=port,
            family=family,
            name=parts.hostname or "",
            is_tls=is_tls,
            authority=plan.authority,
            source=sources[number % len(sources)],
            path=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            dialect=plan.dialect,
            kind=plan.kind,
            encoding=plan.encoding,
            workload=plan.workload,
            first=first,
            connections=share,
            in_flight=max(1, _IN_FLIGHT // count),
            ramp_per_second=plan.ramp_per_second / count,
            reconnect_seconds=plan.reconnect_seconds,
            churn_per_second=plan.churn_per_second / count,
            churners=min(share - 1, -(-plan.churners // count)),
        )
        for number, (first, share) in enumerate(shares(plan.connections, count))
    ]


async def _resolved(host: str, port: int, url: str) -> tuple[int, str, int]:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise LoadImpossible(f"{url!r}: {host!r} cannot be resolved: {error}") from error
    family, _, _, _, address = found[0]
    return int(family), str(address[0]), port
