"""Both libraries, by turns."""

from __future__ import annotations

from typing import cast

import pytest

from tests.client.rig import Library


@pytest.fixture(params=["trio", "asyncio"])
def library(request: pytest.FixtureRequest) -> Library:
    """On which library the client runs."""
    return cast("Library", request.param)
