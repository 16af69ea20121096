"""A certificate for the stage of TLS, signed by itself, made by the program `openssl`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

_SECONDS = 20
_OPTIONS = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class NoCertificate(Exception):
    """It cannot be made; the message is one sentence."""


@attrs.frozen
class Certificate:
    """Files in PEM. Whoever trusts the certificate trusts the server: it has signed itself."""

    certificate: Path
    key: Path


@contextmanager
def certificate_for(address: str) -> Iterator[Certificate]:
    """Make a certificate for an IPv4 address; its files are gone after the block. Waits.

    Its key is on the curve P-256, as that of most sites. One of RSA makes a handshake dearer.

    Raises:
        NoCertificate: there is no `openssl`, or it fails.
    """
    with TemporaryDirectory(prefix="odin-tls-") as folder:
        made = Certificate(Path(folder, "certificate.pem"), Path(folder, "key.pem"))
        names = ("-days", "2", "-subj", "/CN=odin", "-addext", f"subjectAltName=IP:{address}")
        files = ("-keyout", str(made.key), "-out", str(made.certificate))
        try:
            subprocess.run(  # noqa: S603 - of the bench's own making
                ["openssl", "req", *_OPTIONS, *names, *files],  # noqa: S607 - of the system
                check=True,
                capture_output=True,
                timeout=_SECONDS,
            )
        except FileNotFoundError:
            raise NoCertificate("TLS cannot be measured: openssl is not installed") from None
        except subprocess.SubprocessError as error:
            raise NoCertificate(f"TLS cannot be measured: openssl fails: {error}") from None
        yield made
