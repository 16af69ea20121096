"""The dashboards ask for what exists, fit on the page, and what Grafana is told has its shape."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.logs_page import unknown_in
from tests.ops.conftest import OPS, ROOT
from tests.ops.grafana import (
    GRAFANA,
    NAMES,
    PROVISIONING,
    Query,
    alert_rules,
    all_queries,
    log_queries,
    panels,
    queries,
    read,
)
from tests.ops.promql import faults, labels_of
from tests.ops.rules import ALERTS, known_series

METRIC_VARIABLES = {"__rate_interval": "1m", "__range": "1h", "instance": ".*", "cores": "1.9"}


def test_dashboards_are_current(tmp_path: Path) -> None:
    script = GRAFANA / "dashboards.py"
    subprocess.run([sys.executable, script, "--to", tmp_path], cwd=ROOT, check=True)
    made = {file.name: file.read_text() for file in tmp_path.iterdir()}
    kept = {file.name: file.read_text() for file in (GRAFANA / "dashboards").iterdir()}
    assert made == kept, "run: python ops/grafana/dashboards.py"
    assert {f"{name}.json" for name in NAMES} == set(kept)


# What the queries ask for


@pytest.mark.parametrize("query", all_queries("prometheus"), ids=Query.name)
def test_each_query_asks_for_metrics_labels_and_values_that_exist(query: Query) -> None:
    text = query.filled(**METRIC_VARIABLES)
    assert faults(text, known_series()) == []
    assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= labels_of(text, known_series())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ws_connections_curent", "metric ws_connections_curent"),
        (
            'ws_connections_closed_total{reason="tired"}',
            "ws_connections_closed_total{reason=tired}",
        ),
        ('ws_tasks{reason="timeout"}', "label reason of ws_tasks"),
        ("sum by (reason) (ws_tasks)", "label reason"),
        ('ws_tasks{job="sw"}', "ws_tasks{job=sw}"),
        ('ALERTS{alertname="Tired"}', "ALERTS{alertname=Tired}"),
        ('ws_draining{worker=~"1|2"}', "label worker of ws_draining"),
        (
            'ws_connections_rejected_total{reason=~"lag|rain"}',
            "ws_connections_rejected_total{reason=rain}",
        ),
    ],
)
def test_a_query_for_what_does_not_exist_is_found(text: str, fault: str) -> None:
    assert faults(text, known_series()) == [fault]


def test_a_query_with_a_wrong_syntax_is_found() -> None:
    with pytest.raises(ValueError, match=r"."):
        faults("sum(rate(ws_messages_sent_total[1m])", known_series())


def test_no_counter_is_shown_without_a_rate() -> None:
    for query in all_queries("prometheus"):
        for name in re.findall(r"\b(\w+_total)\{", query.text):
            assert re.search(rf"(rate|increase)\({name}", query.text), str(query)


# What the logs are asked for


@pytest.mark.parametrize("text", log_queries())
def test_lines_are_asked_for_by_labels_fields_and_events_that_there_are(text: str) -> None:
    assert unknown_in(text) == set()


# How the pages are laid out


@pytest.mark.parametrize("name", NAMES)
def test_each_panel_has_a_number_of_its_own_a_title_a_unit_and_says_what_to_do(name: str) -> None:
    all_panels = read(name)["panels"]
    numbers = Counter(panel["id"] for panel in all_panels)
    assert set(numbers.values()) == {1}
    for panel in panels(name):
        assert panel["title"]
        assert len(panel.get("description", "")) > len("Connections now."), panel["title"]
        if panel["type"] in {"stat", "timeseries", "bargauge"}:
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["noValue"], panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_panels_fill_the_page_without_overlaps_and_holes(name: str) -> None:
    cells: Counter[tuple[int, int]] = Counter()
    for panel in read(name)["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
    height = 1 + max(y for _, y in cells)
    assert set(cells.values()) == {1}
    assert len(cells) == 24 * height, "there is a hole"


def test_dashboards_have_addresses_of_their_own_and_lead_to_each_other() -> None:
    boards = [read(name) for name in NAMES]
    assert [board["uid"] for board in boards] == [f"odin-{name}" for name in NAMES]
    for board in boards:
        (link,) = board["links"]
        assert link["type"] == "dashboards"
        assert set(link["tags"]) <= set(board["tags"])
        assert link["includeVars"]
        assert link["keepTime"]


@pytest.mark.parametrize("name", NAMES)
def test_each_variable_that_a_dashboard_uses_is_one_of_its_own(name: str) -> None:
    board = read(name)
    own = {variable["name"] for variable in board["templating"]["list"]}
    used = set()
    for panel in panels(name):
        for source in [
            panel.get("datasource"),
            *(t["datasource"] for t in panel.get("targets", [])),
        ]:
            used |= set(re.findall(r"\$\{(\w+)\}", (source or {}).get("uid", "")))
    for query in queries(name):
        used |= set(re.findall(r"\$(\w+)", query.text))
    builtin = {"__rate_interval", "__range", "__auto"}
    assert used - builtin <= own
    # The logs have the metrics' source for their annotations only.
    assert own <= used | {"datasource"}


# What Grafana is told at its start


def _provisioned(kind: str) -> dict[str, Any]:
    (file,) = (PROVISIONING / kind).glob("*.yml")
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    assert content.pop("apiVersion") == 1
    return content


def _sources() -> dict[str, dict[str, Any]]:
    return {source["uid"]: source for source in _provisioned("datasources")["datasources"]}


# Keys by Grafana's types: pkg/services/provisioning/{datasources,dashboards,alerting}.
_SOURCE = {"name", "uid", "type", "access", "url", "isDefault", "editable", "jsonData"}
_PROVIDER = {
    "name",
    "folder",
    "type",
    "allowUiUpdates",
    "disableDeletion",
    "updateIntervalSeconds",
    "options",
}
_GROUP = {"orgId", "name", "folder", "interval", "rules"}
_RULE = {
    "uid",
    "title",
    "condition",
    "data",
    "for",
    "noDataState",
    "execErrState",
    "dashboardUid",
    "panelId",
    "labels",
    "annotations",
}
_QUERY = {"refId", "queryType", "relativeTimeRange", "datasourceUid", "model"}
_RECEIVER = {"uid", "type", "disableResolveMessage", "settings"}
_POLICY = {
    "orgId",
    "receiver",
    "group_by",
    "group_wait",
    "group_interval",
    "repeat_interval",
}


def test_data_sources_have_the_addresses_that_the_dashboards_use() -> None:
    content = _provisioned("datasources")
    assert set(content) == {"datasources"}
    for source in content["datasources"]:
        assert set(source) <= _SOURCE, source["name"]
        assert source["access"] == "proxy"
        assert re.fullmatch(r"http://[a-z-]+:\d+", source["url"])
    assert [source["uid"] for source in _sources().values() if source.get("isDefault")] == [
        "prometheus"
    ]
    for name in NAMES:
        for variable in read(name)["templating"]["list"]:
            if variable["type"] == "datasource":
                source = _sources()[variable["current"]["value"]]
                assert source["type"] == variable["query"]
                assert source["name"] == variable["current"]["text"]


def test_dashboards_are_read_from_one_folder_and_cannot_be_changed_in_the_browser() -> None:
    content = _provisioned("dashboards")
    assert set(content) == {"providers"}
    (provider,) = content["providers"]
    assert set(provider) == _PROVIDER
    assert provider["type"] == "file"
    assert provider["options"] == {"path": "/etc/grafana/dashboards"}
    assert not provider["allowUiUpdates"]


def test_the_alert_on_log_lines_is_complete_and_points_at_a_panel_and_a_runbook() -> None:
    content = _provisioned("alerting")
    assert set(content) == {"groups", "contactPoints", "policies"}
    (group,) = content["groups"]
    assert set(group) == _GROUP
    (rule,) = group["rules"]
    assert set(rule) == _RULE
    queried = {query["refId"]: query for query in rule["data"]}
    for query in rule["data"]:
        assert set(query) <= _QUERY
        assert query["datasourceUid"] in {*_sources(), "__expr__"}
        assert query["model"]["refId"] == query["refId"]
        assert query["model"].get("expression", query["refId"]) in queried
    assert rule["condition"] in queried
    assert rule["noDataState"] in {"OK", "Alerting", "NoData", "KeepLast"}
    assert rule["execErrState"] in {"OK", "Alerting", "Error", "KeepLast"}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert {"summary", "description", "runbook_url"} <= set(rule["annotations"])
    address, _, anchor = rule["annotations"].pop("runbook_url").partition("#")
    # Which Grafana takes from its environment, in any file of provisioning.
    assert address == "${RUNBOOKS_URL}"
    assert anchor == rule["title"].lower()
    assert "$" not in str(rule["annotations"])
    page = next(name for name in NAMES if read(name)["uid"] == rule["dashboardUid"])
    titles = {panel["id"]: panel["title"] for panel in panels(page)}
    assert titles[rule["panelId"]] == "Warnings and errors"
    assert f"## {rule['title']}\n" in (ROOT / "docs" / "runbooks" / "alerts.md").read_text()


def test_the_alert_goes_to_the_alertmanager_and_only_there() -> None:
    content = _provisioned("alerting")
    (point,) = content["contactPoints"]
    (receiver,) = point["receivers"]
    assert set(receiver) == _RECEIVER
    assert receiver["type"] == "prometheus-alertmanager"
    assert receiver["settings"] == {"url": _sources()["alertmanager"]["url"]}
    (policy,) = content["policies"]
    assert set(policy) == _POLICY
    assert policy["receiver"] == point["name"]
    # Or it would be delivered twice.
    assert _sources()["alertmanager"]["jsonData"]["handleGrafanaManagedAlerts"] is False


def test_each_alert_that_a_panel_names_has_a_section_in_the_runbook() -> None:
    known = {name.lower() for name in ALERTS}
    known |= {rule["title"].lower() for rule in alert_rules()}
    text = "\n".join(panel["description"] for name in NAMES for panel in panels(name))
    named = set(re.findall(r"docs/runbooks/alerts\.md#(\w+)", text))
    assert named
    assert named <= known


def test_rates_are_taken_over_as_many_scrapes_as_prometheus_makes() -> None:
    file = OPS / "prometheus" / "prometheus.yml"
    interval = yaml.safe_load(file.read_text())["global"]["scrape_interval"]
    assert _sources()["prometheus"]["jsonData"]["timeInterval"] == interval
