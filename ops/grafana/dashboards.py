"""Write the dashboards: `python ops/grafana/dashboards.py`. A test checks that they are current.

They consist of queries in PromQL and LogQL, and of figures from elsewhere in the project: the
defaults of the settings, and the costs and results of the lab. Run this again when one of these
changes. The output depends on nothing else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import attrs
from capacity import capacity
from fanout import fanout
from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from limits import MACHINE
from loglines import loglines
from overview import overview
from panels import LOKI, PROMETHEUS, Section, place, promql

FOLDER = Path(__file__).parent / "dashboards"
TAG = "trio-odin"
Variable: TypeAlias = Builder[models.VariableModel]

_ALL = models.VariableOption(text="All", value="$__all", selected=True)


def _source(name: str, kind: str, uid: str) -> Variable:
    return (
        dashboard.DatasourceVariable(name)
        .label(kind.capitalize())
        .type(kind)
        .current(models.VariableOption(text=kind.capitalize(), value=uid))
    )


def _choice(name: str, label: str, query: str, source: Any) -> Variable:
    """A choice of a label's values; all of them by default."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(source)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        # Also include series without the label, such as lines without a level.
        .all_value(".*")
        .current(_ALL)
    )


def _text(name: str, label: str, value: str) -> Variable:
    option = models.VariableOption(text=value, value=value)
    return dashboard.TextBoxVariable(name).label(label).default_value(value).current(option)


_METRICS = _source("datasource", "prometheus", "prometheus")
_LOGS = _source("loki", "loki", "loki")
_SERVERS = _choice("instance", "Server", 'label_values(up{job="ws"}, instance)', PROMETHEUS)
_OF_LINES = [
    _choice("machine", "Machine", 'label_values({job="odin"}, instance)', LOKI),
    _choice("service", "Service", 'label_values({job="odin"}, service)', LOKI),
    _choice("level", "Level", 'label_values({job="odin"}, level)', LOKI),
    _text("search", "Search", ""),
]
# There is no metric for the limit.
_CORES = _text("cores", "Cores of a server", f"{MACHINE.cpu_limit:g}")


@attrs.frozen
class Page:
    """A dashboard. Its address is its `uid`, which never changes."""

    uid: str
    title: str
    about: str
    sections: Callable[[], Iterable[Section]]
    variables: list[Variable]
    since: str = "now-1h"
    refresh: str = "30s"


PAGES = {
    "overview": Page(
        "odin-overview",
        "trio-odin: overview",
        "The health of the servers. Open this page first.",
        overview,
        [_METRICS, _LOGS, _SERVERS],
        refresh="10s",
    ),
    "fanout": Page(
        "odin-fanout",
        "trio-odin: fan-out and latency",
        "How fast events reach clients, where they wait, and why some do not arrive.",
        fanout,
        [_METRICS, _SERVERS],
    ),
    "capacity": Page(
        "odin-capacity",
        "trio-odin: capacity",
        "The use of the servers, the room left, and the lab's figures for comparison.",
        capacity,
        [_METRICS, _SERVERS, _CORES],
        since="now-6h",
    ),
    "logs": Page(
        "odin-logs",
        "trio-odin: logs",
        "The log lines of the servers, NATS and the publisher.",
        loglines,
        [_METRICS, _LOGS, *_OF_LINES],
        refresh="10s",
    ),
}


def _annotation(name: str, colour: str, query: str) -> models.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(PROMETHEUS)
        .enable(True)
        .icon_color(colour)
        .expr(promql(query))
        .build()
    )


def _annotations(variables: list[Variable]) -> list[models.AnnotationQuery]:
    """Events as lines across all panels. The page of logs has no choice of servers."""
    chosen = _SERVERS in variables
    of = "@" if chosen else '{job="ws"}'
    return [
        _annotation("Restart", "purple", f"resets(ws_uptime_seconds{of}[1m]) > 0"),
        _annotation("Drain", "orange", f"ws_draining{of} > 0"),
        _annotation("NATS away", "red", f"ws_nats_connected{of} == 0"),
        _annotation("Workers replaced", "blue", f"increase(ws_worker_rollings_total{of}[1m]) > 0"),
        _annotation(
            "Settings reloaded", "yellow", f"increase(ws_config_reloads_total{of}[1m]) > 0"
        ),
    ]


def render(page: Page) -> str:
    """Return the dashboard as Grafana reads it."""
    links = (
        dashboard.DashboardLink("trio-odin")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(False)
        .include_vars(True)
        .keep_time(True)
    )
    built = (
        dashboard.Dashboard(page.title)
        .uid(page.uid)
        .description(page.about)
        .tags([TAG])
        .readonly()
        .refresh(page.refresh)
        .time(page.since, "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .variables(page.variables)
        .links([links])
        .build()
    )
    built.annotations = models.AnnotationContainer(list_val=_annotations(page.variables))
    built.panels = place(page.sections())
    content = json.loads(json.dumps(built, cls=JSONEncoder))
    for annotation in content["annotations"]["list"]:
        # The library does not know these fields.
        annotation["step"] = "15s"
        annotation["titleFormat"] = annotation["name"]
        annotation["textFormat"] = "{{instance}}"
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all dashboards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--to", type=Path, default=FOLDER, help="output folder (default: ops/grafana/dashboards)"
    )
    folder = parser.parse_args().to
    for name, page in PAGES.items():
        (folder / f"{name}.json").write_text(render(page), encoding="utf-8")


if __name__ == "__main__":
    main()
