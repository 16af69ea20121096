from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from tests.e2e.nats import free_port
from tests.lab.load.made_up import load_result
from tests.lab.load.rig import COMMAND, Rig, stand_in
from trio_odin.cli import load as command
from trio_odin.cli.load import load_command
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.load.plan import LoadPlan
from trio_odin.lab.load.report import rows
from trio_odin.lab.load.result import LoadResult, Progress, Sample, ServerFigures
from trio_odin.lab.load.runner import LoadAbandoned


class Carried:
    """Replaces `run_load`: records the plan, and returns a given outcome."""

    def __init__(self) -> None:
        self.plan: LoadPlan
        self.outcome: LoadResult | Exception = load_result()
        self.progress: list[Progress] = []

    async def __call__(self, plan: LoadPlan, progress: Any) -> LoadResult:
        self.plan = plan
        plan.check()
        for one in self.progress:
            progress(one)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> Carried:
    it = Carried()
    monkeypatch.setattr(command, "run_load", it)
    return it


def load(*arguments: str) -> Result:
    return CliRunner().invoke(load_command, arguments)


def test_the_flags_become_a_plan(carried: Carried) -> None:
    ended = load(
        *("wss://odin.example/ws", "--connections", "500", "--channels-per-connection", "3"),
        *("--tokens", "BTC,ETH,SOL", "--hold", "7", "--idle", "2", "--ramp", "50", "--reconnect"),
        *("--churn", "5", "--cut", "--publisher", "http://x:3003", "--rate", "12"),
        *(
            "--encoding",
            "z1",
            "--processes",
            "2",
            "--health-url",
            "http://x:3004/health",
            "--seed",
            "9",
        ),
    )
    assert ended.exit_code == 0, ended.output
    plan = carried.plan
    assert (plan.url, plan.connections, plan.processes) == ("wss://odin.example/ws", 500, 2)
    assert (plan.hold_seconds, plan.idle_seconds, plan.ramp_per_second) == (7, 2, 50)
    assert (plan.reconnects, plan.is_cut, plan.churn_per_second) == (True, True, 5)
    assert (plan.publisher_url, plan.rate) == ("http://x:3003", 12)
    assert plan.health_url == "http://x:3004/health"
    assert plan.workload.channels == ["BTC.trade", "ETH.trade", "SOL.trade"]
    assert (plan.workload.channels_per_connection, plan.workload.seed) == (3, 9)
    assert plan.workload.is_filtered
    assert plan.encoding == "z1"


def test_a_rate_is_a_part_of_the_workload(carried: Carried) -> None:
    ended = load("--every-ms", "1000", "--encoding", "deflate")
    assert ended.exit_code == 0, ended.output
    assert (carried.plan.workload.every_ms, carried.plan.encoding) == (1000, "deflate")


def test_a_test_of_the_plan_sets_the_flags_that_are_not_given(carried: Carried) -> None:
    ended = load("--plan", "5k", "--hold", "7", "--publisher", "http://x:3003")
    assert ended.exit_code == 0, ended.output
    plan = carried.plan
    assert (plan.connections, plan.rate, plan.hold_seconds) == (5000, 12, 7)
    assert (len(plan.workload.channels), plan.workload.home_share) == (200, 0.8)


def test_a_test_of_the_plan_is_judged_by_the_plans_own_figures(carried: Carried) -> None:
    carried.outcome = load_result(server=ServerFigures(percent=26, held_mib=3_600))
    ended = load("--plan", "5k")
    assert ended.exit_code == 1, ended.output
    assert "not met: resident memory: at most 3,500 MiB, measured 3,600 MiB" in ended.output
    assert "not met: CPU of the limit, mean: at most 25 %, measured 26 %" in ended.output
    assert (
        load("--plan", "5k", "--expect-cpu-below", "0.3", "--expect-memory-below", "4000").exit_code
        == 0
    )


@pytest.mark.parametrize(
    ("name", "connections", "seconds", "cpu_percent"),
    [("1k", 1_000, 600, 10), ("5k", 5_000, 900, 25), ("10k", 10_000, 1_200, 30)],
)
def test_each_test_of_the_plan_has_its_figures(
    carried: Carried, name: str, connections: int, seconds: int, cpu_percent: int
) -> None:
    for percent, exit_code in ((cpu_percent, 0), (cpu_percent + 1, 1)):
        carried.outcome = load_result(server=ServerFigures(percent=percent, held_mib=64))
        assert load("--plan", name).exit_code == exit_code
    assert (carried.plan.connections, carried.plan.hold_seconds) == (connections, seconds)


def test_without_flags_the_plan_is_that_of_the_help_text(carried: Carried) -> None:
    assert load().exit_code == 0
    plan = carried.plan
    assert (plan.connections, plan.hold_seconds, plan.processes) == (1000, 30, 1)
    assert plan.health_url == "http://127.0.0.1:3002/health"
    assert (plan.publisher_url, plan.rate, plan.workload.home_share) == (None, None, None)
    assert len(plan.workload.channels) == 10
    assert (plan.workload.every_ms, plan.encoding) == (0, "plain")


@pytest.mark.parametrize(
    ("text", "share"),
    [("home=0.8,token=0.2", 0.8), (" token=1 ", 0.0), ("home=1,token=0", 1), ("home=1", 1)],
)
def test_a_mix_is_the_share_of_users_with_the_home_page(
    text: str, share: float, carried: Carried
) -> None:
    assert load("--mix", text).exit_code == 0
    assert carried.plan.workload.home_share == share


def test_unfiltered_subscribes_to_nothing(carried: Carried) -> None:
    assert load("--unfiltered").exit_code == 0
    assert not carried.plan.workload.is_filtered


@pytest.mark.parametrize(
    "text",
    [
        *("", "home", "0.8", "home=much,token=0.2", "home=0.8,token=0.3", "home=0.8"),
        *("home=0.8;token=0.2", "home=0.8,token=0.2,", "home=0.8,token=0.2,other=0"),
        *("home=2,token=-1", "home=nan,token=0.2", "home=inf,token=-inf", "home==0.8,token=0.2"),
    ],
)
def test_a_malformed_mix_is_refused_with_the_allowed_form(text: str) -> None:
    ended = load("--mix", text)
    assert ended.exit_code == 2
    said = " ".join(ended.stderr.split())
    assert f"{text!r}: allowed is home=SHARE,token=SHARE" in said
    assert "two numbers from 0 to 1 that add up to 1" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ws://[x/ws"], "'ws://[x/ws' is no address like ws://127.0.0.1:3002/ws"),
        (["--health-url", "x"], "'x' is no address of a server's health page"),
        (["--churn", "1", "--connections", "1"], "allowed is 2 connections or more"),
        (["--every-ms", "250", "--cut"], "250 ms with a cut: then it is unknown what is missing"),
        (["--every-ms", "250", "--unfiltered"], "250 ms without a subscription"),
        (
            ["--channels-per-connection", "11"],
            "11 channels a connection: with 10 tokens, allowed is 1 to 10",
        ),
    ],
)
def test_an_impossible_plan_gives_a_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, carried: Carried
) -> None:
    ended = load(*arguments)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("trio-odin: ")
    assert sentence in ended.stderr
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (load_result(), 0, "passed: 12 of 12 criteria"),
        (load_result(lost=1), 1, "not met: deliveries lost: at most 0, measured 1"),
        (load_result(lost=1), 1, "NOT passed: 11 of 12 criteria"),
        (load_result(connected=99), 1, "not met: connected and subscribed: at least 100 %"),
        (load_result(publications=0), 1, "not tested: no event came"),
        (load_result(received=0), 0, "no event came: somebody has to publish"),
        (load_result(quiet_channels=8, channels=10), 0, "no event came on 8 of 10 channels"),
        (load_result(interrupted=True), 130, "interrupted: these are the figures so far"),
        (LoadImpossible("it cannot be done"), 2, "trio-odin: it cannot be done"),
        (LoadAbandoned("interrupted twice"), 130, "trio-odin: interrupted twice"),
    ],
)
def test_the_exit_code_is_the_verdict(
    outcome: LoadResult | Exception, code: int, said: str, carried: Carried
) -> None:
    carried.outcome = outcome
    ended = load()
    assert ended.exit_code == code, ended.output
    assert said in " ".join(ended.output.split())


@pytest.mark.parametrize(
    ("flag", "met", "missed", "outcome"),
    [
        ("--expect-success", "0.95", "0.96", load_result(connected=95)),
        ("--expect-cpu-below", "0.3", "0.2", load_result(server=ServerFigures(percent=25.0))),
        ("--expect-memory-below", "100", "99", load_result(server=ServerFigures(held_mib=100.0))),
        ("--expect-p99-below", "41", "39", load_result()),
        ("--expect-rejected-below", "3", "2", load_result(rejections={"503 x": 3})),
    ],
)
def test_each_expectation_changes_the_exit_code(
    flag: str, met: str, missed: str, outcome: LoadResult, carried: Carried
) -> None:
    carried.outcome = outcome
    assert load(flag, met).exit_code == 0
    assert load(flag, missed).exit_code == 1


@pytest.mark.parametrize("flag", ["--expect-cpu-below", "--expect-memory-below"])
def test_an_expectation_of_an_unknown_figure_does_not_hold(flag: str, carried: Carried) -> None:
    carried.outcome = load_result(server=ServerFigures())
    ended = load(flag, "1000")
    assert ended.exit_code == 1
    assert "measured unknown" in ended.stdout


def test_what_is_not_known_is_named_with_the_reason(carried: Carried, tmp_path: Path) -> None:
    carried.outcome = load_result(unseen=None)
    file = tmp_path / "load.json"
    ended = load("--json", str(file))
    assert ended.exit_code == 0, ended.output
    reason = "it takes a --publisher that counts what it publishes, and no --cut"
    said = " ".join(ended.output.split())
    assert f"not known: events that reached nobody: {reason}" in said
    assert "passed: 11 of 11 criteria, 1 not known" in said
    (unknown,) = [c for c in json.loads(file.read_bytes())["checks"] if not c["is_known"]]
    assert (unknown["what"], unknown["why_unknown"]) == ("events that reached nobody", reason)
    carried.outcome = load_result()
    assert "not known" not in load().output


@pytest.mark.parametrize(
    ("figures", "shown", "hidden"),
    [
        (
            {"cores": 0.5, "delivery_us": 12.34, "idle_cores": 0.01, "connect_us": 300.0},
            ["12.3 µs a delivery", "300 µs a connect", "0.010 cores idle"],
            ["too few"],
        ),
        (
            {"cores": 0.03, "delivery_us": 1612.9},
            ["too few deliveries to say what one costs"],
            ["1,612.9", "idle", "a connect"],
        ),
        ({"cores": 0.3, "delivery_us": 99.9, "idle_cores": 0.2}, ["too few deliveries"], ["99.9"]),
        ({"cores": None}, ["unknown"], ["µs", "too few"]),
        (
            {"base_mib": 60.0, "held_mib": 60.1, "connection_kib": 0.0},
            ["not measurable: the server had memory from before"],
            ["KiB"],
        ),
        ({"base_mib": 50.0, "held_mib": 60.0, "connection_kib": 10.24}, ["10.2 KiB a"], ["not m"]),
    ],
)
def test_only_costs_that_mean_something_are_shown(
    figures: dict[str, Any], shown: list[str], hidden: list[str]
) -> None:
    found = dict(rows(load_result(server=ServerFigures(**figures))))
    said = f"{found['server CPU']}\n{found['server memory']}"
    assert [text for text in shown if text not in said] == []
    assert [text for text in hidden if text in said] == []


def test_a_number_that_is_not_allowed_is_shown_with_what_is() -> None:
    ended = load("--connections", "10k")
    assert ended.exit_code == 2
    assert "'10k': allowed is a whole number, 1 or more" in " ".join(ended.output.split())


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_json_can_be_read_back_as_a_result(
    interrupted: bool, carried: Carried, tmp_path: Path
) -> None:
    carried.outcome = load_result(interrupted=interrupted)
    file = tmp_path / "load.json"
    load("--json", str(file))
    assert msgspec.json.decode(file.read_bytes(), type=LoadResult) == carried.outcome
    assert file.read_bytes().endswith(b"}\n")


def test_an_unwritable_file_is_noticed_before_the_load(carried: Carried, tmp_path: Path) -> None:
    ended = load("--json", str(tmp_path / "missing" / "load.json"))
    assert ended.exit_code == 2
    assert not hasattr(carried, "plan")


def test_text_of_the_server_is_not_markup(carried: Carried) -> None:
    carried.outcome = load_result(disconnects={"4000 [/foo] [red]:bomb:": 1})
    ended = load()
    assert ended.exit_code == 1, ended.exception
    assert "4000 [/foo] [red]:bomb:" in " ".join(ended.stdout.split())


def test_without_a_terminal_progress_goes_to_standard_error(
    carried: Carried,
) -> None:
    carried.progress = [
        Progress(Sample(at=0.0, phase=phase, connections=number, received_per_second=0.0), 1000)
        for phase in ("connecting", "hold")
        for number in range(3)
    ]
    ended = load()
    assert ended.stderr.splitlines() == [
        "connecting: 0 of 1,000",
        "hold: 0 of 1,000",
    ]
    assert "connecting:" not in ended.stdout


def test_the_help_names_every_flag_and_shows_examples_as_typed() -> None:
    text = load("--help").stdout
    options = [one for one in load_command.params if isinstance(one, click.Option)]
    assert len(options) > 10
    for option in options:
        assert option.opts[0] in text
    lines = [line.rstrip() for line in text.splitlines()]
    first = "    trio-odin load ws://127.0.0.1:3002/ws --tokens 10 --hold 10"
    assert first in lines
    example = lines[lines.index(first) + 1 :]
    assert example[0].endswith("--tokens 200 \\")
    assert "\b" not in text
    assert "\\b" not in text


def test_the_example_of_the_help_is_a_valid_command(carried: Carried) -> None:
    _, _, behind = load("--help").stdout.partition("--hold 10\n")
    typed = behind.partition("\n\n")[0].replace("\\\n", "").split()
    assert typed[:2] == ["trio-odin", "load"]
    arguments = typed[2 : typed.index("--json")]
    ended = load(*arguments)
    assert ended.exit_code == 0, ended.output
    assert carried.plan.connections == 10_000


# --- with servers


@pytest.mark.e2e
@pytest.mark.usefixtures("hasty")
def test_a_breach_gives_exit_code_1_and_the_figures_name_it(tmp_path: Path) -> None:
    file = tmp_path / "load.json"
    with stand_in([1, 2, 4]) as url:
        ended = load(url, "--connections", "5", "--hold", "0.3", "--json", str(file))
    assert ended.exit_code == 1, ended.output
    assert "not met: missing numbers of seq: at most 0, measured 5" in ended.stdout
    assert json.loads(file.read_bytes())["gaps"] == 5
    assert ended.stderr.startswith("connecting: ")


@pytest.mark.e2e
@pytest.mark.usefixtures("hasty")
def test_without_a_server_there_is_a_sentence_and_exit_code_2() -> None:
    url = f"ws://127.0.0.1:{free_port()}/ws"
    ended = load(url, "--connections", "5")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.endswith(
        f"trio-odin: nobody could connect to {url}: Connection refused (5 times)\n"
    )


# --- as a process


@contextmanager
def loading(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a user runs it; it ends with the block."""
    with subprocess.Popen(
        [*COMMAND, "load", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], phase: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"{phase}: "):
            return
    raise AssertionError(f"there was no {phase}")


@pytest.mark.e2e
def test_an_interrupted_process_writes_figures_and_exits_with_130(rig: Rig, tmp_path: Path) -> None:
    file = tmp_path / "load.json"
    with loading(
        *(rig.server.websocket_url, "--connections", "20", "--tokens", "3", "--hold", "60"),
        *("--publisher", rig.publisher.url, "--rate", "50", "--json", str(file)),
    ) as process:
        wait_for(process, "hold")
        assert rig.publisher.is_publishing()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "interrupted: these are the figures so far" in out
    assert "Traceback" not in err
    result = msgspec.json.decode(file.read_bytes(), type=LoadResult)
    assert result.interrupted
    assert (result.connected, result.closed_cleanly, result.disconnects) == (20, 20, {})
    assert (result.lost, result.gaps, result.unseen) == (0, 0, 0)
    assert 0 < result.hold_seconds < 15
    assert list(dict.fromkeys(sample.phase for sample in result.series)) == [
        *("connecting", "hold", "closing")
    ]
    assert not rig.publisher.is_publishing()


@pytest.mark.e2e
def test_a_process_interrupted_twice_ends_at_once_with_a_sentence(rig: Rig) -> None:
    with loading(
        *(rig.server.websocket_url, "--connections", "20", "--tokens", "3", "--hold", "60"),
        *("--publisher", rig.publisher.url),
    ) as process:
        wait_for(process, "hold")
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        out, err = process.communicate(timeout=15)
    assert time.monotonic() - began < 5
    assert (process.returncode, out) == (130, "")
    assert err.endswith("trio-odin: interrupted twice: the figures are lost\n")
    assert "Traceback" not in err
    assert not rig.publisher.is_publishing()


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(["load", "ws://127.0.0.1:9/ws"], "load"), (["bench", "--quick"], "demo,lab")],
)
def test_without_the_extra_the_command_reports_it_before_it_begins(
    arguments: list[str], extra: str
) -> None:
    program = (
        "import sys; sys.modules['hdrh'] = sys.modules['hdrh.histogram'] = None; "
        f"from trio_odin.cli import main; main({arguments})"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        f"trio-odin: not installed: hdrhistogram; pip install 'trio-odin[{extra}]'\n"
    )
