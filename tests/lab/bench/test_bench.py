"""The command, with real servers and few connections."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.lab.interrupting import interrupt
from trio_odin.lab.bench.targets import OUR_SETTINGS, TARGETS

pytestmark = pytest.mark.e2e

BENCH = [sys.executable, "-m", "trio_odin", "bench"]
SMALL = ["--quick", "--connections", "50", "--hold", "1", "--only-hold"]


def test_a_small_bench_receives_every_event_and_reports_the_cost(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    targets = ["--subjects", "odin-2,floor"]
    # At a lower rate, the fastest use less CPU than the 10 ms in which the kernel counts.
    command = [*BENCH, *SMALL, *targets, "--rate", "200", "--runs", "2", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "connected and subscribed" in done.stdout
    assert "Median (lowest–highest) of 2 runs" in done.stdout
    first, second = json.loads(file.read_bytes())
    for report in (first, second):
        assert [target["name"] for target in report["targets"]] == targets[1].split(",")
        assert report["provenance"]["settings"] == OUR_SETTINGS
        assert report["provenance"]["load_average"] >= 0
    for target in (*first["targets"], *second["targets"]):
        assert target["failure"] is None
        assert target["storm"]["connected"] == 50
        (w,) = target["stages"]
        assert (w["name"], w["rate"]) == ("W", 200)
        assert w["received"] == w["expected"] > 0
        assert w["lost"] == w["repeated"] == w["gaps"] == w["foreign"] == w["disconnects"] == 0
        assert 0 < w["p50_ms"] <= w["p99_ms"] <= w["p999_ms"] < 10_000
        assert 0 < w["cores"] < 2
        assert 0 <= w["others_cores"] < 100
    assert sum(first["targets"][0]["connections_by_worker"]) == 50


async def test_a_missing_peer_gives_a_sentence(nats_url: str) -> None:
    peer = ["--peer", "far=ws://127.0.0.1:1/ws", "--nats", nats_url]
    command = [*BENCH, *SMALL, "--subjects", "floor", *peer]
    with trio.fail_after(60):
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
    assert (
        "far: nobody could connect to ws://127.0.0.1:1/ws: Connection refused (50 times)"
        in done.stdout.decode()
    )
    assert b"Traceback" not in done.stderr


def test_an_interrupt_ends_every_process_and_shows_the_results() -> None:
    command = [*BENCH, "--quick", "--connections", "50", "--hold", "60", "--subjects", "odin"]
    ended = interrupt(command, at=": W: ")
    assert ended.children == 3  # nats-server, the server, the clients
    assert (ended.returncode, ended.left) == (130, 0)
    assert "Traceback" not in ended.output + ended.errors


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--subjects", "go"], f"'go': allowed are all, {', '.join(s.name for s in TARGETS)}"),
        (["--subjects", "odin-65"], "'odin-65': allowed are"),
        (["--peer", "far"], "allowed is NAME=ws://HOST:PORT/PATH"),
        (["--plot", "figures.pdf"], "allowed is a name that ends in .svg or .png"),
        (["--plot", "nowhere/figures.svg"], "there is no folder 'nowhere'"),
        (["--plot", f"{'a' * 300}.svg"], "File name too long"),
        (["--plot", f"{'a' * 300}/b.svg"], "File name too long"),
        (["--targets", "odin,odin"], "'odin': it is there twice"),
        (["--peer", "a=ws://a:1/", "--peer", "a=ws://b:1/"], "'a': it is there twice"),
        (["--nats", "http://a:1"], "'http://a:1': allowed is nats://HOST:PORT"),
        (["--nats", "nats://a:99999"], "'nats://a:99999': allowed is nats://HOST:PORT"),
        (["--hold", "1e300"], "is not in the range"),
        (["--python", "/bin/true"], "'/bin/true': it has to be a Python with trio-odin"),
        (["--python", "/bin/false"], "'/bin/false': it has to be a Python with trio-odin"),
        (["--python", "/bin/pwd"], "'/bin/pwd': it has to be a Python with trio-odin"),
        (["--python", "a" * 300], "it has to be a Python with trio-odin"),
        (["--connections", "0"], "0 is not in the range"),
        (["--only", "ramp"], "'ramp': allowed are hold, rates, compression, tls, with commas"),
        (["--only", "rates", "--only-hold"], "--only cannot be combined with --only-hold"),
        (["--only", "rates", "--targets", "nats"], "--targets must have odin or odin-N"),
        (["--bridge", "--prefix", "a-b"], "'a-b' cannot be a prefix"),
        (["--bridge", "--peer", "far=ws://a:1/"], "--peer cannot be combined with --bridge"),
    ],
)
def test_bad_input_gives_a_sentence_and_exit_code_2(options: list[str], sentence: str) -> None:
    done = subprocess.run(
        [*BENCH, *options], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())
