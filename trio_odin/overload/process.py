"""CPU, memory and files of this process, and what the machine has."""

from __future__ import annotations

import gc
import math
import os
import resource
import time
from pathlib import Path

# Files beside the connections: listeners, NATS, logs, requests to /metrics.
_FILES_BESIDE = 64
# How much more than its equal share of the connections a worker may well get.
_UNEVENNESS = 1.2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds() -> float:
    """CPU that this process has used, user and system."""
    return time.process_time()


def resident_bytes() -> int:
    """Resident memory of this process; without /proc or a file to read it, the most it ever had."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES


def open_files() -> int | None:
    """How many files this process has open; None where /proc does not say, as in some sandboxes.

    Since Linux 6.2 that is the size of their folder; to list it takes 8 ms with 10,000 of them.
    """
    folder = Path("/proc/self/fd")
    try:
        return folder.stat().st_size or sum(1 for _ in folder.iterdir())
    except OSError:
        return None


def files_needed(connections: int, workers: int) -> int:
    """How many files one of `workers` processes needs, as the kernel spreads connections."""
    share = min(connections, connections / workers * _UNEVENNESS)
    return math.ceil(share) + _FILES_BESIDE


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one. Returns the limit now in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


# Young objects between two collections. Each is looked at once, in the collection after its birth;
# of 50,000 that the caches have forgotten that takes over 100 ms, in one piece.
_YOUNG_MAX = 5_000
# A connection is some 200 objects. Far more than that is garbage in cycles, of whatever making.
_OBJECTS_PER_CONNECTION_MAX = 1_000
_OBJECTS_BESIDE_MAX = 1_000_000


def settle_garbage_collector() -> None:
    """Keep from the collector what has survived one collection, what start-up made first of all.

    Connections and publications are in no cycle when they end and are freed by their reference
    counts, so to walk them again and again is in vain: with CPython's defaults that was 40 % of a
    storm of connects, and half of it still with higher thresholds (docs/decisions/0004-gc.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_MAX, 1_000_000, 1_000_000)
    if _freeze_survivors not in gc.callbacks:
        gc.callbacks.append(_freeze_survivors)


def _freeze_survivors(phase: str, _: dict[str, int]) -> None:
    if phase == "stop":
        gc.freeze()


def collect_what_leaked(connections: int) -> None:
    """Collect in full, which takes a second or two, if there is far more than connections explain.

    A safety net: cycles that a library leaves behind may not fill the memory over the months.
    """
    if gc.get_freeze_count() > _OBJECTS_BESIDE_MAX + _OBJECTS_PER_CONNECTION_MAX * connections:
        gc.unfreeze()
        gc.collect()
