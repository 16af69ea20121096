from __future__ import annotations

import html
import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest

from tests.lab.report.made_up import SCENES, commands_stage, made_up
from trio_odin.lab.load.criteria import Check
from trio_odin.lab.load.result import LoadResult, Reconnects, ServerFigures
from trio_odin.lab.report.folder import (
    ReportUnavailable,
    read_verdict,
    report_html,
    write_report,
)
from trio_odin.lab.report.series import without_series, write_series
from trio_odin.lab.verdict import LabResult, StageResult

RESULT = made_up()
HOSTILE = "<script>alert('1')</script>\"'&"
PAGE_BYTES_MOST = 400_000
FOLDER_BYTES_MOST = 600_000


class Page(HTMLParser):
    """The text of a page, its tags and their attributes; tags must be nested."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes what it did not open"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@cache
def whole() -> str:
    """The page of all ten stages; drawing it takes seconds."""
    return report_html(RESULT)


def page_of(result: LabResult) -> Page:
    page = Page(whole() if result is RESULT else report_html(result))
    assert page.open == []
    return page


def with_stage(**changes: Any) -> LabResult:
    """The run with only its fifth stage, changed."""
    stage = RESULT.stage(5)
    assert stage is not None
    return attrs.evolve(RESULT, stages=[attrs.evolve(stage, **changes)])


def _with_one_series() -> LabResult:
    """All stages, but only the fifth has a series."""
    plain = without_series(RESULT)
    stages = zip(RESULT.stages, plain.stages, strict=True)
    return attrs.evolve(plain, stages=[a if a.number == 5 else b for a, b in stages])


SMALL = _with_one_series()


def load_of(number: int) -> LoadResult:
    stage = RESULT.stage(number)
    assert stage is not None
    assert stage.load is not None
    return stage.load


# ---- the page


def test_the_page_needs_nothing_but_itself() -> None:
    source = whole()
    page = Page(source)
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not [a for a in page.attributes if a[1] in {"src", "srcset", "xlink:href", "action"}]
    assert not [a for a in page.attributes if a[1].startswith("on")]
    links = [value for _, name, value in page.attributes if name == "href"]
    targets = {f"#{value}" for _, name, value in page.attributes if name == "id"}
    assert links
    assert set(links) <= targets
    assert not re.search(r"https?://|@import|url\(|@font-face", source)


def test_the_verdict_is_on_top_with_the_failed_criteria() -> None:
    top = page_of(RESULT).text[:800]
    assert "✗ Not passed 8 of 10 stages passed" in top
    assert "stage 8, 5,000 connections without filtering" in top
    assert "stage 10, Soak with churn" in top
    for words in ("18,000", "0.145 cores", "33.1 KiB", "21.7 times less than planned", "13.3 ms"):
        assert words in top


def test_a_run_that_passed_is_shown_as_passed() -> None:
    plain = without_series(RESULT)
    result = attrs.evolve(plain, stages=[s for s in plain.stages if s.passed])
    page = page_of(result).text
    assert "✓ Passed 8 of 8 stages passed" in page
    assert "✗" not in page


def test_every_stage_check_and_sentence_is_on_the_page() -> None:
    text = page_of(RESULT).text
    assert any(stage.checks for stage in RESULT.stages)
    for stage in RESULT.stages:
        for words in (stage.title, stage.plan, stage.note, stage.failure):
            assert " ".join(words.split()) in text
        for check in stage.checks:
            known = "✓" if check.is_met else "✗"
            mark, measured = (known, check.measured) if check.is_known else ("○", "not known")
            source = "the plan" if check.source == "plan" else "ours"
            told = f"{mark} {check.what} {check.wanted} {measured} {source}"
            assert told in text
    setup = (*RESULT.isolation, *RESULT.limits.values(), *RESULT.settings, RESULT.command)
    origin = RESULT.provenance
    of_origin = (origin.date, origin.version, origin.revision, str(origin.load_average))
    machine = (origin.machine.cpu, origin.machine.kernel)
    for words in (*setup, *RESULT.settings.values(), *of_origin, *machine):
        assert words in text
    for parts in RESULT.components.values():
        assert ", ".join(parts) in text


def test_an_unknown_criterion_does_not_count_as_met() -> None:
    assert "3 of 3 1 not known ✓ passed" in page_of(with_stage()).text


def test_a_short_hold_and_a_skipped_stage_are_named_on_top() -> None:
    result = attrs.evolve(with_stage(), not_run=[1, 2])
    text = page_of(result).text
    assert "1 of 1 stages passed" in text[:300]
    assert "Holds shortened; not run: stages 1, 2." in text[:500]
    assert "12 messages/s 2 min of 30 min 100 %" in text


def test_a_hold_in_full_shows_only_its_time() -> None:
    load = attrs.evolve(load_of(5), hold_seconds=1799.98)
    page = page_of(attrs.evolve(with_stage(load=load), not_run=[10]))
    assert "Not run: stage 10." in page.text[:500]
    assert "12 messages/s 30 min 100 %" in page.text
    assert "shortened" not in page.text


def test_the_settings_of_a_stage_are_in_its_section() -> None:
    told = "Other settings here: ENABLE_SUBSCRIPTION_FILTERING=false"
    assert page_of(RESULT).text.count("Other settings here") == 1
    assert told in page_of(RESULT).text


def test_cpu_of_the_server_is_drawn_below_one_core() -> None:
    source = whole()
    servers = source.count("<b>Server CPU</b>")
    assert servers == 1 + len(SCENES)
    assert len(re.findall(r">one core(?:, limit 1.9 cores)?(?: ↑)?<", source)) == servers


def test_a_host_has_the_phases_of_its_load() -> None:
    source = report_html(with_stage())
    assert source.count("<title>hold, 2 min</title>") == source.count('class="panel"') == 8


def test_every_table_can_be_scrolled() -> None:
    """Except tables of two narrow columns, whose words wrap."""
    source = whole()
    wide = re.findall(r'(<div class="[^"]*scroll">)?\s*<table[^>]*>\s*<thead>', source)
    assert len(wide) > len(RESULT.stages)
    assert all(wide)


def test_the_figures_of_a_load_are_on_the_page() -> None:
    text = page_of(RESULT).text
    for words in (
        "18,000 of 18,000 in 9.5 s",  # connected
        "2,008,800 of 2,008,800",  # delivered
        "0.238 cores, 12.5 % of its limit",
        "2,625 of 5,000",
        "700,000 / 233,333",  # lost, gaps
        "10,000 of 10,000 in 8.7 s",  # came back
        "12,000",  # churned
    ):
        assert words in text


def test_problems_are_shown_by_reason_the_most_frequent_first() -> None:
    text = page_of(RESULT).text
    told = "refused HTTP 503 2,375 ended early 4100 too slow 41 ended early 1006 7 failed no ack"
    assert told in text


def test_thousands_of_reasons_do_not_make_thousands_of_lines() -> None:
    load = attrs.evolve(load_of(5), failures={f"reason {n}": 5000 - n for n in range(5000)})
    text = page_of(with_stage(load=load)).text
    assert "reason 19 " in text
    assert "reason 20 " not in text
    assert "4,980 rarer reasons" in text


def test_predictions_stand_beside_the_measurement_with_their_error() -> None:
    text = page_of(RESULT).text
    assert any(stage.predictions for stage in RESULT.stages)
    for stage in RESULT.stages:
        for told in stage.predictions:
            error = f"{told.error * 100:+.1f} %".replace("-", "\N{MINUS SIGN}")
            assert error in text


def test_the_plans_own_figures_stand_beside_the_measured_ones() -> None:
    text = page_of(RESULT).text
    assert "memory of a connection stage 4 0.7 MB 33.1 KiB 21.7 times less" in text
    assert "CPU of a delivery stage 6 36.5 µs 12.4 µs 2.94 times less" in text
    assert "memory at 10,000 stage 4 7,000 MB 369 MiB 19 times less" in text
    assert "without filtering: connected stage 8 52.5 % 52.50 %" in text
    cpu = "without filtering: CPU stage 8; the plan: 99.5 % of 1.9 cores 1.89 cores 0.681 cores"
    assert cpu in text


def test_hostile_text_stays_text() -> None:
    load = attrs.evolve(
        load_of(5),
        failures={HOSTILE: 3},
        disconnects={HOSTILE: 2},
        rejections={HOSTILE: 1},
        series=[attrs.evolve(s, phase=HOSTILE) for s in load_of(5).series],
    )
    check = Check(what=HOSTILE, wanted=HOSTILE, measured=HOSTILE, is_met=False, source=HOSTILE)
    stage = StageResult(
        number=5,
        title=HOSTILE,
        plan=HOSTILE,
        checks=[check],
        load=load,
        settings={HOSTILE: HOSTILE},
        failure=HOSTILE,
        note=HOSTILE,
    )
    result = attrs.evolve(
        RESULT,
        provenance=attrs.evolve(
            RESULT.provenance,
            date=HOSTILE,
            version=HOSTILE,
            revision=HOSTILE,
            machine=attrs.evolve(RESULT.provenance.machine, cpu=HOSTILE),
        ),
        isolation=[HOSTILE],
        limits={"CPU": HOSTILE, HOSTILE: HOSTILE},
        components={HOSTILE: [HOSTILE]},
        settings={HOSTILE: HOSTILE},
        command=HOSTILE,
        stages=[stage],
    )
    page = page_of(result)
    assert "script" not in page.tags
    assert page.text.count("<script>") > 20
    names = {name for _, name, _ in page.attributes}
    assert not {name for name in names if not re.fullmatch(r"[a-zA-Z-]+", name)}


def test_the_lines_of_a_long_stage_have_few_points() -> None:
    source = whole()
    lines = re.findall(r'<title>[^<]*: lowest [^<]*</title><path d="([^"]+)"', source)
    assert len(lines) > 50
    assert max(len(line.split()) // 2 for line in lines) <= 600
    assert len(source) < PAGE_BYTES_MOST


# ---- missing parts


def test_a_run_without_stages_is_not_a_pass() -> None:
    result = attrs.evolve(RESULT, stages=[], limits={}, settings={}, isolation=[])
    assert not result.passed
    text = page_of(result).text
    assert "✗ Not passed No stage was run" in text


def test_an_interrupted_run_is_marked_and_shows_its_results() -> None:
    load = attrs.evolve(load_of(5), interrupted=True, latency=None, series=load_of(5).series[:9])
    stages = [commands_stage(), *with_stage(load=load).stages]
    text = page_of(attrs.evolve(RESULT, stages=stages, interrupted=True)).text
    assert "2 of 2 stages passed; the run was interrupted" in text
    assert "✗ Not passed" in text
    assert "these are the figures so far" in text


@pytest.mark.parametrize("count", [0, 1, 2])
def test_short_and_empty_series_are_drawn(count: int) -> None:
    stage = RESULT.stage(5)
    assert stage is not None
    load = attrs.evolve(load_of(5), series=load_of(5).series[:count])
    page = page_of(with_stage(load=load, host=stage.host[:count]))
    assert page.attributes.count(("svg", "class", "panel")) == (8 if count else 0)


def test_unknown_figures_are_dashes() -> None:
    load = attrs.evolve(
        load_of(5),
        rate=None,
        published=None,
        connect_ms=None,
        latency=None,
        reconnects=Reconnects(lost=1, back=0, seconds=0.0, ms=None),
        server=ServerFigures(),
        series=[
            attrs.evolve(s, p50_ms=None, p99_ms=None, max_ms=None, server_cores=None)
            for s in load_of(5).series
        ],
    )
    text = page_of(with_stage(load=load, host=[], predictions=[])).text
    assert "None" not in text
    assert "nan" not in text.split()
    for words in ("server CPU –", "one delivery –", "one return –", "– / – / – MiB"):
        assert words in text
    assert text.count("nothing to measure") == 2


def test_an_empty_load_and_a_zero_measurement_have_no_ratio() -> None:
    stage = RESULT.stage(5)
    assert stage is not None
    nothing = [attrs.evolve(p, measured=0.0) for p in stage.predictions]
    load = attrs.evolve(load_of(5), connections=0, connected=0, series=[])
    assert "0 of 0" in page_of(with_stage(load=load, predictions=nothing)).text


@pytest.mark.parametrize("limit", ["", "all of it", "1.9", "lots of cores"])
def test_limits_in_another_form_are_shown_but_not_drawn(limit: str) -> None:
    source = report_html(attrs.evolve(with_stage(), limits={"CPU": limit}))
    assert "stroke: var(--limit)" not in source
    assert limit in html.unescape(source)


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_without_the_extra_there_is_a_sentence_and_the_measurements(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ReportUnavailable, match=rf"takes {missing}, .* pip install 'trio-odin\[lab\]'"
    ):
        write_report(SMALL, tmp_path / "run")
    assert read_verdict(tmp_path / "run") == SMALL


# ---- the folder


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    write_report(SMALL, folder)
    assert read_verdict(folder) == SMALL
    assert read_verdict(folder / "verdict.json") == SMALL
    assert (folder / "report.html").read_text(encoding="utf-8") == report_html(SMALL)


def test_the_verdict_file_has_the_verdicts(tmp_path: Path) -> None:
    write_report(SMALL, tmp_path)
    verdict = msgspec.json.decode((tmp_path / "verdict.json").read_bytes())
    assert next(iter(verdict)) == "passed"
    assert verdict["passed"] is False
    assert [stage["passed"] for stage in verdict["stages"]] == [s.passed for s in SMALL.stages]


def test_the_series_have_a_row_for_each_second(tmp_path: Path) -> None:
    write_series(RESULT, tmp_path / "series")
    for scene in SCENES:
        series = load_of(scene.number).series
        lines = (tmp_path / "series" / f"stage-{scene.number:02}.csv").read_text().splitlines()
        names = lines[0].split(",")
        assert names == list(attrs.fields_dict(type(series[0])))
        assert len(lines) == 1 + len(series)
        cores = [line.split(",")[names.index("server_cores")] for line in lines[1:]]
        assert [float(c) for c in cores] == [s.server_cores for s in series]
    assert not (tmp_path / "series" / "stage-01.csv").exists()


def test_samples_are_rounded_to_useful_digits(tmp_path: Path) -> None:
    sample = attrs.evolve(load_of(5).series[30], server_cores=1 / 3, p50_ms=None, server_mib=0.0)
    write_report(with_stage(load=attrs.evolve(load_of(5), series=[sample])), tmp_path)
    stage = read_verdict(tmp_path).stages[0]
    assert stage.load is not None
    assert stage.load.series == [attrs.evolve(sample, server_cores=0.333)]


def test_a_run_is_small_enough_to_be_committed(tmp_path: Path) -> None:
    write_report(without_series(RESULT), tmp_path)
    write_series(RESULT, tmp_path / "series")
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.name != "report.html"]
    assert sum(sizes) + len(whole()) < FOLDER_BYTES_MOST


def test_an_earlier_report_in_the_folder_is_replaced(tmp_path: Path) -> None:
    write_report(SMALL, tmp_path)
    result = attrs.evolve(without_series(SMALL), command="another")
    write_report(result, tmp_path)
    assert read_verdict(tmp_path) == result
    assert not list((tmp_path / "series").iterdir())


def test_a_verdict_alone_is_read_without_series(tmp_path: Path) -> None:
    write_report(SMALL, tmp_path)
    alone = tmp_path / "alone.json"
    (tmp_path / "verdict.json").rename(alone)
    for path in (tmp_path / "series").iterdir():
        path.unlink()
    assert read_verdict(alone) == without_series(SMALL)


def test_a_verdict_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    write_report(SMALL, tmp_path)
    verdict = msgspec.json.decode((tmp_path / "verdict.json").read_bytes())
    del verdict["not_run"]
    for stage in verdict["stages"]:
        del stage["wanted_seconds"], stage["settings"]
        for check in stage["checks"]:
            del check["is_known"]
    (tmp_path / "verdict.json").write_bytes(msgspec.json.encode(verdict))
    text = page_of(read_verdict(tmp_path)).text
    assert "shortened" not in text
    assert "not run:" not in text.lower()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"date": 1}', b'{"date": "\xff"}']
)
def test_a_bad_verdict_gives_a_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"verdict\.json is no verdict of the lab: "):
        read_verdict(path)


def test_a_missing_verdict_gives_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"verdict\.json cannot be read: No such file"):
        read_verdict(tmp_path)


@pytest.mark.parametrize(
    "content", ["at\n1\n", "at,phase\nsoon,hold\n", "\x00", 'at,phase\n"1', "at,phase\n1,2,3\n"]
)
def test_a_bad_series_gives_a_sentence(content: str, tmp_path: Path) -> None:
    write_report(SMALL, tmp_path)
    (tmp_path / "series" / "stage-05.csv").write_text(content)
    with pytest.raises(ValueError, match=r"stage-05\.csv is no series of the lab: "):
        read_verdict(tmp_path)
