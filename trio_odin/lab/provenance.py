"""The origin of a measurement, without which a figure means little.

Each record that the pages in docs/ are generated from carries one `Provenance`: the revision, the
machine, its other load, and the settings. The revision is for people. A digest of the server's
source decides whether the server has changed since, so a page can tell in any clone or archive,
and changes only once: with the first change of the server after the measurement.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import attrs
import msgspec

import trio_odin
from trio_odin.lab.machine import Machine, this_machine
from trio_odin.settings.reading import changes, read_settings

UNKNOWN = "unknown"
"""The revision outside a git checkout, and whatever else was not recorded."""

_PACKAGE = Path(trio_odin.__file__).parent
# Clients, commands and the version can change without a change of the server.
_NOT_SERVER = ("lab", "cli", "client", "demo", "top", "__init__.py", "__main__.py")
_DIGITS = 12
_GIT_SECONDS = 10.0


@attrs.frozen(kw_only=True)
class Provenance:
    """The code, the moment, the machine and the settings of a measurement.

    Args:
        date: of the start, in UTC, to the second.
        version: of the package.
        revision: the git commit, in full; "unknown" outside a checkout.
        is_dirty: the package differed from the revision, or had additional files.
        code: digest of the server's source; "unknown" if it was not recorded.
        machine: the machine of the measurement.
        load_average: of the minute before the start; None if it was not recorded.
        settings: settings of the server that differ from their defaults; None if they were not
            recorded, or differ between parts of the measurement.
    """

    date: str
    version: str
    revision: str
    is_dirty: bool
    code: str
    machine: Machine
    load_average: float | None
    settings: Mapping[str, str] | None

    @property
    def day(self) -> str:
        """The date without the time."""
        return self.date[:10]

    @property
    def is_outdated(self) -> bool:
        """Whether the server's code has changed since, as far as that is known."""
        return self.code not in (UNKNOWN, server_code())

    def sentences(self) -> str:
        """The provenance for people, in Markdown."""
        return " ".join([self.short(), self._with(), f"Machine: {self.machine.sentence()}."])

    def short(self) -> str:
        """Only the code and the day."""
        revision = "at an unknown revision"
        if self.revision != UNKNOWN:
            revision = f"at revision `{self.revision[:_DIGITS]}`"
        dirty = " with uncommitted changes" if self.is_dirty else ""
        return f"Measured on {self.day} {revision}{dirty}, trio-odin {self.version}.{self._since()}"

    def _since(self) -> str:
        if self.code == UNKNOWN:
            return " The server's code may have changed since."
        return " The server's code has changed since." if self.is_outdated else ""

    def _with(self) -> str:
        load = "not recorded" if self.load_average is None else f"{self.load_average:.2f}"
        return f"Load average at the start: {load}. Settings: {self._settings()}."

    def _settings(self) -> str:
        if self.settings is None:
            return "not recorded" if self.code == UNKNOWN else "those of each part"
        if not self.settings:
            return "defaults"
        changed = (f"`{name}={value}`" for name, value in self.settings.items())
        return f"defaults but for {', '.join(changed)}"


class _Record(msgspec.Struct):
    """The common part of all records."""

    provenance: Provenance


def origin_of(record: bytes) -> Provenance:
    """The provenance in a record, or in the first of a list of them.

    Raises:
        msgspec.DecodeError: it is not JSON, or has none.
    """
    content = msgspec.json.decode(record, type=_Record | list[_Record])
    return (content[0] if isinstance(content, list) else content).provenance


def provenance(environment: Mapping[str, str] | None = None) -> Provenance:
    """Describe a measurement that starts now. Runs `git` where there is one.

    Args:
        environment: the server's settings, as variables; None if they differ between parts.

    Raises:
        SettingError: a value in `environment` is not allowed.
    """
    revision, is_dirty = revision_of(_PACKAGE)
    return Provenance(
        date=dt.datetime.now(tz=dt.UTC).isoformat(timespec="seconds"),
        version=trio_odin.__version__,
        revision=revision,
        is_dirty=is_dirty,
        code=server_code(),
        machine=this_machine(),
        load_average=round(os.getloadavg()[0], 2),
        settings=None if environment is None else changed_settings(environment),
    )


def changed_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables in `environment` that differ from their defaults.

    Raises:
        SettingError: a value is not allowed.
    """
    changed = changes(read_settings({}), read_settings(environment))
    return {name: environment[name] for name in changed}


def server_code(package: Path = _PACKAGE) -> str:
    """A digest of the server's source: the package without clients, commands and version."""
    digest = sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in _NOT_SERVER:
            digest.update(b"%s\0%s\0" % (name.as_posix().encode(), path.read_bytes()))
    return digest.hexdigest()[:_DIGITS]


def revision_of(folder: Path) -> tuple[str, bool]:
    """The commit of the checkout that `folder` is a part of, and whether `folder` differs from it.

    "unknown" without git, or if git tracks nothing in `folder`: an installed package may lie in the
    checkout of another project.
    """
    tracked = _git(folder, "ls-files", "--", ".")
    revision = _git(folder, "rev-parse", "HEAD")
    if not tracked or not revision:
        return UNKNOWN, False
    return revision, bool(_git(folder, "status", "--porcelain", "--", "."))


def server_commits_since(revision: str, folder: Path = _PACKAGE) -> int | None:
    """The number of commits since `revision` that change the server; None if it is not known."""
    excluded = (f":(exclude){name}" for name in _NOT_SERVER)
    count = _git(folder, "rev-list", "--count", f"{revision}..HEAD", "--", ".", *excluded)
    return int(count) if count else None


def _git(folder: Path, *arguments: str) -> str:
    """The output of git; empty if it fails."""
    program = shutil.which("git")
    if program is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603
            [program, "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
