"""The series of a stage as CSV, a row a second: the complete data of the plots."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import attrs
import msgspec

from trio_odin.lab.load.result import Sample
from trio_odin.lab.verdict import HostSample, LabResult, StageResult

_T = TypeVar("_T", Sample, HostSample)

_TIME = "at"
# More digits are noise, and would be most of the file.
_DECIMALS = 3


def write_series(result: LabResult, folder: Path) -> None:
    """Write `stage-05.csv` and `stage-05-host.csv` for each stage with samples.

    Files of an earlier run are removed. Figures are rounded to three decimals; an empty field is an
    unknown figure.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("stage-*.csv"):
        old.unlink()
    for stage in result.stages:
        _write(_load_path(folder, stage), stage.load.series if stage.load else [])
        _write(_host_path(folder, stage), stage.host)


def with_series(result: LabResult, folder: Path) -> LabResult:
    """Read the series of the folder into the stages; a stage without a file has none.

    Raises:
        ValueError: a file is not in the format of `write_series`.
    """
    return attrs.evolve(result, stages=[_stage_with_series(s, folder) for s in result.stages])


def without_series(result: LabResult) -> LabResult:
    """The same without the samples."""
    return attrs.evolve(
        result,
        stages=[
            attrs.evolve(s, host=[], load=s.load and attrs.evolve(s.load, series=[]))
            for s in result.stages
        ],
    )


def _load_path(folder: Path, stage: StageResult) -> Path:
    return folder / f"stage-{stage.number:02}.csv"


def _host_path(folder: Path, stage: StageResult) -> Path:
    return folder / f"stage-{stage.number:02}-host.csv"


def _stage_with_series(stage: StageResult, folder: Path) -> StageResult:
    series = _read(_load_path(folder, stage), Sample)
    return attrs.evolve(
        stage,
        host=_read(_host_path(folder, stage), HostSample),
        load=stage.load and attrs.evolve(stage.load, series=series),
    )


def _write(path: Path, samples: Sequence[Sample] | Sequence[HostSample]) -> None:
    if not samples:
        return
    names = list(attrs.fields_dict(type(samples[0])))
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(names)
        rows.writerows([_field(getattr(sample, name)) for name in names] for sample in samples)


def _field(value: str | float | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return str(round(value, _DECIMALS)).removesuffix(".0")


def _read(path: Path, kind: type[_T]) -> list[_T]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [{name: value or None for name, value in row.items()} for row in reader]
        if _TIME not in (reader.fieldnames or ()):
            raise ValueError(f"{path} is no series of the lab: it has no column {_TIME!r}")
        return msgspec.convert(rows, list[kind], strict=False)  # type: ignore[valid-type]
    except FileNotFoundError:
        return []
    except (csv.Error, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"{path} is no series of the lab: {error}") from error
