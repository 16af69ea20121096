"""Small plots as SVG inside a page: sharp at any size, coloured by the page's own style.

Nothing here knows what is drawn. Colours are classes (`a`, `b`, `c` for lines, the phase for a
band), so that one drawing serves light, dark and paper. A `<title>` is what the pointer shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

import attrs

from trio_odin.lab.figures import count, duration, figure
from trio_odin.lab.report.thin import Point, thin

# Of the drawing's own units; the page shows about one a pixel.
_PANEL = (280, 138)
_SCATTER = (560, 300)
_POINTS_MOST = 240
_LABEL_APART = 10.0
_TICKS_MOST = 4
# A level that is further away is named, not drawn: it would press the lines to the ground.
_NOTHING_BELOW = 1e-9  # of any unit here
_LEVEL_FACTOR = 2.5
_HEADROOM = 1.12
_SECONDS_STEPS = (1, 2, 5, 10, 20, 30)
_MINUTES_STEPS = (60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)
_MINUTE = 60
_TENTHS = 10
# 0.001, 0.002, 0.005, 0.01 and so on: the ends and the ticks of a logarithmic axis.
_LADDER = [float(f"{digit}e{power}") for power in range(-3, 8) for digit in (1, 2, 5)]


@attrs.frozen(kw_only=True)
class Line:
    """A line of a panel; `style` is its class."""

    name: str
    points: Sequence[Point]
    style: str = "a"

    @property
    def known(self) -> list[tuple[float, float]]:
        """Its points that have a figure."""
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


@attrs.frozen(kw_only=True)
class Band:
    """A phase behind the lines."""

    name: str
    start: float
    end: float


@attrs.frozen(kw_only=True)
class Level:
    """A level to look up to; `style` is its class: a "limit" was set, a "level" is so."""

    name: str
    value: float
    style: str = "limit"


@attrs.frozen(kw_only=True)
class Panel:
    """Something over time, below its levels.

    Without any figure it is drawn empty, so that neighbours keep their places.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    bands: Sequence[Band] = ()
    levels: Sequence[Level] = ()
    is_log: bool = False
    is_whole: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether none of its lines has a figure."""
        return not any(line.known for line in self.lines)


@attrs.frozen(kw_only=True)
class Dot:
    """A stage in a scatter plot; `predicted` is what the model said for this `x`."""

    x: float
    y: float
    label: str
    hint: str
    is_met: bool = True
    predicted: float | None = None


@attrs.frozen(kw_only=True)
class Scatter:
    """Cost against size: `slope` is the cost of one by somebody else's figure."""

    title: str
    x_title: str
    unit: str
    dots: Sequence[Dot]
    slope: float | None = None
    slope_label: str = ""
    levels: Sequence[Level] = ()


@attrs.frozen
class _Scale:
    """From figures to the drawing; what lies outside is drawn at the edge."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.is_log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)


@attrs.frozen
class _Frame:
    """Where the axes of a drawing are."""

    x: _Scale
    y: _Scale


# ---- a panel


def panel_svg(panel: Panel) -> str:
    """Draw a panel."""
    name = f"{panel.title}, {panel.unit}, over time"
    if panel.is_empty:
        return _svg(_PANEL, name, "panel", [*_empty()])
    frame = _panel_frame(panel)
    y_ticks = _y_ticks(panel, frame.y)
    parts = [
        *_bands(panel.bands, frame),
        *_grid(y_ticks, frame, is_whole=panel.is_whole),
        *_time_axis(frame),
        *_levels(panel.levels, frame, "mid"),
        *(_line(line, panel.unit, frame) for line in panel.lines if line.known),
        *_labels(panel, frame),
    ]
    return _svg(_PANEL, name, "panel", parts)


def _empty() -> Iterator[str]:
    width, height = _PANEL
    yield f'<path class="grid" d="M42 {height - 18}H{width - 30}"/>'
    yield f'<text class="mid" x="{(width + 12) // 2}" y="{height // 2}">nothing to measure</text>'


def _panel_frame(panel: Panel) -> _Frame:
    width, height = _PANEL
    known = [point for line in panel.lines for point in line.known]
    ends = [x for x, _ in known] + [band.end for band in panel.bands]
    x = _Scale(0, max([*ends, 1.0]), 42, width - 30)
    low, high = _y_range(panel, [y for _, y in known])
    return _Frame(x, _Scale(low, high, height - 18, 14, panel.is_log))


def _y_range(panel: Panel, values: Sequence[float]) -> tuple[float, float]:
    if panel.is_log:
        return _log_range([v for v in values if v > 0])
    top = max([*values, 0.0])
    top = max([top, *_near(panel.levels, top * _LEVEL_FACTOR)])
    step = max(1.0, _step(top)) if panel.is_whole else _step(top)
    return 0.0, max(step, math.ceil(top / step - 1e-9) * step)


def _step(top: float) -> float:
    if top < _NOTHING_BELOW:
        return 1.0
    power = 10.0 ** math.floor(math.log10(top / _TICKS_MOST))
    return next(step * power for step in (1, 2, 5, 10) if step * power * _TICKS_MOST >= top * 0.999)


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (1.0, 100.0)
    first = max((step for step in _LADDER if step <= low), default=_LADDER[0])
    last = min((step for step in _LADDER if step >= high), default=_LADDER[-1])
    return first, last if last > first else first * 10


def _y_ticks(panel: Panel, scale: _Scale) -> list[float]:
    if not panel.is_log:
        step = max(1.0, _step(scale.high)) if panel.is_whole else _step(scale.high)
        return [number * step for number in range(round(scale.high / step) + 1)]
    steps = [step for step in _LADDER if scale.low <= step <= scale.high]
    decades = [step for step in steps if step in _LADDER[::3]]
    return decades if len(decades) > 1 else steps


def _bands(bands: Sequence[Band], frame: _Frame) -> Iterator[str]:
    for band in bands:
        left, right = frame.x(band.start), frame.x(band.end)
        yield (
            f'<rect class="band {escape(band.name)}" x="{left:.1f}" y="{frame.y.end - 6:g}" '
            f'width="{max(0.6, right - left):.1f}" height="{frame.y.start - frame.y.end + 6:g}">'
            f"<title>{escape(band.name)}, {duration(band.end - band.start)}</title></rect>"
        )


def _grid(ticks: Sequence[float], frame: _Frame, *, is_whole: bool) -> Iterator[str]:
    for tick in ticks:
        y = frame.y(tick)
        yield f'<path class="grid" d="M{frame.x.start:g} {y:.1f}H{frame.x.end:g}"/>'
        text = count(tick) if is_whole else f"{tick:,g}" if tick < 1e5 else count(tick)
        yield f'<text class="end" x="{frame.x.start - 5:g}" y="{y + 3:.1f}">{text}</text>'


def _time_axis(frame: _Frame) -> Iterator[str]:
    longest = frame.x.high
    is_minutes = longest > 2 * _MINUTE
    steps = _MINUTES_STEPS if is_minutes else _SECONDS_STEPS
    step = next((s for s in steps if longest / s <= _TICKS_MOST + 1), steps[-1])
    divisor, unit = (_MINUTE, "min") if is_minutes else (1, "s")
    last = int(longest // step)
    for number in range(last + 1):
        text = f"{number * step // divisor}" + (f" {unit}" if number == last else "")
        x = frame.x(number * step)
        yield f'<path class="tick" d="M{x:.1f} {frame.y.start:g}v3"/>'
        yield f'<text class="mid" x="{x:.1f}" y="{frame.y.start + 14:g}">{text}</text>'


def _near(levels: Sequence[Level], most: float) -> list[float]:
    return [level.value for level in levels if level.value <= most]


def _levels(levels: Sequence[Level], frame: _Frame, anchor: str) -> Iterator[str]:
    """A line each, with its name where a peak or a slope is rarely; those above are named there."""
    end = f"{frame.x.end:g}"
    place = end if anchor == "end" else f"{(frame.x.start + frame.x.end) / 2:g}"
    for level in levels:
        if level.value <= frame.y.high:
            y, name = frame.y(level.value), escape(level.name)
            yield f'<path class="{level.style}" d="M{frame.x.start:g} {y:.1f}H{end}"/>'
            yield f'<text class="{level.style} {anchor}" x="{place}" y="{y - 3:.1f}">{name}</text>'
    above = [level for level in levels if level.value > frame.y.high]
    if above:
        names = escape(", ".join(level.name for level in above))
        yield f'<text class="{above[-1].style} end" x="{end}" y="6">{names} ↑</text>'


def _line(line: Line, unit: str, frame: _Frame) -> str:
    ys = [y for _, y in line.known]
    low, mean, high = (figure(v) for v in (min(ys), math.fsum(ys) / len(ys), max(ys)))
    hint = f"{line.name}: lowest {low}, mean {mean}, highest {high} {unit}"
    return (
        f'<path class="line {line.style}" transform="scale(.1)" d="{_path(line, frame)}">'
        f"<title>{escape(hint)}</title></path>"
    )


def _path(line: Line, frame: _Frame) -> str:
    """Steps in tenths of a unit from point to point: half the size of places."""
    parts: list[str] = []
    pen: tuple[int, int] | None = None
    for x, y in thin(line.points, _POINTS_MOST):
        if y is None or not math.isfinite(y):
            pen = None
            continue
        spot = (round(frame.x(x) * _TENTHS), round(frame.y(y) * _TENTHS))
        # A line of no length is what a lone point is drawn by.
        parts.append(f"M{spot[0]} {spot[1]}h0" if pen is None else _stroke(pen, spot))
        pen = spot
    return "".join(parts)


def _stroke(start: tuple[int, int], end: tuple[int, int]) -> str:
    x, y = end[0] - start[0], end[1] - start[1]
    if y == 0:
        return f"h{x}"
    return f"l{x}{y}" if y < 0 else f"l{x} {y}"


def _labels(panel: Panel, frame: _Frame) -> Iterator[str]:
    lines = [line for line in panel.lines if line.known]
    if len(panel.lines) == 1:
        yield from (_peak(line, panel, frame) for line in lines)
        return
    below = -math.inf
    # From the top down, each at least a label's height below the one before.
    for line in sorted(lines, key=lambda line: frame.y(line.known[-1][1])):
        x, y = line.known[-1]
        below = max(frame.y(y) + 3, below + _LABEL_APART)
        text = escape(line.name)
        yield f'<text class="{line.style}" x="{frame.x(x) + 3:.1f}" y="{below:.1f}">{text}</text>'


def _peak(line: Line, panel: Panel, frame: _Frame) -> str:
    x, y = max(line.known, key=lambda point: point[1])
    left = frame.x(x)
    anchor = "end" if left > (frame.x.start + frame.x.end) / 2 else "start"
    text = count(y) if panel.is_whole else figure(y)
    return (
        f'<circle class="{line.style}" cx="{left:.1f}" cy="{frame.y(y):.1f}" r="2"/>'
        f'<text class="{line.style} {anchor}" x="{left:.1f}" y="{frame.y(y) - 4:.1f}">{text}</text>'
    )


# ---- a scatter plot


def scatter_svg(scatter: Scatter) -> str:
    """Draw a scatter plot."""
    frame = _scatter_frame(scatter)
    x_step = _step(frame.x.high)
    y_step = _step(frame.y.high)
    y_ticks = [number * y_step for number in range(int(frame.y.high / y_step + 1e-9) + 1)]
    parts = [
        *_grid(y_ticks, frame, is_whole=False),
        *_figure_axis(x_step, scatter.x_title, frame),
        *_levels(scatter.levels, frame, "end"),
        *_slope(scatter, frame),
        *(_whisker(dot, frame) for dot in scatter.dots if dot.predicted is not None),
        *(_dot(dot, frame) for dot in scatter.dots),
        *_dot_labels(scatter.dots, frame),
    ]
    name = f"{scatter.title}, {scatter.unit}, by {scatter.x_title}"
    return _svg(_SCATTER, name, "scatter", parts)


def _scatter_frame(scatter: Scatter) -> _Frame:
    width, height = _SCATTER
    right = max([dot.x for dot in scatter.dots] + [0.0]) or 1.0
    ys = [y for dot in scatter.dots for y in (dot.y, dot.predicted) if y is not None]
    top = max([*ys, 0.0]) * _HEADROOM or 1.0
    near = [value * _HEADROOM for value in _near(scatter.levels, top * _LEVEL_FACTOR / 1.5)]
    top = max([top, *near])
    x = _Scale(0, right * _HEADROOM, 48, width - 14)
    return _Frame(x, _Scale(0, top, height - 40, 16))


def _figure_axis(step: float, title: str, frame: _Frame) -> Iterator[str]:
    for number in range(int(frame.x.high / step + 1e-9) + 1):
        x = frame.x(number * step)
        yield f'<path class="tick" d="M{x:.1f} {frame.y.start:g}v3"/>'
        text = count(number * step)
        yield f'<text class="mid" x="{x:.1f}" y="{frame.y.start + 15:g}">{text}</text>'
    middle = (frame.x.start + frame.x.end) / 2
    yield f'<text class="mid" x="{middle:g}" y="{frame.y.start + 34:g}">{escape(title)}</text>'


def _slope(scatter: Scatter, frame: _Frame) -> Iterator[str]:
    """To where it leaves the drawing, and its name there."""
    if not scatter.slope:
        return
    end = min(frame.x.high, frame.y.high / scatter.slope)
    x, y = frame.x(end), frame.y(end * scatter.slope)
    yield f'<path class="slope" d="M{frame.x.start:g} {frame.y.start:g}L{x:.1f} {y:.1f}"/>'
    is_right = x > (frame.x.start + frame.x.end) / 2
    anchor, left = ("end", x - 10) if is_right else ("start", x + 6)
    text = escape(scatter.slope_label)
    yield f'<text class="slope {anchor}" x="{left:.1f}" y="{y + 8:.1f}">{text}</text>'


def _whisker(dot: Dot, frame: _Frame) -> str:
    """The model's mark, and how far from it the measurement is."""
    predicted = dot.predicted or 0.0
    x, top = frame.x(dot.x), frame.y(predicted)
    hint = escape(f"{dot.label}: predicted {figure(predicted)}")
    return (
        f'<path class="whisker" d="M{x:.1f} {frame.y(dot.y):.1f}V{top:.1f}"/>'
        f'<path class="model" d="M{x:.1f} {top - 6:.1f}l6 6-6 6-6-6z"><title>{hint}</title></path>'
    )


def _dot(dot: Dot, frame: _Frame) -> str:
    style = "met" if dot.is_met else "unmet"
    return (
        f'<circle class="dot {style}" cx="{frame.x(dot.x):.1f}" cy="{frame.y(dot.y):.1f}" r="4.5">'
        f"<title>{escape(dot.hint)}</title></circle>"
    )


def _dot_labels(dots: Sequence[Dot], frame: _Frame) -> Iterator[str]:
    """Dots that are too close for a label each share one: "4, 5, 6"."""
    groups: list[list[tuple[float, float, str]]] = []
    for x, y, label in sorted((frame.x(dot.x), frame.y(dot.y), dot.label) for dot in dots):
        near = (g for g in groups if abs(x - g[0][0]) < 16 and abs(y - g[-1][1]) < 12)
        group = next(near, None)
        if group is None:
            groups.append([(x, y, label)])
        else:
            group.append((x, y, label))
    for group in groups:
        text = escape(", ".join(sorted((label for _, _, label in group), key=_by_number)))
        right = max(x for x, _, _ in group) + 9
        is_cut = right + 7 * len(text) > frame.x.end
        anchor, x = ("end", min(x for x, _, _ in group) - 9) if is_cut else ("start", right)
        middle = sum(y for _, y, _ in group) / len(group)
        yield f'<text class="label {anchor}" x="{x:.1f}" y="{middle + 4:.1f}">{text}</text>'


def _by_number(label: str) -> tuple[int, str]:
    return len(label), label


def _svg(size: tuple[int, int], name: str, style: str, parts: Sequence[str]) -> str:
    head = f'<svg class="{style}" viewBox="0 0 {size[0]} {size[1]}" role="img" '
    return f'{head}aria-label="{escape(name)}">{"".join(parts)}</svg>'
