"""Random faults in real worlds: no silent loss, no repeat."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracle.run import check, run_worlds

pytestmark = pytest.mark.e2e

_WORLDS = ["gentle-cluster", "single-memory", "cluster-r3-memory"]


async def test_no_event_is_lost_silently_whatever_breaks(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    faults = request.config.getoption("--oracle-faults", default=None) or 100
    seed = request.config.getoption("--oracle-seed", default=None)
    # The same faults each time; another seed is another test, see `python -m tests.oracle`.
    seed = 1 if seed is None else seed
    check(await run_worlds(_WORLDS, faults=faults, seed=seed, folder=tmp_path, pace=0.7))
