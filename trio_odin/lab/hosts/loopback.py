"""The same hosts without isolation: all three are 127.0.0.1 of this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from trio_odin.lab.hosts.hosts import Host, Hosts
from trio_odin.lab.hosts.lock import lab_lock, sharing
from trio_odin.lab.hosts.processes import end_processes, is_marked
from trio_odin.lab.hosts.teardown import to_the_end

_TEARDOWN_SECONDS = 20.0
_ADDRESS = "127.0.0.1"
_ISOLATION = [
    "not isolated: ws, backend and runner share this machine's loopback, 127.0.0.1, and its ports",
    "they share its kernel, CPUs and memory too",
]


@asynccontextmanager
async def loopback_hosts(prefix: str = "odin") -> AsyncIterator[Hosts]:
    """Three hosts that are this machine; needs no privileges.

    However the block ends, processes of this lab that still run are ended. `down` removes the
    leftovers of a killed lab.

    Raises:
        HostsUnavailable: another lab of that prefix is running.
    """
    with lab_lock(prefix):
        try:
            yield Hosts(
                ws=Host("ws", _ADDRESS, prefix=prefix),
                backend=Host("backend", _ADDRESS, prefix=prefix),
                runner=Host("runner", _ADDRESS, prefix=prefix),
                isolation=[*_ISOLATION, *sharing(prefix)],
            )
        finally:
            await to_the_end(partial(end_processes, is_marked(prefix)), _TEARDOWN_SECONDS)
