"""ops/systemd: read, checked by systemd's own tools, and run under a real systemd."""

from __future__ import annotations

import json
import re
import signal
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ops import systemd
from tests.ops.conftest import OPS
from tests.ops.systemd import Machine
from tests.ops.tools import run, tool
from tests.waiting import until
from trio_odin.cli import main
from trio_odin.demo.nats_server import find_nats_server
from trio_odin.lab.capacity.stages import SERVER_CORES, SERVER_FILES, SERVER_MIB
from trio_odin.overload.process import files_needed
from trio_odin.settings.reading import read_settings, warnings_about
from trio_odin.workers.supervisor import _DRAIN_EXTRA_SECONDS

UNIT = OPS / "systemd" / "trio-odin.service"
EXAMPLE = OPS / "systemd" / "settings.env.example"
# What `systemd-analyze security` of systemd 252 says; less is better.
EXPOSURE_MAX = 1.4
_SECONDS = 60.0


def unit() -> dict[str, list[str]]:
    entries = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            entries[name].append(value)
    return entries


def settings() -> dict[str, str]:
    lines = EXAMPLE.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_it_starts_the_server_with_a_command_that_exists() -> None:
    (command,) = unit()["ExecStart"]
    program, name = command.split()
    assert Path(program).name == "trio-odin"
    assert name in main.commands


def test_a_drain_ends_before_systemd_loses_its_patience() -> None:
    drain = read_settings({}).drain_seconds + _DRAIN_EXTRA_SECONDS
    assert int(unit()["TimeoutStopSec"][0]) > drain
    assert unit()["KillMode"] == ["mixed"]


def test_systemd_loses_its_patience_after_the_server_itself() -> None:
    assert (unit()["Type"], unit()["NotifyAccess"]) == (["notify"], ["main"])
    assert int(unit()["WatchdogSec"][0]) > read_settings({}).watchdog_seconds


def test_the_limits_are_those_of_the_plan_and_enough_for_the_example() -> None:
    assert unit()["CPUQuota"] == [f"{SERVER_CORES * 100:g}%"]
    assert unit()["MemoryMax"] == [f"{SERVER_MIB}M"]
    assert unit()["LimitNOFILE"] == [str(SERVER_FILES)]
    assert files_needed(int(settings()["WS_MAX_CONNECTIONS"]), 1) < SERVER_FILES


def test_the_example_of_the_settings_is_read_without_a_complaint() -> None:
    assert list(warnings_about(read_settings(settings()), settings())) == []
    assert read_settings(settings()) != read_settings({})


def test_every_directive_is_known_to_systemd(tmp_path: Path) -> None:
    # The program it starts is not installed here.
    known = tmp_path / UNIT.name
    known.write_text(re.sub(r"(?m)^(ExecStart=)\S+", r"\1/bin/true", UNIT.read_text()))
    verified = run(tool("systemd-analyze"), "verify", known)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_it_is_as_closed_as_when_it_was_last_looked_at() -> None:
    judged = run(tool("systemd-analyze"), "security", "--offline=true", "--no-pager", UNIT)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", judged.stdout)
    assert found is not None, judged.stderr
    assert float(found[1]) <= EXPOSURE_MAX


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the unit needs, below a folder; with two workers."""
    if (reason := systemd.why_not()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("trio-odin-systemd-")
    systemd.install(folder, EXAMPLE.read_text().replace("WS_WORKERS=1", "WS_WORKERS=2"))
    return folder


@pytest.fixture
def machine(installed: Path) -> Iterator[Machine]:
    """A machine with NATS and the unit started and ready."""
    with systemd.booted(installed) as machine:
        nats = machine.started(find_nats_server(), "-js", "-sd", "/run/nats", "-a", "127.0.0.1")
        with nats:
            start(machine)
            yield machine
            nats.kill()


def start(machine: Machine) -> None:
    assert machine.run("systemctl", "start", "trio-odin") == ""
    wait_ready(machine)


def wait_ready(machine: Machine) -> None:
    until(lambda: '"ready":true' in machine.page("/ready"), what="it is ready", seconds=_SECONDS)
    until_metric(machine, "ws_workers_alive", 2)


def until_metric(machine: Machine, name: str, value: float) -> None:
    until(lambda: machine.metric(name) == value, what=f"{name} is {value:g}", seconds=_SECONDS)


@pytest.mark.ops
def test_it_serves_as_nobody_within_the_limits(machine: Machine) -> None:
    status = machine.read(f"proc/{machine.show('MainPID')}/status")
    facts = dict(re.findall(r"(?m)^(\w+):\t(.*)$", status))
    assert facts["Uid"].split()[0] not in {"0", "65534"}
    assert (facts["NoNewPrivs"], facts["Seccomp"], int(facts["CapBnd"], 16)) == ("1", "2", 0)
    assert machine.metric("ws_memory_limit_bytes") == SERVER_MIB * 2**20
    health = json.loads(machine.page("/health"))
    assert health["healthy"], health
    quota = f"/sys/fs/cgroup/cpu{machine.show('ControlGroup')}/cpu.cfs_quota_us"
    assert machine.run("cat", quota) == str(round(SERVER_CORES * 100_000))


@pytest.mark.ops
def test_a_reload_takes_on_the_file_and_a_roll_replaces_the_workers(machine: Machine) -> None:
    main_pid = machine.show("MainPID")
    edit = "s/^WS_MAX_CONNECTIONS=.*/WS_MAX_CONNECTIONS=9000/"
    machine.run("sed", "-i", edit, "/etc/trio-odin/settings.env")
    assert machine.run("systemctl", "reload", "trio-odin") == ""
    until_metric(machine, "ws_capacity_max_connections", 9000)
    machine.run("systemctl", "kill", "--signal=SIGUSR2", "--kill-whom=main", "trio-odin")
    until_metric(machine, "ws_worker_rollings_total", 2)
    wait_ready(machine)
    assert machine.show("MainPID") == main_pid
    assert machine.show("NRestarts") == "0"


@contextmanager
def clients(machine: Machine, number: int) -> Iterator[list[str]]:
    """Hold connections from inside; afterwards how each of them was closed."""
    closed: list[str] = []
    program = Path(__file__).with_name("hold.py")
    with machine.started(tool("python"), program, "ws://127.0.0.1:3004/ws", str(number)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield closed
        closed += process.communicate(timeout=60)[0].split()


@pytest.mark.ops
def test_a_stop_sends_every_client_away_in_order(machine: Machine) -> None:
    with clients(machine, 200) as closed:
        assert machine.run("systemctl", "stop", "trio-odin") == ""
    assert closed == ["1001"] * 200
    assert (machine.show("Result"), machine.show("ExecMainStatus")) == ("success", "0")


@pytest.mark.ops
def test_a_crash_is_followed_by_a_start_and_a_lost_worker_is_not(machine: Machine) -> None:
    machine.run("pkill", "-KILL", "--oldest", "--full", "as-worker")
    until_metric(machine, "ws_worker_restarts_total", 1)
    assert machine.show("NRestarts") == "0"
    machine.run("systemctl", "kill", f"--signal={signal.SIGKILL}", "--kill-whom=main", "trio-odin")
    until(lambda: machine.show("NRestarts") == "1", what="it was restarted", seconds=_SECONDS)
    wait_ready(machine)


@pytest.mark.ops
def test_one_that_hangs_is_started_again(machine: Machine) -> None:
    main_pid = machine.show("MainPID")
    machine.run("systemctl", "kill", f"--signal={signal.SIGSTOP}", "--kill-whom=main", "trio-odin")
    until(
        lambda: machine.show("NRestarts") == "1",
        what="systemd has lost its patience",
        seconds=2 * _SECONDS,
    )
    wait_ready(machine)
    assert machine.show("MainPID") != main_pid


@pytest.mark.ops
def test_a_wrong_setting_is_said_once_and_not_tried_again(machine: Machine) -> None:
    machine.run("systemctl", "stop", "trio-odin")
    edit = "s/^WS_MAX_CONNECTIONS=.*/WS_MAX_CONNECTIONS=many/"
    machine.run("sed", "-i", edit, "/etc/trio-odin/settings.env")
    try:
        machine.run("systemctl", "start", "trio-odin")
        until(
            lambda: machine.show("ActiveState") == "failed",
            what="systemd gives it up",
            seconds=_SECONDS,
        )
        assert (machine.show("NRestarts"), machine.show("ExecMainStatus")) == ("0", "2")
        assert "WS_MAX_CONNECTIONS='many': allowed is" in machine.log
    finally:
        machine.run("sed", "-i", edit.replace("many", "10000"), "/etc/trio-odin/settings.env")
