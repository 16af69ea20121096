"""The limits of this machine: open files and source ports."""

from __future__ import annotations

import resource
import socket
from pathlib import Path

_SPARE_FILES = 64


class LoadImpossible(Exception):
    """The load cannot be started from here. The message is one sentence with a remedy."""


def require_files(connections: int) -> None:
    """Ensure that so many sockets can be open; raises the soft limit to the hard one.

    Raises:
        LoadImpossible: the hard limit on open files is too low.
    """
    needed = connections + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise LoadImpossible(
            f"{connections:,} connections need {needed:,} open files and this process may have "
            f"{hard:,}: raise the hard limit (ulimit -Hn {needed}) "
            f"or ask for at most {max(0, hard - _SPARE_FILES):,} connections"
        )


_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def require_ports(connections: int) -> None:
    """Ensure that there are source ports for so many connections to one address.

    Raises:
        LoadImpossible: there are too few.
    """
    try:
        first, last = map(int, _PORT_RANGE.read_text().split())
    except (OSError, ValueError):  # not Linux: the kernel will report it
        return
    ports = last - first + 1
    if connections > ports:
        raise LoadImpossible(
            f"{connections:,} connections to one address need as many source ports and there are "
            f"{ports:,}: ask for at most {ports:,}, or widen net.ipv4.ip_local_port_range"
        )


FLEET_MAX = 18_000
"""Connections of one process: it may have 20,000 files open at least."""


def sources_towards(host: str, family: int, count: int) -> list[str]:
    """Addresses to connect from, each with its own source ports.

    On loopback there are `count` addresses, all in 127.0.0.0/8; elsewhere those of the interface
    that leads to `host`, if it has several. A single empty one leaves the choice to the kernel.
    """
    if host.startswith("127."):
        return [f"127.0.0.{1 + number}" for number in range(min(count, 250))]
    if family != socket.AF_INET:
        return [""]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing, only asks for the route
        except OSError:
            return [""]
        own = probe.getsockname()[0]
    return _beside(own)


def _beside(own: str) -> list[str]:
    """All addresses of the interface of `own`."""
    import psutil  # noqa: PLC0415 - of an extra

    for addresses in psutil.net_if_addrs().values():
        found = [address.address for address in addresses if address.family == socket.AF_INET]
        if own in found and len(found) > 1:
            return found
    return [""]
