"""Admission and expiry, over real sockets with a client of another library."""

from __future__ import annotations

import json
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from structlog.testing import capture_logs
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.trio.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from tests.e2e.conftest import StartServer, receive, url_of
from tests.e2e.test_cli import run
from tests.signing import Signer, base64url, ec_signer, rsa_signer, write_key_set
from tests.waiting import wait_until
from trio_odin.server import Server

pytestmark = pytest.mark.e2e

NOWHERE = "nats://127.0.0.1:1"
OLD, NEW = rsa_signer("old"), ec_signer("new")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_key_set(tmp_path / "keys.json", OLD, NEW)


def connecting(
    server: Server, token: str | None = None, **options: Any
) -> AbstractAsyncContextManager[ClientConnection]:
    if token is not None:
        options["additional_headers"] = {"Authorization": f"Bearer {token}"}
    return connect(url_of(server), **options)


async def refused(server: Server, token: str | None = None, **options: Any) -> tuple[int, str, str]:
    """Status, text and challenge of the refusal, which must come."""
    with pytest.raises(InvalidStatus) as caught:
        async with connecting(server, token, **options):
            pass
    response = caught.value.response
    assert response.body is not None
    text = response.body.decode().rstrip("\n")
    return response.status_code, text, response.headers.get("WWW-Authenticate", "")


async def subscribe(client: ClientConnection, *channels: str) -> dict[str, Any]:
    await client.send(json.dumps({"type": "subscribe", "channels": channels}))
    return await receive(client)


# --- origins


@pytest.mark.parametrize("origin", ["https://example.com", "http://localhost:3000", None])
async def test_pages_of_allowed_origins_and_programs_are_let_in(
    origin: str | None, start_server: StartServer
) -> None:
    server = await start_server(
        NATS_URL=NOWHERE, WS_ALLOWED_ORIGINS="https://example.com, http://localhost:3000"
    )
    async with connecting(server, origin=None if origin is None else Origin(origin)) as client:
        assert (await subscribe(client, "BTC.trade"))["count"] == 1


async def test_pages_of_other_origins_get_a_403(start_server: StartServer) -> None:
    server = await start_server(NATS_URL=NOWHERE, WS_ALLOWED_ORIGINS="https://example.com")
    foreign = [
        "null",
        "https://evil-example.com",
        "https://example.com.evil.org",
        "https://www.example.com",
        "https://example.com:8443",
        "http://example.com",
        "https://EXAMPLE.com",
        "https://example.com, https://evil.org",
        "",
    ]
    with capture_logs() as lines:
        for origin in foreign:
            assert await refused(server, origin=Origin(origin)) == (403, "Origin not allowed", "")
    (line,) = (line for line in lines if line["event"] == "handshake.refused")
    assert (line["reason"], line["origin"], line["address"]) == ("origin", "null", "127.0.0.1")
    assert server.ledger.traffic.rejected == {"origin": len(foreign)}
    assert server.connections == 0


# --- tokens


@pytest.mark.parametrize("place", ["header", "subprotocol", "query"])
async def test_a_token_may_come_in_three_places(
    place: str, path: Path, start_server: StartServer
) -> None:
    server = await start_server(NATS_URL=NOWHERE, WS_JWT_KEYS=str(path))
    token = OLD.token(channels=["BTC.*", "*.social"])
    selected: Subprotocol | None = None
    if place == "header":
        client = connecting(server, token)
    elif place == "query":
        client = connect(f"{url_of(server)}?access_token={token}")
    else:
        selected = Subprotocol("trio-odin")
        client = connect(url_of(server), subprotocols=[selected, Subprotocol(f"bearer.{token}")])
    async with client as connection:
        assert connection.subprotocol == selected
        ack = await subscribe(connection, "BTC.trade", "ETH.trade", "ETH.social")
        assert ack["subscribed"] == ["BTC.trade", "ETH.social"]
        error = await receive(connection)
        assert error["code"] == "FORBIDDEN_CHANNEL"
        assert "'ETH.trade'" in error["message"]


async def test_the_subprotocol_is_selected_if_no_token_is_required(
    start_server: StartServer,
) -> None:
    server = await start_server(NATS_URL=NOWHERE)
    offered = [Subprotocol("bearer.anything"), Subprotocol("trio-odin")]
    async with connecting(server, subprotocols=offered) as client:
        assert client.subprotocol == "trio-odin"


def without_signature() -> str:
    header, claims = ({"alg": "none"}, {"exp": time.time() + 60})
    return ".".join([*(base64url(json.dumps(part).encode()) for part in (header, claims)), ""])


def confused() -> str:
    header = {"alg": "HS256", "kid": "old", "typ": "JWT"}
    return OLD.with_secret(header, {"exp": time.time() + 60}, OLD.pem())


def tampered() -> str:
    header, _, signature = OLD.token(iss="us", aud="odin", channels=["BTC.trade"]).split(".")
    claims = {"exp": time.time() + 9999, "iss": "us", "aud": "odin"}
    return f"{header}.{base64url(json.dumps(claims).encode())}.{signature}"


ALGORITHM = "The token is not signed with an algorithm that is allowed"
KEY = "The token is not signed with a key that is known here"
GOOD: dict[str, Any] = {"iss": "us", "aud": "odin"}
INVALID = 'Bearer error="invalid_token"'


async def test_each_attack_on_a_token_gets_a_401(path: Path, start_server: StartServer) -> None:
    server = await start_server(
        NATS_URL=NOWHERE, WS_JWT_KEYS=str(path), WS_JWT_ISSUER="us", WS_JWT_AUDIENCE="odin"
    )
    attacks = [
        (without_signature(), ALGORITHM),
        (confused(), ALGORITHM),
        (jwt.encode({"exp": 9e9, **GOOD}, OLD.private, "RS512", {"kid": "old"}), ALGORITHM),
        (OLD.token(**GOOD | {"aud": "them"}), "The token is for another audience"),
        (OLD.token(iss="us"), "The token is for another audience"),
        (OLD.token(**GOOD | {"iss": "they"}), "The token is of another issuer"),
        (OLD.token(aud="odin"), "The token is of another issuer"),
        (OLD.token(**GOOD, expires_in=-60), "The token has expired"),
        (OLD.token(**GOOD, nbf=time.time() + 60), "The token is not valid yet"),
        (
            OLD.token(**GOOD, exp=None),
            "The token's claims are malformed: Object missing required field `exp`",
        ),
        (tampered(), KEY),
        (Signer("RS256", rsa_signer("theirs").private, "old").token(**GOOD), KEY),
        (Signer("RS256", OLD.private, "unknown").token(**GOOD), KEY),
        (Signer("RS256", OLD.private, "new").token(**GOOD), KEY),
        (OLD.token(**GOOD, x="x" * 4096), "The token is longer than 4096 bytes"),
        (
            OLD.token(**GOOD, channels=["odin.>", "BTC"]),
            "The token's claim channels has to be a list like BTC.trade, BTC.*",
        ),
        ("nonsense", "The token is malformed"),
        ("", "The token is malformed"),
    ]
    for token, text in attacks:
        assert await refused(server, token) == (401, text, INVALID)
    assert await refused(server) == (401, "A token is needed", "Bearer")
    assert server.ledger.traffic.rejected == {"unauthorized": len(attacks) + 1}
    async with connecting(server, OLD.token(**GOOD)):
        assert server.connections == 1


async def test_a_token_in_two_places_gets_a_400(path: Path, start_server: StartServer) -> None:
    server = await start_server(NATS_URL=NOWHERE, WS_JWT_KEYS=str(path))
    token = OLD.token()
    protocols = [Subprotocol("trio-odin"), Subprotocol(f"bearer.{token}")]
    status, text, challenge = await refused(server, token, subprotocols=protocols)
    assert (status, challenge) == (400, 'Bearer error="invalid_request"')
    assert text == "The request needs one token, at one place"
    assert server.ledger.traffic.rejected == {"bad_request": 1}


# --- while connected


async def code_of_end(client: ClientConnection) -> tuple[int, str]:
    with trio.fail_after(10), pytest.raises(ConnectionClosed):
        await client.recv()
    assert client.close_code is not None
    return client.close_code, client.close_reason or ""


async def test_a_connection_ends_when_its_token_has_expired(
    path: Path, start_server: StartServer
) -> None:
    server = await start_server(NATS_URL=NOWHERE, WS_JWT_KEYS=str(path), WS_PING_INTERVAL="500ms")
    # A token ends 5 s after exp: this one has a second and a half left.
    async with (
        connecting(server, OLD.token(expires_in=-3.5)) as short,
        connecting(server, OLD.token()) as long,
    ):
        assert await code_of_end(short) == (4001, "Token expired: come back with a new one")
        assert (await subscribe(long, "BTC.trade"))["count"] == 1
        await wait_until(lambda: server.connections == 1)
    assert server.ledger.traffic.closed["token_expired"] == 1


async def test_after_a_key_rotation_only_clients_with_the_old_key_end(
    path: Path, start_server: StartServer
) -> None:
    variables = {"NATS_URL": NOWHERE, "WS_JWT_KEYS": str(path), "WS_PING_INTERVAL": "200ms"}
    server = await start_server(**variables)
    async with connecting(server, OLD.token()) as old, connecting(server, NEW.token()) as new:
        write_key_set(path)
        server.reload(lambda: variables)
        assert server.ledger.traffic.reloads == {"failed": 1}
        await trio.sleep(0.4)  # two turns of the wheel: nobody is closed
        assert server.connections == 2
        write_key_set(path, NEW)
        server.reload(lambda: variables)
        assert await code_of_end(old) == (4501, "Token is not valid any more")
        assert (await subscribe(new, "BTC.trade"))["count"] == 1
        assert (await refused(server, OLD.token()))[:2] == (401, ALGORITHM)
        async with connecting(server, NEW.token()):
            await wait_until(lambda: server.connections == 2)
    assert server.ledger.traffic.closed["token_revoked"] == 1


# --- the start


@pytest.mark.parametrize("command", [["serve"], ["serve", "--workers", "2"], ["up"]])
def test_a_bad_file_of_keys_gives_a_sentence_and_exit_code_2(
    command: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(rsa_signer().private_pem())
    ended = run(*command, "--addr", "127.0.0.1:0", NATS_URL=NOWHERE, WS_JWT_KEYS=str(path))
    assert ended.returncode == 2
    sentence = f"trio-odin: WS_JWT_KEYS='{path}': key 1 is a private key: give the public one\n"
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
