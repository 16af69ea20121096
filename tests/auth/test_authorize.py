from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from tests.listener.test_listener import UPGRADE, answer_to, status_of
from tests.server_rig import Rig, receive_all
from tests.signing import SECRET, ec_signer, rsa_signer, secret_signer, write_key_set
from trio_odin.auth.authorize import Authorizer
from trio_odin.auth.grants import Grant
from trio_odin.auth.identity import UNKNOWN
from trio_odin.ledger.reasons import CloseReason
from trio_odin.listener.listener import _Admitted
from trio_odin.settings.reading import read_settings
from trio_odin.settings.setting_field import SettingError
from trio_odin.telemetry.logs import configure_logs
from trio_odin.wire.handshake import Rejected, Upgrade, parse
from trio_odin.wire.negotiation import Encodings

OLD, NEW = rsa_signer("old"), ec_signer("new")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_key_set(tmp_path / "keys.json", OLD)


def request(token: str | None = None, origin: str | None = None) -> bytes:
    headers = {"Authorization": token and f"Bearer {token}", "Origin": origin}
    lines = [f"{name}: {value}\r\n" for name, value in headers.items() if value is not None]
    return UPGRADE + "".join([*lines, "\r\n"]).encode()


def authorize(
    authorizer: Authorizer, token: str | None = None, origin: str | None = None
) -> object:
    upgrade = parse(request(token, origin))
    assert isinstance(upgrade, Upgrade)
    return authorizer.authorize(upgrade, Encodings())


# --- admission


def test_by_default_everyone_is_let_in_and_tokens_are_ignored() -> None:
    authorizer = Authorizer(read_settings({}))
    for token in (None, "x", OLD.token()):
        assert authorize(authorizer, token, origin="null") is None


def test_with_both_configured_an_origin_and_a_token_are_required(path: Path) -> None:
    authorizer = Authorizer(
        read_settings({"WS_JWT_KEYS": str(path), "WS_ALLOWED_ORIGINS": "https://a.example"})
    )
    assert isinstance(authorize(authorizer, OLD.token(), "https://a.example"), Grant)
    for token, origin, label in (
        (OLD.token(), "https://b.example", "origin"),
        (None, "https://b.example", "origin"),
        (None, "https://a.example", "unauthorized"),
        (NEW.token(), "https://a.example", "unauthorized"),
        (None, None, "unauthorized"),
    ):
        rejected = authorize(authorizer, token, origin)
        assert isinstance(rejected, Rejected)
        assert rejected.reason.label == label


def test_without_filtering_a_token_for_some_channels_is_refused(path: Path) -> None:
    settings = {"WS_JWT_KEYS": str(path), "ENABLE_SUBSCRIPTION_FILTERING": "false"}
    authorizer = Authorizer(read_settings(settings))
    for channels in (None, [">"], ["*.*"]):
        assert isinstance(authorize(authorizer, OLD.token(channels=channels)), Grant)
    for restricted in ([], ["BTC.*"], ["*.trade"]):
        rejected = authorize(authorizer, OLD.token(channels=restricted))
        assert isinstance(rejected, Rejected)
        assert (rejected.status, rejected.reason.label) == (403, "unauthorized")
        assert rejected.headers == (("WWW-Authenticate", 'Bearer error="insufficient_scope"'),)


# --- start and reload


@pytest.mark.parametrize("content", ["", "{", "-----BEGIN PUBLIC KEY-----"])
def test_a_bad_file_at_the_start_gives_a_sentence_with_its_name(content: str, path: Path) -> None:
    path.write_text(content)
    with pytest.raises(SettingError, match=f"^WS_JWT_KEYS='{path}': "):
        Authorizer(read_settings({"WS_JWT_KEYS": str(path)}))


def test_a_reload_puts_new_origins_and_keys_in_force(path: Path) -> None:
    authorizer = Authorizer(read_settings({"WS_JWT_KEYS": str(path)}))
    assert isinstance(authorize(authorizer, NEW.token()), Rejected)
    write_key_set(path, NEW)
    authorizer.reload(read_settings({"WS_JWT_KEYS": str(path), "WS_ALLOWED_ORIGINS": "http://a"}))
    assert isinstance(authorize(authorizer, NEW.token(), "http://a"), Grant)
    assert isinstance(authorize(authorizer, OLD.token(), "http://a"), Rejected)
    assert isinstance(authorize(authorizer, NEW.token(), "http://b"), Rejected)


def test_a_reload_of_a_bad_file_changes_nothing(path: Path) -> None:
    authorizer = Authorizer(
        read_settings({"WS_JWT_KEYS": str(path), "WS_ALLOWED_ORIGINS": "http://a"})
    )
    path.write_text("{}")
    with pytest.raises(SettingError, match="not a JWK set"):
        authorizer.reload(
            read_settings({"WS_JWT_KEYS": str(path), "WS_ALLOWED_ORIGINS": "http://b"})
        )
    assert isinstance(authorize(authorizer, OLD.token(), "http://a"), Grant)
    assert isinstance(authorize(authorizer, OLD.token(), "http://b"), Rejected)


def test_an_expired_token_or_a_removed_key_ends_the_grant(path: Path) -> None:
    authorizer = Authorizer(read_settings({"WS_JWT_KEYS": str(path)}))
    grant = authorize(authorizer, OLD.token())
    assert isinstance(grant, Grant)
    assert authorizer.why_ended(grant) is None
    assert authorizer.why_ended(None) is None
    assert authorizer.why_ended(Grant(0.0, grant.key)) is CloseReason.TOKEN_EXPIRED
    write_key_set(path, OLD, NEW)
    authorizer.reload(read_settings({"WS_JWT_KEYS": str(path)}))
    assert authorizer.why_ended(grant) is None
    write_key_set(path, NEW)
    authorizer.reload(read_settings({"WS_JWT_KEYS": str(path)}))
    assert authorizer.why_ended(grant) is CloseReason.TOKEN_REVOKED
    authorizer.reload(read_settings({}))
    assert authorizer.why_ended(grant) is None


# --- in a server


async def test_a_refusal_is_counted_with_its_reason(path: Path, nursery: trio.Nursery) -> None:
    rig = Rig(nursery, WS_JWT_KEYS=str(path), WS_ALLOWED_ORIGINS="http://a")
    answer = await answer_to(rig, request(OLD.token(), "http://b"))
    assert status_of(answer) == 403
    assert answer.endswith(b"\r\n\r\nOrigin not allowed\n")
    assert b"\r\nWWW-Authenticate: Bearer\r\n" in await answer_to(rig, request())
    answer = await answer_to(rig, request(OLD.token(expires_in=-100)))
    assert status_of(answer) == 401
    assert b'\r\nWWW-Authenticate: Bearer error="invalid_token"\r\n' in answer
    assert answer.endswith(b"\r\n\r\nThe token has expired\n")
    twice = request(OLD.token()).replace(b"GET /ws", b"GET /ws?access_token=x")
    assert status_of(await answer_to(rig, twice)) == 400
    assert rig.ledger.traffic.rejected == {"origin": 1, "unauthorized": 2, "bad_request": 1}
    assert status_of(await answer_to(rig, request(OLD.token(), "http://a"))) == 101


async def test_a_request_refused_anyway_costs_no_signature_check(
    path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(nursery, WS_JWT_KEYS=str(path), WS_ALLOWED_ORIGINS="http://a")
    monkeypatch.setattr("trio_odin.auth.tokens.Verifier.verify", lambda *_: pytest.fail("verified"))
    assert status_of(await answer_to(rig, request(OLD.token(), "http://b"))) == 403
    rig.admission.is_draining = True
    assert status_of(await answer_to(rig, request(OLD.token()))) == 503


async def test_pages_need_no_token(path: Path, nursery: trio.Nursery) -> None:
    rig = Rig(nursery, WS_JWT_KEYS=str(path), WS_ALLOWED_ORIGINS="http://a")
    for page in (b"/", b"/health", b"/ready", b"/metrics"):
        head = b"GET " + page + b" HTTP/1.1\r\nHost: a\r\nOrigin: null\r\n\r\n"
        assert status_of(await answer_to(rig, head)) == 200


async def connection_with(rig: Rig, grant: Grant | None) -> trio.abc.Stream:
    """The client's end of a connection whose token was already checked."""
    client, server = trio.testing.memory_stream_pair()
    rig._nursery.start_soon(rig.listener._connect, server, _Admitted(b"101", None, grant, UNKNOWN))
    assert await client.receive_some() == b"101"
    return client


async def test_a_connection_ends_with_its_token(
    path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """At most one turn of the wheel later; connections without an end or a token stay."""
    rig = Rig(nursery, WS_JWT_KEYS=str(path))
    good = authorize(rig.authorizer, OLD.token())
    assert isinstance(good, Grant)
    expired = await connection_with(rig, Grant(0.0, good.key))
    withdrawn = await connection_with(rig, Grant(good.expires_at, "of yesterday"))
    staying = [await connection_with(rig, grant) for grant in (good, None)]
    nursery.start_soon(rig.wheel.run)
    with trio.fail_after(rig.settings.ping_interval_seconds + 1):
        for client in (expired, withdrawn):
            assert (await receive_all(client)) == b""
    assert len(rig.hub.members) == len(staying)
    assert rig.ledger.traffic.closed == {"token_expired": 1, "token_revoked": 1}


# --- loading and logging


def run_python(program: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return ended.stdout


def test_without_keys_the_library_is_not_loaded() -> None:
    assert run_python(
        "import sys, trio_odin.auth.authorize as t;"
        "from trio_odin.settings.reading import read_settings;"
        "t.Authorizer(read_settings({}));"
        "print('jwt' in sys.modules, 'cryptography' in sys.modules)"
    ) == ("False False\n")


@pytest.mark.parametrize("missing", ["jwt", "cryptography"])
def test_without_the_extra_the_error_says_how_to_install_it(missing: str, path: Path) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None
from trio_odin.settings.setting_field import SettingError
from trio_odin.settings.reading import read_settings
from trio_odin.auth.authorize import Authorizer
try:
    Authorizer(read_settings({{"WS_JWT_KEYS": {str(path)!r}}}))
except SettingError as error:
    print(error)
"""
    assert run_python(program) == (
        f"WS_JWT_KEYS='{path}': tokens need PyJWT: pip install 'trio-odin[auth]'\n"
    )


@pytest.fixture
def log_of() -> Iterator[Callable[[str], io.StringIO]]:
    """Log everything in one style, into memory."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level

    def configure(style: str) -> io.StringIO:
        file = io.StringIO()
        configure_logs("debug", style, file=file)
        return file

    yield configure
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.parametrize("style", ["json", "text", "pretty"])
async def test_no_line_of_the_log_contains_a_token_or_a_key(
    style: str,
    tmp_path: Path,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    log_of: Callable[[str], io.StringIO],
) -> None:
    file = log_of(style)
    signer = secret_signer("secret")
    path = write_key_set(tmp_path / "keys", signer)
    rig = Rig(nursery, WS_JWT_KEYS=str(path), WS_JWT_ALGORITHMS="HS256")
    token = signer.token(expires_in=-100)
    in_query = (UPGRADE + b"\r\n").replace(b"GET /ws", b"GET /ws?access_token=" + token.encode())
    heads = [
        request(token),
        in_query,
        in_query.replace(b"Upgrade", b"X"),
        in_query.replace(b"Host: localhost", b"Host: a b"),
        in_query.replace(b"GET", b"G ET"),
    ]
    for head in heads:
        assert status_of(await answer_to(rig, head)) in {200, 400, 401}
    monkeypatch.setattr(Grant, "has_expired", lambda *_: 1 / 0)
    for head in heads[:2]:
        assert await answer_to(rig, head) == b""
    path.write_text(json.dumps({"keys": [signer.jwk(alg="HS512")]}))
    with pytest.raises(SettingError):
        rig.authorizer.reload(rig.settings)
    for handler in logging.getLogger().handlers:
        handler.flush()
    logged = file.getvalue()
    assert logged.count("ZeroDivisionError") >= 2
    secrets = [*token.split("."), signer.jwk()["k"], SECRET.decode(), "access_token"]
    assert [secret for secret in secrets if secret in logged] == []
