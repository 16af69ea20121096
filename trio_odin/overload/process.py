"""CPU, memory and files of this process, and what the machine has."""

from __future__ import annotations

import gc
import math
import os
import resource
import time
from pathlib import Path

# Files besides connections: listeners, NATS, logs, requests to /metrics.
_FILES_BESIDE = 64
# A worker may well get this many times its equal share of the connections.
_UNEVENNESS = 1.2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds() -> float:
    """Return the CPU seconds that this process has used, user and system."""
    return time.process_time()


def resident_bytes() -> int:
    """Return the resident memory of this process, or its peak if /proc cannot be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine_bytes() -> int:
    """Return the memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES


def open_files() -> int | None:
    """Return how many files this process has open; None without /proc, as in some sandboxes.

    Since Linux 6.2 the size of their folder is that number; listing 10,000 files takes 8 ms.
    """
    folder = Path("/proc/self/fd")
    try:
        return folder.stat().st_size or sum(1 for _ in folder.iterdir())
    except OSError:
        return None


def files_needed(connections: int, workers: int) -> int:
    """Return how many files one of `workers` processes needs, as the kernel spreads connections."""
    share = min(connections, connections / workers * _UNEVENNESS)
    return math.ceil(share) + _FILES_BESIDE


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


# Young objects between two collections. Each object is visited once, in the first collection after
# it was made. With 50,000 objects that the caches have forgotten, that takes over 100 ms at a time.
_YOUNG_MAX = 5_000
# A connection is about 200 objects. Far more than that is garbage in cycles, whatever made it.
_OBJECTS_PER_CONNECTION_MAX = 1_000
_OBJECTS_BESIDE_MAX = 1_000_000


def settle_garbage_collector() -> None:
    """Exempt from collection what start-up has made, and later what has survived one collection.

    Connections and publications are in no cycle when they end, and their reference counts free
    them, so walking them again and again is wasted. With CPython's defaults that was 40 % of a
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


def collect_young() -> None:
    """Collect the objects that were made since the last collection, while they are few.

    The collector's own count does not grow while as many objects are freed as are made, but those
    that were made are young. Each frame of a client replaces what its task was waiting in, so after
    the pongs of ten thousand clients the next collection visited 145,000 objects, for 75 to 116 ms.
    """
    gc.collect(0)


def collect_what_leaked(connections: int) -> None:
    """Collect in full if there are far more objects than the connections explain.

    This takes a second or two. It is a safety net: cycles that a library leaves must not fill the
    memory over months.
    """
    if gc.get_freeze_count() > _OBJECTS_BESIDE_MAX + _OBJECTS_PER_CONNECTION_MAX * connections:
        gc.unfreeze()
        gc.collect()
