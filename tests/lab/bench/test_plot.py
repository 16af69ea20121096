from __future__ import annotations

import html
from pathlib import Path
from types import ModuleType

import attrs
import pytest

from tests.lab.bench.made_up import COMPRESSION, RATES, STORM, W, report_of
from trio_odin.lab.bench.record import Stage, TargetReport

RAMP = attrs.evolve(W, name="ramp", rate=200.0, received=3900, lost=100, p99_ms=900.0)
MOST = attrs.evolve(STORM, connected=9_990)
WHOLE = [
    TargetReport(
        name=name, title=title, storm=MOST, kib_loaded=18.0, kib_connected=18.0, stages=stages
    )
    for name, title, stages in [
        ("odin", "trio-odin, 1 worker", [W, RAMP]),
        ("floor", "floor: a loop of send(2)", [W]),
    ]
]
ELSEWHERE = attrs.evolve(W, user_us=None, system_us=None, cores=None)
SILENT = attrs.evolve(W, received=0, lost=2000, p99_ms=0.0)
PARTIAL = [
    TargetReport(name="nats", title="nats-server's WebSocket", failure="it has ended by itself"),
    TargetReport(name="peer", title="a $peer & <a $title> that is long", stages=[ELSEWHERE]),
    TargetReport(name="silent", title="silent", stages=[SILENT]),
]


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    """What is tested here; it loads matplotlib, for a second."""
    from trio_odin.lab.bench import plot  # noqa: PLC0415

    return plot


RATED = attrs.evolve(WHOLE[0], stages=[*WHOLE[0].stages, *RATES, *COMPRESSION])


@pytest.mark.parametrize("targets", [WHOLE, PARTIAL, WHOLE + PARTIAL, [], [RATED]])
def test_an_svg_names_every_target_and_unit_and_is_reproducible(
    drawing: ModuleType, targets: list[TargetReport], tmp_path: Path
) -> None:
    for name in ("one.svg", "two.svg"):
        drawing.plot(report_of(*targets), tmp_path / name)
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "two.svg").read_bytes()
    text = html.unescape(drawn.decode())
    for target in targets:
        assert f">{drawing.short_title(target)}<" in text
    for unit in (">µs<", ">KiB<", ">seconds<", ">deliveries per second<", ">p99 latency, ms<"):
        assert unit in text


def test_the_stages_of_rates_and_compression_have_a_panel_each(
    drawing: ModuleType, tmp_path: Path
) -> None:
    drawing.plot(report_of(*WHOLE), tmp_path / "without.svg")
    drawing.plot(report_of(RATED), tmp_path / "with.svg")
    without, drawn = (
        html.unescape((tmp_path / name).read_text()) for name in ("without.svg", "with.svg")
    )
    for text in (
        *(">every event<", ">an update every 1,000 ms<", ">events per second of the market<"),
        *(">z1, batches at 100/s<", ">plain, single<", ">140<"),
    ):
        assert text in drawn
        assert text not in without


@pytest.mark.parametrize("stages", [RATES, COMPRESSION, RATES[:1]])
def test_one_of_the_two_stages_is_enough(
    drawing: ModuleType, stages: list[Stage], tmp_path: Path
) -> None:
    drawing.plot(report_of(attrs.evolve(RATED, stages=stages, storm=None)), tmp_path / "one.svg")
    drawn = (tmp_path / "one.svg").read_text()
    assert (">cores<" in drawn, ">µs<" in drawn) == (stages is not COMPRESSION, False)


def test_a_png_is_a_png(drawing: ModuleType, tmp_path: Path) -> None:
    drawing.plot(report_of(*WHOLE), tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_another_suffix_is_refused(drawing: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends with \.svg or \.png, not to 'one\.pdf'$"):
        drawing.plot(report_of(*WHOLE), tmp_path / "one.pdf")
