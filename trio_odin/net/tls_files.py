"""Files of TLS in PEM: certificates, their keys, authorities. What is wrong with one is a sentence.

`ssl` alone reports `[SSL] PEM lib (_ssl.c:3900)` for most of it, without the name of a file.
"""

from __future__ import annotations

import re
import ssl
from binascii import Error as NotBase64
from datetime import UTC, datetime
from pathlib import Path

_FILE_MAX_BYTES = 1024 * 1024
_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.ASCII | re.DOTALL
)
_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")
_ENCRYPTED = re.compile(r"-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: 4,ENCRYPTED")


class TlsFileUnusable(Exception):
    """A file cannot be used. The message is the reason; nothing of a key is in it.

    Attributes:
        is_key: whether it is the file of the key that is wrong.
    """

    def __init__(self, reason: str, *, is_key: bool = False) -> None:
        super().__init__(reason)
        self.is_key = is_key


def load_identity(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Have `context` show the certificate, with the chain after it, and prove it with the key.

    Args:
        context: the context, which is not changed if a file is wrong.
        certificate: the file of the certificate.
        key: the file of its private key; None: it is in the file of the certificate.

    Raises:
        TlsFileUnusable: a file cannot be read or used, or the key is that of another certificate.
    """
    _certificate_in(content_of(certificate))
    is_apart = key is not None
    try:
        private = content_of(key or certificate)
    except TlsFileUnusable as error:
        raise TlsFileUnusable(str(error), is_key=is_apart) from None
    if _ENCRYPTED.search(private):
        raise TlsFileUnusable(
            "its key is encrypted: only one without a password works", is_key=is_apart
        )
    if not _KEY.search(private):
        raise TlsFileUnusable(
            "it has no private key in PEM (-----BEGIN PRIVATE KEY-----)", is_key=is_apart
        )
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsFileUnusable(
                "its key is that of another certificate", is_key=is_apart
            ) from None
        reason = (error.reason or "unknown").lower().replace("_", " ")
        raise TlsFileUnusable(f"it cannot be used with its key ({reason})") from None
    except OSError as error:  # it has changed since
        raise TlsFileUnusable(str(error.strerror)) from None


def load_authorities(context: ssl.SSLContext, path: Path) -> None:
    """Have `context` trust the authorities in the file, and no others if it trusts none yet.

    Raises:
        TlsFileUnusable: the file cannot be read, or a certificate in it cannot be used.
    """
    text = content_of(path)
    _certificate_in(text)
    try:
        context.load_verify_locations(cadata="\n".join(_CERTIFICATE.findall(text)))
    except ssl.SSLError as error:
        reason = (error.reason or "unknown").lower().replace("_", " ")
        raise TlsFileUnusable(f"a certificate in it cannot be used ({reason})") from None


def content_of(path: Path) -> str:
    """The text in a file; bytes that are not ASCII, in comments, are replaced.

    Raises:
        TlsFileUnusable: it cannot be read or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise TlsFileUnusable(str(error.strerror)) from None
    except ValueError:  # a null byte in the path
        raise TlsFileUnusable("it is not the name of a file") from None
    if len(content) > _FILE_MAX_BYTES:
        raise TlsFileUnusable(f"it has more than {_FILE_MAX_BYTES:,} bytes")
    return content.decode("ascii", errors="replace")


def expires_at(certificate: Path) -> float:
    """When the first certificate in the file expires, in seconds of Unix time.

    Raises:
        TlsFileUnusable: it cannot be read, or is not a certificate.
    """
    return _not_after(_certificate_in(content_of(certificate)))


def _certificate_in(text: str) -> bytes:
    """The first certificate in PEM, in DER."""
    found = _CERTIFICATE.search(text)
    if found is None:
        raise TlsFileUnusable("it has no certificate in PEM (-----BEGIN CERTIFICATE-----)")
    try:
        return ssl.PEM_cert_to_DER_cert(found[0])
    except (ValueError, NotBase64):
        raise TlsFileUnusable("its certificate is damaged") from None


def _not_after(der: bytes) -> float:
    """Read `notAfter` of a certificate (RFC 5280, 4.1).

    Its validity is the fifth field, or the fourth of version 1.

    The standard library reads only certificates of a peer, and the extra with an X.509 library is
    not always there.
    """
    try:
        fields, _ = _value_of(_value_of(der)[0])
        if fields[0] == _VERSION:
            _, fields = _value_of(fields)
        for _ in range(3):  # serial number, signature, issuer
            _, fields = _value_of(fields)
        validity, _ = _value_of(fields)
        _, not_after = _value_of(validity)
        text = _value_of(not_after)[0].decode("ascii")
        # 4.1.2.5: UTCTime with two digits of the year until 2049, then GeneralizedTime.
        if not_after[0] == _UTC_TIME:
            text = ("20" if int(text[:2]) < 50 else "19") + text
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except (IndexError, ValueError):
        raise TlsFileUnusable("its certificate is damaged") from None


_VERSION, _UTC_TIME = 0xA0, 0x17


def _value_of(der: bytes) -> tuple[bytes, bytes]:
    """The content of the first element in DER (X.690, 8.1), and what follows that element."""
    size, begin = der[1], 2
    if size & 0x80:  # the long form: the number of bytes that hold the size
        begin += size & 0x7F
        size = int.from_bytes(der[2:begin], "big")
    if begin + size > len(der):
        raise ValueError("truncated")
    return der[begin : begin + size], der[begin + size :]
