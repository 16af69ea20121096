from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.lab.fleet.rig import (
    ACK,
    UPGRADED,
    Rig,
    envelope,
    figures,
    rig_of,
)
from tests.lab.fleet.test_compressed import ID, pages
from tests.lab.fleet.wire import DICTIONARY
from trio_odin.lab.fleet.dictionary import DictionaryUnavailable, fetch
from trio_odin.lab.fleet.plan import FleetPlan
from trio_odin.lab.fleet.workload import Workload


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the key and the certificate of odin.test and 127.0.0.1, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    names = "subjectAltName=DNS:odin.test,IP:127.0.0.1"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command = ["openssl", "req", "-x509", *options, "-subj", "/CN=odin.test", "-addext", names]
    files = [folder / "key.pem", folder / "certificate.pem"]
    try:
        subprocess.run(
            [*command, "-keyout", files[0], "-out", files[1]], check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    both = folder / "both.pem"
    both.write_bytes(b"".join(file.read_bytes() for file in files))
    return both


def serve_tls(
    rig: Rig, certificate: Path, behind: bytes, result: dict[str, Any]
) -> Callable[[], None]:
    """Serve a TLS connection in a thread: upgrade, then `behind` with the acknowledgement."""

    def serve() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        context.sni_callback = lambda _, name, __: result.update(name=name)
        rig.listener.settimeout(5)
        plain, _ = rig.listener.accept()
        plain.settimeout(5)
        try:
            with plain, context.wrap_socket(plain, server_side=True) as far:
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    request += far.recv(4096)
                result["request"] = request
                far.sendall(UPGRADED)
                result["greeting"] = far.recv(4096)
                far.sendall(ACK + behind)
                far.recv(1)
        except OSError as error:
            result["error"] = error

    return serve


def test_tls_makes_no_difference_to_the_figures(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    result: dict[str, Any] = {}
    # More than a record, and more than one read.
    frames = b"".join(envelope(number, number, size=3000) for number in range(1, 201))
    with rig_of(is_tls=True, name="odin.test") as rig:
        thread = Thread(target=serve_tls(rig, certificate, frames, result))
        thread.start()
        rig.fleet.obey("connect")
        rig.until(lambda: rig.progress.received == 200 or "error" in result)
        found = figures(rig)
        rig.fleet.obey("cut")
        thread.join()
        assert found["deliveries"] == dict.fromkeys(range(1, 201), 1)
        assert found["gaps"] == 0
    assert result["name"] == "odin.test"
    assert f"Host: odin.test:{rig.fleet._plan.port}\r\n".encode() in result["request"]


def test_an_untrusted_certificate_is_a_failure(certificate: Path) -> None:
    with rig_of(is_tls=True) as rig:
        thread = Thread(target=serve_tls(rig, certificate, b"", {}))
        thread.start()
        rig.fleet.obey("connect")
        rig.until(lambda: rig.summary().failures)
        thread.join()
        (failure,) = rig.summary().failures
        assert failure.startswith("TLS: ")
        assert "certificate verify failed" in failure.lower()
        assert len(failure) <= 80


def test_a_server_without_tls_is_a_failure() -> None:
    with rig_of(is_tls=True) as rig:
        client, far = rig.client(step="connect")
        rig.fleet.advance(client.socket.fileno())
        assert client.step == "tls"
        rig.read(client, far, b"HTTP/1.1 400 Bad Request\r\n\r\n")
        (failure,) = rig.summary().failures
        assert failure.startswith("TLS: ")
        assert rig.progress.pending == 0


def test_a_reset_when_tls_begins_is_a_failure() -> None:
    """In this case `wrap_socket` closes the socket."""

    class Tls:
        def wrap_socket(self, plain: socket.socket, **_: object) -> socket.socket:
            socket.close(plain.detach())
            raise ConnectionResetError(104, "Connection reset by peer")

    with rig_of(is_tls=True) as rig:
        client, _ = rig.client(step="connect")
        rig.fleet._tls = Tls()  # type: ignore[assignment]
        rig.fleet.advance(client.socket.fileno())
        assert rig.summary().failures == {"Connection reset by peer": 1}
        assert rig.fleet._clients == {}


def test_the_host_of_an_ipv6_address_is_in_brackets() -> None:
    with rig_of(host="::1", port=80) as rig:
        client, far = rig.client(step="connect")
        rig.fleet.advance(client.socket.fileno())
        assert b"\r\nHost: [::1]:80\r\n" in far.recv(4096)


def test_a_dictionary_comes_over_tls_from_the_address_of_the_connections(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is not one that could be resolved."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with pages({ID: DICTIONARY}, context) as port:
        plan = FleetPlan(
            host="127.0.0.1",
            port=port,
            name="odin.test",
            is_tls=True,
            workload=Workload(channels=[]),
            connections=1,
        )
        with pytest.raises(DictionaryUnavailable, match="certificate verify failed"):
            fetch(plan, f"/dictionary/{ID}", ID)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(plan, f"/dictionary/{ID}", ID) == DICTIONARY
