"""What the image is made of: the locks and the Dockerfile, as far as reading shows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.ops.conftest import ROOT
from tests.ops.tools import run, tool

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
TO_RUN = ROOT / "requirements.lock"
TO_BUILD = ROOT / "requirements-build.lock"
EXTRAS = ("auth", "load", "nkeys", "otel")
RENEW = "run: nox -s lock"


def logical_lines(lock: Path) -> list[str]:
    """Its lines without comments, with those that go on put together."""
    text = re.sub(r"\s*\\\n\s*", " ", lock.read_text())
    return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]


def locked(lock: Path) -> dict[str, Version]:
    """The packages in it, each in exactly one version."""
    versions: dict[str, Version] = {}
    for line in logical_lines(lock):
        requirement = Requirement(line.partition(" --hash")[0])
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        versions[canonicalize_name(requirement.name)] = Version(specifier.version)
    return versions


def wanted(lock: Path) -> list[Requirement]:
    """What pyproject.toml asks for, of what this lock is about."""
    if lock == TO_BUILD:
        lines = PROJECT["build-system"]["requires"]
    else:
        extras = PROJECT["project"]["optional-dependencies"]
        lines = PROJECT["project"]["dependencies"] + [
            one for name in EXTRAS for one in extras[name]
        ]
    return [Requirement(line) for line in lines]


def missing(lock: Path) -> list[str]:
    """What is wanted and not in the lock, or in a version that will not do."""
    versions = locked(lock)
    return [
        str(requirement)
        for requirement in wanted(lock)
        if (version := versions.get(canonicalize_name(requirement.name))) is None
        or version not in requirement.specifier
    ]


@pytest.mark.parametrize("lock", [TO_RUN, TO_BUILD], ids=lambda lock: lock.name)
def test_a_lock_has_what_the_project_asks_for(lock: Path) -> None:
    assert wanted(lock)
    assert missing(lock) == [], RENEW


@pytest.mark.parametrize("lock", [TO_RUN, TO_BUILD], ids=lambda lock: lock.name)
def test_a_lock_has_hashes_and_names_no_place_to_get_packages_from(lock: Path) -> None:
    for line in logical_lines(lock):
        assert re.fullmatch(r"[a-z0-9-]+==\S+( ; [^-]+?)?( --hash=sha256:[0-9a-f]{64})+", line), (
            line
        )
    assert not re.search(r"https?:|//|--(index|find|extra|trusted)|@ ", lock.read_text())


def test_the_image_is_made_of_the_locks_alone() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    installs = re.findall(
        r"pip (?:--python \S+ )?(install .*?)(?:&&|\n[A-Z#])", dockerfile, re.DOTALL
    )
    assert len(installs) == 3
    for install in installs:
        assert "--no-deps" in install
        assert "--require-hashes" in install or "--no-index" in install


def test_the_dockerfile_asks_for_nothing_that_older_tools_lack() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"^# *syntax=|--link|--mount|<<", dockerfile, re.MULTILINE)


def test_hadolint_finds_nothing() -> None:
    linted = run(tool("hadolint"), "--no-color", ROOT / "Dockerfile")
    assert (linted.stdout, linted.returncode) == ("", 0)
