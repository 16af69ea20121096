"""The lab with real programs: small on loopback, stages 1 and 2 in full on isolated hosts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import attrs
import psutil
import pytest

from tests.lab.hosts.rig import needs_ip_if_root
from tests.lab.interrupting import interrupt
from trio_odin.lab.capacity.runner import LabPlan, Told, run_lab
from trio_odin.lab.capacity.stages import SERVER_SETTINGS, Stage, stage_of
from trio_odin.lab.hosts.lock import lab_lock
from trio_odin.lab.load.criteria import INTEGRITY, at_least, at_most
from trio_odin.lab.provenance import changed_settings
from trio_odin.lab.report.folder import read_verdict
from trio_odin.lab.verdict import LabResult, StageResult

# Unique to this run: neither a real lab nor another test run interferes.
PREFIX = f"odinl{os.getpid()}"
LAB = [sys.executable, "-m", "trio_odin", "lab"]
SHORT = ["--stages", "1,2", "--idle", "1"]
SMALL = Stage(
    number=2,
    title="small",
    connections=50,
    rate=50.0,
    hold_seconds=3.0,
    criteria=(at_least("success", 1.0), at_most("memory", 500), *INTEGRITY),
)
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None,
    reason="namespaces need root, iproute2 and util-linux",
)


class Kept(Told):
    """A listener that keeps everything."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, float]] = []
        self.lines: list[str] = []
        self.ended: list[tuple[StageResult, LabResult]] = []

    def stage_begins(self, stage: Stage, seconds_left: float) -> None:
        self.begun.append((stage.number, seconds_left))

    def line(self, text: str) -> None:
        self.lines.append(text)

    def stage_ended(self, result: StageResult, so_far: LabResult) -> None:
        self.ended.append((result, so_far))


def plan_of(folder: Path, *stages: Stage) -> LabPlan:
    return LabPlan(stages=stages, folder=folder, is_isolated=False, idle_seconds=1.0, prefix=PREFIX)


def unmet(stage: StageResult) -> list[str]:
    return [f"{c.what}: {c.wanted}, {c.measured}" for c in stage.checks if not c.is_met]


@pytest.mark.e2e
async def test_a_small_lab_on_loopback_checks_and_measures(tmp_path: Path) -> None:
    told = Kept()
    broken = attrs.evolve(SMALL, number=3, settings={"WS_MAX_CONNECTIONS": "many"})
    strict = attrs.evolve(SMALL, number=4, criteria=(at_most("memory", 1),))
    result = await run_lab(plan_of(tmp_path, SMALL, broken, strict), told)
    assert result is not None
    good, failed, missed = result.stages

    assert good.passed, (unmet(good), good.failure)
    load = good.load
    assert load is not None
    assert (load.connected, load.lost, load.unreadable) == (50, 0, 0)
    assert load.health == ["healthy", "healthy"]
    assert load.delivered == load.expected > 0
    assert load.published is not None
    assert load.published >= load.publications > 0
    assert load.server.cores is not None
    assert load.server.idle_cores is not None
    assert {sample.phase for sample in load.series} >= {"connecting", "idle", "hold", "closing"}
    assert good.checks[-1].measured == "exit code 0"
    assert (good.wanted_seconds, good.is_shortened, good.settings) == (3.0, False, {})

    assert not failed.passed
    assert "WS_MAX_CONNECTIONS" in failed.failure  # and the next stage ran all the same
    assert failed.load is None
    assert failed.settings == {"WS_MAX_CONNECTIONS": "many"}

    assert not missed.passed
    assert [check.what for check in missed.checks if not check.is_met] == ["resident memory"]

    assert not result.passed
    assert not result.interrupted
    assert result.not_run == [1, *range(5, 16)]
    assert result.settings["WS_MAX_CONNECTIONS"] == "10000"
    assert result.provenance.settings == changed_settings(SERVER_SETTINGS)
    assert [number for number, _ in told.begun] == [2, 3, 4]
    assert told.begun[0][1] > told.begun[1][1] > told.begun[2][1]
    assert [so_far.interrupted for _, so_far in told.ended] == [True, True, False]
    assert any("hold: 50 of 50" in line for line in told.lines)
    assert {path.name for path in (tmp_path / "logs").iterdir()} >= {
        *("publisher.log", "server-02.log", "load-02.log"),
    }


def namespaces() -> list[str]:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in done.stdout.splitlines()]


def links() -> str:
    command = ["ip", "-o", "addr"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.e2e
@pytest.mark.slow
@needs_root
def test_stages_1_and_2_pass_on_isolated_hosts_and_leave_nothing(tmp_path: Path) -> None:
    before = links()
    options = ["--stages", "1,2", "--hold", "5", "--out", str(tmp_path), "--prefix", PREFIX]
    # Its latency must pass too, whatever other tests run at the same time.
    command = ["nice", "--adjustment=-15", *LAB, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = read_verdict(tmp_path)
    assert result.passed
    assert [stage.number for stage in result.stages] == [1, 2]
    assert len(result.stages[0].checks) > 10
    load = result.stages[1].load
    assert load is not None
    assert (load.connected, load.url) == (1000, "ws://10.77.0.11:3004/ws")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert not [name for name in namespaces() if name.startswith(PREFIX)]
    assert links() == before


@pytest.mark.e2e
@pytest.mark.slow
@needs_root
def test_an_interrupted_lab_is_torn_down_and_keeps_its_results(tmp_path: Path) -> None:
    command = [*LAB, *SHORT, "--hold", "60", "--out", str(tmp_path), "--prefix", PREFIX]
    ended = interrupt(command, at="hold: ", times=2)  # a second one must not break the teardown
    assert ended.children >= 5  # nats-server, publisher, server, load, its fleet
    assert (ended.returncode, ended.left) == (130, 0), ended.output + ended.errors
    assert "Traceback" not in ended.output + ended.errors
    assert "interrupted" in ended.output
    assert not [name for name in namespaces() if name.startswith(PREFIX)]
    result = read_verdict(tmp_path)
    assert result.interrupted
    assert not result.passed
    assert [stage.number for stage in result.stages] == [1]


@pytest.mark.e2e
async def test_a_load_that_is_ended_early_does_not_pass(tmp_path: Path) -> None:
    class EndsTheLoad(Kept):
        def line(self, text: str) -> None:
            super().line(text)
            if text.startswith("hold: "):
                for child in psutil.Process().children():
                    with suppress(psutil.Error):  # another one has just ended
                        if "load" in child.cmdline():
                            child.terminate()

    stage = attrs.evolve(SMALL, hold_seconds=30.0)
    result = await run_lab(plan_of(tmp_path, stage), EndsTheLoad())
    assert result is not None
    assert not result.passed
    assert result.stages[0].failure == "the load was ended from outside, before its time"


@pytest.mark.e2e
@pytest.mark.slow
@needs_ip_if_root
def test_down_removes_the_leftovers_of_a_killed_lab_on_loopback(tmp_path: Path) -> None:
    prefix = ["--prefix", PREFIX]
    options = ["--no-isolation", "--stages", "2", "--hold", "60", "--out", str(tmp_path), *prefix]
    with subprocess.Popen(
        [*LAB, *options], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as lab:
        assert lab.stderr is not None
        for line in lab.stderr:
            if "idle: " in line:
                break
        children = psutil.Process(lab.pid).children(recursive=True)
        lab.kill()
    done = subprocess.run(
        [*LAB, *prefix, "down"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "of the lab" in done.stdout
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--stages", "0"], "'0': allowed are all, or numbers from 1 to 15"),
        (["--stages", "2-16"], "'2-16': allowed are all, or numbers from 1 to 15"),
        (["--stages", "one"], "'one': allowed are all, or numbers from 1 to 15"),
        (["--hold", "4"], "4.0 is not in the range"),
        (["--prefix", "Odin-1", "--stages", "1"], "Odin-1"),
    ],
)
def test_bad_input_gives_a_sentence_and_exit_code_2(
    options: list[str], sentence: str, tmp_path: Path
) -> None:
    command = [*LAB, "--out", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@needs_ip_if_root
def test_an_earlier_run_in_the_folder_is_not_taken_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text("{}")
    (tmp_path / "logs").mkdir()
    (tmp_path / "mine.txt").write_text("kept")
    command = [*LAB, "--out", str(tmp_path), "--stages", "1", "--prefix", PREFIX]
    with lab_lock(PREFIX):  # so the lab ends before its first stage
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert f"another lab with the prefix {PREFIX} is running" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"logs", "mine.txt"}


def test_down_takes_the_prefix_of_a_lab() -> None:
    with lab_lock(PREFIX):
        done = subprocess.run(
            [*LAB, "--prefix", PREFIX, "down"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 2
    assert f"another lab with the prefix {PREFIX} is running" in done.stderr


def test_the_help_names_every_stage() -> None:
    done = subprocess.run([*LAB, "--help"], capture_output=True, text=True, timeout=30, check=True)
    for number in range(1, 16):
        assert stage_of(number).title in done.stdout
    assert "\\b" not in done.stdout
