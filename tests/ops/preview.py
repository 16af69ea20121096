"""Draw the dashboards without Grafana: `python -m tests.ops.preview FOLDER`, about two minutes.

Starts NATS, a server, a load and Prometheus, and makes one PNG for each dashboard with the answers
to its queries where Grafana would show them. For people who change dashboards: whether a panel is
empty, its unit senseless or its legend too long is seen here; how Grafana looks is not.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import trio
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.ops.grafana import NAMES, read
from tests.ops.prometheus import Prometheus
from tests.ops.under_load import under_load

_SECONDS = 90
_STEP = 5.0
_VARIABLES = {
    "$__rate_interval": "15s",
    "$__range": f"{_SECONDS}s",
    "$instance": ".*",
    "$cores": "1.9",
}
# Of a page that is 1,920 wide.
_WIDTH_INCHES, _HEIGHT_INCHES = 0.72, 0.34
_COLOURS = {"green": "#56a64b", "yellow": "#e0b400", "red": "#e02f44", "blue": "#3274d9"}


def _scaled(value: float, *steps: tuple[float, str]) -> str:
    size, unit = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    return f"{value / size:.3g} {unit}"


_UNITS: dict[str, Callable[[float], str]] = {
    "percent": lambda v: f"{v:.1f} %",
    "percentunit": lambda v: f"{v * 100:.1f} %",
    "bytes": lambda v: _scaled(v, (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")),
    "Bps": lambda v: _scaled(v, (1e6, "MB/s"), (1e3, "kB/s"), (1, "B/s")),
    "s": lambda v: _scaled(v, (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "short": lambda v: _scaled(v, (1e6, "M"), (1e3, "K"), (1, "")),
}


def _filled(text: str) -> str:
    for name, value in _VARIABLES.items():
        text = text.replace(name, value)
    return text


def _name(target: dict[str, Any], labels: dict[str, str]) -> str:
    text = target.get("legendFormat") or "value"
    for label, value in labels.items():
        text = text.replace("{{" + label + "}}", value)
    return str(text)


def _colour(defaults: dict[str, Any], value: float) -> str:
    colour = "blue"
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return _COLOURS[colour]


def _draw_stat(axes: Axes, panel: dict[str, Any], series: list[tuple[str, Any]]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    text, colour = defaults.get("noValue", ""), "#8e8e8e"
    if series:
        name, points = series[0]
        value = float(points[-1][1])
        mapped = {
            k: v["text"] for m in defaults.get("mappings", []) for k, v in m["options"].items()
        }
        text = mapped.get(f"{value:g}", _UNITS[defaults["unit"]](value))
        text = name if panel["options"]["textMode"] == "name" else text
        colour = _colour(defaults, value)
    axes.text(0.5, 0.4, text, ha="center", va="center", fontsize=15, color=colour)


def _draw_graph(axes: Axes, panel: dict[str, Any], series: list[tuple[str, Any]]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    unit = _UNITS[defaults["unit"]]
    if not series:
        axes.text(0.5, 0.5, defaults.get("noValue", ""), ha="center", fontsize=10, color="#8e8e8e")
        return
    for name, points in series:
        times = [float(t) - float(series[0][1][0][0]) for t, _ in points]
        values = [float(v) for _, v in points]
        axes.plot(times, values, lw=1, label=f"{name}: {unit(values[-1])}")
    least = defaults["custom"].get("axisSoftMin")
    axes.set_ylim(bottom=min(least, axes.get_ylim()[0]) if least is not None else None)
    axes.yaxis.set_major_formatter(lambda v, _: unit(v) if v else "0")
    axes.legend(fontsize=5, loc="upper left", framealpha=0.5)
    axes.tick_params(labelsize=5)


def _draw_heat(axes: Axes, _: dict[str, Any], series: list[tuple[str, Any]]) -> None:
    series = sorted(series, key=lambda one: float(one[0].replace("+Inf", "inf")))
    table = [[float(v) for _, v in points] for _, points in series]
    columns = min(map(len, table), default=0)
    rows = [[0.0] * columns, *(row[-columns:] for row in table)]
    # Of each bucket without those below it.
    each = [[b - a for a, b in zip(*two, strict=True)] for two in pairwise(rows)]
    axes.pcolormesh(each, cmap="Oranges")
    axes.set_yticks([n + 0.5 for n in range(len(series))], [name for name, _ in series], fontsize=5)


def _draw_states(axes: Axes, _: dict[str, Any], series: list[tuple[str, Any]]) -> None:
    for row, (_title, points) in enumerate(series):
        for number, (_time, value) in enumerate(points):
            axes.barh(row, 1, left=number, color=_COLOURS["red" if float(value) else "green"])
    axes.set_yticks(range(len(series)), [name for name, _ in series], fontsize=6)


def _draw_bars(axes: Axes, panel: dict[str, Any], series: list[tuple[str, Any]]) -> None:
    values = [float(points[-1][1]) for _, points in series]
    colours = [_colour(panel["fieldConfig"]["defaults"], value) for value in values]
    axes.barh(range(len(series)), values, color=colours)
    names = [f"{name}: {value:,.0f}" for (name, _), value in zip(series, values, strict=True)]
    axes.set_yticks(range(len(series)), names, fontsize=6)
    axes.set_xlim(0, panel["fieldConfig"]["defaults"]["max"])
    axes.tick_params(axis="y", direction="in", pad=-60)


_KINDS = {
    "stat": _draw_stat,
    "timeseries": _draw_graph,
    "heatmap": _draw_heat,
    "state-timeline": _draw_states,
    "bargauge": _draw_bars,
}


async def _series(
    prometheus: Prometheus, panel: dict[str, Any], start: float, end: float
) -> list[tuple[str, Any]]:
    found = []
    for target in panel.get("targets", []):
        if target["datasource"]["type"] != "prometheus":
            continue
        text = _filled(target["expr"])
        if target.get("instant"):
            answer = await prometheus.now(text)
        else:
            answer = await prometheus.course(text, start, end, _STEP)
        found += [
            (_name(target, one["metric"]), one.get("values") or [one["value"]]) for one in answer
        ]
    return found


async def _draw(prometheus: Prometheus, name: str, start: float, folder: Path) -> None:
    cells = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in read(name)["panels"])
    figure = Figure(figsize=(24 * _WIDTH_INCHES, cells * _HEIGHT_INCHES))
    for panel in read(name)["panels"]:
        at = panel["gridPos"]
        box = (at["x"] / 24, 1 - (at["y"] + at["h"]) / cells, at["w"] / 24, at["h"] / cells)
        inset = (box[0] + 0.03, box[1] + 0.3 / cells, box[2] - 0.035, box[3] - 1.3 / cells)
        heading = textwrap.shorten(panel["title"], 8 * at["w"])
        figure.text(box[0] + 0.004, box[1] + box[3] - 0.8 / cells, heading, fontsize=8)
        if draw := _KINDS.get(panel["type"]):
            axes = figure.add_axes(inset)
            axes.set_xticks([])
            if panel["type"] == "stat":
                axes.set_axis_off()
            draw(axes, panel, await _series(prometheus, panel, start, time.time()))
    figure.savefig(folder / f"{name}.png", dpi=110)


async def _preview(folder: Path) -> None:
    start = time.time()
    # Fewer places than clients, who come back: so that something is refused.
    options = {"connections": 420, "hold": 600.0, "WS_MAX_CONNECTIONS": "400"}
    async with under_load(folder, **options) as prometheus:  # type: ignore[arg-type]
        await trio.sleep_until(trio.current_time() + _SECONDS)
        for name in NAMES:
            await _draw(prometheus, name, start, folder)


if __name__ == "__main__":
    mpl.use("agg")
    trio.run(_preview, Path(sys.argv[1]))
