"""What tests of the deployment share: its files, and which components this machine has."""

from __future__ import annotations

from pathlib import Path

from tests.ops.rehearsing import (  # noqa: F401 - hooks and a fixture
    pytest_addoption,
    pytest_runtest_makereport,
    pytest_sessionfinish,
    rehearse,
)

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"
