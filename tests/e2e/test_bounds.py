"""A server works with every allowed value of a setting."""

from __future__ import annotations

import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.trio.client import connect

from tests.e2e.conftest import StartServer, url_of
from tests.settings.test_settings import EXAMPLES
from trio_odin.settings.reading import variables

pytestmark = pytest.mark.e2e

# The examples of each contain its least and its greatest value, by a test of the settings.
NUMERIC = [variable.name for variable in variables() if any(map(str.isdigit, variable.allowed))]
EXTREMES = [(name, text) for name in NUMERIC for text in EXAMPLES[name].good]


def test_most_settings_are_numbers() -> None:
    assert len(NUMERIC) > 25


@pytest.mark.parametrize(("name", "text"), EXTREMES)
async def test_a_server_serves_with_extreme_values(
    name: str,
    text: str,
    start_server: StartServer,
    nats_url: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # With NATS, as without it a subscription waits for seconds.
    server = await start_server(**{"NATS_URL": nats_url, name: text})
    try:
        with trio.fail_after(30):
            async with connect(url_of(server)) as client:
                await client.send('{"type":"subscribe","channels":["A.b"]}')
                await client.send('{"type":"heartbeat"}')
                await client.recv()
                await client.recv()
    except InvalidStatus as refused:
        assert refused.response.status_code in {408, 431, 503}  # noqa: PT017
    except ConnectionClosed as closed:
        assert closed.rcvd is None or closed.rcvd.code in {1008, 1009}  # noqa: PT017
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err
