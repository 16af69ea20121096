"""What a real server sends to a client of another library, against the contract it serves."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import trio
from websockets.trio.client import connect

from tests.e2e.conftest import StartServer, ending_of, url_of, wait_for_nats
from tests.wire.test_contract import problems, problems_of_message
from trio_odin.demo.market import DEFAULT_TOKENS
from trio_odin.demo.publisher import PublisherSettings, publish
from trio_odin.lab.load.pages import get
from trio_odin.net.listening import Address
from trio_odin.wire.contract import asyncapi_json
from trio_odin.wire.payloads import EVENT_TYPES, PAYLOADS

pytestmark = pytest.mark.e2e

OTHERS = [f"*.{event_type}" for event_type in EVENT_TYPES if event_type != "trade"]
COMMANDS = [
    {"type": "subscribe", "channels": OTHERS, "snapshot": True, "notices": True, "id": "all"},
    {"type": "subscribe", "channels": ["BTC.trade", "BTC"], "every_ms": 100, "id": 2},
    {"type": "subscribe", "channels": ["SOL.trade"], "after": 1, "epoch": "another"},
    {"type": "subscribe", "channels": "BTC.trade"},
    {"type": "heartbeat", "nats": True},
    {"type": "channels", "prefix": "BTC."},
    {"type": "replay", "data": {"from": 1, "to": 2}, "id": 3},
    {"type": "token", "token": "t"},
    {"type": "unsubscribe", "channels": ["ETH.trade"], "id": 4},
]
ANSWERS = {
    "subscription_ack",
    "snapshot_done",
    "resume_incomplete",
    "resumed",
    "error",
    "pong",
    "channels",
    "replay_done",
    "token_ack",
    "unsubscription_ack",
    "price:batch",
}


def events_in(message: dict[str, Any]) -> list[dict[str, Any]]:
    if message["type"] == "price:update":
        return [message]
    return list(message.get("events", []))


async def test_all_that_a_server_sends_fits_the_contract(
    nats_url: str, start_server: StartServer, nursery: trio.Nursery
) -> None:
    # Each message is checked in the server's own thread, so on a busy machine many wait.
    server = await start_server(NATS_URL=nats_url, WS_OUTBOX_CAPACITY="20000")
    await wait_for_nats(server)
    market = PublisherSettings(
        address=Address("127.0.0.1", 0),
        nats_urls=[nats_url],
        rate=500,
        events=EVENT_TYPES,
        shares="zipf",
        seed=1,
    )
    await nursery.start(partial(publish, market))
    seen: set[str] = set()
    event_types: set[str] = set()
    async with connect(url_of(server)) as client:
        for command in COMMANDS:
            await client.send(json.dumps(command))
        with trio.fail_after(60):
            while not (seen >= ANSWERS and event_types == set(EVENT_TYPES)):
                message = json.loads(await client.recv())
                assert problems_of_message(message) == []
                seen.add(message["type"])
                for event in events_in(message):
                    token, _, event_type = event["channel"].partition(".")
                    assert token in DEFAULT_TOKENS
                    schema = {"$ref": f"#/components/schemas/{PAYLOADS[event_type].__name__}"}
                    assert problems(event["data"], schema) == []
                    event_types.add(event_type)
        server.drain()
        ended = await ending_of(client)
        assert len(ended.reconnect_in_ms) == 1
        for message in ended.events:
            assert problems_of_message(message) == []
    nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_server_serves_its_contract(start_server: StartServer, nats_url: str) -> None:
    server = await start_server(NATS_URL=nats_url)
    page = await get(f"http://{server.addresses[0]}/asyncapi.json")
    assert page is not None
    assert page.body == asyncapi_json()
