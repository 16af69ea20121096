"""The code of a figure, and whether it has changed since."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import attrs
import pytest

from tests.lab.origin import ORIGIN
from trio_odin import __version__
from trio_odin.lab.provenance import (
    UNKNOWN,
    Provenance,
    changed_settings,
    provenance,
    revision_of,
    server_code,
)

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in the folder of a checkout, not committed yet."""
    git(tmp_path, "init", "--quiet")
    folder = tmp_path / "package"
    for part in ("core", "lab"):
        (folder / part).mkdir(parents=True)
        (folder / part / "one.py").write_text("ONE = 1\n")
    return folder


@needs_git
def test_a_checkout_has_a_revision_and_reports_uncommitted_changes(package: Path) -> None:
    git(package, "add", ".")
    git(package, "commit", "--quiet", "--message", "one")
    assert revision_of(package) == (git(package, "rev-parse", "HEAD"), False)
    (package.parent / "figures.json").write_text("{}")  # beside the package
    assert not revision_of(package)[1]
    (package / "two.py").write_text("TWO = 2\n")
    assert revision_of(package)[1]


@needs_git
def test_inside_another_projects_checkout_there_is_no_revision(package: Path) -> None:
    (package.parent / "other.py").write_text("")
    git(package.parent, "add", "other.py")
    git(package.parent, "commit", "--quiet", "--message", "other")
    assert revision_of(package) == (UNKNOWN, False)


def test_without_a_checkout_there_is_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision_of(tmp_path) == (UNKNOWN, False)
    monkeypatch.setenv("PATH", "")
    assert revision_of(Path(__file__).parent) == (UNKNOWN, False)


def test_the_digest_covers_the_server_and_not_the_lab(package: Path) -> None:
    before = server_code(package)
    (package / "lab" / "one.py").write_text("ONE = 2\n")
    (package / "__init__.py").write_text('__version__ = "2"\n')
    assert server_code(package) == before
    (package / "core" / "one.py").write_text("ONE = 2\n")
    changed = server_code(package)
    (package / "core" / "one.py").rename(package / "core" / "two.py")
    assert len({before, changed, server_code(package)}) == 3


def test_only_settings_that_differ_from_their_defaults_are_kept() -> None:
    environment = {"WS_MAX_CONNECTIONS": "123", "LOG_LEVEL": "info", "WS_PING_INTERVAL": "27000ms"}
    assert changed_settings(environment) == {"WS_MAX_CONNECTIONS": "123"}


def test_a_measurement_of_the_current_code_is_not_outdated() -> None:
    found = provenance({"WS_MAX_CONNECTIONS": "0"})
    assert (found.version, found.code) == (__version__, server_code())
    assert found.load_average is not None
    assert found.machine.cores > 0
    assert found.settings == {"WS_MAX_CONNECTIONS": "0"}
    assert not found.is_outdated
    assert provenance().settings is None


OLD = attrs.evolve(
    ORIGIN, revision=UNKNOWN, code=UNKNOWN, load_average=None, settings=None, date="2026-11-23"
)


@pytest.mark.parametrize(
    ("origin", "sentences"),
    [
        (
            ORIGIN,
            (
                "Measured on 2026-11-30 at revision `0123456789ab`, trio-odin 0.1.0. Load average "
                "at the start: 0.25. Settings: defaults. Machine: a CPU, 2 cores, 8.0 GiB, Linux "
                "6.8.0, CPython 3.11.7 configured without PGO."
            ),
        ),
        (
            attrs.evolve(ORIGIN, code="another", is_dirty=True, settings={"WS_ADDR": ":1"}),
            (
                "Measured on 2026-11-30 at revision `0123456789ab` with uncommitted changes, "
                "trio-odin 0.1.0. The server's code has changed since. Load average at the start: "
                "0.25. Settings: defaults but for `WS_ADDR=:1`. Machine: a CPU, 2 cores, 8.0 GiB, "
                "Linux 6.8.0, CPython 3.11.7 configured without PGO."
            ),
        ),
        (
            OLD,
            (
                "Measured on 2026-11-23 at an unknown revision, trio-odin 0.1.0. The server's code "
                "may have changed since. Load average at the start: not recorded. Settings: not "
                "recorded. Machine: a CPU, 2 cores, 8.0 GiB, Linux 6.8.0, CPython 3.11.7 "
                "configured without PGO."
            ),
        ),
    ],
)
def test_a_page_reports_whether_the_server_has_changed(origin: Provenance, sentences: str) -> None:
    assert origin.sentences() == sentences
