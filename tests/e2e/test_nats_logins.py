"""Each way to log in to NATS, against a real nats-server, and what is reported where it fails."""

from __future__ import annotations

import datetime as dt
import json
import time
from pathlib import Path

import attrs
import pytest

from tests.certificates import Certificates, make_certificates
from tests.e2e.conftest import StartServer, client_of, receive, wait_for_nats
from tests.e2e.nats import free_port, nats_client
from tests.e2e.test_nats_access import CANARY, configured_nats, connections_of, trouble_of
from tests.nats_identities import Identity, Operator
from tests.waiting import wait_until
from trio_odin.settings.setting_field import SettingError

pytestmark = pytest.mark.e2e

USER = 'authorization { users: [{ user: odin, password: "s3 cret" }] }'
TOKEN = 'authorization { token: "t@ken" }'


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# --- user and password, token, nkey, credentials


async def test_a_user_with_a_password_in_a_file_logs_in(
    start_server: StartServer, tmp_path: Path
) -> None:
    with configured_nats(tmp_path / "nats", USER) as nats:
        server = await start_server(
            NATS_URL=nats.url,
            NATS_USER="odin",
            NATS_PASSWORD_FILE=written(tmp_path / "password", "s3 cret\n"),
        )
        await wait_for_nats(server)


async def test_a_wrong_password_is_reported_with_its_user_and_not_shown(
    start_server: StartServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with configured_nats(tmp_path / "nats", USER) as nats:
        server = await start_server(
            NATS_URL=nats.url,
            NATS_USER="odin",
            NATS_PASSWORD_FILE=written(tmp_path / "password", CANARY),
            LOG_LEVEL="debug",
        )
        expected = (
            "Authorization Violation: it does not accept user 'odin' with the password in "
            "NATS_PASSWORD_FILE"
        )
        await wait_until(lambda: expected in trouble_of(server))
        assert CANARY not in repr(server.snapshot())
    output = capsys.readouterr().out
    assert CANARY not in output
    assert expected in output, "the log has it too"


async def test_a_password_that_was_corrected_is_used_without_a_restart(
    start_server: StartServer, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    with configured_nats(tmp_path / "nats", USER) as nats:
        server = await start_server(
            NATS_URL=nats.url, NATS_USER="odin", NATS_PASSWORD_FILE=written(password, "old")
        )
        await wait_until(lambda: "does not accept user" in trouble_of(server))
        password.write_text("s3 cret")
        await wait_for_nats(server)


async def test_a_file_that_is_gone_later_is_reported(
    start_server: StartServer, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    with configured_nats(tmp_path / "nats", USER) as nats:
        server = await start_server(
            NATS_URL=nats.url, NATS_USER="odin", NATS_PASSWORD_FILE=written(password, "old")
        )
        password.unlink()
        await wait_until(lambda: "NATS_PASSWORD_FILE=" in trouble_of(server), seconds=10)
        assert "No such file or directory" in trouble_of(server)


async def test_a_token_in_a_file_logs_in(start_server: StartServer, tmp_path: Path) -> None:
    with configured_nats(tmp_path / "nats", TOKEN) as nats:
        server = await start_server(
            NATS_URL=nats.url, NATS_TOKEN_FILE=written(tmp_path / "token", "t@ken")
        )
        await wait_for_nats(server)


async def test_a_wrong_token_is_reported(start_server: StartServer, tmp_path: Path) -> None:
    with configured_nats(tmp_path / "nats", TOKEN) as nats:
        server = await start_server(
            NATS_URL=nats.url, NATS_TOKEN_FILE=written(tmp_path / "token", CANARY)
        )
        expected = "Authorization Violation: it does not accept the token in NATS_TOKEN_FILE"
        await wait_until(lambda: expected in trouble_of(server))
        assert CANARY not in trouble_of(server)


async def test_an_nkey_logs_in_and_another_is_reported(
    start_server: StartServer, tmp_path: Path
) -> None:
    known, other = Identity.of_user(), Identity.of_user()
    config = f"authorization {{ users: [{{ nkey: {known.public} }}] }}"
    with configured_nats(tmp_path / "nats", config) as nats:
        server = await start_server(
            NATS_URL=nats.url,
            NATS_NKEY_FILE=written(tmp_path / "seed", f"# our key\n{known.seed}\n"),
        )
        await wait_for_nats(server)
        refused = await start_server(
            NATS_URL=nats.url, NATS_NKEY_FILE=written(tmp_path / "other", other.seed)
        )
        expected = "it does not accept the nkey in NATS_NKEY_FILE"
        await wait_until(lambda: expected in trouble_of(refused))
        assert other.seed not in trouble_of(refused)


async def test_credentials_log_in(start_server: StartServer, tmp_path: Path) -> None:
    operator = Operator()
    with configured_nats(tmp_path / "nats", operator.config()) as nats:
        server = await start_server(
            NATS_URL=nats.url,
            NATS_CREDS_FILE=written(tmp_path / "creds", operator.credentials(time.time() + 3600)),
        )
        await wait_for_nats(server)
        assert server.snapshot().nats.mode == "jetstream"


async def test_credentials_that_expired_are_reported_with_the_time(
    start_server: StartServer, tmp_path: Path
) -> None:
    operator = Operator()
    with configured_nats(tmp_path / "nats", operator.config()) as nats:
        ended = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
        server = await start_server(
            NATS_URL=nats.url,
            NATS_CREDS_FILE=written(tmp_path / "creds", operator.credentials(ended.timestamp())),
        )
        expected = "NATS_CREDS_FILE, whose JWT expired at 2026-01-02T03:04:05Z"
        await wait_until(lambda: expected in trouble_of(server))


async def test_credentials_of_another_operator_are_reported(
    start_server: StartServer, tmp_path: Path
) -> None:
    with configured_nats(tmp_path / "nats", Operator().config()) as nats:
        server = await start_server(
            NATS_URL=nats.url,
            NATS_CREDS_FILE=written(tmp_path / "creds", Operator().credentials()),
        )
        expected = "it does not accept the credentials in NATS_CREDS_FILE"
        await wait_until(lambda: trouble_of(server).endswith(expected))


async def test_credentials_that_expire_meanwhile_are_replaced_by_renewed_ones(
    start_server: StartServer, tmp_path: Path
) -> None:
    """NATS cuts the connection when the JWT expires; what renews the file comes a little later."""
    operator = Operator()
    creds = tmp_path / "creds"
    with configured_nats(tmp_path / "nats", operator.config()) as nats:
        server = await start_server(
            NATS_URL=nats.url,
            NATS_CREDS_FILE=written(creds, operator.credentials(time.time() + 4)),
        )
        await wait_for_nats(server)
        await wait_until(lambda: "whose JWT expired" in trouble_of(server), seconds=15)
        creds.write_text(operator.credentials())
        await wait_for_nats(server)


# --- rights, several servers


async def test_a_user_that_may_only_subscribe_suffices_in_core_mode(
    start_server: StartServer, tmp_path: Path
) -> None:
    rights = {"publish": {"deny": ">"}, "subscribe": "odin.token.>"}
    names = [
        {"user": "odin", "password": "secret", "permissions": rights},
        {"user": "other", "password": "other"},
    ]
    config = f"authorization {{ users: {json.dumps(names)} }}"
    with configured_nats(tmp_path / "nats", config) as nats:
        login = {
            "NATS_URL": nats.url,
            "NATS_USER": "odin",
            "NATS_PASSWORD_FILE": written(tmp_path / "password", "secret"),
        }
        server = await start_server(NATS_MODE="core", **login)
        await wait_for_nats(server)
        async with (
            client_of(server, "BTC.trade") as client,
            nats_client(nats.url, user="other", **{"pass": "other"}) as publisher,
        ):
            await publisher.publish("odin.token.BTC.trade", b"1")
            assert (await receive(client))["data"] == 1
        refused = await start_server(**login)
        expected = "a user that may only subscribe needs NATS_MODE=core"
        await wait_until(lambda: expected in trouble_of(refused))


async def test_of_several_servers_the_one_that_accepts_the_login_is_used(
    start_server: StartServer, tmp_path: Path
) -> None:
    with (
        configured_nats(tmp_path / "one", TOKEN) as one,
        configured_nats(tmp_path / "two", USER) as two,
    ):
        server = await start_server(
            NATS_URL=f"{one.url},nats://127.0.0.1:{free_port()},{two.url}",
            NATS_USER="odin",
            NATS_PASSWORD_FILE=written(tmp_path / "password", "s3 cret"),
        )
        await wait_for_nats(server)


# --- TLS


@attrs.frozen
class Tls:
    """The certificates of a NATS server and of its clients, each with its authority."""

    server: Certificates
    client: Certificates

    def config(self, *, verify: bool = False, more: str = "") -> str:
        wanted = f'ca_file: "{self.client.authority}", verify: true' if verify else ""
        return (
            f'tls {{ cert_file: "{self.server.certificate}", key_file: "{self.server.key}"\n'
            f"{wanted} {more} }}"
        )


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(
        make_certificates(tmp_path / "server", "localhost"),
        make_certificates(tmp_path / "client", "odin.example"),
    )


async def test_an_authority_in_a_file_is_trusted_and_makes_tls_a_must(
    start_server: StartServer, tmp_path: Path, tls: Tls
) -> None:
    with configured_nats(
        tmp_path / "nats", f"{tls.config()}\nallow_non_tls: true", monitoring=free_port()
    ) as nats:
        server = await start_server(
            NATS_URL=f"nats://localhost:{nats.port}", NATS_TLS_CA=str(tls.server.authority)
        )
        await wait_for_nats(server)
        (connection,) = await connections_of(nats)
        assert connection["tls_version"]


async def test_a_server_without_tls_is_sent_nothing(
    start_server: StartServer, tmp_path: Path, tls: Tls
) -> None:
    with configured_nats(tmp_path / "nats", "") as nats:
        server = await start_server(NATS_URL=nats.url, NATS_TLS_CA=str(tls.server.authority))
        await wait_until(lambda: "requires TLS, which it does not offer" in trouble_of(server))


async def test_a_client_certificate_is_shown(
    start_server: StartServer, tmp_path: Path, tls: Tls
) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(tls.client.certificate.read_bytes() + tls.client.key.read_bytes())
    with configured_nats(tmp_path / "nats", tls.config(verify=True)) as nats:
        common = {
            "NATS_URL": f"nats://localhost:{nats.port}",
            "NATS_TLS_CA": str(tls.server.authority),
        }
        server = await start_server(
            NATS_TLS_CERT=str(tls.client.certificate), NATS_TLS_KEY=str(tls.client.key), **common
        )
        await wait_for_nats(server)
        together = await start_server(NATS_TLS_CERT=str(both), **common)
        await wait_for_nats(together)


async def test_a_missing_client_certificate_is_reported(
    start_server: StartServer, tmp_path: Path, tls: Tls
) -> None:
    with configured_nats(tmp_path / "nats", tls.config(verify=True)) as nats:
        server = await start_server(
            NATS_URL=f"tls://localhost:{nats.port}", NATS_TLS_CA=str(tls.server.authority)
        )
        expected = "it requires a certificate from its clients: set NATS_TLS_CERT"
        await wait_until(lambda: expected in trouble_of(server))


@pytest.mark.parametrize("fault", ["expired", "foreign"])
async def test_a_client_certificate_that_is_not_accepted_is_reported(
    start_server: StartServer, tmp_path: Path, tls: Tls, fault: str
) -> None:
    if fault == "expired":
        shown = make_certificates(tmp_path / "client", "odin", valid_for=dt.timedelta(days=-1))
    else:
        shown = make_certificates(tmp_path / "foreign", "odin")
    with configured_nats(tmp_path / "nats", tls.config(verify=True)) as nats:
        server = await start_server(
            NATS_URL=f"tls://localhost:{nats.port}",
            NATS_TLS_CA=str(tls.server.authority),
            NATS_TLS_CERT=str(shown.certificate),
            NATS_TLS_KEY=str(shown.key),
        )
        expected = "it does not accept the certificate in NATS_TLS_CERT: "
        await wait_until(lambda: expected in trouble_of(server))


async def test_a_wrong_authority_name_or_date_of_the_server_is_reported(
    start_server: StartServer, tmp_path: Path, tls: Tls
) -> None:
    old = make_certificates(tmp_path / "old", "localhost", valid_for=dt.timedelta(days=-1))
    with (
        configured_nats(tmp_path / "nats", tls.config()) as nats,
        configured_nats(tmp_path / "old-nats", Tls(old, old).config()) as old_nats,
    ):
        foreign = await start_server(
            NATS_URL=f"tls://localhost:{nats.port}", NATS_TLS_CA=str(tls.client.authority)
        )
        misnamed = await start_server(
            NATS_URL=f"tls://127.0.0.1:{nats.port}", NATS_TLS_CA=str(tls.server.authority)
        )
        expired = await start_server(
            NATS_URL=f"tls://localhost:{old_nats.port}", NATS_TLS_CA=str(old.authority)
        )
        refusal = "its certificate is not accepted: "
        await wait_until(lambda: refusal in trouble_of(foreign))
        await wait_until(lambda: "certificate has expired" in trouble_of(expired))
        await wait_until(lambda: "is not valid for '127.0.0.1'" in trouble_of(misnamed))


async def test_tls_may_come_before_everything_else(
    start_server: StartServer, tmp_path: Path, tls: Tls
) -> None:
    with configured_nats(tmp_path / "nats", tls.config(more="handshake_first: true")) as nats:
        common = {
            "NATS_URL": f"nats://localhost:{nats.port}",
            "NATS_TLS_CA": str(tls.server.authority),
        }
        server = await start_server(NATS_TLS_FIRST="true", **common)
        await wait_for_nats(server)
        late = await start_server(**common)
        await wait_until(lambda: "set NATS_TLS_FIRST to true" in trouble_of(late), seconds=10)


async def test_a_login_that_cannot_be_used_ends_the_start(start_server: StartServer) -> None:
    with pytest.raises(SettingError, match="NATS_TOKEN_FILE='/nowhere/token': No such file"):
        await start_server(NATS_TOKEN_FILE="/nowhere/token")
