"""Three hosts as network namespaces, on a bridge in a fourth.

Every link is made inside the namespaces and none is moved into them, so the machine's own network
never changes, not even for a moment.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from trio_odin.lab.hosts.controllers import CGROUP_ROOT, remove_cgroups
from trio_odin.lab.hosts.hosts import HOST_NAMES, LINK, Host, Hosts, HostsUnavailable
from trio_odin.lab.hosts.lock import lab_lock, sharing
from trio_odin.lab.hosts.processes import Belongs, end_processes, is_marked
from trio_odin.lab.hosts.run import run
from trio_odin.lab.hosts.teardown import to_the_end

_FOLDER = Path("/run/netns")
_TEARDOWN_SECONDS = 30.0
_ADDRESSES = {name: f"10.77.0.{11 + place}" for place, name in enumerate(HOST_NAMES)}
_PREFIX_BITS = 24
_SOURCE_PORTS = (1024, 65535)
_WAY_OUT = "--no-isolation runs the same on loopback"
_PACKAGES = {"ip": "iproute2", "nsenter": "util-linux"}


@asynccontextmanager
async def isolated_hosts(prefix: str = "odin", way_out: str = _WAY_OUT) -> AsyncIterator[Hosts]:
    """Three hosts, 10.77.0.11 to 13, each in its own network namespace.

    However the block ends, even by an error or a cancellation, processes that are still in the
    namespaces are ended (SIGTERM, then SIGKILL) and the namespaces are removed, within 30 seconds.
    `down` removes the leftovers of a killed lab.

    Args:
        prefix: of the names of the namespaces.
        way_out: how to do without namespaces; a part of the message if they cannot be made.

    Raises:
        HostsUnavailable: not Linux, not root, a tool is missing, the kernel refuses, another lab
            is running or has left something, or something could not be removed.
        ValueError: `prefix` is not allowed.
    """
    _require_means(way_out)
    with lab_lock(prefix):
        if left := _existing(prefix):
            raise HostsUnavailable(
                f"there are leftovers of another lab ({', '.join(left)}): "
                "`trio-odin lab down` removes them"
            )
        try:
            notes = await _build(prefix, way_out) + sharing(prefix)
            yield hosts_of(prefix, notes)
        finally:
            await to_the_end(partial(_remove_namespaces, prefix), _TEARDOWN_SECONDS)


async def down(prefix: str = "odin", *, cgroup_root: Path = CGROUP_ROOT) -> list[str]:
    """Remove the leftovers of a killed lab of that prefix: processes, namespaces, cgroups.

    Returns a sentence for each removed thing, so the list may be empty. Cancellation leaves the
    rest for the next call.

    A user other than root can leave only processes, and only the user's own ones are ended.

    Raises:
        HostsUnavailable: a lab is running, a tool is missing, or something could not be removed.
        ValueError: `prefix` is not allowed.
    """
    removed = []
    with lab_lock(prefix):
        if ended := await end_processes(is_marked(prefix)):
            removed.append(f"ended {ended} {'process' if ended == 1 else 'processes'} of the lab")
        if os.geteuid() == 0:
            _require_means()
            removed += await _remove_namespaces(prefix)
            removed += await remove_cgroups(prefix, root=cgroup_root)
    return removed


def _require_means(way_out: str = _WAY_OUT) -> None:
    if not sys.platform.startswith("linux"):
        raise HostsUnavailable(f"network namespaces need Linux: {way_out}")
    if os.geteuid() != 0:
        raise HostsUnavailable(f"network namespaces need root: sudo, or {way_out}")
    for program, package in _PACKAGES.items():
        if shutil.which(program) is None:
            raise HostsUnavailable(
                f"network namespaces need `{program}` (package {package}, such as "
                f"apt-get install {package}); {way_out}"
            )


def _names(prefix: str) -> list[str]:
    """The names of all namespaces of a lab; no others are ever removed."""
    return [f"{prefix}-{name}" for name in (*HOST_NAMES, "switch")]


def _existing(prefix: str) -> list[str]:
    return [name for name in _names(prefix) if (_FOLDER / name).exists()]


def hosts_of(prefix: str, notes: Sequence[str] = ()) -> Hosts:
    """The hosts of that prefix, which need not exist yet; `notes` become a part of `isolation`."""
    ws, backend, runner = (
        Host(name, address, _FOLDER / f"{prefix}-{name}", prefix)
        for name, address in _ADDRESSES.items()
    )
    parts = ", ".join(f"{name} {address}" for name, address in _ADDRESSES.items())
    apart = (
        f"each host is a network namespace with its own address ({parts}), "
        "joined by a bridge in a fourth"
    )
    together = "they share this machine's kernel, CPUs and memory"
    return Hosts(ws=ws, backend=backend, runner=runner, isolation=[apart, together, *notes])


async def _build(prefix: str, way_out: str) -> list[str]:
    """Make the namespaces; returns a sentence about each thing that could not be changed."""
    for command in _building(prefix):
        done = await run(command)
        if not done.is_fine:
            raise HostsUnavailable(f"`{' '.join(command)}` says: {done.complaint}; {way_out}")
    return [*await _widen_source_ports(prefix), *await _switch_off_filters(prefix)]


def _building(prefix: str) -> list[list[str]]:
    """The commands that make the namespaces and join them, in order."""
    in_switch = f"ip -n {prefix}-switch link"
    lines = [f"ip netns add {name}" for name in _names(prefix)]
    lines += [f"{in_switch} add br0 type bridge forward_delay 0", f"{in_switch} set br0 up"]
    for name, address in _ADDRESSES.items():
        here, port = f"ip -n {prefix}-{name}", f"to-{name}"
        lines += [
            f"{in_switch} add {port} type veth peer name {LINK} netns {prefix}-{name}",
            f"{in_switch} set {port} master br0 up",
            f"{here} link set lo up",
            f"{here} addr add {address}/{_PREFIX_BITS} dev {LINK}",
            f"{here} link set {LINK} up",
        ]
    return [line.split() for line in lines]


async def _widen_source_ports(prefix: str) -> list[str]:
    """Let the runner, which opens all the connections, use every possible source port."""
    first, last = _SOURCE_PORTS
    write = f"echo {first} {last} > /proc/sys/net/ipv4/ip_local_port_range"
    runner = hosts_of(prefix).runner
    done = await run(runner.command(["sh", "-c", write]))
    if done.is_fine:
        return []
    return [f"the runner's source ports are as this machine has them: {done.complaint}"]


async def _switch_off_filters(prefix: str) -> list[str]:
    """Keep frames on the bridge from the hooks of the firewall, as a switch has none.

    They are in force where some program, such as a container engine, has loaded br_netfilter, and
    the sender of a frame pays for them.
    """
    hooks = "/proc/sys/net/bridge/bridge-nf-call-*"
    write = f"for hook in {hooks}; do [ ! -e $hook ] || echo 0 > $hook; done"
    switch = Host("switch", "", namespace=_FOLDER / f"{prefix}-switch", prefix=prefix)
    done = await run(switch.command(["sh", "-ec", write]))
    if done.is_fine:
        return []
    return [f"frames on the bridge pass this machine's firewall: {done.complaint}"]


async def _remove_namespaces(prefix: str) -> list[str]:
    """End the processes in the namespaces and remove them; returns a sentence for each."""
    removed: list[str] = []
    refusals: list[str] = []
    left = _existing(prefix)
    if ended := await end_processes(_inside(left)):
        removed.append(f"ended {ended} {'process' if ended == 1 else 'processes'} in namespaces")
    for name in left:
        done = await run(["ip", "netns", "del", name])
        if done.is_fine:
            removed.append(f"removed the network namespace {name}")
        else:  # the others can be removed nevertheless
            refusals.append(f"the network namespace {name} cannot be removed: {done.complaint}")
    if refusals:
        raise HostsUnavailable("; ".join(refusals))
    return removed


def _inside(names: list[str]) -> Belongs:
    """A test whether a process is in one of these namespaces.

    A name that leads to this machine's own namespace does not count: by it every process of the
    machine would belong to the lab.
    """
    own = {_identity(Path("/proc") / who / "ns/net") for who in ("self", "1")}
    ours = {_identity(_FOLDER / name) for name in names} - own - {None}
    return partial(_is_in, ours)


def _is_in(namespaces: set[tuple[int, int] | None], pid: int) -> bool:
    return _identity(Path(f"/proc/{pid}/ns/net")) in namespaces


def _identity(namespace: Path) -> tuple[int, int] | None:
    """The identity of a namespace; None if there is none at that path."""
    try:
        found = namespace.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
