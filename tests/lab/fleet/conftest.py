from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.fleet.rig import (
    Rig,
    rig_of,
)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with rig_of() as one:
        yield one
