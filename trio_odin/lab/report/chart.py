"""Draws small plots as SVG inside a page: matplotlib draws them, the page colours them.

Nothing here depends on the data. Each colour is from the page's light palette and is replaced by
the page's variable for it, so that one drawing serves light, dark and paper. Text stays text. The
pointer shows the text of a `<title>`.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, Final

import attrs
import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from trio_odin.lab.figures import count, duration, figure

# In a drawing's units: its size, and the margins around its axes: left, right, top, bottom. The
# page shows about one unit a pixel.
_PANEL, _PANEL_MARGINS = (280, 138), (42, 30, 14, 18)
_SCATTER, _SCATTER_MARGINS = (560, 300), (48, 14, 24, 40)
_DPI = 72
_TICKS_MOST = 4
# A level that is further away is named, not drawn: it would flatten the lines.
_LEVEL_FACTOR = 2.5
_HEADROOM = 1.12
_MINUTE = 60
_DECADE = 10
# Smaller values are drawn there.
_LOG_LEAST = 1e-3
# Dots closer than this share a label.
_APART = (16, 12)
_CHARACTER = 7

BLUE: Final = "#0072b2"
ORANGE: Final = "#c25a00"
GREY: Final = "#9a9fa8"
PURPLE: Final = "#7a5195"
SOFT: Final = "#5b6675"
LIMIT: Final = "#b23a00"
_INK, _CARD, _GRID = "#1b2430", "#ffffff", "#e9ecf0"
_BANDS = {
    "connecting": "#cfe6f5",
    "idle": "#f0f2f5",
    "hold": "none",
    "reconnecting": "#fbdcc4",
    "closing": "#e0e3e8",
}
_VARIABLES = {
    BLUE: "--a",
    ORANGE: "--b",
    GREY: "--c",
    PURPLE: "--d",
    SOFT: "--soft",
    LIMIT: "--limit",
    _INK: "--ink",
    _CARD: "--card",
    _GRID: "--grid",
    **{colour: f"--{name}" for name, colour in _BANDS.items() if colour != "none"},
}
# Some versions of matplotlib type the keys as strings, others as literals.
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.axisbelow": True,
    "axes.labelcolor": SOFT,
    "grid.color": _GRID,
    "text.color": SOFT,
    "text.parse_math": False,
    "xtick.bottom": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.left": False,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handletextpad": 0.2,
    "legend.labelspacing": 0.2,
    "legend.labelcolor": "linecolor",
    # A line of an hour has more points than pixels. Within a pixel only the extremes are kept.
    "path.simplify": True,
    "path.simplify_threshold": 1.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "trio-odin",
}


@attrs.frozen(kw_only=True)
class Line:
    """A line of a panel: times in seconds and figures, None if a figure is unknown."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: str = BLUE

    @property
    def known(self) -> list[tuple[float, float]]:
        """The points with a figure."""
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]

    @property
    def hint(self) -> str:
        """A summary of the line."""
        ys = [y for _, y in self.known]
        low, mean, high = map(figure, (min(ys), math.fsum(ys) / len(ys), max(ys)))
        return f"{self.name}: lowest {low}, mean {mean}, highest {high}"


@attrs.frozen(kw_only=True)
class Band:
    """A phase, drawn in the background."""

    name: str
    start: float
    end: float


@attrs.frozen(kw_only=True)
class Level:
    """A level, such as a limit, to compare the lines with."""

    name: str
    value: float
    colour: str = LIMIT


@attrs.frozen(kw_only=True)
class Panel:
    """Lines over time, below their levels.

    A panel without any figure is drawn empty, so that the others keep their places.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    bands: Sequence[Band] = ()
    levels: Sequence[Level] = ()
    is_log: bool = False
    is_whole: bool = False


@attrs.frozen(kw_only=True)
class Dot:
    """A stage in a scatter plot; `predicted` is the model's figure for this `x`."""

    x: float
    y: float
    label: str
    hint: str
    is_met: bool = True
    predicted: float | None = None


@attrs.frozen(kw_only=True)
class Scatter:
    """Cost against size; `slope` is the cost of one by the plan's figure."""

    title: str
    x_title: str
    unit: str
    dots: Sequence[Dot]
    slope: float | None = None
    slope_label: str = ""
    levels: Sequence[Level] = ()


def panel_svg(panel: Panel) -> str:
    """Draw a panel."""
    return _svg(
        lambda drawing: _draw_panel(drawing, panel),
        _PANEL,
        _PANEL_MARGINS,
        style="panel",
        label=f"{panel.title}, {panel.unit}, over time",
    )


def scatter_svg(scatter: Scatter) -> str:
    """Draw a scatter plot."""
    return _svg(
        lambda drawing: _draw_scatter(drawing, scatter),
        _SCATTER,
        _SCATTER_MARGINS,
        style="scatter",
        label=f"{scatter.title}, {scatter.unit}, by {scatter.x_title}",
    )


@attrs.define
class _Drawing:
    """Axes, and the texts that the pointer shows on their parts."""

    axes: Axes
    hints: list[str] = attrs.field(factory=list)

    def hint(self, artist: Artist, text: str) -> None:
        """Show a text when the pointer is on `artist`."""
        artist.set_gid(f"hint-{len(self.hints)}")
        self.hints.append(text)

    def note(
        self, text: str, place: tuple[float, float], *, away: tuple[float, float], **how: Any
    ) -> None:
        """Write `text` at an offset from a place."""
        self.axes.annotate(text, place, xytext=away, textcoords="offset points", **how)


def _svg(
    draw: Callable[[_Drawing], None],
    size: tuple[int, int],
    margins: tuple[int, int, int, int],
    *,
    style: str,
    label: str,
) -> str:
    width, height = size
    left, right, top, bottom = margins
    with mpl.rc_context():
        # Ignore the user's matplotlibrc.
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        whole = Figure((width / _DPI, height / _DPI), dpi=_DPI, frameon=False)
        inner = ((width - left - right) / width, (height - top - bottom) / height)
        drawing = _Drawing(whole.add_axes((left / width, bottom / height, *inner)))
        drawing.axes.set_frame_on(False)
        draw(drawing)
        file = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        whole.savefig(file, format="svg", metadata=metadata)
    content = _for_a_page(file.getvalue(), drawing.hints)
    head = f'<svg class="{style}" viewBox="0 0 {width} {height}" role="img" '
    return f'{head}aria-label="{escape(label)}">{content}</svg>'


def _for_a_page(source: str, hints: Sequence[str]) -> str:
    """The content of an SVG file, in the page's colours and font, and as short as possible.

    Nothing is clipped, as only intended parts are drawn outside of the axes.
    """
    text = source[source.index("</defs>") + len("</defs>") : source.rindex("</svg>")]
    text = re.sub(r"<defs>\s*<clipPath.*?</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r' (clip-path|transform)="[^"]*"| font-family: [^;"]*;', "", text)
    text = text.replace("font-size: 10px; ", "").replace(f"; fill: {SOFT}", "")
    text = re.sub(
        r' id="hint-(\d+)">', lambda m: f"><title>{escape(hints[int(m[1])])}</title>", text
    )
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    text = re.sub(r' (d|x|y)="[^"]*"', lambda m: _short(m[0]), text)
    text = re.sub(r' style="[^"]*"', lambda m: re.sub("#[0-9a-f]{6}", _variable, m[0]), text)
    return re.sub(r"\s*\n\s*", " ", text).replace("> <", "><")


def _short(places: str) -> str:
    """Round places to a tenth of a unit, and leave out the repeated command of a line."""
    return re.sub(r"(\.[1-9])\d+|\.0\d*", r"\1", places).replace("\nL ", " ")


def _variable(colour: re.Match[str]) -> str:
    return f"var({_VARIABLES[colour[0]]})"


# ---- a panel


def _draw_panel(drawing: _Drawing, panel: Panel) -> None:
    axes, lines = drawing.axes, [line for line in panel.lines if line.known]
    if not lines:
        axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))
        axes.axhline(0, color=_GRID, linewidth=0.8)
        axes.text(0.5, 0.5, "nothing to measure", ha="center")
        return
    ends = [x for line in lines for x, _ in line.known] + [band.end for band in panel.bands]
    _time_axis(axes, max([*ends, 1.0]))
    ys = [y for line in lines for _, y in line.known]
    if panel.is_log:
        _logarithmic_axis(axes, ys)
    else:
        _axis(axes, max(ys), panel.levels, is_whole=panel.is_whole)
    _draw_levels(drawing, panel.levels, at=0.45, ha="center")
    for band in panel.bands:
        colour = _BANDS.get(band.name, _BANDS["idle"])
        span = axes.axvspan(band.start, band.end, color=colour, linewidth=0, zorder=0)
        drawing.hint(span, f"{band.name}, {duration(band.end - band.start)}")
    for line in lines:
        _draw_line(drawing, line, panel.unit, least=_LOG_LEAST if panel.is_log else -math.inf)
    if len(panel.lines) > 1:
        legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=0)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_visible(False)
    else:
        _draw_peak(drawing, lines[0], is_whole=panel.is_whole)


def _time_axis(axes: Axes, longest: float) -> None:
    """Set the axis of time, in seconds or minutes; the last tick names the unit."""
    divisor, unit = (_MINUTE, "min") if longest > 2 * _MINUTE else (1, "s")
    last = longest / divisor
    locator = MaxNLocator(_TICKS_MOST, steps=[1, 2, 3, 5, 6, 10], integer=True)
    ticks = [tick for tick in locator.tick_values(0, last) if 0 <= tick <= last]
    labels = [f"{tick:,.0f}" for tick in ticks]
    axes.set_xlim(0, longest)
    axes.set_xticks([tick * divisor for tick in ticks], [*labels[:-1], f"{labels[-1]} {unit}"])


def _axis(axes: Axes, top: float, levels: Sequence[Level] = (), *, is_whole: bool = False) -> None:
    """Set an axis from 0 to the tick above everything, near levels included."""
    top = max([top, *(level.value for level in levels if level.value <= top * _LEVEL_FACTOR)])
    ticks = MaxNLocator(_TICKS_MOST, steps=[1, 2, 5, 10], integer=is_whole)
    found = [tick for tick in ticks.tick_values(0, top or 1.0) if tick >= 0]
    axes.set_ylim(0, found[-1])
    axes.set_yticks(found, [f"{tick:,.6g}" for tick in found])
    axes.grid(axis="y")


def _logarithmic_axis(axes: Axes, ys: Sequence[float]) -> None:
    """Set an axis from decade to decade."""
    low = _DECADE ** math.floor(math.log10(max(min(ys), _LOG_LEAST)))
    high = max(_DECADE ** math.ceil(math.log10(max([*ys, low]))), low * _DECADE)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high == low * _DECADE else (1,)))
    axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:,g}")
    axes.minorticks_off()
    axes.grid(axis="y")


def _draw_levels(drawing: _Drawing, levels: Sequence[Level], *, at: float, ha: str) -> None:
    """Draw a line per level, named where peaks are rare; levels above the axis are only named."""
    axes = drawing.axes
    top = axes.get_ylim()[1]
    beside = axes.get_yaxis_transform()
    drawn = [level for level in levels if level.value <= top]
    for level in drawn:
        axes.axhline(level.value, color=level.colour, linewidth=1, linestyle=(0, (5, 3)))
        place = (at, level.value)
        drawing.note(level.name, place, away=(0, 3), xycoords=beside, ha=ha, color=level.colour)
    if above := [level for level in levels if level.value > top]:
        names = ", ".join(level.name for level in above)
        up = 14 if drawn and ha == "right" else 6
        colour = above[-1].colour
        drawing.note(
            f"{names} ↑", (1, 1), away=(0, up), xycoords="axes fraction", ha="right", color=colour
        )


def _draw_line(drawing: _Drawing, line: Line, unit: str, *, least: float) -> None:
    xs = [x for x, _ in line.points]
    ys = [math.nan if y is None else max(y, least) for _, y in line.points]
    # A point without neighbours does not make a line.
    padded = [math.nan, *ys, math.nan]
    lone = [n for n in range(len(ys)) if math.isnan(padded[n]) and math.isnan(padded[n + 2])]
    (drawn,) = drawing.axes.plot(xs, ys, color=line.colour, label=line.name)
    if lone:
        drawn.set(marker=".", markersize=3, markevery=lone)
    drawing.hint(drawn, f"{line.hint} {unit}")


def _draw_peak(drawing: _Drawing, line: Line, *, is_whole: bool) -> None:
    x, y = max(line.known, key=lambda point: point[1])
    # A line of no length with round ends is a dot.
    drawing.axes.plot([x, x], [y, y], color=line.colour, linewidth=4)
    ha = "right" if x > sum(drawing.axes.get_xlim()) / 2 else "left"
    text = count(y) if is_whole else figure(y)
    drawing.note(text, (x, y), away=(0, 4), ha=ha, color=line.colour, weight="bold")


# ---- a scatter plot


def _draw_scatter(drawing: _Drawing, scatter: Scatter) -> None:
    axes, dots = drawing.axes, scatter.dots
    right = max((dot.x for dot in dots), default=0.0) * _HEADROOM or 1.0
    axes.set_xlim(0, right)
    axes.xaxis.set_major_locator(MaxNLocator(_TICKS_MOST, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda tick, _: count(tick))
    axes.set_xlabel(scatter.x_title)
    ys = [y for dot in dots for y in (dot.y, dot.predicted) if y is not None]
    _axis(axes, max(ys, default=0.0), scatter.levels)
    top = axes.get_ylim()[1]
    _draw_levels(drawing, scatter.levels, at=1.0, ha="right")
    if scatter.slope:
        end = min(right, top / scatter.slope)
        axes.plot([0, end], [0, end * scatter.slope], color=SOFT, linewidth=1, linestyle=":")
        ha, away = ("right", -10) if end > right / 2 else ("left", 6)
        drawing.note(scatter.slope_label, (end, end * scatter.slope), away=(away, -16), ha=ha)
    for dot in dots:
        _draw_dot(drawing, dot)
    for x, y, text in _shared_labels(axes, dots):
        is_cut = x + 9 + _CHARACTER * len(text) > axes.bbox.x1
        ha, away = ("right", -9) if is_cut else ("left", 9)
        drawing.note(
            text,
            (x, y),
            away=(away, -4),
            xycoords="figure pixels",
            ha=ha,
            color=_INK,
            weight="bold",
        )


def _draw_dot(drawing: _Drawing, dot: Dot) -> None:
    """Draw the measured figure, the model's mark, and the distance between them."""
    axes = drawing.axes
    if dot.predicted is not None:
        axes.plot([dot.x, dot.x], [dot.y, dot.predicted], color=ORANGE, linewidth=1)
        (mark,) = axes.plot(
            dot.x, dot.predicted, "D", color=ORANGE, markerfacecolor="none", markersize=9
        )
        drawing.hint(mark, f"{dot.label}: predicted {figure(dot.predicted)}")
    colour = BLUE if dot.is_met else LIMIT
    (point,) = axes.plot(dot.x, dot.y, "o", color=colour, markeredgecolor=_CARD, markersize=9)
    drawing.hint(point, dot.hint)


def _shared_labels(axes: Axes, dots: Sequence[Dot]) -> list[tuple[float, float, str]]:
    """Places and texts of the labels; dots that are close share one: "4, 5, 6"."""
    groups: list[list[tuple[float, float, str]]] = []
    for dot in sorted(dots, key=lambda dot: (dot.x, dot.y)):
        x, y = map(float, axes.transData.transform((dot.x, dot.y)))
        near = (g for g in groups if abs(x - g[0][0]) < _APART[0] and abs(y - g[-1][1]) < _APART[1])
        group = next(near, None)
        if group is None:
            groups.append(group := [])
        group.append((x, y, dot.label))
    return [
        (
            max(x for x, _, _ in group),
            math.fsum(y for _, y, _ in group) / len(group),
            ", ".join(sorted((label for _, _, label in group), key=_by_number)),
        )
        for group in groups
    ]


def _by_number(label: str) -> tuple[int, str]:
    return len(label), label
