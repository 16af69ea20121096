"""The drill of scale: what it says, and a small run of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import attrs
import pytest

from tests.faults.scale.drill import Plan, Result, proxy_config
from tests.faults.scale.report import lines
from tests.ops.tools import require

_COMMAND = [sys.executable, "-m", "tests.faults.scale"]
_ROOT = Path(__file__).parents[2]
_SMALL = ["--connections=400", "--users=40", "--steady=4"]


def drill(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *arguments], cwd=_ROOT, capture_output=True, text=True, check=False, timeout=400
    )


def test_the_proxy_knows_every_node(tmp_path: Path) -> None:
    require("haproxy")
    config = proxy_config(tmp_path, 4)
    names = [line.split()[1] for line in config.read_text().splitlines() if "    server ws" in line]
    assert names == ["ws-1", "ws-2", "ws-3", "ws-4"]
    addresses = {f"WS{n}_ADDR": f"127.0.0.1:300{n}" for n in range(1, 5)}
    ports = {f"WS{n}_CHECK_PORT": "3005" for n in range(1, 5)}
    checked = subprocess.run(
        ["haproxy", "-c", "-f", config],
        env={**os.environ, "HAPROXY_TLS": "off", **addresses, **ports},
        check=False,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr


def test_a_check_that_is_broken_is_the_verdict() -> None:
    fine = Result(checks={"one": True, "another": True})
    assert list(lines(Plan(), fine))[1].startswith("passed: 40,000 connections and 200 users")
    broken = attrs.evolve(fine, checks={"one": True, "another": False})
    said = list(lines(Plan(), broken))
    assert said[1].startswith("NOT passed")
    assert said[-1] == "  BROKEN  another"
    assert not Result().passed


def test_a_proxy_has_two_files_for_each_client() -> None:
    plan = Plan(connections=40_000, users=200)
    assert plan.proxies * 8000 >= 40_200
    assert plan.files_of_a_node == 13_400


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--nodes=1", "'1': allowed is a whole number from 2 to 16"),
        ("--connections=many", "'many': allowed is a whole number from 40 to 200,000"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(argument: str, sentence: str) -> None:
    done = drill(argument)
    assert done.returncode == 2
    assert sentence in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_too_many_connections_for_the_files_are_refused() -> None:
    require("haproxy", "unshare", "ip")
    done = drill("--nodes=2", "--connections=200000")
    assert done.returncode == 2
    assert "use more --nodes" in done.stderr


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_a_small_drill_loses_nothing() -> None:
    require("haproxy", "unshare", "ip")
    done = drill(*_SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed: 400 connections and 40 users who resume on 4 nodes" in done.stdout
    assert "0 silent, 0 gaps in seq" in done.stdout


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_an_interrupted_drill_leaves_nothing() -> None:
    require("haproxy", "unshare", "ip")
    # Short, as the path of a socket may not be long.
    with tempfile.TemporaryDirectory() as folder:
        with subprocess.Popen(
            [*_COMMAND, *_SMALL],
            cwd=_ROOT,
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()  # its parts are being started
            time.sleep(3)
            assert _naming(folder)
            os.killpg(process.pid, signal.SIGINT)
            said = process.stdout.read()
            assert process.wait(60) == 130
        assert "Traceback" not in said
        assert not _naming(folder)
        assert not list(Path(folder).iterdir())


def _naming(folder: str) -> list[str]:
    """The processes with files in this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if entry.name.isdigit() and f"{folder}/".encode() in command:
                found.append(entry.name)
    return found
