"""Fixtures that several folders share."""

from __future__ import annotations

import signal

import hypothesis
import pytest
import trio

from trio_odin.demo.nats_server import run_nats_server
from trio_odin.settings.reading import read_settings
from trio_odin.settings.settings import Settings

# A script's background job ignores Ctrl-C, and so would every process started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The duration of an example depends mostly on the other load of the machine.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start real processes come first: a long one that is last runs alone."""
    real = {item.path for item in items if item.get_closest_marker("e2e")}
    items.sort(key=lambda item: item.path not in real)


@pytest.fixture
async def nats_url(nursery: trio.Nursery) -> str:
    """The URL of a real nats-server with JetStream, which ends after the test."""
    url: str = (await nursery.start(run_nats_server)).url
    return url


@pytest.fixture
def settings() -> Settings:
    """The defaults, on a free port."""
    return read_settings({"WS_ADDR": "127.0.0.1:0"})
