"""Rows of test observations in a JSON file, the data of pages in docs/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec
import pytest

from trio_odin.lab.provenance import Provenance, provenance


class Recorded(Protocol):
    """The result of a row: None if it could not be run here; notes give the reason."""

    passed: bool | None
    notes: list[str]


R = TypeVar("R", bound=Recorded)

_REASON_MAX = 200


class Records(Generic[R]):
    """The rows of a session. Written to the file that the command line names with `option`."""

    def __init__(self, option: str) -> None:
        self._option = option
        self._rows: pytest.StashKey[list[R]] = pytest.StashKey()
        self._began: Provenance | None = None

    def add_option(self, parser: pytest.Parser) -> None:
        parser.addoption(self._option, metavar="FILE", type=Path, help="write what was seen")

    def begin(self, request: pytest.FixtureRequest, row: R) -> R:
        """Begin a row of this test, which fails with it."""
        if self._began is None and self._file(request.config) is not None:
            self._began = provenance()
        for stash in (request.node.stash, request.config.stash):
            stash.setdefault(self._rows, []).append(row)
        return row

    def follow(
        self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
    ) -> None:
        """Take the outcome of a test over into its rows."""
        for row in item.stash.get(self._rows, []):
            if report.when == "call":
                row.passed = None if report.skipped else report.passed
            elif report.failed:  # its teardown failed
                row.passed = False
            if not report.passed and call.excinfo is not None:
                row.notes.append(_reason(call.excinfo.value))

    def write(
        self, session: pytest.Session, report: Callable[[Path, Provenance, list[R]], object]
    ) -> None:
        """Write the `report` of the file's name, the provenance and the rows, if requested."""
        path = self._file(session.config)
        if path is None:
            return
        began = self._began or provenance()
        content = msgspec.json.encode(report(path, began, session.config.stash.get(self._rows, [])))
        path.write_bytes(msgspec.json.format(content, indent=1) + b"\n")

    def _file(self, config: pytest.Config) -> Path | None:
        path: Path | None = config.getoption(self._option, default=None)
        return path


def _reason(error: BaseException) -> str:
    """The first error, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _REASON_MAX else text[: _REASON_MAX - 1] + "…"
