"""What a page can know of a refusal, with real sockets and a client library of others."""

from __future__ import annotations

import json
import time
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.trio.client import connect
from websockets.typing import Origin, Subprotocol

from tests.e2e.conftest import StartServer, receive, url_of, wait_for_nats
from tests.e2e.nats import running_nats
from tests.signing import rsa_signer, write_key_set
from trio_odin.server import Server

pytestmark = pytest.mark.e2e

NOWHERE = "nats://127.0.0.1:1"
SIGNER = rsa_signer("old")
OURS = [Subprotocol("trio-odin")]
PAGE = "https://page.example"
OTHER_PAGE = "https://other.example"
FULL = {"WS_MAX_CONNECTIONS": "1"}
CROWDED = {"WS_MAX_CONNECTIONS_PER_IP": "1"}
PICKY = {"WS_ALLOWED_ORIGINS": PAGE}


def keys(tmp_path: Path) -> dict[str, str]:
    return {"WS_JWT_KEYS": str(write_key_set(tmp_path / "keys.json", SIGNER))}


def token(**claims: Any) -> str:
    return SIGNER.token(**claims)


async def closing(server: Server, **options: Any) -> tuple[int, str]:
    """Code and reason of the close frame that follows the upgrade."""
    async with connect(url_of(server), **options) as client:
        assert client.subprotocol == "trio-odin"
        with trio.fail_after(10), pytest.raises(ConnectionClosed) as caught:
            await client.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


async def at_the_door(
    server: Server, headers: dict[str, str] | None = None, query: str = "", method: str = "GET"
) -> HTTPResponse:
    def ask() -> HTTPResponse:
        address = server.addresses[0]
        connection = HTTPConnection(address.host, address.port, timeout=10)
        connection.request(method, f"/ws{query}", headers=headers or {})
        response = connection.getresponse()
        response.read()
        return response

    return await trio.to_thread.run_sync(ask)


@pytest.mark.parametrize(
    ("variables", "options", "code", "reason"),
    [
        (FULL, {}, 4503, "Server at capacity; try again in 5 s"),
        (CROWDED, {}, 4429, "Too many connections from this address; try again in 5 s"),
        (PICKY, {"origin": Origin(OTHER_PAGE)}, 4403, "Origin not allowed"),
        ("keys", {}, 4401, "A token is needed"),
    ],
)
async def test_a_page_can_read_why_it_was_refused_if_the_operator_allows_it(
    variables: dict[str, str] | str,
    options: dict[str, Any],
    code: int,
    reason: str,
    start_server: StartServer,
    tmp_path: Path,
) -> None:
    chosen = keys(tmp_path) if isinstance(variables, str) else variables
    bearer = {"Authorization": f"Bearer {token()}"}
    allowed: dict[str, Any] = {"additional_headers": bearer} if "WS_JWT_KEYS" in chosen else {}
    for setting in ("true", "false"):
        server = await start_server(NATS_URL=NOWHERE, WS_CLOSE_REFUSED=setting, **chosen)
        async with connect(url_of(server), **allowed):
            if setting == "true":
                assert await closing(server, subprotocols=OURS, **options) == (code, reason)
                with pytest.raises(InvalidStatus) as caught:
                    async with connect(url_of(server), **options):
                        pass
            else:
                with pytest.raises(InvalidStatus) as caught:
                    async with connect(url_of(server), subprotocols=OURS, **options):
                        pass
            assert caught.value.response.status_code == code - 4000
        assert server.ledger.traffic.rejected.total() == (2 if setting == "true" else 1)


async def test_a_plain_request_learns_what_a_websocket_would(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(NATS_URL=NOWHERE, **FULL)
    is_open = await at_the_door(server)
    assert (is_open.status, is_open.headers["Upgrade"]) == (426, "websocket")
    async with connect(url_of(server)):
        full = await at_the_door(server, {"Origin": PAGE})
    assert (full.status, full.headers["Retry-After"]) == (503, "5")
    assert full.headers["Access-Control-Allow-Origin"] == "*"
    assert "Retry-After" in full.headers["Access-Control-Expose-Headers"]
    assert server.ledger.traffic.rejected == {"bad_request": 1}, "the first one: no WebSocket"
    server = await start_server(NATS_URL=NOWHERE, **PICKY, **keys(tmp_path))
    assert (await at_the_door(server, {"Origin": OTHER_PAGE})).status == 403
    missing = await at_the_door(server, {"Origin": PAGE})
    assert (missing.status, missing.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert (await at_the_door(server, query=f"?access_token={token()}")).status == 426
    bearer = {"Authorization": f"Bearer {token()}"}
    assert (await at_the_door(server, bearer)).status == 426
    preflight = await at_the_door(server, {"Origin": PAGE}, method="OPTIONS")
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]


async def test_a_token_is_renewed_in_place(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(NATS_URL=NOWHERE, **keys(tmp_path))

    async def ask(**command: Any) -> dict[str, Any]:
        await client.send(json.dumps(command))
        return await receive(client)

    short = token(exp=time.time() + 2, sub="ada")
    async with connect(
        url_of(server), additional_headers={"Authorization": f"Bearer {short}"}
    ) as client:
        await ask(type="subscribe", channels=["BTC.trade", "ETH.*", "SOL.trade"])
        bad = await ask(type="token", token="x.y.z", id=1)
        assert (bad["code"], bad["id"]) == ("INVALID_TOKEN", 1)
        other = await ask(type="token", token=token(sub="eve"), id=2)
        assert (other["code"], other["id"]) == ("INVALID_TOKEN", 2)
        expires = round(time.time()) + 600
        longer = token(exp=expires, sub="ada", channels=["BTC.*", "ETH.trade"])
        assert await ask(type="token", data={"token": longer}, id=3) == {
            "type": "token_ack",
            "expires_at": expires,
            "unsubscribed": ["ETH.*", "SOL.trade"],
            "count": 1,
            "id": 3,
        }
        refused = await ask(type="subscribe", channels=["SOL.trade", "*.trade"], id=4)
        assert {one["code"] for one in refused["refused"]} == {"FORBIDDEN_CHANNEL"}


async def test_clients_with_notices_learn_that_nats_is_gone_and_back(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        async with connect(url_of(server)) as client, connect(url_of(server)) as other:
            await client.send('{"type":"subscribe","channels":["A.b"],"notices":true}')
            await other.send('{"type":"subscribe","channels":["A.b"]}')
            assert (await heard(client))["type"] == "subscription_ack"
            nats.stop()
            gone = await heard(client)
            assert gone == {"type": "upstream", "nats": "disconnected"}
            async with connect(url_of(server)) as late:
                await late.send('{"type":"subscribe","channels":["A.b"],"notices":true}')
                assert (await heard(late))["type"] == "subscription_ack"
                assert await heard(late) == gone
                nats.start()
                back = {"type": "upstream", "nats": "connected"}
                assert await until(late, "upstream") == back
                assert await until(client, "upstream") == back
            assert (await heard(other))["type"] == "subscription_ack"
            await other.send('{"type":"heartbeat"}')
            assert (await heard(other))["type"] == "pong", "it did not ask for notices"


async def heard(client: Any) -> dict[str, Any]:
    return await receive(client, ignored="")


async def until(client: Any, kind: str) -> dict[str, Any]:
    while (message := await heard(client))["type"] != kind:
        pass
    return message
