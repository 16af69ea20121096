"""A bench over the lab's bridge: its hosts are network namespaces, joined by veth pairs.

The hosts cannot be reached from this machine's own network, so the bench runs on one of them:

run_on_runner()             in this machine's network: makes the hosts, and removes them
└── the same command        on runner: the clients and the publisher
    ├── nats-server         on backend; on ws if it is the target
    └── target              on ws
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence

import attrs
import trio

from trio_odin.lab.bench.plan import BenchPlan
from trio_odin.lab.bench.targets import Place
from trio_odin.lab.hosts.hosts import Host, Hosts
from trio_odin.lab.hosts.namespaces import isolated_hosts
from trio_odin.signals import end_signals

ON_RUNNER = "--on-runner"
"""The option of the command that runs on the runner."""

_WAY_OUT = "without --bridge the bench runs on loopback"


async def run_on_runner(prefix: str, arguments: Sequence[str]) -> int:
    """Run the command again on the runner of new hosts, with our standard streams.

    A signal that ends us ends it in order, so that it still reports; a second one ends it at once.

    Args:
        prefix: of the names of the namespaces.
        arguments: of our command line.

    Returns:
        Its exit code, when it has ended and the hosts are removed.

    Raises:
        HostsUnavailable: the hosts cannot be made or removed.
    """
    with end_signals() as signals:
        async with isolated_hosts(prefix, _WAY_OUT) as hosts:
            # In its own session: a Ctrl-C in the terminal reaches us only, and we stop it.
            process = await trio.lowlevel.open_process(
                command_again(hosts, arguments), start_new_session=True
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_at_signal, signals, process, nursery.cancel_scope)
                await process.wait()
                nursery.cancel_scope.cancel(reason="it has ended")
        # The removal of the hosts has ended it, if a second signal has cancelled the wait.
        code = await process.wait()
    return code if code >= 0 else 128 - code


def command_again(hosts: Hosts, arguments: Sequence[str]) -> list[str]:
    """The command line that runs `trio-odin` with `arguments` on the runner."""
    return hosts.runner.command([sys.executable, "-m", "trio_odin", *arguments, ON_RUNNER])


async def _end_at_signal(
    signals: AsyncIterator[int], process: trio.Process, wait: trio.CancelScope
) -> None:
    await anext(signals)
    process.terminate()
    await anext(signals)
    wait.cancel(reason="a second signal")


def over_bridge(plan: BenchPlan, hosts: Hosts) -> BenchPlan:
    """The same plan for a process on the runner."""
    return attrs.evolve(
        plan,
        network="bridge",
        server_at=_place(hosts.ws),
        broker_at=_place(hosts.backend),
    )


def _place(host: Host) -> Place:
    return Place(host.address, host.command)
