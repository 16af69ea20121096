from __future__ import annotations

import datetime as dt
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.certificates import Certificates, make_certificates
from trio_odin.net.tls_files import TlsFileUnusable, expires_at, load_authorities, load_identity


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "one", "localhost")


def context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def test_a_certificate_and_its_key_are_loaded(files: Certificates, tmp_path: Path) -> None:
    load_identity(context(), files.certificate, files.key)
    both = tmp_path / "both.pem"
    both.write_bytes(b"r\xc3\xa9f\n" + files.key.read_bytes() + files.certificate.read_bytes())
    load_identity(context(), both, None)


def test_authorities_are_loaded(files: Certificates) -> None:
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_authorities(trusting, files.authority)
    assert len(trusting.get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "it has no certificate in PEM"),
        (b"\x00\xff" * 99, "it has no certificate in PEM"),
        (b"x" * 1_048_577, "it has more than 1,048,576 bytes"),
    ],
)
def test_a_file_without_a_certificate_is_reported(
    files: Certificates, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    uses: list[Callable[[], object]] = [
        lambda: load_identity(context(), path, files.key),
        lambda: load_authorities(context(), path),
        lambda: expires_at(path),
    ]
    for use in uses:
        with pytest.raises(TlsFileUnusable, match=reason) as caught:
            use()
        assert not caught.value.is_key


def test_a_damaged_certificate_is_reported(files: Certificates, tmp_path: Path) -> None:
    lines = files.certificate.read_text().splitlines()
    short = tmp_path / "short.pem"
    short.write_text("\n".join([*lines[:3], lines[-1]]))
    with pytest.raises(TlsFileUnusable, match="it cannot be used with its key"):
        load_identity(context(), short, files.key)
    with pytest.raises(TlsFileUnusable, match="a certificate in it cannot be used"):
        load_authorities(context(), short)
    with pytest.raises(TlsFileUnusable, match="its certificate is damaged"):
        expires_at(short)


def test_what_is_wrong_with_the_key_is_reported(files: Certificates, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    with pytest.raises(TlsFileUnusable, match="No such file") as caught:
        load_identity(context(), files.certificate, key)
    assert caught.value.is_key
    key.write_bytes(make_certificates(tmp_path / "other", "x").key.read_bytes())
    with pytest.raises(TlsFileUnusable, match="its key is that of another certificate"):
        load_identity(context(), files.certificate, key)
    key.write_bytes(files.certificate.read_bytes())
    with pytest.raises(TlsFileUnusable, match="it has no private key in PEM"):
        load_identity(context(), files.certificate, key)
    with pytest.raises(TlsFileUnusable, match="it has no private key in PEM") as caught:
        load_identity(context(), files.certificate, None)
    assert not caught.value.is_key
    private = load_pem_private_key(files.key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(TlsFileUnusable, match="its key is encrypted"):
        load_identity(context(), files.certificate, key)


@pytest.mark.parametrize("days", [-1, 1, 90, 365 * 40])
def test_the_time_at_which_a_certificate_expires_is_read(tmp_path: Path, days: int) -> None:
    """From 2050 on it is written in another way (RFC 5280, 4.1.2.5)."""
    valid_for = dt.timedelta(days=days)
    files = make_certificates(tmp_path, "localhost", valid_for=valid_for)
    expected = time.time() + valid_for.total_seconds()
    assert abs(expires_at(files.certificate) - expected) < 60
