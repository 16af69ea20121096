from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.lab.report.chart import (
    Band,
    Dot,
    Level,
    Line,
    Panel,
    Scatter,
    panel_svg,
    scatter_svg,
)

seconds = st.floats(0, 1e5)
figures = st.one_of(st.none(), st.floats(0, 1e9), st.just(float("nan")))
lines = st.lists(
    st.builds(
        Line,
        name=st.sampled_from(["p50", "a < b"]),
        points=st.lists(st.tuples(seconds, figures), max_size=30).map(
            lambda points: sorted(points, key=lambda point: point[0])
        ),
    ),
    min_size=1,
    max_size=3,
)
levels = st.lists(
    st.builds(Level, name=st.just("at < most"), value=st.floats(0.001, 1e6)), max_size=2
)
panels = st.builds(
    Panel,
    title=st.just('a "title" & more'),
    unit=st.just("µs"),
    lines=lines,
    bands=st.just([Band(name="connecting", start=0.0, end=3.0)]),
    levels=levels,
    is_log=st.booleans(),
    is_whole=st.booleans(),
)
dots = st.builds(
    Dot,
    x=st.floats(0, 1e6),
    y=st.floats(0, 1e6),
    label=st.integers(1, 12).map(str),
    hint=st.just("<hint>"),
    is_met=st.booleans(),
    predicted=st.one_of(st.none(), st.floats(0, 1e6)),
)
scatters = st.builds(
    Scatter,
    title=st.just("CPU"),
    x_title=st.just("deliveries"),
    unit=st.just("cores"),
    dots=st.lists(dots, max_size=12),
    slope=st.one_of(st.none(), st.floats(1e-6, 1e3)),
    slope_label=st.just("the plan's"),
    levels=levels,
)


def places(path: str) -> list[tuple[float, float]]:
    """Where the pen of a line goes; in tenths."""
    x = y = 0.0
    found = []
    for command, numbers in re.findall(r"([Mlh])([-\d ]+)", path):
        first, *rest = (float(n) for n in re.findall(r"-?\d+", numbers))
        second = rest[0] if rest else 0.0
        x, y = (first, second) if command == "M" else (x + first, y + second)
        found.append((x, y))
    return found


@given(panels)
def test_whatever_was_measured_is_drawn_inside_the_panel(panel: Panel) -> None:
    drawing = ET.fromstring(panel_svg(panel))
    assert drawing.get("aria-label") == f"{panel.title}, µs, over time"
    for path in drawing.iter("path"):
        if (path.get("class") or "").startswith("line"):
            for x, y in places(path.get("d") or ""):
                # A rounded step may be off by half a tenth.
                assert 420 - 20 <= x <= 2500 + 20
                assert 140 - 20 <= y <= 1200 + 20


@given(scatters)
def test_any_cost_against_any_size_is_drawn(scatter: Scatter) -> None:
    drawing = ET.fromstring(scatter_svg(scatter))
    circles = list(drawing.iter("circle"))
    assert len(circles) == len(scatter.dots)
    for circle in circles:
        assert 48 <= float(circle.get("cx") or 0) <= 546
        assert 16 <= float(circle.get("cy") or 0) <= 260


def line(*ys: float | None) -> Line:
    return Line(name="line", points=[(float(x), y) for x, y in enumerate(ys)])


def test_what_was_not_measured_is_a_gap_in_the_line() -> None:
    drawing = panel_svg(Panel(title="", unit="", lines=[line(1, 1, None, 1, 1)]))
    (path,) = re.findall(r'class="line a"[^>]* d="([^"]+)"', drawing)
    assert path.count("M") == 2


@pytest.mark.parametrize(("value", "is_drawn"), [(1.9, True), (100.0, False)])
def test_a_level_far_above_is_named_and_not_drawn(value: float, is_drawn: bool) -> None:
    limit = Level(name="the limit", value=value)
    drawing = panel_svg(Panel(title="", unit="cores", lines=[line(0.5, 1.0)], levels=[limit]))
    assert "the limit" in drawing
    assert ('<path class="limit"' in drawing) is is_drawn
    assert ("↑" in drawing) is not is_drawn


def test_levels_far_above_share_a_line() -> None:
    levels = [Level(name="one core", value=90.0, style="level"), Level(name="limit", value=100.0)]
    drawing = panel_svg(Panel(title="", unit="cores", lines=[line(0.5, 1.0)], levels=levels))
    assert ">one core, limit ↑<" in drawing


@pytest.mark.parametrize(
    ("last", "labels"),
    [
        (9, ["0", "2", "4", "6", "8 s"]),
        (100, ["0", "20", "40", "60", "80", "100 s"]),
        (150, ["0", "1", "2 min"]),
        (1800, ["0", "10", "20", "30 min"]),
    ],
)
def test_time_is_told_in_seconds_or_minutes(last: int, labels: list[str]) -> None:
    points = [(0.0, 1.0), (float(last), 1.0)]
    drawing = panel_svg(Panel(title="", unit="", lines=[Line(name="", points=points)]))
    assert re.findall(r'<text class="mid"[^>]*>([^<]+)<', drawing) == labels


def test_stages_of_the_same_size_and_cost_share_a_label() -> None:
    same = [Dot(x=10_000, y=370 + n, label=str(n), hint="") for n in (10, 9, 4)]
    apart = Dot(x=1_000, y=80, label="2", hint="")
    drawing = scatter_svg(Scatter(title="", x_title="", unit="", dots=[*same, apart]))
    labels = re.findall(r'<text class="label [a-z]+"[^>]*>([^<]+)<', drawing)
    assert sorted(labels) == ["2", "4, 9, 10"]
