"""Access to NATS: encryption, credentials, and missing rights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio

from tests.certificates import make_certificates
from tests.e2e.conftest import StartServer, client_of, receive, wait_for_nats
from tests.e2e.nats import NatsServer, free_port, nats_client
from tests.waiting import wait_until
from trio_odin.lab.load.pages import get, get_object
from trio_odin.server import Server

pytestmark = pytest.mark.e2e

CANARY = "CANARY"


@contextmanager
def configured_nats(
    folder: Path, config: str, *, jetstream: bool = True, monitoring: int = 0
) -> Iterator[NatsServer]:
    """nats-server with this configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "nats.conf"
    file.write_text(config)
    server = NatsServer(folder, jetstream, monitoring=monitoring, options=("-c", str(file)))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def trouble_of(server: Server) -> str:
    trouble = server.snapshot().nats.trouble
    return trouble.sentence if trouble else ""


async def connections_of(nats: NatsServer) -> list[dict[str, Any]]:
    page = await get_object(f"http://127.0.0.1:{nats.monitoring}/connz?auth=1") or {}
    connections: list[dict[str, Any]] = page.get("connections", [])
    return [one for one in connections if one.get("name") == "trio-odin"]


# --- encryption


@pytest.mark.parametrize("mode", ["jetstream", "core", "auto"])
async def test_with_required_encryption_nothing_is_sent_in_clear(
    start_server: StartServer, nursery: trio.Nursery, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    """A server that does not offer TLS, or an attacker in between who strips the offer."""
    received = bytearray()
    offers = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal offers
        await stream.send_all(b'INFO {"server_id":"x","version":"2.15.1","headers":true}\r\n')
        offers += 1
        async for chunk in stream:
            received.extend(chunk)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, [listener])
    port = listener.socket.getsockname()[1]
    server = await start_server(NATS_URL=f"tls://user:{CANARY}@127.0.0.1:{port}", NATS_MODE=mode)
    await wait_until(lambda: offers >= 3)
    assert not received
    assert not server.snapshot().nats.was_connected
    assert "requires TLS, which it does not offer" in trouble_of(server)
    assert CANARY not in capsys.readouterr().out + trouble_of(server)


@pytest.mark.parametrize("both", [False, True])
async def test_a_tls_url_is_encrypted_even_if_the_server_accepts_both(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    files = make_certificates(tmp_path / "tls", "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(files.authority))
    tls = f'tls {{ cert_file: "{files.certificate}", key_file: "{files.key}" }}'
    config = f"{tls}\nallow_non_tls: {str(both).lower()}\n"
    config += "authorization { users: [{ user: odin, password: secret }] }"
    with configured_nats(tmp_path / "nats", config, monitoring=free_port()) as nats:
        server = await start_server(NATS_URL=f"tls://odin:secret@localhost:{nats.port}")
        await wait_for_nats(server)
        (connection,) = await connections_of(nats)
        assert connection["tls_version"]


async def test_a_foreign_certificate_is_named_as_the_reason(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_certificates(tmp_path / "tls", "elsewhere.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(files.authority))
    tls = f'tls {{ cert_file: "{files.certificate}", key_file: "{files.key}" }}'
    with configured_nats(tmp_path / "nats", tls) as nats:
        server = await start_server(NATS_URL=f"tls://localhost:{nats.port}")
        await wait_until(lambda: "certificate is not accepted" in trouble_of(server))
        assert "localhost" in trouble_of(server)
        assert not server.snapshot().nats.was_connected


# --- credentials


@pytest.mark.parametrize("secret", ["p@ss:w/o?r#d%41", "pässwörd", "a b"])
async def test_a_password_may_have_any_character(
    start_server: StartServer, tmp_path: Path, secret: str
) -> None:
    user = {"user": "o@d", "password": secret}
    config = f"authorization {{ users: {json.dumps([user], ensure_ascii=False)} }}"
    with configured_nats(tmp_path, config) as nats:
        url = f"nats://{quote('o@d', safe='')}:{quote(secret, safe='')}@127.0.0.1:{nats.port}"
        server = await start_server(NATS_URL=url)
        await wait_for_nats(server)


async def test_a_user_without_a_password_is_a_token(
    start_server: StartServer, tmp_path: Path
) -> None:
    with configured_nats(tmp_path, 'authorization { token: "t@ken" }') as nats:
        server = await start_server(NATS_URL=f"nats://t%40ken@127.0.0.1:{nats.port}")
        await wait_for_nats(server)


async def test_a_refused_password_is_in_no_log_line_and_on_no_page(
    start_server: StartServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with configured_nats(tmp_path, "authorization { user: odin, password: other }") as nats:
        url = f"nats://odin:{CANARY}@127.0.0.1:{nats.port}"
        server = await start_server(NATS_URL=url, LOG_LEVEL="debug")
        await wait_until(lambda: "Authorization Violation" in trouble_of(server))
        for path in ("/health", "/ready", "/metrics", "/"):
            page = await get(f"http://{server.addresses[0]}{path}")
            assert page is not None
            assert CANARY.encode() not in page.body
        assert CANARY not in repr(server.snapshot())
    assert CANARY not in capsys.readouterr().out


# --- missing rights


def users(**permissions: Any) -> str:
    user = {"user": "odin", "password": "secret", "permissions": permissions}
    other = {"user": "other", "password": "other"}
    return f"authorization {{ users: {json.dumps([user, other])} }}\n"


ALLOWED = users(publish=">", subscribe=">")


async def test_without_the_right_to_subscribe_it_reports_why(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Core NATS would leave it without events, and only a line of the protocol reports it."""
    refused = users(publish=">", subscribe="something.else")
    with configured_nats(tmp_path, refused, jetstream=False) as nats:
        url = f"nats://odin:secret@127.0.0.1:{nats.port}"
        server = await start_server(NATS_URL=url, NATS_MODE="core")
        await wait_until(lambda: 'Subscription to "odin.token.>"' in trouble_of(server))
        assert not server.snapshot().nats.was_connected
        nats.reconfigure(ALLOWED)
        # NATS cuts some connections while it reloads its configuration.
        await wait_until(lambda: server.snapshot().nats.is_connected and not trouble_of(server))


@pytest.mark.parametrize("mode", ["core", "jetstream"])
async def test_a_withdrawn_right_to_subscribe_and_its_return_are_noticed(
    start_server: StartServer, tmp_path: Path, mode: str
) -> None:
    with configured_nats(tmp_path, ALLOWED) as nats:
        url = f"nats://odin:secret@127.0.0.1:{nats.port}"
        server = await start_server(NATS_URL=url, NATS_MODE=mode)
        await wait_for_nats(server)
        async with (
            client_of(server, "BTC.trade") as client,
            nats_client(nats.url, user="other", **{"pass": "other"}) as publisher,
        ):
            nats.reconfigure(users(publish=">", subscribe="something.else"))
            await wait_until(lambda: not server.snapshot().nats.is_connected, seconds=10)
            await wait_until(lambda: "Permissions Violation" in trouble_of(server), seconds=10)
            nats.reconfigure(ALLOWED)
            await wait_for_nats(server)
            await publisher.publish("odin.token.BTC.trade", b"1")
            assert (await receive(client))["data"] == 1


async def test_without_jetstream_rights_nats_own_sentence_is_reported(
    start_server: StartServer, tmp_path: Path
) -> None:
    with configured_nats(tmp_path, users(publish={"deny": "$JS.API.>"})) as nats:
        server = await start_server(NATS_URL=f"nats://odin:secret@127.0.0.1:{nats.port}")
        await wait_until(lambda: 'Publish to "$JS.API.' in trouble_of(server), seconds=5)
        assert not server.snapshot().nats.was_connected


def needed_rights() -> list[str]:
    """The subjects that the server must be allowed to publish by docs/operating.md."""
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    rights = re.findall(r"^\| `(\$JS[^`]*)` \|", page, re.MULTILINE)
    return [right.replace("STREAM_NAME", "ODIN_TOKENS") for right in rights]


async def test_the_documented_rights_are_enough_for_an_existing_stream(
    start_server: StartServer, tmp_path: Path
) -> None:
    rights = needed_rights()
    assert len(rights) > 3
    stream = {"name": "ODIN_TOKENS", "subjects": ["odin.token.>"], "storage": "file"}
    allowed = users(publish=rights, subscribe="_INBOX.>")
    with configured_nats(tmp_path, allowed) as nats:
        other = {"user": "other", "pass": "other"}
        async with nats_client(nats.url, **other) as publisher:
            await publisher.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", stream)
            await publisher.publish("odin.token.BTC.trade", b"0")
            await publisher.flush()
        server = await start_server(NATS_URL=f"nats://odin:secret@127.0.0.1:{nats.port}")
        await wait_for_nats(server)
        async with client_of(server, "BTC.trade") as client:
            nats.stop()
            await wait_until(lambda: not server.snapshot().nats.is_connected)
            nats.start()
            await wait_for_nats(server)
            async with nats_client(nats.url, **other) as publisher:
                for number in range(300):  # enough for flow control
                    await publisher.publish(
                        "odin.token.BTC.trade", b"[%s]" % b",".join([b"%d" % number] * 1000)
                    )
                await publisher.flush()
            offsets = [(await receive(client))["offset"] for _ in range(300)]
        assert offsets == list(range(2, 302))
        assert server.snapshot().nats.reconnects == 1, "nothing was refused in between"


@pytest.mark.parametrize(
    "missing", ["STREAM.MSG.GET", "CONSUMER.CREATE", "STREAM.INFO", "API.INFO"]
)
async def test_a_missing_right_is_named(
    start_server: StartServer, tmp_path: Path, missing: str
) -> None:
    rights = [right for right in needed_rights() if missing not in right]
    stream = {"name": "ODIN_TOKENS", "subjects": ["odin.token.>"], "storage": "file"}
    with configured_nats(tmp_path, users(publish=rights, subscribe="_INBOX.>")) as nats:
        async with nats_client(nats.url, user="other", **{"pass": "other"}) as publisher:
            await publisher.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", stream)
            await publisher.publish("odin.token.BTC.trade", b"0")
            await publisher.flush()
        server = await start_server(NATS_URL=f"nats://odin:secret@127.0.0.1:{nats.port}")
        await wait_until(lambda: missing in trouble_of(server))
        assert not server.snapshot().nats.was_connected


async def test_a_missing_right_to_answer_flow_control_is_reported(
    start_server: StartServer, tmp_path: Path
) -> None:
    """NATS waits for that answer after some hundred KiB, and sends heartbeats meanwhile."""
    allowed = users(publish=["$JS.API.>", "odin.token.>"], subscribe=">")
    with configured_nats(tmp_path, allowed) as nats:
        server = await start_server(
            NATS_URL=f"nats://odin:secret@127.0.0.1:{nats.port}",
            WS_OUTBOX_BYTES="100000000",  # all of it comes at once, and the client is in our loop
        )
        await wait_for_nats(server)
        async with (
            client_of(server, "BTC.trade") as client,
            nats_client(nats.url, user="other", **{"pass": "other"}) as publisher,
        ):
            for _ in range(500):
                await publisher.publish("odin.token.BTC.trade", b'"%b"' % (b"x" * 20_000))
            await publisher.publish("odin.token.BTC.trade", b'"last"')
            await publisher.flush()
            await wait_until(lambda: 'Publish to "$JS.FC.' in trouble_of(server), seconds=10)
            while (await receive(client))["data"] != "last":
                pass


async def test_refused_attempts_are_repeated_less_and_less_often(
    start_server: StartServer, tmp_path: Path
) -> None:
    with configured_nats(tmp_path, "max_subscriptions: 1", monitoring=free_port()) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_until(lambda: "subscriptions exceeded" in trouble_of(server))
        await trio.sleep(4)
        page = await get_object(f"http://127.0.0.1:{nats.monitoring}/varz") or {}
        assert 0 < page["total_connections"] < 10


async def test_a_stream_that_cannot_be_made_is_not_reported_as_made(
    start_server: StartServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = f'jetstream {{ max_memory_store: 1MB, store_dir: "{tmp_path}" }}'
    with configured_nats(tmp_path, limits, jetstream=False) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_until(lambda: "insufficient memory" in trouble_of(server))
        assert "nats.stream_made" not in capsys.readouterr().out


async def test_an_unknown_host_is_reported_unlike_one_that_refuses(
    start_server: StartServer,
) -> None:
    lost = await start_server(NATS_URL="nats://nowhere.invalid")
    down = await start_server(NATS_URL=f"nats://127.0.0.1:{free_port()}")
    await wait_until(lambda: "connection refused" in trouble_of(down))
    await wait_until(lambda: "the host is not found" in trouble_of(lost))
    await wait_until(lambda: "nowhere.invalid:4222" in trouble_of(lost))
