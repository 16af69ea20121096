"""`trio-odin serve --check`: what a server would need is there, or a line says what is not."""

from __future__ import annotations

import datetime as dt
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import make_certificates
from tests.e2e.nats import NatsServer, free_port, running_nats
from tests.e2e.test_cli import run
from tests.e2e.test_nats_access import configured_nats, users
from tests.waiting import until
from trio_odin.wire.dictionary import built_in

pytestmark = pytest.mark.e2e


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    with running_nats(tmp_path / "nats") as nats:
        wait_for(nats)
        yield nats


def wait_for(nats: NatsServer) -> None:
    """Wait until the port answers: the check itself does not wait for NATS."""
    until(lambda: is_open(nats.port), what="nats-server")


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def check(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    defaults = {"WS_ADDR": f"127.0.0.1:{free_port()}", "WS_MAX_CONNECTIONS": "100"}
    return run("serve", "--check", *arguments, **{**defaults, **variables})


def lines(found: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """Result and text of each check; of several with one name the last."""
    assert "Traceback" not in found.stdout + found.stderr
    return {line[9:26].strip(): (line[:8].strip(), line[27:]) for line in found.stdout.splitlines()}


def test_all_is_well_where_everything_is_there(nats: NatsServer) -> None:
    address = f"127.0.0.1:{free_port()}"
    found = check(NATS_URL=nats.url, WS_ADDR=address)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stderr == ""
    by_name = lines(found)
    assert by_name["settings"] == ("ok", "3 differ from the defaults")
    assert by_name["port"] == ("ok", f"{address} is free")
    assert by_name["tokens"] == ("ok", "not needed: WS_JWT_KEYS is not set")
    assert by_name["certificate"] == ("ok", "not needed: WS_TLS_CERT is not set")
    assert by_name["dictionary"] == ("ok", built_in().id)
    assert by_name["NATS"][0] == "ok"
    assert by_name["NATS"][1].startswith(f"127.0.0.1:{nats.port}: logged in to nats-server 2.")
    assert by_name["stream"] == ("ok", "ODIN_TOKENS is not there yet: the server will make it")
    again = lines(check(NATS_URL=nats.url))
    assert again["stream"] == by_name["stream"], "the check has made nothing"


def test_as_json_each_check_is_an_object(nats: NatsServer) -> None:
    found = check("--json", NATS_URL=nats.url, NATS_MODE="core")
    assert found.returncode == 0
    answer = json.loads(found.stdout)
    assert answer["ok"] is True
    results = {one["check"]: one["result"] for one in answer["checks"]}
    assert results == dict.fromkeys(
        ["settings", "open files", "tokens", "dictionary", "admin token", "certificate", "traces",
         "port", "NATS", "stream"],
        "ok",
    )  # fmt: skip
    failed = check("--json", NATS_URL=f"nats://127.0.0.1:{free_port()}")
    assert failed.returncode == 1
    answer = json.loads(failed.stdout)
    assert answer["ok"] is False
    assert answer["checks"][-1]["check"] == "NATS"
    assert answer["checks"][-1]["text"].endswith("connection refused")


def test_a_wrong_setting_ends_with_2() -> None:
    found = check(WS_MAX_CHANNELS="many")
    assert (found.returncode, found.stdout) == (2, "")
    assert "WS_MAX_CHANNELS='many': allowed is a whole number" in found.stderr
    found = run("serve", "--json")
    assert found.returncode == 2
    assert "--json needs --check" in found.stderr


def test_ports_in_use_are_reported(nats: NatsServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found = check(NATS_URL=nats.url, WS_ADDR=address, WS_ADMIN_ADDR=address)
    assert found.returncode == 1
    for name in ("port", "admin port"):
        result, text = lines(found)[name]
        assert result == "failed"
        assert address in text
        assert "another program is listening there" in text


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_one_port_cannot_be_both(nats: NatsServer, host: str) -> None:
    port = free_port()
    found = check(NATS_URL=nats.url, WS_ADDR=f"127.0.0.1:{port}", WS_ADMIN_ADDR=f"{host}:{port}")
    assert found.returncode == 1
    by_name = lines(found)
    assert by_name["port"][0] == "ok"
    assert by_name["admin port"] == (
        "failed",
        f"cannot listen on {host}:{port}: WS_ADDR has this port",
    )


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"WS_ADMIN_ADDR": "localhost:0"}, "not needed on loopback"),
        ({"WS_ADMIN_ADDR": "off"}, "not needed: WS_ADMIN_ADDR is off"),
        (
            {"WS_ADMIN_ADDR": ":0"},
            (
                "none: WS_ADMIN_ADDR is not loopback, so the admin API refuses all requests until "
                "WS_ADMIN_TOKEN_FILE is set; /metrics, /health and /ready need none"
            ),
        ),
    ],
)
def test_an_admin_api_that_refuses_everything_is_reported(
    nats: NatsServer, variables: dict[str, str], text: str
) -> None:
    assert lines(check(NATS_URL=nats.url, **variables))["admin token"] == ("ok", text)


def test_the_settings_of_traces_are_looked_at(nats: NatsServer) -> None:
    collector = "http://127.0.0.1:1"

    def result(**variables: str) -> tuple[str, str]:
        found = check(NATS_URL=nats.url, **variables)
        assert found.returncode == (1 if lines(found)["traces"][0] == "failed" else 0)
        assert found.stderr == ""
        return lines(found)["traces"]

    assert result() == ("ok", "none: no collector is set")
    sent = f"sent to {collector}/v1/traces"
    assert result(OTEL_EXPORTER_OTLP_ENDPOINT=collector) == ("ok", sent)
    off = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    of_protocol = "OTEL_EXPORTER_OTLP_PROTOCOL='grpc': traces are sent by http/protobuf only"
    assert result(**off) == ("warning", of_protocol)
    name, text = result(OTEL_EXPORTER_OTLP_ENDPOINT=collector, OTEL_BSP_SCHEDULE_DELAY="-1")
    assert (name, "a variable OTEL_… is wrong" in text) == ("failed", True)
    assert result(OTEL_EXPORTER_OTLP_ENDPOINT="collector:4318")[0] == "failed"


def test_files_that_cannot_be_used_are_reported(nats: NatsServer) -> None:
    found = check(
        NATS_URL=nats.url,
        WS_JWT_KEYS="/nowhere/keys.json",
        WS_DICTIONARY="/nowhere/dictionary",
        WS_TLS_CERT="/nowhere/cert.pem",
        NATS_TOKEN_FILE="/nowhere/token",
    )
    assert found.returncode == 1
    by_name = lines(found)
    for name, variable in {
        "tokens": "WS_JWT_KEYS",
        "dictionary": "WS_DICTIONARY",
        "certificate": "WS_TLS_CERT",
        "NATS": "NATS_TOKEN_FILE",
    }.items():
        assert by_name[name][0] == "failed"
        assert by_name[name][1].startswith(f"{variable}='/nowhere/")
        assert "No such file or directory" in by_name[name][1]


@pytest.mark.parametrize(
    ("days", "result", "text"),
    [
        (100, "ok", "valid for 99 days"),
        (10, "warning", "valid for 9 days"),
        (-1, "failed", "has expired at 20"),
    ],
)
def test_the_end_of_certificates_is_looked_at(
    nats: NatsServer, tmp_path: Path, days: int, result: str, text: str
) -> None:
    files = make_certificates(tmp_path / "tls", "localhost", valid_for=dt.timedelta(days=days))
    found = check(NATS_URL=nats.url, WS_TLS_CERT=str(files.certificate), WS_TLS_KEY=str(files.key))
    assert lines(found)["certificate"][0] == result
    assert text in lines(found)["certificate"][1]
    assert found.returncode == (1 if result == "failed" else 0)


def test_each_server_is_logged_in_to_and_refusals_are_reported(tmp_path: Path) -> None:
    with (
        configured_nats(tmp_path / "one", "authorization { token: t }") as one,
        configured_nats(tmp_path / "two", "authorization { token: other }") as two,
    ):
        wait_for(one)
        wait_for(two)
        (tmp_path / "token").write_text("t")
        found = check(NATS_URL=f"{two.url},{one.url}", NATS_TOKEN_FILE=str(tmp_path / "token"))
        assert found.returncode == 1
        said = [line for line in found.stdout.splitlines() if " NATS " in line]
        assert [line.split()[0] for line in said] == ["failed", "ok"]
        assert "it does not accept the token in NATS_TOKEN_FILE" in said[0]
        assert lines(found)["stream"][0] == "ok"


def test_missing_rights_and_modes_are_reported(tmp_path: Path) -> None:
    rights = users(publish={"deny": "$JS.API.>"}, subscribe=">")
    with configured_nats(tmp_path / "nats", rights) as nats:
        wait_for(nats)
        url = f"nats://odin:secret@127.0.0.1:{nats.port}"
        result, text = lines(check(NATS_URL=url))["stream"]
        assert result == "failed"
        assert 'Permissions Violation for Publish to "$JS.API.INFO"' in text
    nothing = users(publish=">", subscribe="_INBOX.>")
    with configured_nats(tmp_path / "core", nothing, jetstream=False) as nats:
        wait_for(nats)
        url = f"nats://odin:secret@127.0.0.1:{nats.port}"
        assert lines(check(NATS_URL=url, NATS_MODE="jetstream"))["stream"] == (
            "failed",
            "NATS has no JetStream, and NATS_MODE is jetstream",
        )
        assert lines(check(NATS_URL=url))["stream"][0] == "ok"
        result, text = lines(check(NATS_URL=url, NATS_MODE="core"))["stream"]
        assert result == "failed"
        assert 'Subscription to "odin.token.>"' in text


def test_a_limit_of_files_that_is_too_low_is_reported(nats: NatsServer) -> None:
    found = check(NATS_URL=nats.url, WS_MAX_CONNECTIONS="9000000")
    assert found.returncode == 1
    assert lines(found)["open files"][0] == "failed"
    assert "raise nofile" in lines(found)["open files"][1]
