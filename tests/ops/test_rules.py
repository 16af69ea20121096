"""Prometheus' rules, Alertmanager's routes and the runbook, checked without starting anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.logs_page import of_haproxy, of_publisher, of_server, unknown_in
from tests.ops.conftest import OPS, ROOT
from tests.ops.promql import faults, metrics_of
from tests.ops.rules import ALERTS, RECORDED, known_series
from tests.ops.tools import load_yaml, output, require
from trio_odin.lab.model.tables import read_costs
from trio_odin.lab.report.folder import read_verdict
from trio_odin.settings.reading import variables

PROMETHEUS = OPS / "prometheus"
ALERTMANAGER = OPS / "alertmanager" / "alertmanager.yml"
RUNBOOK = ROOT / "docs" / "runbooks" / "alerts.md"
MIB = 1024 * 1024


RUNBOOKS = "https://runbooks.example/alerts.md"


@cache
def cases() -> list[dict[str, Any]]:
    """The tests that promtool runs."""
    files = (PROMETHEUS / "tests").glob("*.yml")
    return [case for file in files for case in load_yaml(file)["tests"]]


def expected_of(name: str) -> list[Any]:
    """What the tests expect of an alert, each time that they look; None if it does not fire."""
    return [
        alert
        for case in cases()
        for expected in case.get("alert_rule_test", [])
        if expected["alertname"] == name
        for alert in expected["exp_alerts"] or [None]
    ]


def test_prometheus_takes_its_configuration_and_all_rules() -> None:
    require("promtool")
    said = output("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    found = sum(int(count) for count in re.findall(r"(\d+) rules found", said))
    assert found == len(ALERTS) + len(RECORDED)


def test_each_alert_and_each_figure_does_what_its_tests_say() -> None:
    require("promtool")
    files = sorted((PROMETHEUS / "tests").glob("*.yml"))
    assert output("promtool", "test", "rules", *files).count("SUCCESS") == len(files)


@pytest.mark.parametrize("name", [*RECORDED, *ALERTS])
def test_a_rule_reads_what_is_there(name: str) -> None:
    rule = RECORDED.get(name) or ALERTS[name]
    assert faults(rule["expr"], known_series()) == []


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_figure_is_named_by_convention_and_tested(name: str) -> None:
    level, metric, operations = name.split(":")
    assert level in {"instance", "job"}
    assert re.fullmatch(r"ws_[a-z_]+", metric)
    assert re.fullmatch(r"[a-z0-9_]+", operations)
    for window in re.findall(r"(?:rate|increase)(\d+m)", operations):
        assert f"[{window}]" in RECORDED[name]["expr"] or f"rate{window}" in RECORDED[name]["expr"]
    tested = [e["expr"] for case in cases() for e in case.get("promql_expr_test", [])]
    assert any(name in metrics_of(query) for query in tested)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_is_about_and_where_to_read_on(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"].keys() == {"severity"}
    severities = {"none"} if name == "Watchdog" else {"warning", "critical"}
    assert rule["labels"]["severity"] in severities
    assert "for" in rule
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == (
        f"{{{{ $externalLabels.runbooks }}}}#{name.lower()}"
    )


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_seen_to_fire_and_not_to_fire(name: str) -> None:
    expected = expected_of(name)
    fired = [alert for alert in expected if alert]
    assert fired
    rests = not all(expected)
    assert rests == (name != "Watchdog"), "which is never to rest"
    rule = ALERTS[name]
    for alert in fired:
        assert alert["exp_labels"]["severity"] == rule["labels"]["severity"]
        assert alert["exp_annotations"].keys() == rule["annotations"].keys()
        assert alert["exp_annotations"]["runbook_url"] == f"{RUNBOOKS}#{name.lower()}"


def test_alerts_lead_to_where_the_runbook_is_published() -> None:
    config = load_yaml(PROMETHEUS / "prometheus.yml")
    assert config["global"]["external_labels"] == {"runbooks": "${RUNBOOKS_URL}"}
    # Only the address is to come of it: an alert's labels say which alerts are the same.
    (drop,) = config["alerting"]["alert_relabel_configs"]
    assert drop == {"action": "labeldrop", "regex": "runbooks"}


def test_the_watchdog_goes_to_who_calls_when_it_stays_away() -> None:
    config = load_yaml(ALERTMANAGER)
    routes = {
        matcher: route for route in config["route"]["routes"] for matcher in route["matchers"]
    }
    route = routes['alertname = "Watchdog"']
    assert route["receiver"] == "watchdog" != config["route"]["receiver"]
    assert (route["group_wait"], route["repeat_interval"]) == ("0s", "5m")
    # It stays away as well if something mutes it.
    for rule in config["inhibit_rules"]:
        targets = " ".join(rule["target_matchers"])
        is_named = re.findall(r'alertname (=~?|!~?=?) "(.*?)"', targets)
        assert is_named
        for sign, names in is_named:
            assert ("Watchdog" in names.split("|")) == sign.startswith("!"), targets


def test_the_plans_alerts_are_the_plans() -> None:
    def of(name: str) -> tuple[str, str, str]:
        return ALERTS[name]["expr"], ALERTS[name]["for"], ALERTS[name]["labels"]["severity"]

    # Its CPU limit is above what one process can use.
    cpu = "ws_cpu_usage_percent > 80 or ws_loop_busy_percent > 80"
    assert of("HighCPUUsage") == (cpu, "2m", "warning")
    # Its 7 GiB are the server's own limit here.
    memory = "ws_memory_usage_bytes / ws_memory_limit_bytes > 0.90"
    assert of("HighMemoryUsage") == (memory, "2m", "warning")
    guard = '{reason=~"at_capacity|files|memory|overloaded|lag"}'
    rejections = f"rate(ws_connections_rejected_total{guard}[5m]) > 0"
    assert of("ConnectionRejections") == (rejections, "1m", "critical")


def test_a_threshold_that_an_alert_speaks_of_is_the_default() -> None:
    defaults = {
        variable.name: float(variable.default)
        for variable in variables()
        if re.fullmatch(r"\d+", variable.default)
    }
    cpu, cpu_pause, memory, memory_pause = (
        f"{defaults[f'WS_{what}_THRESHOLD']:.0f} %"
        for what in ("CPU_REJECT", "CPU_PAUSE", "MEMORY_REJECT", "MEMORY_PAUSE")
    )
    said = {name: rule["annotations"]["description"] for name, rule in ALERTS.items()}
    assert said["HighCPUUsage"].startswith(
        f"From {cpu} on new clients are refused. From {cpu_pause} of the container's limit on"
    )
    assert f"From {memory} on new" in said["HighMemoryUsage"]
    assert f"from {memory_pause} on all" in said["HighMemoryUsage"]
    assert f"From {cpu} on new" in said["LoopBusy"]
    assert f"From {defaults['WS_LAG_REJECT_MS'] / 1000:.0f} s on new" in said["LoopLag"]


def test_the_figures_of_the_lab_in_the_runbook_are_the_labs() -> None:
    costs, stage = read_costs(), read_verdict(ROOT / "docs" / "capacity").stage(6)
    assert costs is not None
    assert stage is not None
    assert stage.load is not None
    assert f"{stage.load.server.delivery_us:.1f} µs in the lab" in _sections()["HighCPUUsage"]
    memory = _sections()["HighMemoryUsage"]
    assert f"{costs.connection_kib * 1024:,.0f} bytes in the lab" in memory
    assert f"{costs.base_mib:.0f} * 1048576 * ws_workers" in memory


def test_prometheus_finds_the_server_where_compose_puts_it() -> None:
    config = load_yaml(PROMETHEUS / "prometheus.yml")
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (files,) = jobs["ws"]["file_sd_configs"]
    (targets,) = load_yaml(PROMETHEUS / files["files"][0])
    assert targets == {"targets": ["ws:3005"], "labels": {"instance": "odin-ws"}}


def test_alertmanager_takes_its_configuration(tmp_path: Path) -> None:
    require("amtool")
    # `url_file` is known from 0.26 on; older ones check all the rest of the file.
    text = ALERTMANAGER.read_text()
    if "version 0.25" in output("amtool", "--version"):
        text = re.sub(r"url_file: \S+", "url: http://127.0.0.1:9/", text)
    copy = tmp_path / "alertmanager.yml"
    copy.write_text(text)
    said = output("amtool", "check-config", copy)
    assert "SUCCESS" in said
    assert "7 inhibit rules" in said


def test_alertmanager_mutes_alerts_that_exist() -> None:
    config = load_yaml(ALERTMANAGER)
    matchers = [
        matcher
        for rule in config["inhibit_rules"]
        for matcher in (*rule["source_matchers"], *rule["target_matchers"])
    ]
    named = {
        name
        for matcher in matchers
        for found in re.findall(r'alertname (?:=~?|!=|!~) "(.*)"', matcher)
        for name in found.split("|")
    }
    assert "ServerDown" in named
    assert named <= ALERTS.keys()
    assert all(re.fullmatch(r'\w+ (=|!=|=~|!~) "[\w|]+"', matcher) for matcher in matchers)


def _sections() -> dict[str, str]:
    pieces = re.split(r"^## (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def test_each_section_of_the_runbook_is_where_an_alert_points_to() -> None:
    texts = [file.read_text() for file in OPS.rglob("*.yml") if file.parent.name != "tests"]
    address = r"(?:\{\{ \$externalLabels\.runbooks \}\}|\$\{RUNBOOKS_URL\})#([\w-]+)"
    pointed = {anchor for text in texts for anchor in re.findall(address, text)}
    assert {section.lower() for section in _sections()} == pointed


@pytest.mark.parametrize("name", ALERTS)
def test_a_section_of_the_runbook_answers_what_one_asks_at_night(name: str) -> None:
    section = _sections()[name]
    for word in ("Users:", "Look:", "Escalate", "False alarm:"):
        assert f"**{word}" in section, word
    assert re.search(r"\*\*(Causes and what to do|Do)[:*,]", section)
    for anchor in re.findall(r"\]\(#([\w-]+)\)", section):
        assert anchor in {other.lower() for other in _sections()}


def _blocks(kind: str) -> Iterator[str]:
    for block in re.findall(
        rf"^```{kind}\n(.*?)^```$", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL
    ):
        yield from block.splitlines()


def _queries() -> list[str]:
    inline = re.findall(
        r"`((?:instance|job):\w+:\w+|[a-z_]+\([^`]*ws_[^`]*\))`", RUNBOOK.read_text()
    )
    return [*_blocks("promql"), *inline]


def test_the_queries_of_the_runbook_read_what_is_there() -> None:
    queries = _queries()
    assert len(queries) > 10
    assert {query: faults(query, known_series()) for query in queries} == {
        query: [] for query in queries
    }


def test_the_log_queries_of_the_runbook_look_for_events_that_are_logged() -> None:
    queries = list(_blocks("logql"))
    assert queries
    assert {query: unknown_in(query) for query in queries} == {query: set() for query in queries}
    # Of commands, too.
    text = RUNBOOK.read_text()
    events = {e for found in re.findall(r'event=~?"(.*?)"', text) for e in found.split("|")}
    for stem, ends in re.findall(r"(\w+)\\?\.\(([\w|]+)\)", text):
        events |= {f"{stem}.{end}" for end in ends.split("|")}
    assert events > {"nats.gap", "nats.failed", "worker.hung"}
    assert events <= of_server().keys() | of_publisher().keys() | of_haproxy().keys()


def test_the_pages_and_services_that_the_runbook_names_exist() -> None:
    text = RUNBOOK.read_text()
    pages = set(re.findall(r"http://[\w.$]+:(\d+)(/[\w/]*)?", text))
    assert pages <= {
        *product(["3004"], ["/health", "/ready"]),
        *product(["3005"], ["/ready", "/metrics"]),
        *product(["3003"], ["/health", "/stats", "/control"]),
        *product(["8222"], ["/healthz", "/varz", "/jsz"]),
        ("8404", "/stats"),
        ("9090", "/api/v1/alerts"),
        *product(["9093"], ["", "/api/v2/alerts"]),
    }
    used: dict[str, set[str]] = {}
    for verb, rest in re.findall(r"docker compose (\w+)([^`|#;]*)", " ".join(text.split())):
        words = [word for word in rest.split() if word != "--all"]
        used.setdefault(verb, set()).update(words[:1] if verb == "exec" else words[-1:])
    assert used.keys() == {"ps", "logs", "exec", "restart", "up"}
    services = set().union(*used.values())
    assert services == {"ws", "nats", "publisher", "alertmanager", "haproxy"}
