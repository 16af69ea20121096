"""One lab of a prefix at a time, and a reliable sign that a lab is running: an flock."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trio_odin.lab.hosts.hosts import HostsUnavailable

_LOCK_FOLDER = Path("/run")
_PREFIX = re.compile(r"[a-z][a-z0-9]{0,15}")


def check_prefix(prefix: str) -> None:
    """Ensure that names made of `prefix` cannot belong to another prefix.

    Raises:
        ValueError: says what is allowed.
    """
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(
            f"{prefix!r} cannot be a prefix: allowed are up to 16 small letters and digits, "
            "a letter first"
        )


def lock_path(prefix: str) -> Path:
    """The file that a running lab of that prefix locks; users other than root have another one."""
    folder = _LOCK_FOLDER if os.access(_LOCK_FOLDER, os.W_OK) else Path(tempfile.gettempdir())
    return folder / f"trio-odin-lab-{prefix}.lock"


def other_labs(prefix: str) -> list[str]:
    """The prefixes of the other labs that are running."""
    mine = lock_path(prefix)
    locks = [path for path in mine.parent.glob("trio-odin-lab-*.lock") if path != mine]
    return sorted(path.stem.removeprefix("trio-odin-lab-") for path in locks if _is_locked(path))


def sharing(prefix: str) -> list[str]:
    """A sentence for the report if other labs run on this machine at the same time."""
    others = other_labs(prefix)
    return [f"other labs are running on this machine: {', '.join(others)}"] if others else []


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it has just vanished, or belongs to another user
        return False
    return False


@contextmanager
def lab_lock(prefix: str) -> Iterator[None]:
    """Hold the lock of that prefix; the kernel releases it however this process dies.

    Child processes do not inherit it: those that survive a killed lab are leftovers.

    Raises:
        HostsUnavailable: another lab holds it, or the file cannot be made.
        ValueError: `prefix` is not allowed.
    """
    check_prefix(prefix)
    path = lock_path(prefix)
    descriptor = _locked(path, prefix)
    try:
        yield
    finally:
        # Remove the name before the lock: a waiting lab then sees that its file was replaced.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path, prefix: str) -> int:
    """Open and lock the file at `path`; returns its descriptor."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as refusal:
            raise HostsUnavailable(f"the lab's lock cannot be written: {refusal}") from refusal
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as refusal:
            os.close(descriptor)
            raise HostsUnavailable(
                f"another lab with the prefix {prefix} is running (it holds {path})"
            ) from refusal
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its holder has just removed it: the locked file has no name


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
