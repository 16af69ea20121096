from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
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

BAND = Band(name="connecting", start=0.0, end=3.0)
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
    bands=st.just([BAND]),
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


def titles(drawing: ET.Element) -> list[str]:
    return [title.text or "" for title in drawing.iter("title")]


@given(panels)
@settings(max_examples=25, deadline=None)
def test_any_measurement_is_drawn_inside_the_panel(panel: Panel) -> None:
    drawing = ET.fromstring(panel_svg(panel))
    assert drawing.get("aria-label") == f"{panel.title}, µs, over time"
    known = [line for line in panel.lines if line.known]
    assert len([t for t in titles(drawing) if ": lowest " in t]) == len(known)
    for group in drawing.iter("g"):
        path = group.find("path")
        if path is not None and ": lowest " in (group.findtext("title") or ""):
            places = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d") or "")]
            assert all(41 <= x <= 251 for x in places[::2])
            assert all(13 <= y <= 121 for y in places[1::2])


@given(scatters)
@settings(max_examples=25, deadline=None)
def test_any_cost_against_any_size_is_drawn(scatter: Scatter) -> None:
    drawing = ET.fromstring(scatter_svg(scatter))
    assert titles(drawing).count("<hint>") == len(scatter.dots)
    groups = [group for group in drawing.iter("g") if group.findtext("title") == "<hint>"]
    assert len(groups) == len(scatter.dots)
    for group in groups:
        (dot,) = group.iter("use")
        assert 47 <= float(dot.get("x") or 0) <= 547
        assert 23 <= float(dot.get("y") or 0) <= 261


def line(*ys: float | None) -> Line:
    return Line(name="line", points=[(float(x), y) for x, y in enumerate(ys)])


def path_of(panel: Panel) -> str:
    (path,) = re.findall(r'<title>line: [^<]*</title><path d="([^"]+)"', panel_svg(panel))
    return str(path)


def test_a_missing_figure_is_a_gap_in_the_line() -> None:
    path = path_of(Panel(title="", unit="", lines=[line(1, 1, None, 1, 1)]))
    assert path.count("M") == 2


def test_a_lone_point_is_drawn() -> None:
    drawing = panel_svg(Panel(title="", unit="", lines=[line(None, 1, None, 1, 1)]))
    assert drawing.count("<use ") == 1


def test_a_value_below_a_logarithmic_axis_is_drawn_at_its_edge() -> None:
    panel = Panel(title="", unit="ms", lines=[line(0.0, 5e-324, 20.0)], is_log=True)
    places = path_of(panel).replace("M", "").split()
    assert [float(y) for y in places[1::2]] == pytest.approx([120, 120, 28.8], abs=0.2)
    assert "line: lowest 0, mean 6.67, highest 20.0 ms" in panel_svg(panel)


def test_an_hour_has_few_points_and_keeps_the_height_of_a_spike() -> None:
    ys = [10.0 + second % 2 for second in range(3600)]
    ys[1234] = 90.0
    places = path_of(Panel(title="", unit="", lines=[line(*ys)])).replace("M", "").split()
    assert len(places) < 2000
    # 0 to 100 is from 120 up to 14.
    assert min(float(y) for y in places[1::2]) == pytest.approx(120 - 106 * 0.9, abs=0.2)


def test_the_page_colours_the_drawing_and_nothing_is_fetched() -> None:
    drawing = panel_svg(Panel(title="", unit="", lines=[line(1, 2)], bands=[BAND]))
    assert "stroke: var(--a)" in drawing
    assert "fill: var(--connecting)" in drawing
    assert not re.search(r"#[0-9a-f]{6}|font-family|url\(|://", drawing)


@pytest.mark.parametrize(("value", "is_drawn"), [(1.9, True), (100.0, False)])
def test_a_level_far_above_is_named_and_not_drawn(value: float, is_drawn: bool) -> None:
    limit = Level(name="the limit", value=value)
    drawing = panel_svg(Panel(title="", unit="cores", lines=[line(0.5, 1.0)], levels=[limit]))
    assert "the limit" in drawing
    assert ("stroke: var(--limit)" in drawing) is is_drawn
    assert ("↑" in drawing) is not is_drawn


def test_levels_far_above_share_a_line() -> None:
    levels = [Level(name="one core", value=90.0), Level(name="limit", value=100.0)]
    drawing = panel_svg(Panel(title="", unit="cores", lines=[line(0.5, 1.0)], levels=levels))
    assert ">one core, limit ↑<" in drawing


@pytest.mark.parametrize(
    ("last", "labels"),
    [
        (9, ["0", "3", "6", "9 s"]),
        (100, ["0", "30", "60", "90 s"]),
        (150, ["0", "1", "2 min"]),
        (1800, ["0", "10", "20", "30 min"]),
    ],
)
def test_time_is_shown_in_seconds_or_minutes(last: int, labels: list[str]) -> None:
    points = [(0.0, 1.0), (float(last), 1.0)]
    drawing = panel_svg(Panel(title="", unit="", lines=[Line(name="", points=points)]))
    assert re.findall(r'<text style="text-anchor: middle"[^>]*>([^<]+)<', drawing) == labels


def test_stages_of_the_same_size_and_cost_share_a_label() -> None:
    same = [Dot(x=10_000, y=370 + n, label=str(n), hint="") for n in (10, 9, 4)]
    apart = Dot(x=1_000, y=80, label="2", hint="")
    drawing = scatter_svg(Scatter(title="", x_title="", unit="", dots=[*same, apart]))
    labels = re.findall(r"<text style=[^>]*var\(--ink\)[^>]*>([^<]+)<", drawing)
    assert sorted(labels) == ["2", "4, 9, 10"]
