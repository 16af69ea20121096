"""What this machine allows: open files and source ports."""

from __future__ import annotations

import resource
from pathlib import Path

from trio_odin.lab.load.plan import LoadImpossible

_SPARE_FILES = 64


def require_files(connections: int) -> None:
    """Make sure that so many sockets can be open at once; raises the soft limit to the hard one.

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
    """Make sure that so many connections to one address have source ports.

    Raises:
        LoadImpossible: they have not.
    """
    try:
        first, last = map(int, _PORT_RANGE.read_text().split())
    except (OSError, ValueError):  # not Linux: then the kernel has to say it
        return
    ports = last - first + 1
    if connections > ports:
        raise LoadImpossible(
            f"{connections:,} connections to one address need as many source ports and there are "
            f"{ports:,}: ask for at most {ports:,}, or widen net.ipv4.ip_local_port_range"
        )
