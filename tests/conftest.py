"""Fixtures that several folders share."""

from __future__ import annotations

import pytest
import trio

from trio_odin.config import Settings, read_settings
from trio_odin.net.nats_server import run_nats_server


@pytest.fixture
async def nats_url(nursery: trio.Nursery) -> str:
    """The URL of a real nats-server with JetStream, gone after the test."""
    url: str = (await nursery.start(run_nats_server)).url
    return url


@pytest.fixture
def settings() -> Settings:
    """The defaults, on a free port."""
    return read_settings({"WS_ADDR": "127.0.0.1:0"})
