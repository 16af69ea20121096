"""Secrets appear in no place that other people may read.

Each secret contains a unique word. Real processes are driven through everything that they report,
and all output is searched for these words: logs, pages, answers, close reasons, and the parts of a
process that every user of the machine can read.
"""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.trio.client import connect
from websockets.typing import Subprotocol

from tests.e2e.conftest import receive
from tests.e2e.nats import NatsServer, free_port
from tests.e2e.test_cli import children_of, ended, ready, run, start
from tests.signing import Signer, base64url
from tests.waiting import until_answer

pytestmark = pytest.mark.e2e

USER, PASSWORD, NATS_TOKEN = "canary-user", "canary-password", "canary-nats-token"
KEY = b"canary-signing-key-of-32-bytes-or-more"
TOKEN = "canary-client-token"
SIGNER = Signer("HS256", KEY)
SHOWN = ("canary-password", "canary-nats-token", "canary-signing-key", TOKEN, base64url(KEY))


def leaks(said: str, *more: str) -> list[str]:
    return [word for word in (*SHOWN, *more) if word in said]


async def answer_of(port: int, request: str) -> str:
    """The whole answer to a request on one connection."""
    answer = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request.encode())
        await stream.send_eof()
        with trio.fail_after(10):
            async for chunk in stream:
                answer += chunk
    return answer.decode(errors="replace")


async def page(port: int, path: str) -> str:
    return await answer_of(port, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")


async def is_up(port: int) -> bool:
    try:
        return '"status"' in await page(port, "/health")
    except OSError:
        return False


async def page_of_an_outage(port: int) -> str:
    said = await page(port, "/health")
    return said if '"disconnected"' in said and '"trouble":"' in said else ""


def visible(pid: int) -> str:
    """The parts of a process and its threads that any user can read: its title, their names."""
    process = Path(f"/proc/{pid}")
    names: list[str] = []
    for thread in (process / "task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            names.append((thread / "comm").read_text())
    assert names
    return "\n".join([(process / "cmdline").read_text().replace("\0", " "), *names])


async def refused(url: str, **options: object) -> str:
    """The whole refusal of a client, with its headers."""
    with pytest.raises(InvalidStatus) as caught:
        async with connect(url, **options):  # type: ignore[arg-type]
            pass
    response = caught.value.response
    return f"{response.status_code} {list(response.headers.raw_items())} {response.body!r}"


async def what_clients_are_told(port: int, good: str) -> list[str]:
    """Answers to good and bad tokens in all three places, to odd requests, and a close."""
    url = f"ws://127.0.0.1:{port}/ws"
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    said = [
        await refused(url, additional_headers=bearer),
        await refused(f"{url}?access_token={TOKEN}"),
        await refused(f"{url}?access_token={TOKEN}", additional_headers=bearer),
        await refused(url, subprotocols=[Subprotocol("trio-odin"), Subprotocol(f"bearer.{TOKEN}")]),
        await refused(url, subprotocols=[Subprotocol(f"bearer.{TOKEN}")]),
        await refused(f"{url}?access_token={SIGNER.token(expires_in=-9)}.{TOKEN}"),
    ]
    targets = f"/ws?access_token={TOKEN}", f"/{TOKEN}?access_token={TOKEN}", f"/\x7f{TOKEN}"
    requests = [f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n" for target in targets] + [
        f"GET /ws HTTP/1.1\r\nAuthorization : {TOKEN}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: a\r\nCookie: \0{TOKEN}\r\n\r\n",
        f"GET http://[{TOKEN}/ HTTP/1.1\r\nHost: a\r\n\r\n",
        f"{TOKEN}\r\n\r\n",
    ]
    said += [await answer_of(port, request) for request in requests]
    async with connect(f"{url}?access_token={good}") as client:
        await client.send(json.dumps({"type": TOKEN, "token": TOKEN}))
        await client.send('{"type":"subscribe","channels":["BTC.trade"]}')
        said.append(json.dumps(await receive(client)))
        await client.send("x" * 20_000)  # this ends the connection, with a line in the log
        with pytest.raises(ConnectionClosed) as closed:
            await receive(client)
        said.append(str(closed.value))
    return said


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("login", "wrong"),
    [
        (["--user", USER, "--pass", PASSWORD], f"{USER}:{PASSWORD}-wrong"),
        (["--auth", NATS_TOKEN], f"{NATS_TOKEN}-wrong"),
    ],
    ids=["password", "token"],
)
async def test_no_secret_appears_in_any_output(
    login: list[str], wrong: str, workers: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(KEY)
    reload_file = tmp_path / "settings"
    reload_file.write_text("WS_MAX_CHANNELS=5\n")
    nats = NatsServer(tmp_path / "nats", options=login)
    right = wrong.removesuffix("-wrong")
    port = free_port()
    good = SIGNER.token(sub="somebody")
    nats.start()
    try:
        server = await start(
            "serve",
            NATS_URL=f"nats://{wrong}@127.0.0.1:{nats.port}",
            WS_ADDR=f"127.0.0.1:{port}",
            WS_WORKERS=workers,
            WS_JWT_KEYS=str(keys),
            WS_JWT_ALGORITHMS="HS256",
            WS_RELOAD_FILE=str(reload_file),
            LOG_LEVEL="debug",
            METRICS_INTERVAL="100ms",
        )
        said: list[str] = []
        await until_answer(partial(is_up, port), what="/health answers")
        said += await what_clients_are_told(port, good)
        for content in (f"NATS_URL=nats://{right}@\n", f"{PASSWORD}\n", f"WS_JWT_KEYS={KEY!r}\n"):
            reload_file.write_text(content)
            server.send_signal(signal.SIGHUP)
            await trio.sleep(0.3)
        pages = {path: await page(port, path) for path in ("/", "/health", "/ready", "/metrics")}
        said += pages.values()
        said += [visible(pid) for pid in (server.pid, *children_of(server.pid))]
        server.send_signal(signal.SIGTERM)
        code, out, err = await ended(server)
    finally:
        nats.stop()
    assert code == 0
    said += [out, err]
    for event in ("server.starting", "nats.failed", "reload.failed"):
        assert f'"{event}"' in err, event
    assert "uthorization" in err, "the login was refused, and the log says so"
    assert "uthorization" in pages["/health"], "and so does the page"
    assert "uthorization" in pages["/ready"]
    assert f'"NATS_URL": "…@127.0.0.1:{nats.port}"' in _unescaped(err)
    for one in said:
        assert leaks(one, good, quote(right)) == [], one


def _unescaped(lines: str) -> str:
    return "\n".join(
        json.dumps(json.loads(line), ensure_ascii=False) for line in lines.splitlines()
    )


async def test_a_server_with_valid_credentials_shows_no_secret(tmp_path: Path) -> None:
    nats = NatsServer(tmp_path, options=["--user", USER, "--pass", PASSWORD])
    port = free_port()
    nats.start()
    try:
        server = await start(
            "serve",
            NATS_URL=f"nats://{USER}:{PASSWORD}@127.0.0.1:{nats.port}",
            WS_ADDR=f"127.0.0.1:{port}",
            LOG_LEVEL="debug",
        )
        await ready(port)
        said = [await page(port, path) for path in ("/health", "/ready", "/metrics")]
        nats.stop()
        said.append(await until_answer(partial(page_of_an_outage, port), what="an outage"))
        server.send_signal(signal.SIGTERM)
        _, out, err = await ended(server)
    finally:
        nats.stop()
    assert '"nats.lost"' in err
    health = json.loads(said[-1].partition("\r\n\r\n")[2])
    (error,) = health["errors"]
    trouble = health["checks"]["nats"]["trouble"]
    assert error.startswith("NATS is disconnected since 2")
    assert error.endswith(f": {trouble}")
    assert health["checks"]["nats"]["since_ms"] > 0
    for one in (*said, out, err):
        assert leaks(one) == []


@pytest.mark.parametrize(
    "variables",
    [
        {"NATS_URL": f"nats://{USER}:{PASSWORD}@"},
        {"NATS_URL": f"nats://{USER}:{PASSWORD}"},
        {"NATS_URL": f"http://{USER}:{PASSWORD}@a:1"},
        {"NATS_URL": f"nats://a:1,nats://{USER}:{PASSWORD}@b:x"},
        {"WS_JWT_KEYS": KEY.decode()},
        {"WS_JWT_KEYS": json.dumps({"keys": [{"kty": "oct", "k": base64url(KEY)}]})},
        {"WS_ADDR": f"nats://{USER}:{PASSWORD}@a:1"},
    ],
    ids=lambda variables: next(iter(variables)),
)
@pytest.mark.parametrize("command", ["serve", "settings"])
def test_a_complaint_at_the_start_contains_no_secret(
    command: str, variables: dict[str, str]
) -> None:
    done = run(command, **({"WS_ADDR": "127.0.0.1:0", "WS_JWT_ALGORITHMS": "HS256"} | variables))
    is_read_later = command == "settings" and "WS_JWT_KEYS" in variables
    assert done.returncode == (0 if is_read_later else 2)
    assert leaks(done.stdout + done.stderr) == []
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "content",
    [
        b"canary-signing-key",
        b'{"keys":[{"kty":"oct","k":"canary-signing-key!"}]}',
        b'{"keys":[{"kty":"canary-signing-key","k":"AAAA"}]}',
        b'{"keys":"canary-signing-key"',
        b"-----BEGIN PRIVATE KEY-----\ncanary-signing-key\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\ncanary-signing-key\n-----END PUBLIC KEY-----\n",
    ],
)
@pytest.mark.parametrize("algorithm", ["HS256", "RS256,ES256"])
def test_a_useless_file_of_keys_is_not_quoted(
    content: bytes, algorithm: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(content)
    done = run("serve", WS_ADDR="127.0.0.1:0", WS_JWT_KEYS=str(keys), WS_JWT_ALGORITHMS=algorithm)
    assert done.returncode == 2
    assert str(keys) in done.stderr
    assert leaks(done.stdout + done.stderr) == []


async def test_a_password_among_the_arguments_gets_a_warning() -> None:
    """Any user of the machine can read them; the variable is the safe place."""
    port = free_port()
    url = f"nats://{USER}:{PASSWORD}@127.0.0.1:1"
    server = await start("serve", "--addr", f"127.0.0.1:{port}", "--nats", url)
    await until_answer(partial(is_up, port), what="/health answers")
    server.send_signal(signal.SIGTERM)
    _, out, err = await ended(server)
    assert "every user of this machine can read it: use the variable NATS_URL" in err
    assert leaks(out + err) == []
