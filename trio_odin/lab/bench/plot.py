"""Draws the results of a bench in one figure: three bar panels, and a line per target.

With the stage of rates there are two more panels: CPU against the market's rate, and the bytes of a
delivery.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import LogLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from trio_odin.lab.bench.record import BenchReport, Stage, TargetReport, w_of

SUFFIXES = (".svg", ".png")
# An inch of an SVG is 96 pixels of a browser: the figure is 900 wide.
_WIDTH_INCHES = 900 / 96
_BAR_INCHES, _FRAME_INCHES, _LINES_INCHES = 0.36, 1.45, 3.7
_RATES_INCHES = 3.2
_LEGEND_COLUMNS = 4
_PNG_DPI = 192
_LAYOUT_DIGITS = 4  # of the figure's size: less than a tenth of a pixel
_TITLE_MAX = 24
_SHORT_TITLES = {
    "nats": "nats-server",
    "floor": "send floor",
    "uws": "uWebSockets",
    "websockets": "websockets",
    "trio-websocket": "trio-websocket",
}
# Okabe and Ito's colours, which people with any colour vision can distinguish. The floor is a
# yardstick, not a rival, so it is grey.
_FLOOR_COLOUR = "#777777"
_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#f0e442")
_MARKERS = "osD^vPX*"
# Some versions of matplotlib type the keys as strings, others as literals.
_RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    # A title with a dollar sign is not a formula.
    "text.parse_math": False,
    # Text stays text, so that it can be searched and read aloud.
    "svg.fonttype": "none",
    # Without it the ids are random, and git would see a change in each drawing.
    "svg.hashsalt": "trio-odin",
}


def plot(report: BenchReport, path: Path) -> None:
    """Draw `report` into `path`, as SVG or PNG by its suffix. The same report gives the same bytes.

    Raises:
        ValueError: the suffix is another one.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"a plot is written to a file that ends with .svg or .png, not to {path.name!r}"
        )
    with mpl.rc_context():
        # Ignore the user's matplotlibrc.
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        parts = _parts(report)
        heights = [inches for inches, _ in parts]
        figure = Figure((_WIDTH_INCHES, sum(heights)), layout="constrained")
        rows = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
        for row, (_, draw) in zip(rows, parts, strict=True):
            draw(row)
        _settle(figure)
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=_PNG_DPI, facecolor="white", metadata=metadata)


def _settle(figure: Figure) -> None:
    """Lay out once, and on a grid: the last digits of what the solver finds vary."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for part in figure.subfigs:
        _round(part.bbox_relative)
        for axes in part.axes:
            axes.set_position(_round(axes.get_position()))


def _round(box: Bbox) -> Bbox:
    box.set_points(box.get_points().round(_LAYOUT_DIGITS))
    return box


def _parts(report: BenchReport) -> list[tuple[float, Callable[[FigureBase], None]]]:
    """What there is to draw, from top to bottom, and the height of each."""
    alone = _with_rates(report)
    parts: list[tuple[float, Callable[[FigureBase], None]]] = []
    if alone is None or any(target.stage("W") for target in report.targets):
        bars_inches = _FRAME_INCHES + _BAR_INCHES * max(1, len(report.targets))
        parts.append((bars_inches + _LINES_INCHES, partial(_draw_all, report, bars_inches)))
    if alone is not None:
        parts.append((_RATES_INCHES, partial(_draw_alone, alone)))
    return parts


def _draw_all(report: BenchReport, bars_inches: float, part: FigureBase) -> None:
    grid = part.add_gridspec(2, 3, height_ratios=(bars_inches, _LINES_INCHES))
    _draw_bars([part.add_subplot(grid[0, column]) for column in range(3)], report)
    _draw_latency(part, part.add_subplot(grid[1, :]), report.targets)


def _draw_alone(target: TargetReport, part: FigureBase) -> None:
    rates, encodings = target.named("rates"), target.named("compression")
    panels = part.subplots(1, bool(rates) + bool(encodings), squeeze=False)[0]
    if rates:
        _draw_rates(panels[0], rates)
    if encodings:
        _draw_bytes(panels[-1], encodings)


def _with_rates(report: BenchReport) -> TargetReport | None:
    """The first target with the stages of trio-odin alone."""
    alone = (one for one in report.targets if one.named("rates") or one.named("compression"))
    return next(alone, None)


def short_title(target: TargetReport) -> str:
    """A short title of a target, which fits beside a bar."""
    title = _SHORT_TITLES.get(target.name, target.title)
    return title if len(title) <= _TITLE_MAX else title[: _TITLE_MAX - 1] + "…"


def _colour(number: int, target: TargetReport) -> str:
    """The colour of a target in every panel."""
    return _FLOOR_COLOUR if target.name == "floor" else _COLOURS[number % len(_COLOURS)]


def _draw_bars(panels: Sequence[Axes], report: BenchReport) -> None:
    """Draw three panels; the first one has the titles."""
    cpu, memory, storm = panels
    stages = [target.stage("W") for target in report.targets]
    totals = [None if stage is None else stage.cpu_us for stage in stages]
    _bars(cpu, report, totals, "CPU per delivery, at W", "µs\ndark: user, dashed: floor")
    for row, stage in enumerate(stages):
        if stage is not None and stage.user_us is not None:
            cpu.barh(row, stage.user_us, 0.62, color="black", alpha=0.35)
    floor = w_of("floor", report.targets)
    if floor is not None and floor.cpu_us is not None:
        cpu.axvline(floor.cpu_us, color=_FLOOR_COLOUR, linewidth=1, linestyle=(0, (4, 3)))
    cpu.set_yticks(range(len(stages)), [short_title(target) for target in report.targets])

    kib = [target.kib_loaded for target in report.targets]
    _bars(memory, report, kib, "Memory per connection, after W", "KiB")

    storms = [target.storm for target in report.targets]
    seconds = [None if one is None else one.seconds for one in storms]
    # It was fast, but without some connections: the remark shows it.
    remarks = [
        f" ({one.connected:,} only)" if one and one.connected < report.connections else ""
        for one in storms
    ]
    title = f"{report.connections:,} connect and subscribe"
    _bars(storm, report, seconds, title, "seconds", remarks)


def _bars(
    axes: Axes,
    report: BenchReport,
    lengths: Sequence[float | None],
    title: str,
    unit: str,
    remarks: Sequence[str] = (),
) -> None:
    """Draw a bar for each target, with its figure at the end; a dash where there is no figure."""
    colours = [_colour(number, target) for number, target in enumerate(report.targets)]
    bars = axes.barh(range(len(lengths)), [x or 0.0 for x in lengths], 0.62, color=colours)
    behind = remarks or [""] * len(lengths)
    labels = [
        "–" if length is None else f"{length:.{2 if length < 10 else 1}f}{remark}"
        for length, remark in zip(lengths, behind, strict=True)
    ]
    axes.bar_label(bars, labels, padding=4)
    # Room for the labels.
    axes.margins(x=0.08 + 0.06 * max(map(len, labels), default=0))
    axes.set_ylim(len(lengths) - 0.4, -0.6)
    axes.set_yticks([])
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", linewidth=0.6)
    axes.set_title(title)
    axes.set_xlabel(unit)


def _draw_latency(figure: FigureBase, axes: Axes, targets: Sequence[TargetReport]) -> None:
    """Draw a line per target in the order of the steps; past its peak a line turns back."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for number, target in enumerate(targets):
        # Steps without deliveries have no place on a logarithmic scale.
        steps = [step for step in target.steps if step.received and step.p99_ms > 0]
        if steps:
            axes.plot(
                [step.per_second for step in steps],
                [step.p99_ms for step in steps],
                color=_colour(number, target),
                marker=_MARKERS[number % len(_MARKERS)],
                label=short_title(target),
                zorder=len(targets) + 2 - number,
            )
        lossy = [(step.per_second, step.p99_ms) for step in steps if step.lost]
        axes.plot(
            *(zip(*lossy, strict=True) if lossy else ((), ())),
            color=_colour(number, target),
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle="",
            markerfacecolor="white",
            zorder=len(targets) + 2 - number,
        )
    if any(step.lost for target in targets for step in target.steps):
        axes.plot([], [], "o", color="black", markerfacecolor="white", label="hollow: some lost")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.minorticks_off()
    axes.set_title("Latency under load: W, then twice the rate at each step")
    axes.set_xlabel("deliveries per second")
    axes.set_ylabel("p99 latency, ms")
    axes.grid(linewidth=0.6)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=_LEGEND_COLUMNS)


def _draw_rates(axes: Axes, stages: Sequence[Stage]) -> None:
    """Draw a line for each rate that the plan's users ask for; without a rate first."""
    axes.set_xscale("log")
    mixed = [stage for stage in stages if stage.users == "mix" and stage.cores is not None]
    for number, every_ms in enumerate(sorted({stage.every_ms for stage in mixed})):
        line = sorted((s.rate, s.cores) for s in mixed if s.every_ms == every_ms)
        axes.plot(
            *zip(*line, strict=True),
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            label=f"an update every {every_ms:,} ms" if every_ms else "every event",
        )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_title("CPU against the market, the plan's users")
    axes.set_xlabel("events per second of the market")
    axes.set_ylabel("cores")
    axes.grid(linewidth=0.6)
    if mixed:
        axes.legend()


def _draw_bytes(axes: Axes, stages: Sequence[Stage]) -> None:
    """Draw a bar for each encoding, with single events and with batches."""
    labels = [
        f"{stage.encoding}, " + (f"batches at {stage.rate:g}/s" if stage.every_ms else "single")
        for stage in stages
    ]
    places = range(len(stages))
    colours = [_COLOURS[bool(stage.every_ms)] for stage in stages]
    bars = axes.barh(places, [stage.delivery_wire_bytes for stage in stages], 0.62, color=colours)
    axes.bar_label(bars, fmt="{:,.0f}", padding=4)
    axes.margins(x=0.15)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", linewidth=0.6)
    axes.set_title("Bytes per delivery, with TCP/IP headers")
    axes.set_xlabel("bytes")
