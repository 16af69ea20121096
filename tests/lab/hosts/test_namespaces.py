from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.lab.hosts.rig import (
    PREFIX,
    ended,
    first_line,
    hear_hello,
    leftovers,
    needs_namespaces,
    serve_hello,
    start,
)
from trio_odin.lab.hosts import namespaces
from trio_odin.lab.hosts.hosts import Host, HostsUnavailable
from trio_odin.lab.hosts.namespaces import down, isolated_hosts
from trio_odin.lab.hosts.run import Finished, run

_HOOK = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


def test_every_link_is_made_inside_the_namespaces() -> None:
    commands = namespaces._building("odin")

    assert all(
        command[:3] == ["ip", "netns", "add"] or command[:2] == ["ip", "-n"] for command in commands
    )
    assert {word for command in commands for word in command if word.startswith("odin-")} == {
        "odin-ws",
        "odin-backend",
        "odin-runner",
        "odin-switch",
    }


async def test_without_root_the_error_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostsUnavailable, match="need root: sudo, or --no-isolation runs the same"):
        await isolated_hosts(PREFIX).__aenter__()


@pytest.mark.parametrize(("program", "package"), [("ip", "iproute2"), ("nsenter", "util-linux")])
async def test_a_missing_tool_is_named_with_its_package(
    program: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == program else f"/{name}")
    with pytest.raises(HostsUnavailable, match=rf"`{program}` .*apt-get install {package}.*--no-"):
        await down(PREFIX)


async def test_on_other_systems_the_error_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(HostsUnavailable, match="need Linux: --no-isolation"):
        await down(PREFIX)


async def _machine() -> list[str]:
    """The network of this machine, as its tools show it."""
    shown = []
    for line in ("ip -o link", "ip -o addr", "ip route show table all", "nft list ruleset"):
        # The rest of a lease's time runs and is unrelated, too.
        words = (await run(line.split())).output.split()
        shown.append(" ".join(word for word in words if not word.endswith("sec")))
    return [*shown, await trio.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()]


async def _set_up_and_fail() -> Host:
    async with isolated_hosts(PREFIX) as hosts:
        raise _Injected(hosts.ws)


class _Injected(Exception):
    pass


@needs_namespaces
async def test_the_hosts_talk_to_each_other_and_the_machine_does_not_change(
    nursery: trio.Nursery,
) -> None:
    before = await _machine()
    async with isolated_hosts(PREFIX) as hosts, trio.open_nursery() as servers:
        await serve_hello(hosts.ws, servers)

        for host in (hosts.runner, hosts.backend):
            heard = await hear_hello(host, hosts.ws.address)
            assert heard.output.startswith(f"hello {host.address} ")

        assert not (await hear_hello(hosts.runner, "127.0.0.1")).is_fine
        assert await _machine() == before
        assert "10.77.0.11" in hosts.isolation[0]
        servers.cancel_scope.cancel()
    assert leftovers() == []
    assert await _machine() == before


@needs_namespaces
async def test_the_runner_can_use_nearly_all_source_ports() -> None:
    show = ["cat", "/proc/sys/net/ipv4/ip_local_port_range"]
    async with isolated_hosts(PREFIX) as hosts:
        assert (await run(hosts.runner.command(show))).output.split() == ["1024", "65535"]


@needs_namespaces
@pytest.mark.skipif(not _HOOK.exists(), reason="br_netfilter is not loaded")
async def test_no_frame_on_the_bridge_passes_the_firewall() -> None:
    on_this_machine = await trio.Path(_HOOK).read_text()
    async with isolated_hosts(PREFIX):
        shown = await run(["ip", "netns", "exec", f"{PREFIX}-switch", "cat", str(_HOOK)])
        assert shown.output.split() == ["0"]
    assert await trio.Path(_HOOK).read_text() == on_this_machine


@needs_namespaces
async def test_an_error_in_the_block_leaves_nothing_twice_in_a_row() -> None:
    for _ in range(2):
        with pytest.raises(_Injected):
            await _set_up_and_fail()
        assert leftovers() == []


@needs_namespaces
@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.03, 0.06, 0.3])
async def test_a_cancellation_at_any_time_leaves_nothing(seconds: float) -> None:
    with trio.move_on_after(seconds) as scope:
        async with isolated_hosts(PREFIX):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert leftovers() == []


@needs_namespaces
async def test_only_processes_left_in_a_namespace_are_ended() -> None:
    with start(["sleep", "60"]) as outside:
        async with isolated_hosts(PREFIX) as hosts:
            inside = start(hosts.ws.command(["sh", "-c", "echo there; exec sleep 60"]))
            await first_line(inside)
        assert ended(inside) == -signal.SIGTERM
        assert outside.poll() is None
        outside.kill()


@needs_namespaces
async def test_a_running_lab_is_neither_started_twice_nor_taken_down() -> None:
    async with isolated_hosts(PREFIX) as hosts:
        for again in (isolated_hosts(PREFIX).__aenter__, lambda: down(PREFIX)):
            with pytest.raises(HostsUnavailable, match=r"another lab .* is running"):
                await again()
        assert (await run(hosts.ws.command(["true"]))).is_fine


@needs_namespaces
async def test_a_name_of_the_machines_own_namespace_ends_no_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / f"{PREFIX}-ws").symlink_to("/proc/self/ns/net")
    monkeypatch.setattr(namespaces, "_FOLDER", tmp_path)
    belongs = namespaces._inside([f"{PREFIX}-ws"])
    assert not belongs(os.getpid())
    assert not belongs(1)


@needs_namespaces
async def test_a_refusal_of_the_kernel_is_quoted_and_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = namespaces._building(PREFIX)
    bad = f"ip -n {PREFIX}-ws link add eth9 type nonsense".split()
    monkeypatch.setattr(namespaces, "_building", lambda prefix: [*good, bad])
    with pytest.raises(HostsUnavailable, match=r"type nonsense` says: .*; --no-isolation"):
        await isolated_hosts(PREFIX).__aenter__()
    assert leftovers() == []


@needs_namespaces
async def test_a_namespace_that_cannot_be_removed_is_named() -> None:
    async def refuse_one(argv: Sequence[str]) -> Finished:
        if argv[-2:] == ["del", f"{PREFIX}-ws"]:
            return Finished(1, complaint="busy")
        return await run(argv)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(namespaces, "run", refuse_one)
        with pytest.raises(HostsUnavailable, match=f"{PREFIX}-ws cannot be removed: busy"):
            async with isolated_hosts(PREFIX):
                pass
    assert leftovers() == [f"/run/netns/{PREFIX}-ws"]
    assert await down(PREFIX) == [f"removed the network namespace {PREFIX}-ws"]


_LAB = """
import subprocess, sys, trio
from trio_odin.lab.hosts.cgroup import server_limits
from trio_odin.lab.hosts.namespaces import isolated_hosts

async def lab(prefix):
    limits = server_limits(f"{prefix}-ws", cpu_cores=1, memory_mib=64)
    async with isolated_hosts(prefix) as hosts, limits as machine:
        server = machine.command(["sh", "-c", "echo ready; exec sleep 60"])
        subprocess.Popen(hosts.ws.command(server), start_new_session=True)
        await trio.sleep_forever()

trio.run(lab, sys.argv[1])
"""


@asynccontextmanager
async def _lab_process() -> AsyncIterator[subprocess.Popen[bytes]]:
    """A lab in its own process, with a server that outlives it."""
    with start([sys.executable, "-c", _LAB, PREFIX]) as process:
        try:
            await first_line(process)
            yield process
        finally:
            process.kill()


@needs_namespaces
async def test_after_a_kill_down_removes_the_leftovers_once() -> None:
    async with _lab_process() as lab:
        lab.kill()
        await trio.to_thread.run_sync(lab.wait)
    with pytest.raises(HostsUnavailable, match=r"leftovers of another lab .*`trio-odin lab down`"):
        await isolated_hosts(PREFIX).__aenter__()

    removed = await down(PREFIX)

    assert removed[0] == "ended 1 process of the lab"
    assert f"removed the network namespace {PREFIX}-switch" in removed
    assert leftovers() == []
    assert await down(PREFIX) == []
    async with isolated_hosts(PREFIX):
        pass


@needs_namespaces
async def test_a_second_ctrl_c_does_not_stop_the_teardown() -> None:
    async with _lab_process() as lab:
        lab.send_signal(signal.SIGINT)
        for _ in range(3):
            await trio.sleep(0.01)
            lab.send_signal(signal.SIGINT)
        assert await trio.to_thread.run_sync(lab.wait, 10) != 0
    assert leftovers() == []
