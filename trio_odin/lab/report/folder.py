"""Writes and reads a run as a folder: the verdict, a page, and the series.

    run/
    ├── verdict.json     a LabResult without its series, with `passed`
    ├── report.html      one page, complete in itself: nothing is fetched, no script runs
    └── series/          stage-05.csv, stage-05-host.csv: a row a second

Only the CSV files have the complete series; the page draws them with fewer points.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import msgspec

from trio_odin.lab import figures
from trio_odin.lab.load.criteria import tally
from trio_odin.lab.report import summary
from trio_odin.lab.report.series import with_series, without_series, write_series
from trio_odin.lab.verdict import LabResult
from trio_odin.settings.extras import install_hint

_VERDICT = "verdict.json"
_PAGE = "report.html"
_SERIES = "series"
_TEMPLATE = "report.html.j2"


class ReportUnavailable(Exception):
    """Jinja or matplotlib is not installed; the message says how to install it."""


def require_report() -> None:
    """Check before a run that the page can be written.

    Raises:
        ReportUnavailable: Jinja or matplotlib is not installed.
    """
    try:
        import jinja2  # noqa: F401, PLC0415 - of an extra
        import matplotlib  # noqa: F401, ICN001, PLC0415
    except ImportError as error:
        raise ReportUnavailable(
            f"a report takes {error.name}, which is not installed: {install_hint('lab')}"
        ) from error


def write_report(result: LabResult, folder: Path) -> None:
    """Write verdict, page and series into `folder`, which is made if necessary.

    An earlier report in the folder is replaced: an unfinished run may be written after each of its
    stages. The measurements are written first, so they are saved whatever happens to the page.

    Raises:
        ReportUnavailable: Jinja or matplotlib is not installed; everything but the page is written.
    """
    write_series(result, folder / _SERIES)
    (folder / _VERDICT).write_bytes(_verdict_json(result))
    (folder / _PAGE).write_text(report_html(result), encoding="utf-8")


def read_verdict(path: Path) -> LabResult:
    """Read a run from its folder or its `verdict.json`, with the series beside it.

    Raises:
        ValueError: it cannot be read, or is not a verdict; the message says which.
    """
    path = path / _VERDICT if path.is_dir() else path
    try:
        result = msgspec.json.decode(path.read_bytes(), type=LabResult)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no verdict of the lab: {error}") from error
    return with_series(result, path.parent / _SERIES)


def report_html(result: LabResult) -> str:
    """The page, complete in itself.

    Raises:
        ReportUnavailable: Jinja or matplotlib is not installed.
    """
    require_report()
    import jinja2  # noqa: PLC0415 - of an extra

    from trio_odin.lab.report.chart import panel_svg, scatter_svg  # noqa: PLC0415
    from trio_odin.lab.report.plots import Limits, overview, panels, phases  # noqa: PLC0415

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for read in (figures.count, figures.figure, figures.share, figures.deviation, figures.duration):
        environment.filters[read.__name__] = read
    source = resources.files("trio_odin.lab.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        result=result,
        summary=summary,
        tally=tally,
        limits=Limits.of(result.limits),
        overview=overview,
        panels=panels,
        panel_svg=panel_svg,
        phases=phases,
        scatter_svg=scatter_svg,
    )


def _verdict_json(result: LabResult) -> bytes:
    """The JSON of `LabResult.as_json` with the verdicts added and the series left out."""
    content = msgspec.to_builtins(without_series(result))
    for stage, told in zip(result.stages, content["stages"], strict=True):
        told["passed"] = stage.passed
    return msgspec.json.format(msgspec.json.encode({"passed": result.passed} | content), indent=1)
