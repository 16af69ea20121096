"""One lab of a prefix at a time, and a sure sign whether one is running: an flock."""

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
    """Make sure that names made of `prefix` cannot be those of another prefix.

    Raises:
        ValueError: says what is allowed.
    """
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(
            f"{prefix!r} is no prefix: it takes up to 16 small letters and digits, a letter first"
        )


def lock_path(prefix: str) -> Path:
    """The file that a running lab of that prefix holds locked; who is not root has one apart."""
    folder = _LOCK_FOLDER if os.access(_LOCK_FOLDER, os.W_OK) else Path(tempfile.gettempdir())
    return folder / f"trio-odin-lab-{prefix}.lock"


def other_labs(prefix: str) -> list[str]:
    """The prefixes of other labs that are running now."""
    mine = lock_path(prefix)
    locks = [path for path in mine.parent.glob("trio-odin-lab-*.lock") if path != mine]
    return sorted(path.stem.removeprefix("trio-odin-lab-") for path in locks if _is_locked(path))


def sharing(prefix: str) -> list[str]:
    """A sentence for the report if others are measuring on this machine at the same time."""
    others = other_labs(prefix)
    return [f"other labs are running on this machine: {', '.join(others)}"] if others else []


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it has just gone, or is somebody else's
        return False
    return False


@contextmanager
def lab_lock(prefix: str) -> Iterator[None]:
    """Hold the lock of that prefix; the kernel lets go of it when this process dies, however.

    The processes it starts do not inherit it: those that survive a killed lab are leftovers.

    Raises:
        HostsUnavailable: another lab holds it, or there is no place for it.
        ValueError: it cannot be a prefix.
    """
    check_prefix(prefix)
    path = lock_path(prefix)
    descriptor = _locked(path, prefix)
    try:
        yield
    finally:
        # First the name, then the lock: who waits for the file it opened finds another in place.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path, prefix: str) -> int:
    """A descriptor of the file that is at `path`, locked."""
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
        os.close(descriptor)  # its holder has just removed it: what we have locked has no name


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
