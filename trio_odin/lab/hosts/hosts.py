"""What a lab runs on: three hosts, whether they are namespaces or all this machine's loopback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from trio_odin.lab.hosts.processes import marked

HOST_NAMES = ("ws", "backend", "runner")
LINK = "eth0"  # a namespace's only interface beside its loopback


class HostsUnavailable(Exception):
    """The hosts cannot be made, or not be cleaned up; the message is a sentence with a way out."""


@attrs.frozen
class Host:
    """One of the lab's machines.

    Args:
        name: one of `HOST_NAMES`.
        address: IPv4, as text.
        namespace: the file of its network namespace; None: it is this machine.
        prefix: of the lab; what runs here is marked with it.
    """

    name: str
    address: str
    namespace: Path | None = None
    prefix: str = "odin"

    def command(self, argv: Sequence[str]) -> list[str]:
        """The words that run `argv` on this host; it keeps the process id it is started with.

        Not by `ip netns exec`: that mounts another /sys, and the cgroups are gone.
        """
        enter = [] if self.namespace is None else ["nsenter", f"--net={self.namespace}"]
        return marked(self.prefix, [*enter, *argv])


@attrs.frozen(kw_only=True)
class Hosts:
    """All three. `isolation` says in sentences, for a report, how each part is separated."""

    ws: Host
    backend: Host
    runner: Host
    isolation: list[str]
