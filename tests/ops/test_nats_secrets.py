"""NATS with users and TLS, as the back-end runs it: a real one, and the real clients of it."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from tests.e2e.nats import free_port
from tests.ops.conftest import OPS
from tests.ops.prometheus import running
from tests.ops.tools import run, tool
from tests.waiting import until_answer
from trio_odin.demo.nats_server import find_nats_server
from trio_odin.lab.load.pages import get, parse_metrics

# The files of a client's folder, by the variables that name them.
LOGIN = {
    "NATS_URL_FILE": "nats_url",
    "NATS_PASSWORD_FILE": "password",
    "NATS_TLS_CA": "ca.pem",
}
SCRIPT = OPS / "nats" / "secrets.sh"


def make_secrets(folder: Path) -> None:
    tool("openssl")
    made = run(SCRIPT, folder)
    assert made.returncode == 0, made.stderr


def login_of(secrets: Path, client: str) -> dict[str, str]:
    """The variables that compose gives to a client, with the paths of this machine."""
    folder = secrets / client
    files = {variable: str(folder / file) for variable, file in LOGIN.items()}
    return {"NATS_USER": client, **files}


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    make_secrets(folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_each_container_gets_what_it_needs_and_nobody_the_key_of_the_authority(
    secrets: Path,
) -> None:
    assert content(secrets).keys() == {
        "ca.key",
        "ca.pem",
        *("nats/users.conf", "nats/cert.pem", "nats/key.pem", "nats/ca.pem"),
        *("ws/nats_url", "ws/password", "ws/ca.pem"),
        *("publisher/nats_url", "publisher/password", "publisher/ca.pem"),
        *("grafana/admin_password", "alertmanager/watchdog_webhook_url"),
    }
    for client in ("ws", "publisher"):
        password = (secrets / client / "password").read_text().strip()
        assert f'"{password}"' in (secrets / "nats" / "users.conf").read_text()
        assert (secrets / client / "nats_url").read_text() == "tls://nats:4222\n", "no secret"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert stat.S_IMODE((secrets / "ca.key").stat().st_mode) == 0o600
    # Containers' users are not the one who made them.
    assert all(file.stat().st_mode & stat.S_IROTH for file in secrets.rglob("*/*"))


def test_a_second_time_keeps_all_and_renews_what_was_removed(secrets: Path) -> None:
    before = content(secrets)
    make_secrets(secrets)
    assert content(secrets) == before
    (secrets / "nats" / "cert.pem").unlink()
    make_secrets(secrets)
    after = content(secrets)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"nats/cert.pem", "nats/key.pem"}


def test_passwords_differ_each_time(secrets: Path, tmp_path: Path) -> None:
    make_secrets(tmp_path / "others")
    passwords = [
        (folder / client / "password").read_text().strip()
        for folder in (secrets, tmp_path / "others")
        for client in ("ws", "publisher")
    ]
    assert len(set(passwords)) == 4
    assert all(len(password) == 48 for password in passwords)


@pytest.mark.parametrize("has_file", [True, False], ids=["a-file-too", "the-url-alone"])
def test_the_password_of_an_earlier_version_moves_out_of_the_url(
    secrets: Path, *, has_file: bool
) -> None:
    ws = secrets / "ws"
    password = (ws / "password").read_text()
    login = f"ws:{password.strip()}"
    (ws / "nats_url").write_text(f"tls://{login}@10.0.0.1:4222,tls://{login}@nats:4222\n")
    if not has_file:
        (ws / "password").unlink()
    make_secrets(secrets)
    assert (ws / "nats_url").read_text() == "tls://10.0.0.1:4222,tls://nats:4222\n"
    assert (ws / "password").read_text() == password


def test_a_password_that_was_removed_is_that_of_nats_again(secrets: Path) -> None:
    file = secrets / "publisher" / "password"
    password = file.read_text()
    file.unlink()
    make_secrets(secrets)
    assert file.read_text() == password


def test_nothing_of_it_is_ever_committed() -> None:
    done = run(tool("git"), "-C", OPS, "check-ignore", "secrets/ca.key")
    if "not a git repository" in done.stderr:
        pytest.skip("not a git repository")
    assert done.returncode == 0


@attrs.frozen
class Site:
    """A NATS server with users and TLS, and the secrets of its clients."""

    folder: Path
    port: int

    def environment(self, client: str) -> dict[str, str]:
        """As compose gives it, the address apart."""
        given = login_of(self.folder / "secrets", client)
        file = self.folder / f"{client}_url"
        text = Path(given["NATS_URL_FILE"]).read_text()
        file.write_text(text.replace("//nats:4222", f"//localhost:{self.port}"))
        return {**given, "NATS_URL_FILE": str(file)}

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.folder / "secrets" / "ws" / "ca.pem")


@pytest.fixture
def site(tmp_path: Path, secrets: Path) -> Iterator[Site]:
    etc, port = tmp_path / "etc", free_port()
    shutil.copytree(OPS / "nats", etc / "nats")
    (etc / "secrets").symlink_to(secrets / "nats")
    config = etc / "nats" / "secured.conf"
    config.write_text(config.read_text().replace("/etc/secrets", str(etc / "secrets")))
    plain = etc / "nats" / "nats.conf"
    moved = plain.read_text().replace("0.0.0.0:4222", f"127.0.0.1:{port}")
    moved = moved.replace("0.0.0.0:8222", f"127.0.0.1:{free_port()}")
    plain.write_text(moved.replace("/data", str(tmp_path / "data")))
    with running([find_nats_server(), "--config", config], tmp_path, "nats-server"):
        yield Site(tmp_path, port)


@contextmanager
def program(site: Site, client: str, *arguments: str) -> Iterator[None]:
    command = [sys.executable, "-m", "trio_odin", *arguments]
    variables = site.environment(client)
    with running(command, site.folder, client, variables={**os.environ, **variables}):
        yield


async def _taken(port: int) -> bool:
    page = await get(f"http://127.0.0.1:{port}/metrics")
    figures = {} if page is None else parse_metrics(page.body.decode())
    return figures.get("ws_nats_messages_received_total", 0) > 3


@pytest.mark.ops
async def test_server_and_publisher_find_each_other_with_their_secrets(site: Site) -> None:
    port = free_port()
    with ExitStack() as stack:
        stack.enter_context(program(site, "ws", "serve", "--addr", f"127.0.0.1:{port}"))
        market = ["publish", "--addr", f"127.0.0.1:{free_port()}", "--rate", "20"]
        stack.enter_context(program(site, "publisher", *market))
        await until_answer(partial(_taken, port), what="events arrive")
    log = (site.folder / "ws.log").read_text()
    assert '"mode": "jetstream"' in log
    for client in ("ws", "publisher"):
        assert password_of(site, client) not in log + (site.folder / "publisher.log").read_text()


async def answer(
    site: Site, user: str, password: str, subject: str, trust: ssl.SSLContext | None = None
) -> str:
    """What NATS says to a client that connects and publishes one event, in NATS' own protocol."""
    stream: trio.abc.Stream = await trio.open_tcp_stream("localhost", site.port)
    async with stream:
        assert (await stream.receive_some()).startswith(b"INFO ")
        secured = trio.SSLStream(stream, trust or site.trust, server_hostname="localhost")
        options = json.dumps({"user": user, "pass": password, "verbose": False, "pedantic": False})
        await secured.send_all(f"CONNECT {options}\r\nPUB {subject} 2\r\n{{}}\r\nPING\r\n".encode())
        said = b""
        with suppress(trio.BrokenResourceError), trio.fail_after(10):
            while b"PONG" not in said and (chunk := await secured.receive_some()):
                said += chunk
        return said.decode()


def password_of(site: Site, client: str) -> str:
    return (site.folder / "secrets" / client / "password").read_text().strip()


async def _is_up(site: Site) -> bool:
    try:
        said = await answer(site, "ws", password_of(site, "ws"), "$JS.API.INFO")
    except OSError:
        return False
    return "PONG" in said


@pytest.mark.ops
async def test_who_has_no_password_or_no_tls_does_not_come_in(site: Site) -> None:
    await until_answer(partial(_is_up, site), what="NATS takes the server's password")
    for user, password in (("ws", "wrong"), ("", ""), ("publisher", password_of(site, "ws"))):
        assert "Authorization Violation" in await answer(site, user, password, "x")
    plain = await trio.open_tcp_stream("localhost", site.port)
    async with plain:
        assert b'"tls_required":true' in await plain.receive_some()
        await plain.send_all(b'CONNECT {"user":"ws","pass":"not sent by ours"}\r\nPING\r\n')
        with suppress(trio.BrokenResourceError), trio.fail_after(10):
            while chunk := await plain.receive_some():
                assert b"PONG" not in chunk
    # Its certificate is of an authority that nobody else knows.
    with pytest.raises(trio.BrokenResourceError) as refused:
        await answer(site, "ws", "", "x", ssl.create_default_context())
    assert isinstance(refused.value.__cause__, ssl.SSLCertVerificationError)


@pytest.mark.ops
async def test_each_user_may_do_its_own_work_alone(site: Site) -> None:
    await until_answer(partial(_is_up, site), what="NATS takes the server's password")
    for client, subject, may in (
        ("ws", "$JS.API.STREAM.INFO.ODIN_TOKENS", True),
        ("ws", "odin.token.BTC.trade", False),
        ("ws", "$JS.API.STREAM.DELETE.ODIN_TOKENS", False),
        ("publisher", "odin.token.BTC.trade", True),
        ("publisher", "$JS.API.STREAM.DELETE.ODIN_TOKENS", False),
    ):
        said = await answer(site, client, password_of(site, client), subject)
        assert "PONG" in said, (client, subject)
        assert ("Permissions Violation" not in said) == may, (client, subject)
