"""The certificate of the port, from the settings."""

from __future__ import annotations

from trio_odin.net.tls_files import TlsFileUnusable
from trio_odin.net.tls_stream import TlsIdentity
from trio_odin.settings.setting_field import SettingError, shown_path
from trio_odin.settings.settings import Settings


def tls_identity_of(settings: Settings) -> TlsIdentity | None:
    """Read the certificate and its key; None if the port does not speak TLS.

    Raises:
        SettingError: a file cannot be used, or there is a key without a certificate.
    """
    certificate, key = settings.tls_cert, settings.tls_key
    if certificate is None:
        if key is not None:
            raise SettingError("WS_TLS_KEY needs WS_TLS_CERT, the certificate that the key is for")
        return None
    try:
        return TlsIdentity.load(certificate, key)
    except TlsFileUnusable as error:
        name, path = ("KEY", key) if error.is_key and key is not None else ("CERT", certificate)
        raise SettingError(f"WS_TLS_{name}={shown_path(str(path))!r}: {error}") from None


def renewed_tls_identity(before: Settings, after: Settings) -> TlsIdentity | None:
    """The same, for a server that runs: it goes on to speak TLS, or not to.

    Raises:
        SettingError: as above, or TLS would have to be switched on or off.
    """
    if (before.tls_cert is None) != (after.tls_cert is None):
        raise SettingError(
            "WS_TLS_CERT cannot be set or removed while the server runs, only changed"
        )
    return tls_identity_of(after)
