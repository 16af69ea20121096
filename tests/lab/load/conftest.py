from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.load.rig import Rig, rigged
from trio_odin.lab.load import runner


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples come more often, and waits are shorter."""
    monkeypatch.setattr(runner, "_TICK_SECONDS", 0.1)
    monkeypatch.setattr(runner, "_SHORT_TICK_SECONDS", 0.05)
    monkeypatch.setattr(runner, "_SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(runner, "_QUIET_SECONDS", 0.3)


@pytest.fixture(scope="package")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One rig for all tests; no load may leave anything behind in it."""
    with rigged(tmp_path_factory.mktemp("nats")) as it:
        yield it
