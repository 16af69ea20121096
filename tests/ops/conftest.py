"""What tests of the deployment share: its files, and which components this machine has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.ops.rehearsing import (  # noqa: F401 - hooks and a fixture
    pytest_addoption,
    pytest_runtest_makereport,
    pytest_sessionfinish,
    rehearse,
)
from tests.ops.tools import missing

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"

Require: TypeAlias = Callable[..., None]


@pytest.fixture
def require() -> Require:
    """Skip the test, with the reason, unless all these programs are on this machine."""

    def require(*programs: str) -> None:
        if (reason := missing(*programs)) is not None:
            pytest.skip(reason)

    return require
