"""The dashboards as Grafana has them: panels, queries, and values for the variables in these."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import attrs

from tests.ops.conftest import OPS
from tests.ops.tools import load_yaml

GRAFANA = OPS / "grafana"
PROVISIONING = GRAFANA / "provisioning"
NAMES = ("overview", "fanout", "capacity", "logs")


def read(name: str) -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads((GRAFANA / "dashboards" / f"{name}.json").read_text())
    return dashboard


def panels(name: str) -> list[dict[str, Any]]:
    """Those that show something: not the headings."""
    return [panel for panel in read(name)["panels"] if panel["type"] != "row"]


@attrs.frozen
class Query:
    """A query, of a panel or an annotation, and what it is for."""

    dashboard: str
    title: str
    kind: str  # prometheus or loki
    text: str
    is_instant: bool = False
    legend: str = ""

    def __str__(self) -> str:
        return f"{self.dashboard}, {self.title}: {self.text}"

    def name(self) -> str:
        return f"{self.dashboard}: {self.title}"

    def filled(self, **values: str) -> str:
        """The query with these variables, and no others left."""
        text = self.text
        for name, value in values.items():
            text = re.sub(rf"\${name}\b", value, text)
        left = re.findall(r"\$\w+|\$\{\w+\}", text)
        assert not left, f"{self}: {left} is no variable"
        return text


def queries(name: str) -> Iterator[Query]:
    for panel in panels(name):
        for target in panel.get("targets", []):
            yield Query(
                name,
                panel["title"],
                target["datasource"]["type"],
                target["expr"],
                bool(target.get("instant")) or target.get("queryType") == "instant",
                target.get("legendFormat", ""),
            )
    for annotation in read(name)["annotations"]["list"]:
        yield Query(name, annotation["name"], annotation["datasource"]["type"], annotation["expr"])


def all_queries(kind: str) -> list[Query]:
    return [query for name in NAMES for query in queries(name) if query.kind == kind]


def alert_rules() -> list[dict[str, Any]]:
    """Grafana's own, on lines."""
    content = load_yaml(PROVISIONING / "alerting" / "alerting.yml")
    return [rule for group in content["groups"] for rule in group["rules"]]


def log_queries() -> list[str]:
    """Every query for lines, of dashboards and alerts, with the variables filled in."""
    found = [
        query.filled(
            __auto="1m", __range="1h", machine=".*", service=".*", level=".*", search="text"
        )
        for query in all_queries("loki")
    ]
    for rule in alert_rules():
        found += [one["model"]["expr"] for one in rule["data"] if one["datasourceUid"] == "loki"]
    return found
