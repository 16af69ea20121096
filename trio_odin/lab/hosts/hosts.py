"""The three hosts of a lab, either namespaces or this machine's loopback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from trio_odin.lab.hosts.processes import marked

HOST_NAMES = ("ws", "backend", "runner")
LINK = "eth0"  # a namespace's only interface beside its loopback


class HostsUnavailable(Exception):
    """The hosts cannot be made or cleaned up; the message is a sentence with a remedy."""


@attrs.frozen
class Host:
    """One of the lab's machines.

    Args:
        name: one of `HOST_NAMES`, or the switch between them.
        address: IPv4, as text.
        namespace: the file of its network namespace; None: it is this machine.
        prefix: of the lab; its processes are marked with it.
    """

    name: str
    address: str
    namespace: Path | None = None
    prefix: str = "odin"

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on this host, under the same process id.

        It does not use `ip netns exec`, which mounts another /sys without the cgroups.
        """
        enter = [] if self.namespace is None else ["nsenter", f"--net={self.namespace}"]
        return marked(self.prefix, [*enter, *argv])


@attrs.frozen(kw_only=True)
class Hosts:
    """All three hosts. `isolation` describes the separation in sentences for a report."""

    ws: Host
    backend: Host
    runner: Host
    isolation: list[str]
