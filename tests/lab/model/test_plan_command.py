from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result

from tests.lab.model.stages import SHAPES, TRUTH, lab_of, stages_of
from trio_odin.cli import plan as plan_module
from trio_odin.cli.plan import plan_command
from trio_odin.lab.model.tables import read_costs
from trio_odin.lab.model.wire import ENCODINGS
from trio_odin.lab.report.series import without_series, write_series


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(plan_command, arguments)


def test_a_custom_machine_is_bounded_and_paid_like_the_others() -> None:
    own, known = plan("--machine", "2,8192,60"), plan("--machine", "e2-standard-2")
    assert own.exit_code == known.exit_code == 0
    assert "1 × 2 vCPU, 8,192 MiB, $60 a month" in words(own)


def words(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture
def verdict(tmp_path: Path) -> Path:
    path = tmp_path / "verdict.json"
    result = lab_of(stages_of(TRUTH))
    write_series(result, tmp_path / "series")
    path.write_bytes(without_series(result).as_json())
    return path


def test_many_events_for_one_user_are_possible() -> None:
    """A single process takes 1,000 events a second at some 296 µs each."""
    result = plan("--users", "1", "--rate", "700")
    assert result.exit_code == 0, result.output
    assert "1 user at 700 events a second needs 1 × e2-standard-2" in words(result)


def test_the_answer_by_the_plan_is_the_plans() -> None:
    result = plan("--costs", "plan")
    assert result.exit_code == 0, result.output
    for figure in ("1,210 subscribers a token", "14,520 writes a second", "10,240", "27.9 %"):
        assert figure in words(result)
    assert "need 1 × e2-standard-2, $60 a month ($1,721 with all that belongs to it)" in words(
        result
    )
    assert "measured" not in result.output


def test_the_bill_has_everything_else_to_buy(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    result = plan("--costs", "plan", "--json", str(path))
    for line in ("server to spare", "load balancer", "back-end", "test runner", "traffic to the"):
        assert line in result.output
    figures: dict[str, Any] = json.loads(path.read_bytes())
    assert sum(item["monthly_usd"] for item in figures["bill"]) == pytest.approx(1721, abs=1)
    alone = plan("--costs", "plan", "--spare", "0")
    assert "server to spare" not in alone.output
    assert "load balancer" not in alone.output


def test_the_plans_versions_stand_beside_each_other() -> None:
    said = words(plan("--costs", "plan", "--users", "20000"))
    assert "V1: e2-medium" in said
    assert "V2: e2-standard-2" in said
    assert "60 │ 96 (+36)" in said
    assert "240 (10 ×, without filtering) │ 120 (2 ×, with filtering)" in said


def test_twice_the_users_by_the_plan_need_two() -> None:
    result = plan("--costs", "plan", "--users", "20000", "--home", "50%")
    assert "need 2 × e2-standard-2, $120 a month" in words(result)
    assert "9,300" in result.output


def test_measured_costs_stand_beside_the_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "read_costs", lambda: TRUTH)
    result = plan()
    assert result.exit_code == 0
    assert "measured costs" in result.output
    assert "× 0.0272" in result.output  # memory of a connection
    assert (
        "1 worker can use 1 of the 1.9 cores of a machine, one core each at most. The answer uses"
        in words(result)
    )
    assert "By the plan's costs: 1 × e2-standard-2" in words(result)


def test_without_a_measurement_the_plans_costs_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "read_costs", lambda: None)
    assert plan().output == plan("--costs", "plan").output
    result = plan("--costs", "measured")
    assert result.exit_code == 2
    assert "nothing was measured yet; give --fit RUN" in words(result)


def test_a_verdict_calibrates_the_costs_and_is_predicted(verdict: Path) -> None:
    result = plan("--fit", str(verdict))
    assert result.exit_code == 0, result.output
    for text in ("Predicted from smaller stages only", "8.0 µs", "1.2 µs", "240 µs"):
        assert text in result.output
    assert "+0.0 %" in result.output or "\N{MINUS SIGN}0.0 %" in result.output


def test_without_scipy_a_fit_names_the_extra(
    verdict: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    result = plan("--fit", str(verdict))
    assert result.exit_code == 2
    assert "not installed: scipy; pip install 'trio-odin[lab]'" in result.output
    assert plan().exit_code == 0


def test_a_folder_of_the_lab_calibrates_as_its_verdict_does(verdict: Path) -> None:
    folder = verdict.parent
    assert plan("--fit", str(folder)).output == plan("--fit", str(verdict)).output
    (folder / "series" / "stage-05.csv").write_text("nonsense")
    refused = plan("--fit", str(folder))
    assert refused.exit_code == 2
    assert "is no series of the lab" in words(refused)


def test_the_figures_go_into_a_file(verdict: Path, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert plan("--fit", str(verdict), "--json", str(path), "--workers", "2").exit_code == 0
    figures: dict[str, Any] = json.loads(path.read_bytes())
    assert figures["plan"]["forecast"]["max_connections"] == 10_240
    assert figures["measured"]["costs"]["delivery_us"] == pytest.approx(8)
    assert figures["measured"]["forecast"]["usable_cores"] == 1.9
    assert figures["demand"]["users"] == 10_000
    assert set(figures["predictions"]) == {"4", "5", "6", "7"}


def test_an_impossible_demand_is_reported_with_exit_code_1() -> None:
    result = plan("--rate", "100000", "--machine", "e2-micro", "--home", "1", "--tokens", "30")
    assert result.exit_code == 1
    assert "No number of e2-micro is enough for 10,000 users" in words(result)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--home", "1.5"], "'1.5': allowed is a share, 0 to 1, or 0% to 100%"),
        (["--home", "nan"], "'nan': allowed is a share"),
        (["--home", "most"], "'most': allowed is a share"),
        (["--home-tokens", "300"], "--home-tokens 300: allowed is at most --tokens, 200"),
        (["--machine", "m5"], "'m5': allowed are e2-micro, e2-small, e2-medium, e2-standard-2"),
        (["--machine", "4,1024"], "'4,1024': allowed are e2-micro"),
        (["--machine", "0,1024,5"], "or numbers above 0 as VCPUS,MIB,USD"),
        (["--users", "0"], "'0': allowed is a whole number from 1 to 100,000,000"),
        (["--users", "10k"], "'10k': allowed is a whole number from 1 to 100,000,000"),
        (["--rate", "nan"], "'nan': allowed is a number"),
        (["--target-cpu", "101"], "101.0 is not in the range"),
        (["--target-cpu", "nan"], "'nan': allowed is a number"),
        (["--payload", "1"], "'1': allowed is a whole number from 2 to 1,048,576"),
        (["--fit", "no/such.json"], "no/such.json cannot be read: No such file or directory"),
        (["--fit", "tests"], "tests/verdict.json cannot be read: No such file"),
        (["--tokens", "2000000"], "'2000000': allowed is a whole number from 1 to"),
        (["--home-tokens", "2000000"], "'2000000': allowed is a whole number"),
        (["--users", "1000000000"], "'1000000000': allowed is a whole number"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(arguments: list[str], complaint: str) -> None:
    result = plan(*arguments)
    assert result.exit_code == 2
    assert complaint in words(result)


@pytest.mark.parametrize("content", [b"", b"hello", b"[]", b'{"date":"2026"}', b"\xff\xfe"])
def test_a_file_that_is_not_a_verdict_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    result = plan("--fit", str(path))
    assert result.exit_code == 2
    assert "allowed is a run of the capacity lab" in words(result)


def test_a_verdict_with_too_few_stages_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    path.write_bytes(lab_of(stages_of(TRUTH, SHAPES[:1])).as_json())
    result = plan("--fit", str(path))
    assert result.exit_code == 2
    assert "two stages or more with different numbers of connections" in words(result)


def test_a_verdict_with_a_figure_below_0_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    result = lab_of(stages_of(attrs.evolve(TRUTH, base_mib=-1000.0)))
    path.write_bytes(result.as_json())
    refused = plan("--fit", str(path))
    assert refused.exit_code == 2
    assert "stage 2 has a base_mib of -1000: allowed is 0 to 10¹²" in words(refused)


def test_a_verdict_without_channels_has_too_few_stages(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    content = json.loads(lab_of(stages_of(TRUTH)).as_json())
    for stage in content["stages"]:
        stage["load"]["workload"]["channels"] = []
    path.write_text(json.dumps(content))
    refused = plan("--fit", str(path))
    assert refused.exit_code == 2
    assert "of this run none will do" in words(refused)


# --- remarks on the answer


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = attrs.evolve(
        TRUTH,
        joined_rate=None,
        max_rate=30.0,
        max_connections=18_000,
        source="the lab, 2026-11-23",
        date="2026-11-23",
    )
    monkeypatch.setattr(plan_module, "read_costs", lambda: costs)


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "Latency and the kernel's memory for sockets are not forecast"),
        ("--rate 60", "60 events a second: beyond what was measured (18,000 connections,"),
        ("--payload 1000", "measured with events of 200 bytes; of 1,000 bytes it is more"),
        ("--payload 50", "measured with events of 200 bytes; of 50 bytes it is less"),
        ("--workers 8", "8 workers on 2 cores are too many"),
        ("--machine e2-micro", "it has 0.25 for long, which counts here, and 2 for a while"),
        ("--users 1", "1 user at 12 events a second needs 1 ×"),
        ("--users 1", "each serves 1 connection with"),
        ("--users 100000000", "need 3,"),
        ("--rate 1", "1 event a second of 200 bytes"),
        ("--rate 20000", "the events alone take more than"),
    ],
)
def test_the_limits_of_the_answer_are_reported(arguments: str, told: str) -> None:
    assert told in words(plan(*arguments.split()))


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("arguments", "untold"),
    [
        ("--payload 400", "CPU was measured with"),
        ("--workers 2", "are too many"),
        ("--costs plan --payload 1000", "CPU was measured with"),
        ("", "for a while"),
        ("", "2026-11-23, 2026-11-23"),
    ],
)
def test_limits_that_do_not_apply_are_not_reported(arguments: str, untold: str) -> None:
    assert untold not in words(plan(*arguments.split()))


def test_a_fit_of_the_plans_costs_is_refused(verdict: Path) -> None:
    result = plan("--fit", str(verdict), "--costs", "plan")
    assert result.exit_code == 2
    assert "--costs plan: allowed with --fit is measured" in words(result)


def test_the_help_shows_examples() -> None:
    result = plan("--help")
    assert "  trio-odin plan --users 50000 --home 60% --rate 30 --workers 2\n" in result.output
    assert "\\b" not in result.output


# --- traffic


def egress_of(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    path = tmp_path / "figures.json"
    result = plan(*arguments, "--json", str(path))
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(path.read_bytes())["egress"]
    return found


def test_the_traffic_comes_first_by_every_rate_and_encoding(tmp_path: Path) -> None:
    output = plan().output
    assert output.index("Traffic to the users") < output.index("On e2-standard-2")
    found = egress_of(tmp_path)
    assert [(one["every_ms"], one["encoding"]) for one in found] == [
        (every_ms, encoding) for every_ms in (0, 250, 1000) for encoding in ENCODINGS
    ]
    assert found[0]["month_tb"] == pytest.approx(15.0, abs=0.05)
    assert round(found[0]["monthly_usd"]) == 1435
    assert f"{found[8]['monthly_usd']:,.0f}" in output


def test_a_rate_or_an_encoding_selects_rows_and_is_that_of_the_machines(tmp_path: Path) -> None:
    found = egress_of(tmp_path, "--every-ms", "500", "--rate", "30")
    assert [(one["every_ms"], one["encoding"]) for one in found] == [
        (every_ms, encoding) for every_ms in (0, 500) for encoding in ENCODINGS
    ]
    _, one = egress_of(tmp_path, "--every-ms", "1000", "--encoding", "z1", "--rate", "30")
    said = words(plan("--every-ms", "1000", "--encoding", "z1", "--rate", "30"))
    assert "200 bytes, of a channel at most one every 1,000 ms, sent as z1. That makes " in said
    assert "8,190 writes a second" in said
    assert f"GiB ({one['month_tb']:.2f} TB) │ {one['monthly_usd']:,.0f}" in said
    assert one["writes_per_second"] == pytest.approx(8190, abs=1)
    assert [row["every_ms"] for row in egress_of(tmp_path, "--encoding", "deflate")] == [
        0, 250, 1000,
    ]  # fmt: skip


def test_the_source_of_the_bytes_is_named() -> None:
    costs = read_costs()
    assert costs is not None
    assert f"Bytes, with TCP/IP headers and TLS: {costs.wire.source}" in words(plan())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--every-ms", "-1"], "'-1': allowed is a whole number from 0 to 60,000"),
        (["--every-ms", "70000"], "'70000': allowed is a whole number from 0 to 60,000"),
        (["--encoding", "gzip"], "'gzip' is not one of 'plain', 'deflate', 'z1'"),
    ],
)
def test_a_wrong_rate_or_encoding_is_refused(arguments: list[str], sentence: str) -> None:
    result = plan(*arguments)
    assert result.exit_code == 2
    assert sentence in words(result)


@pytest.mark.parametrize(("asked", "given"), [(1, 100), (120, 200), (60_000, 60_000), (0, 0)])
def test_a_rate_is_the_one_that_a_server_grants(asked: int, given: int, tmp_path: Path) -> None:
    arguments = ("--every-ms", str(asked), "--encoding", "z1")
    found = egress_of(tmp_path, *arguments)
    assert [one["every_ms"] for one in found] == sorted({0, given}), "beside every event"
    told = f"at most one every {given:,} ms (asked: {asked:,})"
    assert (told in words(plan(*arguments))) == (asked != given)


def test_a_rate_that_is_dearer_than_every_event_is_explained() -> None:
    few = ("--rate", "3")
    assert "Every 250 ms may cost more than every event: so few events" in words(plan(*few))
    assert "Every 200 ms may cost more" in words(plan("--every-ms", "120", *few))
    assert "may cost more" not in words(plan("--rate", "300"))
    assert "takes the tokens in turn" not in words(plan("--every-ms", "0"))


def test_the_answer_comes_first_and_no_row_is_empty() -> None:
    result = plan()
    assert result.output.startswith("10,000 users at 12 events a second need 1 × e2-standard-2")
    assert "CPU of a write, to 1,000 users" in result.output
    costs = read_costs()
    assert costs is not None
    assert ("each doubling" in result.output) == (costs.doubling_us > 0)


def test_a_terminal_of_80_columns_cuts_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "_TABLE_CHARS", 80)
    result = plan("--rate", "3000")
    assert result.output.count("\n") > 50
    assert "…" not in result.output
    row = r"^every 250 ms, deflate +[\d,]+ +[\d,]+ +\d+ +[\d.,]+ +[\d,]+ +[\d.]+ *$"
    assert re.search(row, result.output, re.MULTILINE)


def test_regions_are_answered_first_machines_and_money() -> None:
    result = plan("--users", "1000000", "--regions", "3")
    assert result.exit_code == 0, result.output
    said = words(result)
    assert said.startswith("1,000,000 users in 3 regions at 12 events a second need ")
    assert "9 nodes of NATS: $" in said
    assert "its 333,333 users do not fit into the others" in said
    assert re.search(r"others, which lack [\d,]+ machines: [\d,]+ users would stay outside", said)
    assert re.search(r"takes [\d,]+ more machines, \$[\d,]+ a month: --survive-region", said)
    assert "If region 1 is lost, nothing can be published" in said
    for title in ("The regions", "What NATS carries", "If a part is lost", "A month, USD"):
        assert title in said
    wide = words(plan("--users", "1000000", "--regions", "3", "--survive-region"))
    assert "its 333,333 users fit into the others, and are back after" in wide


def test_a_region_that_does_not_fit_is_not_hidden_by_a_larger_one_that_does() -> None:
    said = words(plan("--users", "30000", "--shares", "31,15,11", "--spare", "0"))
    assert "users fit into the others" in said
    assert (
        "Those of another one do not. To survive the loss of any region takes 1 more mach" in said
    )


def test_of_few_users_the_lost_region_is_the_largest() -> None:
    assert "If region 2 is lost, its 8 users" in words(plan("--users", "9", "--shares", "1,8"))


def test_shares_make_regions_of_different_sizes(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    result = plan("--users", "100000", "--shares", "50,30,20", "--json", str(path))
    assert result.exit_code == 0, result.output
    figures: dict[str, Any] = json.loads(path.read_bytes())
    assert [region["users"] for region in figures["regions"]] == [50_000, 30_000, 20_000]
    assert figures["nodes"] == sum(region["nodes"] for region in figures["regions"])
    parts = [item["monthly_usd"] for region in figures["regions"] for item in region["bill"]]
    assert figures["monthly_usd"] == pytest.approx(sum(parts))
    assert [loss["kind"] for loss in figures["losses"]] == ["node", "drain", "nats", "region"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--regions", "0"], "'0': allowed is a whole number from 1 to 20"),
        (["--regions", "many"], "'many': allowed is a whole number from 1 to 20"),
        (["--shares", "50,x"], "'50,x': allowed are 1 to 20 numbers above 0, such as 50,30,20"),
        (["--shares", "50,0"], "'50,0': allowed are 1 to 20 numbers above 0, such as 50,30,20"),
        (["--shares", "nan"], "'nan': allowed are 1 to 20 numbers above 0, such as 50,30,20"),
        (
            ["--regions", "3", "--shares", "1,2"],
            "--shares: allowed are 3 numbers, one for each of --regions; 2 were given",
        ),
        (["--survive-region"], "--survive-region: allowed with --regions or --shares only"),
    ],
)
def test_bad_regions_are_refused_in_a_sentence(arguments: list[str], sentence: str) -> None:
    result = plan(*arguments)
    assert result.exit_code == 2
    assert sentence in words(result)


def test_regions_without_an_answer_exit_with_1() -> None:
    result = plan("--regions", "2", "--rate", "90000")
    assert result.exit_code == 1
    assert "No number of e2-standard-2 is enough for 10,000 users" in words(result)


def test_a_server_that_admits_nobody_is_not_planned_silently() -> None:
    assert "WS_CPU_REJECT_THRESHOLD" in words(plan("--regions", "2", "--target-cpu", "80"))
    assert "WS_CPU_REJECT_THRESHOLD" not in words(plan("--regions", "2"))


def test_a_lone_node_that_is_lost_is_one_too_many() -> None:
    said = words(plan("--regions", "1", "--spare", "0"))
    assert "Without 1 more node the loss of a node is one too many: --spare 1." in said


@pytest.mark.parametrize("arguments", [["--users", "100"], ["--regions", "2"]])
def test_figures_on_the_screen_replace_the_text(arguments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    shown = plan(*arguments, "--json", "-")
    assert shown.exit_code == 0, shown.output
    assert plan(*arguments, "--json", str(path)).exit_code == 0
    assert json.loads(shown.output) == json.loads(path.read_bytes())
