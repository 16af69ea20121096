from __future__ import annotations

import html
from pathlib import Path

import attrs
import pytest

from tests.lab.origin import ORIGIN
from trio_odin.lab.bench.plot import plot, short_title
from trio_odin.lab.bench.record import BenchReport, Stage, Storm, SubjectReport

STAGE = Stage(
    name="W",
    rate=30.0,
    seconds=2.0,
    expected=2000,
    received=2000,
    lost=0,
    repeated=0,
    foreign=0,
    gaps=0,
    disconnects=0,
    user_us=5.0,
    system_us=6.0,
    cores=0.1,
    p50_ms=4.0,
    p99_ms=7.0,
    p999_ms=8.0,
    frames_per_read=1.0,
    client_us=10.0,
    client_cores=0.1,
)
RAMP = attrs.evolve(STAGE, name="ramp", rate=60.0, received=3900, lost=100, p99_ms=900.0)
STORM = Storm(connected=990, seconds=0.5, p50_ms=1.0, p99_ms=2.0, cpu_us_each=300.0, failures={})
WHOLE = [
    SubjectReport(
        name=name, title=title, storm=STORM, kib_loaded=18.0, kib_connected=18.0, stages=stages
    )
    for name, title, stages in [
        ("odin", "trio-odin, 1 worker", [STAGE, RAMP]),
        ("floor", "floor: a loop of send(2)", [STAGE]),
    ]
]
ELSEWHERE = attrs.evolve(STAGE, user_us=None, system_us=None, cores=None)
SILENT = attrs.evolve(STAGE, received=0, lost=2000, p99_ms=0.0)
PARTIAL = [
    SubjectReport(name="nats", title="nats-server's WebSocket", failure="it has ended by itself"),
    SubjectReport(name="peer", title="a $peer & <a $title> that is long", stages=[ELSEWHERE]),
    SubjectReport(name="silent", title="silent", stages=[SILENT]),
]


def report(subjects: list[SubjectReport]) -> BenchReport:
    return BenchReport(
        provenance=ORIGIN,
        connections=1000,
        channels_per_connection=24,
        tokens=200,
        payload_bytes=200,
        rate=30.0,
        hold_seconds=2.0,
        subjects=subjects,
    )


@pytest.mark.parametrize("subjects", [WHOLE, PARTIAL, WHOLE + PARTIAL, []])
def test_an_svg_names_every_subject_and_unit_and_is_the_same_each_time(
    subjects: list[SubjectReport], tmp_path: Path
) -> None:
    for name in ("one.svg", "two.svg"):
        plot(report(subjects), tmp_path / name)
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "two.svg").read_bytes()
    text = html.unescape(drawn.decode())
    for subject in subjects:
        assert f">{short_title(subject)}<" in text
    for unit in (">µs<", ">KiB<", ">seconds<", ">deliveries per second<", ">p99 latency, ms<"):
        assert unit in text


def test_a_png_is_a_png(tmp_path: Path) -> None:
    plot(report(WHOLE), tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends with \.svg or \.png, not to 'one\.pdf'$"):
        plot(report(WHOLE), tmp_path / "one.pdf")
