"""A bench over the lab's bridge: its commands, and the whole of it where namespaces are allowed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.hosts.rig import PREFIX, leftovers, needs_namespaces
from tests.lab.interrupting import interrupt
from trio_odin.lab.bench.bridge import command_again, over_bridge, run_on_runner
from trio_odin.lab.bench.plan import BenchPlan
from trio_odin.lab.bench.targets import TARGETS, Place, Target, command_at, ours
from trio_odin.lab.hosts.hosts import HostsUnavailable
from trio_odin.lab.hosts.namespaces import hosts_of

BENCH = [sys.executable, "-m", "trio_odin", "bench", "--quick", "--connections", "50"]
BRIDGE = ["--bridge", "--prefix", PREFIX]


def entering(name: str) -> list[str]:
    return ["env", "TRIO_ODIN_LAB=odin", "nsenter", f"--net=/run/netns/odin-{name}"]


def test_the_command_runs_again_on_the_runner_with_the_same_arguments() -> None:
    again = command_again(hosts_of("odin"), ["bench", "--bridge", "--seed", "7"])
    program = [sys.executable, "-m", "trio_odin", "bench", "--bridge", "--seed", "7"]
    assert again == [*entering("runner"), *program, "--on-runner"]


def test_over_the_bridge_server_and_broker_have_a_host_each() -> None:
    plan = over_bridge(BenchPlan(targets=TARGETS, rate=7.0), hosts_of("odin"))
    assert (plan.network, plan.rate, plan.targets) == ("bridge", 7.0, TARGETS)
    assert (plan.server_at.address, plan.broker_at.address) == ("10.77.0.11", "10.77.0.12")
    assert plan.server_at.within(["a", "b c"]) == [*entering("ws"), "a", "b c"]
    assert plan.broker_at.within(["a"]) == [*entering("backend"), "a"]


def test_a_target_listens_on_the_address_of_its_place() -> None:
    options = ["--addr", "10.77.0.11:0", "--nats", "nats://10.77.0.12:4222"]
    place = over_bridge(BenchPlan(targets=[]), hosts_of("odin")).server_at
    command = command_at(place, ["server", "-x"], options[-1])
    assert command == [*entering("ws"), "server", "-x", *options]


@pytest.mark.parametrize("target", [one for one in (*TARGETS, ours(3)) if one.command])
def test_without_the_bridge_a_target_is_started_here_on_loopback(target: Target) -> None:
    assert target.command is not None
    command = command_at(Place(), target.command, "nats://n:1")
    assert command == [*target.command, "--addr", "127.0.0.1:0", "--nats", "nats://n:1"]


async def test_without_root_a_sentence_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostsUnavailable, match="root: sudo, or without --bridge the bench runs on"):
        await run_on_runner(PREFIX, ["bench"])


@needs_namespaces
@pytest.mark.e2e
@pytest.mark.slow
def test_a_bench_over_the_bridge_receives_every_event_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [*BENCH, "--targets", "odin", *BRIDGE, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "network: bridge" in done.stdout
    (report,) = json.loads(file.read_bytes())
    assert report["network"] == "bridge"
    (target,) = report["targets"]
    assert (target["failure"], target["storm"]["connected"]) == (None, 50)
    for stage in target["stages"]:
        assert stage["received"] == stage["expected"] > 0
        assert stage["cores"] > 0
    assert leftovers() == []


@needs_namespaces
@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_process_and_removes_the_hosts(number: signal.Signals) -> None:
    command = [*BENCH, "--targets", "odin", "--hold", "60", *BRIDGE]
    ended = interrupt(command, at=": W: ", number=number)
    assert ended.children == 4  # the bench on the runner, nats-server, the server, the clients
    assert (ended.returncode, ended.left) == (130, 0)
    assert "network: bridge" in " ".join(ended.output.split())
    assert "Traceback" not in ended.output + ended.errors
    assert leftovers() == []
