"""The parts of the dashboards: queries, a few kinds of panels, and their places on the page.

The description of each panel explains what it shows and what to do about it. In PromQL and LogQL,
`@` after a metric or before a pipe stands for the servers or lines chosen at the top.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol, Self, TypeAlias, TypeVar

import attrs
from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    logs,
    loki,
    prometheus,
    stat,
    statetimeline,
    text,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PanelBuilder: TypeAlias = Builder[models.Panel]
Steps: TypeAlias = Sequence[tuple[str, float]]

PROMETHEUS = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
LOKI = models.DataSourceRef(type_val="loki", uid="${loki}")
ANY = models.DataSourceRef(type_val="datasource", uid="grafana")

SERVERS = 'job="ws", instance=~"$instance"'
LINES = '{job="odin", instance=~"$machine", service=~"$service", level=~"$level"}'
RUNBOOK = "docs/runbooks/alerts.md"
"""As in the alerts' `runbook_url`; use an address if the docs are published."""

GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "text"
COLUMNS = 24
_SMALL = 4
_NORMAL = 8


def runbook(about: str, alert: str) -> str:
    """Return a description that ends with the address of the runbook."""
    return f"{about}\n\nRunbook: {RUNBOOK}#{alert.lower()}"


def promql(text: str) -> str:
    """Return the query with the chosen servers in place of each `@`."""
    return text.replace("@{", f"{{{SERVERS}, ").replace("@", f"{{{SERVERS}}}")


def logql(text: str) -> str:
    """Return the query with the chosen lines in place of `@`."""
    return text.replace("@", LINES)


def count_of_lines(query: str) -> str:
    """Return a query for the number of lines in the time range; 0 instead of Loki's no data."""
    return f"sum(count_over_time({query}[$__range])) or vector(0)"


@attrs.frozen
class Line:
    """One query and the name of its series; `dashed` for a limit or a forecast."""

    query: str
    name: str
    dashed: bool = False


def stat_panel(
    title: str,
    about: str,
    query: str,
    unit: str = "short",
    *,
    steps: Steps = (),
    texts: dict[str, tuple[str, str]] | None = None,
    empty: str = "no data",
    width: int = 4,
    decimals: int | None = None,
    line: bool = False,
    of_logs: bool = False,
    name: str = "",
) -> stat.Panel:
    """One number, coloured by `steps`; `texts` replaces values by words.

    `line`: also draw it over time. `name`: show the series' name instead of its value.
    """
    mode = kinds.BigValueTextMode.NAME if name else kinds.BigValueTextMode.VALUE
    panel = (
        stat.Panel()
        .unit(unit)
        .no_value(empty)
        .mappings([_words(texts)] if texts else [])
        .thresholds(_thresholds(steps))
        .color_mode(kinds.BigValueColorMode.BACKGROUND if steps else kinds.BigValueColorMode.VALUE)
        .graph_mode(kinds.BigValueGraphMode.AREA if line else kinds.BigValueGraphMode.NONE)
        .text_mode(mode)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(
            _loki_query(query, name).query_type("instant")
            if of_logs
            else (_query(query, name).range() if line else _query(query, name).instant())
        )
    )
    if decimals is not None:
        panel = panel.decimals(decimals)
    return _named(panel, title, about, width, _SMALL, LOKI if of_logs else PROMETHEUS)


def graph(
    title: str,
    about: str,
    lines: Iterable[Line],
    unit: str = "short",
    *,
    steps: Steps = (),
    stacked: bool = False,
    bars: bool = False,
    width: int = 8,
    height: int = _NORMAL,
    least: float | None = 0,
    most: float | None = None,
    empty: str = "no data",
    of_logs: bool = False,
) -> timeseries.Panel:
    """Figures over time. `steps` are drawn as lines; `least` and `most` bound the axis softly."""
    panel = (
        timeseries.Panel()
        .unit(unit)
        .no_value(empty)
        .draw_style(kinds.GraphDrawStyle.BARS if bars else kinds.GraphDrawStyle.LINE)
        .line_width(1)
        .fill_opacity(40 if stacked or bars else 5)
        .show_points(kinds.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(kinds.LegendDisplayMode.TABLE)
            .placement(kinds.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(kinds.TooltipDisplayMode.MULTI)
            .sort(kinds.SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    if least is not None:
        panel = panel.axis_soft_min(least)
    if most is not None:
        panel = panel.axis_soft_max(most)
    if steps:
        panel = panel.thresholds(_thresholds(steps)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
        )
    for number, line in enumerate(lines):
        query = _loki_query(line.query, line.name) if of_logs else _query(line.query, line.name)
        panel = panel.with_target(query.ref_id(_ref_id(number)))
        if line.dashed:
            panel = panel.override_by_query(_ref_id(number), _DASHED)
    return _named(panel, title, about, width, height, LOKI if of_logs else PROMETHEUS)


def heat(title: str, about: str, query: str, *, width: int = 12) -> heatmap.Panel:
    """The buckets of a histogram of seconds, over time."""
    panel = (
        heatmap.Panel()
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit("s"))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .exponent(0.5)
            .steps(64)
        )
        # Do not draw an empty bucket.
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .cell_gap(1)
        .show_legend()
        .with_target(_query(query, "{{le}}").format(PromQueryFormat.HEATMAP))
    )
    return _named(panel, title, about, width, _NORMAL, PROMETHEUS)


def states(
    title: str, about: str, lines: Iterable[Line], *, width: int, height: int, empty: str
) -> statetimeline.Panel:
    """Faults over time: 1 while one lasts, otherwise 0."""
    panel = (
        statetimeline.Panel()
        .no_value(empty)
        .mappings([_words({"0": ("", GREEN), "1": ("yes", RED)})])
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .thresholds(_thresholds([(GREEN, 0), (RED, 1)]))
        .show_value(kinds.VisibilityMode.NEVER)
        .merge_values(True)
        .row_height(0.8)
        .fill_opacity(80)
        .legend(common.VizLegendOptions().show_legend(False))
    )
    for number, line in enumerate(lines):
        panel = panel.with_target(_query(line.query, line.name).ref_id(_ref_id(number)))
    return _named(panel, title, about, width, height, PROMETHEUS)


def bars(
    title: str, about: str, query: str, name: str, *, width: int, most: float, steps: Steps
) -> bargauge.Panel:
    """Several numbers as bars; a bar longer than `most` is cut."""
    panel = (
        bargauge.Panel()
        .unit("short")
        .min(0)
        .max(most)
        .orientation(kinds.VizOrientation.HORIZONTAL)
        .display_mode(kinds.BarGaugeDisplayMode.BASIC)
        .value_mode(kinds.BarGaugeValueMode.TEXT)
        .thresholds(_thresholds(steps))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("no data")
        .with_target(_query(query, name).instant())
    )
    return _named(panel, title, about, width, _NORMAL, PROMETHEUS)


def lines_panel(title: str, about: str, query: str, *, height: int) -> logs.Panel:
    """Log lines, the newest first."""
    panel = (
        logs.Panel()
        .show_time(True)
        .show_labels(False)
        .wrap_log_message(True)
        .prettify_log_message(False)
        .enable_log_details(True)
        .sort_order(kinds.LogsSortOrder.DESCENDING)
        .with_target(_loki_query(query, "").max_lines(500))
    )
    return _named(panel, title, about, COLUMNS, height, LOKI)


def words_panel(title: str, about: str, content: str, *, width: int, height: int) -> text.Panel:
    """Text in Markdown."""
    return _named(text.Panel().content(content), title, about, width, height, ANY)


def alerts_panel(title: str, about: str, *, width: int, height: int) -> dashboard.Panel:
    """The alerts that fire or are about to, of Prometheus and of Grafana, with their annotations.

    The library knows no builder for this panel: these are the options that Grafana 12 saves.
    """
    shown = {"firing": True, "pending": True, "error": True, "noData": False, "normal": False}
    panel = (
        dashboard.Panel()
        .type("alertlist")
        .options(
            {
                "alertInstanceLabelFilter": "",
                "alertName": "",
                "dashboardAlerts": False,
                "groupBy": [],
                "groupMode": "default",
                "maxItems": 20,
                "showInactiveAlerts": False,
                "sortOrder": 3,  # the most severe first
                "stateFilter": shown,
                "viewMode": "list",
            }
        )
    )
    return _named(panel, title, about, width, height, ANY)


@attrs.frozen
class Section:
    """A heading, with panels that fill the rows below it from left to right."""

    title: str
    panels: Sequence[PanelBuilder]


def place(sections: Iterable[Section]) -> list[models.Panel | models.RowPanel]:
    """Give every panel its number and its place."""
    placed: list[models.Panel | models.RowPanel] = []
    numbers = itertools.count(1)
    y = 0
    for section in sections:
        heading = dashboard.Row(section.title).id(next(numbers)).build()
        heading.grid_pos = models.GridPos(x=0, y=y, w=COLUMNS, h=1)
        placed.append(heading)
        y += 1
        x = row_height = 0
        for builder in section.panels:
            panel = builder.build()
            assert panel.grid_pos is not None
            size = panel.grid_pos
            if x + size.w > COLUMNS:
                x, y, row_height = 0, y + row_height, 0
            panel.id_val = next(numbers)
            panel.grid_pos = models.GridPos(x=x, y=y, w=size.w, h=size.h)
            placed.append(panel)
            x, row_height = x + size.w, max(row_height, size.h)
        y += row_height
    return placed


_DASHED = [
    models.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]}),
    models.DynamicConfigValue(id_val="custom.fillOpacity", value=0),
    models.DynamicConfigValue(id_val="custom.stacking", value={"mode": "none", "group": "B"}),
]


def _query(query: str, name: str) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(promql(query)).legend_format(name).datasource(PROMETHEUS)
    return made.ref_id(_ref_id(0))


def _loki_query(query: str, name: str) -> loki.Dataquery:
    made = loki.Dataquery().expr(logql(query)).legend_format(name).datasource(LOKI)
    return made.ref_id(_ref_id(0))


def _ref_id(number: int) -> str:
    return chr(ord("A") + number)


class _Nameable(Protocol):
    """The common methods of the library's panel builders."""

    def title(self, title: str, /) -> Self: ...
    def description(self, description: str, /) -> Self: ...
    def grid_pos(self, grid_pos: models.GridPos, /) -> Self: ...
    def datasource(self, datasource: models.DataSourceRef, /) -> Self: ...


P = TypeVar("P", bound=_Nameable)


def _named(
    panel: P, title: str, about: str, width: int, height: int, source: models.DataSourceRef
) -> P:
    place = models.GridPos(x=0, y=0, w=width, h=height)
    return panel.title(title).description(about).grid_pos(place).datasource(source)


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    """Colours by value; a value below the first step has that step's colour."""
    first, *rest = steps or [(BLUE, 0)]
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps(
            [
                models.Threshold(color=first[0], value=None),
                *(models.Threshold(color=color, value=value) for color, value in rest),
            ]
        )
    )


def _words(texts: dict[str, tuple[str, str]]) -> models.ValueMap:
    return models.ValueMap(
        options={
            value: models.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, (text, color)) in enumerate(texts.items())
        }
    )
