"""Draw what a bench found: three bar panels and a line for each subject, in one figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator

from trio_odin.lab.bench.report import BenchReport, Stage, SubjectReport, w_of

SUFFIXES = (".svg", ".png")
# An inch of an SVG is 96 pixels of a browser: the figure is 900 wide.
_WIDTH_INCHES = 900 / 96
_BAR_INCHES = 0.36
_FRAME_INCHES = 1.45
_LINES_INCHES = 3.7
_LEGEND_COLUMNS = 4
_PNG_DPI = 192
_TITLE_MAX = 24
# Of a panel's width, for each character of the figure at the end of a bar.
_CHARACTER_SHARE = 0.028
# Of a logarithmic axis, below the lowest and above the highest.
_ROOM = 1.4
# The first subject is drawn last, on top of the others.
_FIRST_LAYER = 1000
_INK = "#333333"
_FAINT = "#dddddd"
# Okabe and Ito's colours, which people with any colour vision tell apart; the floor is no rival
# but a yardstick, so it is grey.
_COLOURS = {
    "odin": "#0072b2",
    "odin-2": "#56b4e9",
    "nats": "#009e73",
    "floor": "#777777",
    "websockets": "#e69f00",
    "trio-websocket": "#d55e00",
}
_OTHER_COLOURS = ("#cc79a7", "#000000", "#8c6bb1", "#a6761d")
_MARKERS = "osD^vPX*"
_SHORT_TITLES = {
    "nats": "nats-server",
    "floor": "send floor",
    "websockets": "websockets",
    "trio-websocket": "trio-websocket",
}
# The keys are strings for some versions of matplotlib, literals for others.
_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#999999",
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": _INK,
    # A title with a dollar sign is no formula.
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _FAINT,
    "legend.frameon": False,
    # Text stays text: it can be searched, and read aloud.
    "svg.fonttype": "none",
    # The ids are random without it, and each drawing would be a change for git.
    "svg.hashsalt": "trio-odin",
}


def plot(report: BenchReport, path: Path) -> None:
    """Draw `report` into `path`, an SVG or a PNG by its suffix; the same report, the same bytes.

    Raises:
        ValueError: another suffix.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"a plot is written to a file that ends with .svg or .png, not to {path.name!r}"
        )
    bars_inches = _FRAME_INCHES + _BAR_INCHES * max(1, len(report.subjects))
    with mpl.rc_context():
        # Not what somebody's matplotlibrc says.
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        figure = Figure(
            figsize=(_WIDTH_INCHES, bars_inches + _LINES_INCHES),
            layout=ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.06),
        )
        _draw(figure, report, bars_inches)
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=_PNG_DPI, facecolor="white", metadata=metadata)


def short_title(subject: SubjectReport) -> str:
    """What the plot calls a subject: a title that fits beside a bar."""
    title = _SHORT_TITLES.get(subject.name, subject.title)
    return title if len(title) <= _TITLE_MAX else title[: _TITLE_MAX - 1] + "…"


@attrs.frozen
class _Style:
    """How a subject looks, in every panel."""

    title: str
    colour: str
    marker: str


def _styles(subjects: Sequence[SubjectReport]) -> list[_Style]:
    others = 0
    styles = []
    for number, subject in enumerate(subjects):
        colour = _COLOURS.get(subject.name)
        if colour is None:
            colour = _OTHER_COLOURS[others % len(_OTHER_COLOURS)]
            others += 1
        styles.append(_Style(short_title(subject), colour, _MARKERS[number % len(_MARKERS)]))
    return styles


def _draw(figure: Figure, report: BenchReport, bars_inches: float) -> None:
    """Three panels that share the titles of the subjects above, the lines below."""
    styles = _styles(report.subjects)
    grid = figure.add_gridspec(2, 3, height_ratios=(bars_inches, _LINES_INCHES))
    cpu, memory, storm = (figure.add_subplot(grid[0, column]) for column in range(3))
    for axes in (cpu, memory, storm):
        _prepare_bars(axes, styles, has_titles=axes is cpu)
    _draw_cpu(cpu, report, styles)
    _draw_memory(memory, report.subjects, styles)
    _draw_storm(storm, report, styles)
    _draw_latency(figure, figure.add_subplot(grid[1, :]), report.subjects, styles)


# ---- bars


def _prepare_bars(axes: Axes, styles: Sequence[_Style], *, has_titles: bool) -> None:
    axes.set_yticks(range(len(styles)), [s.title if has_titles else "" for s in styles])
    axes.set_ylim(len(styles) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", linewidth=0.6)


def _draw_bars(
    axes: Axes,
    parts: Sequence[Sequence[float | None]],
    styles: Sequence[_Style],
    labels: Sequence[str],
) -> None:
    """A bar for each subject, of parts from dark to light, and its figure at the end."""
    lefts = [0.0] * len(styles)
    bars = None
    for number, lengths in enumerate(parts):
        known = [length or 0.0 for length in lengths]
        colours = [(style.colour, 0.5**number) for style in styles]
        bars = axes.barh(range(len(styles)), known, 0.62, left=lefts, color=colours)
        lefts = [left + length for left, length in zip(lefts, known, strict=True)]
    if bars is not None:
        # Above the floor's line, which may run through it.
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.bar_label(bars, labels, padding=4, bbox=box)
    room = _CHARACTER_SHARE * (2 + max(map(len, labels), default=0))
    axes.set_xlim(0, (max(lefts, default=0.0) or 1.0) / (1 - room))


def _draw_cpu(axes: Axes, report: BenchReport, styles: Sequence[_Style]) -> None:
    stages = [subject.stage("W") for subject in report.subjects]
    user = [stage.user_us if stage else None for stage in stages]
    system = [stage.system_us if stage else None for stage in stages]
    totals = [stage.cpu_us if stage else None for stage in stages]
    _draw_bars(axes, [user, system], styles, [_label(total, 1) for total in totals])
    _draw_floor(axes, report)
    axes.set_title("CPU per delivery, at W")
    axes.set_xlabel("µs\ndark: user, light: system, dashed: floor")


def _label(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def _draw_floor(axes: Axes, report: BenchReport) -> None:
    floor = w_of("floor", report.subjects)
    if floor is not None and floor.cpu_us is not None:
        axes.axvline(floor.cpu_us, color=_COLOURS["floor"], linewidth=1, linestyle=(0, (4, 3)))


def _draw_memory(axes: Axes, subjects: Sequence[SubjectReport], styles: Sequence[_Style]) -> None:
    lengths = [subject.kib_loaded for subject in subjects]
    _draw_bars(axes, [lengths], styles, [_label(length, 1) for length in lengths])
    axes.set_title("Memory per connection, after W")
    axes.set_xlabel("KiB")


def _draw_storm(axes: Axes, report: BenchReport, styles: Sequence[_Style]) -> None:
    storms = [subject.storm for subject in report.subjects]
    lengths = [storm.seconds if storm else None for storm in storms]
    # Quick, but not with all of them: that is to be seen.
    only = [
        f" ({storm.connected:,} only)" if storm and storm.connected < report.connections else ""
        for storm in storms
    ]
    labels = [_label(length, 2) + text for length, text in zip(lengths, only, strict=True)]
    _draw_bars(axes, [lengths], styles, labels)
    axes.set_title(f"{report.connections:,} connect and subscribe")
    axes.set_xlabel("seconds")


# ---- lines


def _draw_latency(
    figure: Figure, axes: Axes, subjects: Sequence[SubjectReport], styles: Sequence[_Style]
) -> None:
    """A line per subject, in the order of the steps: one that is past its peak turns back."""
    shown: list[Stage] = []
    for subject, style in zip(subjects, styles, strict=True):
        steps = list(_steps(subject))
        if steps:
            _draw_line(axes, steps, style, layer=_FIRST_LAYER - len(shown))
            shown += steps
    _set_scale(axes, shown)
    if any(step.lost for step in shown):
        axes.plot([], [], "o", color=_INK, markerfacecolor="white", label="hollow: some lost")
    axes.set_title("Latency under load: W, then twice the rate at each step")
    axes.set_xlabel("deliveries per second")
    axes.set_ylabel("p99 latency, ms")
    axes.grid(linewidth=0.6)
    if shown:
        figure.legend(loc="outside lower center", ncols=_LEGEND_COLUMNS)


def _steps(subject: SubjectReport) -> Iterator[Stage]:
    """Without those that delivered nothing, which have no place on a logarithmic scale."""
    return (stage for stage in subject.steps if stage.received and stage.p99_ms > 0)


def _draw_line(axes: Axes, steps: Sequence[Stage], style: _Style, *, layer: float) -> None:
    points = [(step.per_second, step.p99_ms) for step in steps]
    axes.plot(
        *zip(*points, strict=True),
        color=style.colour,
        marker=style.marker,
        label=style.title,
        linewidth=1.6,
        zorder=layer,
    )
    lossy = [point for point, step in zip(points, steps, strict=True) if step.lost]
    if lossy:
        axes.plot(
            *zip(*lossy, strict=True),
            color=style.colour,
            marker=style.marker,
            linestyle="",
            markerfacecolor="white",
            zorder=layer,
        )


def _set_scale(axes: Axes, steps: Sequence[Stage]) -> None:
    """1, 2, 5, 10 and so on."""
    axes.set(xscale="log", yscale="log")
    _set_limits(axes.set_xlim, [step.per_second for step in steps])
    _set_limits(axes.set_ylim, [step.p99_ms for step in steps])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda tick, _: f"{tick:,g}")
    axes.minorticks_off()


def _set_limits(set_limits: Callable[[float, float], object], values: Sequence[float]) -> None:
    low, high = (min(values), max(values)) if values else (1.0, 100.0)
    set_limits(low / _ROOM, high * _ROOM)
