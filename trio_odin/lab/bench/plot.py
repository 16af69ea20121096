"""Draw what a bench found: three bar panels and a line for each subject, in one figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from trio_odin.lab.bench.report import BenchReport, Stage, SubjectReport, w_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUFFIXES = (".svg", ".png")
# An inch of an SVG is 96 pixels of a browser: the figure is 900 wide.
_WIDTH_INCHES = 900 / 96
_BAR_INCHES = 0.36
_FRAME_INCHES = 1.45
_LINES_INCHES = 3.7
_LEGEND_COLUMNS = 4
_TICKS_MIN = 3
_PNG_DPI = 192
_TITLE_MAX = 24
# Of a panel's width, for each character of the figure at the end of a bar.
_CHARACTER_SHARE = 0.028
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


class PlotUnavailable(Exception):
    """There is no matplotlib; the message says how to get it."""


def plot(report: BenchReport, path: Path) -> None:
    """Draw `report` into `path`, an SVG or a PNG by its suffix; the same report, the same bytes.

    Raises:
        ValueError: another suffix.
        PlotUnavailable: matplotlib is not installed.
    """
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"a plot is written to a file that ends with .svg or .png, not to {path.name!r}"
        )
    try:
        import matplotlib as mpl  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415
    except ImportError as error:
        raise PlotUnavailable(
            "a plot takes matplotlib, which is not installed: pip install '.[bench]'"
        ) from error
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


def _label_bars(axes: Axes, lengths: Sequence[float | None], labels: Sequence[str]) -> None:
    """Write each figure at the end of its bar, and make room for it; a dash where there is none."""
    longest = max((length for length in lengths if length), default=1.0)
    room = _CHARACTER_SHARE * (2 + max(map(len, labels), default=0))
    axes.set_xlim(0, longest / (1 - room))
    for row, (length, label) in enumerate(zip(lengths, labels, strict=True)):
        axes.annotate(
            "–" if length is None else label,
            (length or 0.0, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            # Above the floor's line, which may run through it.
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def _draw_cpu(axes: Axes, report: BenchReport, styles: Sequence[_Style]) -> None:
    stages = [subject.stage("W") for subject in report.subjects]
    for row, (stage, style) in enumerate(zip(stages, styles, strict=True)):
        if stage is None or stage.user_us is None or stage.system_us is None:
            continue
        axes.barh(row, stage.user_us, 0.62, color=style.colour)
        axes.barh(row, stage.system_us, 0.62, left=stage.user_us, color=_lighter(style.colour))
    _draw_floor(axes, report)
    totals = [None if stage is None else stage.cpu_us for stage in stages]
    _label_bars(axes, totals, [f"{total or 0:.1f}" for total in totals])
    axes.set_title("CPU per delivery, at W")
    axes.set_xlabel("µs\ndark: user, light: system, dashed: floor")


def _draw_floor(axes: Axes, report: BenchReport) -> None:
    floor = w_of("floor", report.subjects)
    if floor is not None and floor.cpu_us is not None:
        axes.axvline(floor.cpu_us, color=_COLOURS["floor"], linewidth=1, linestyle=(0, (4, 3)))


def _draw_memory(axes: Axes, subjects: Sequence[SubjectReport], styles: Sequence[_Style]) -> None:
    lengths = [subject.kib_loaded for subject in subjects]
    _draw_plain_bars(axes, lengths, styles)
    _label_bars(axes, lengths, [f"{length or 0:.1f}" for length in lengths])
    axes.set_title("Memory per connection, after W")
    axes.set_xlabel("KiB")


def _draw_storm(axes: Axes, report: BenchReport, styles: Sequence[_Style]) -> None:
    storms = [subject.storm for subject in report.subjects]
    lengths = [storm.seconds if storm else None for storm in storms]
    _draw_plain_bars(axes, lengths, styles)
    labels = [
        # Quick, but not with all of them: that is to be seen.
        f"{storm.seconds:.2f}"
        + (f" ({storm.connected:,} only)" if storm.connected < report.connections else "")
        if storm
        else ""
        for storm in storms
    ]
    _label_bars(axes, lengths, labels)
    axes.set_title(f"{report.connections:,} connect and subscribe")
    axes.set_xlabel("seconds")


def _draw_plain_bars(axes: Axes, lengths: Sequence[float | None], styles: Sequence[_Style]) -> None:
    for row, (length, style) in enumerate(zip(lengths, styles, strict=True)):
        if length is not None:
            axes.barh(row, length, 0.62, color=style.colour)


def _lighter(colour: str) -> str:
    """Half way to white."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{(part + 255) // 2:02x}" for part in parts)


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
    axes.set_xscale("log")
    axes.set_yscale("log")
    x_ticks = _ticks([step.per_second for step in steps])
    y_ticks = _ticks([step.p99_ms for step in steps])
    axes.set_xticks(x_ticks, [f"{tick:,g}" for tick in x_ticks])
    axes.set_yticks(y_ticks, [f"{tick:,g}" for tick in y_ticks])
    axes.set_xlim(x_ticks[0], x_ticks[-1])
    axes.set_ylim(y_ticks[0], y_ticks[-1])
    axes.minorticks_off()


def _ticks(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10 and so on: all that lie between the values, and one beyond at each end."""
    low, high = (min(values), max(values)) if values else (1.0, 100.0)
    ladder = [float(f"{digit}e{power}") for power in range(-3, 10) for digit in (1, 2, 5)]
    first = max((i for i, step in enumerate(ladder) if step < low), default=0)
    last = min((i for i, step in enumerate(ladder) if step > high), default=len(ladder) - 1)
    if last - first < _TICKS_MIN:
        first, last = max(0, first - 1), last + 1
    return ladder[first : last + 1]
