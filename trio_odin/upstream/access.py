"""How to log in to NATS, and whom to trust there: the files that the settings name.

The files are looked at for each connection, so what was renewed is used without a restart. At the
start they are read once before: a server that cannot log in should not begin.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs

from trio_odin.net.nats_url import NatsUrl
from trio_odin.net.tls_files import TlsFileUnusable, load_authorities, load_identity
from trio_odin.settings.extras import install_hint
from trio_odin.settings.setting_field import SettingError, shown_path
from trio_odin.settings.settings import Settings

_FILE_MAX_BYTES = 64 * 1024
# What nsc writes: a block for the JWT, and one for the seed.
_BLOCK = "-{3,} *BEGIN %s *-{3,}\\s+(\\S+)\\s+-{3,} *END %s *-{3,}"
_JWT = re.compile(_BLOCK % (("NATS USER JWT",) * 2))
_CREDS_SEED = re.compile(_BLOCK % (("USER NKEY SEED",) * 2))
# A seed in base32 begins with S and with what it is the seed of (NATS ADR-14).
_SEED = re.compile(r"S([A-Z])[A-Z2-7]{56}")
_SEED_OF = {
    "A": "an account",
    "O": "an operator",
    "C": "a cluster",
    "N": "a server",
    "X": "a curve",
}


class AccessUnusable(Exception):
    """A file cannot be used to log in. The message names the variable and the file, not content."""


@attrs.define
class _Kept:
    """The last TLS context, and what its files were like before they were read."""

    context: ssl.SSLContext | None = None
    files: list[tuple[int, ...]] = attrs.field(factory=list)


@attrs.frozen
class NatsAccess:
    """The files to log in with, and those of TLS. With none of them, the URL alone counts.

    Attributes:
        user: the user that the password in `password_file` is for.
        tls_first: whether to start TLS before NATS sends anything, as its `handshake_first` wants.

    The other attributes are the files, each under the name of its setting.
    """

    user: str = ""
    password_file: Path | None = None
    token_file: Path | None = None
    nkey_file: Path | None = None
    creds_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_first: bool = False
    _kept: _Kept = attrs.field(factory=_Kept, init=False, eq=False, repr=False)

    @property
    def is_tls(self) -> bool:
        """Whether nothing may be sent unencrypted: whoever names an authority wants TLS."""
        return self.tls_first or self.tls_ca is not None or self.tls_cert is not None

    @property
    def login(self) -> str:
        """What is logged in with, for an error message; empty if it is in the URL."""
        if self.password_file is not None:
            return f"user {self.user!r} with the password in NATS_PASSWORD_FILE"
        for name, path in (
            ("the token in NATS_TOKEN_FILE", self.token_file),
            ("the nkey in NATS_NKEY_FILE", self.nkey_file),
            ("the credentials in NATS_CREDS_FILE", self.creds_file),
        ):
            if path is not None:
                return name
        return ""

    def options(self) -> dict[str, Any]:
        """Read the files; returns what nats-py's `connect` needs of them.

        Those of TLS are read again only if they have changed: the system's authorities take tens of
        milliseconds, which the loop would stand still for at each attempt to connect.

        Raises:
            AccessUnusable: a file cannot be used.
        """
        options: dict[str, Any] = {}
        if self.password_file is not None:
            options["user"] = self.user
            options["password"] = _line_in("NATS_PASSWORD_FILE", self.password_file, "a password")
        elif self.token_file is not None:
            options["token"] = _line_in("NATS_TOKEN_FILE", self.token_file, "a token")
        elif self.nkey_file is not None:
            options["nkeys_seed_str"] = _seed_in("NATS_NKEY_FILE", self.nkey_file)
        elif self.creds_file is not None:
            jwt, seed = _creds_in(self.creds_file)
            options["user_jwt_cb"] = jwt.encode
            options["signature_cb"] = _signer(seed, "NATS_CREDS_FILE", self.creds_file)
        if self.is_tls:
            options["tls"] = self._kept_context()
            options["tls_handshake_first"] = self.tls_first
        return options

    def why_refused(self, unix_seconds: float) -> str:
        """What to know of a login that NATS has refused; empty if there is nothing to add."""
        sentence = f"it does not accept {self.login}" if self.login else ""
        if self.creds_file is not None:
            try:
                ends = _expires_at(_creds_in(self.creds_file)[0])
            except AccessUnusable:
                ends = None
            if ends is not None and ends <= unix_seconds:
                sentence += f", whose JWT expired at {datetime.fromtimestamp(ends, UTC):%FT%TZ}"
        return sentence

    def _kept_context(self) -> ssl.SSLContext:
        paths: list[Path | str | None] = [self.tls_cert, self.tls_key]
        if self.tls_ca is None:
            system = ssl.get_default_verify_paths()
            paths += [system.cafile, system.capath]
        else:
            paths.append(self.tls_ca)
        files = [_version_of(path) for path in paths]
        context = self._kept.context
        if context is None or files != self._kept.files:
            self._kept.context = None
            context = self._context()
            self._kept.context, self._kept.files = context, files
        return context

    def _context(self) -> ssl.SSLContext:
        """The trusted authorities, ours or the system's, and the certificate of this client."""
        if self.tls_ca is None:
            context = ssl.create_default_context()
        else:  # create_default_context would add nothing else either, but not say what is wrong
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            try:
                load_authorities(context, self.tls_ca)
            except TlsFileUnusable as error:
                raise _unusable("NATS_TLS_CA", self.tls_ca, error) from None
        if self.tls_cert is not None:
            try:
                load_identity(context, self.tls_cert, self.tls_key)
            except TlsFileUnusable as error:
                is_key = error.is_key and self.tls_key is not None
                name, path = ("KEY", self.tls_key) if is_key else ("CERT", self.tls_cert)
                raise _unusable(f"NATS_TLS_{name}", path, error) from None
        return context


def _version_of(path: Path | str | None) -> tuple[int, ...]:
    """What changes with the content of a file; empty if there is none."""
    try:
        found = None if path is None else Path(path).stat()
    except (OSError, ValueError):  # a null byte in the path
        found = None
    return () if found is None else (found.st_mtime_ns, found.st_size, found.st_dev, found.st_ino)


# What the URL says, and nothing more.
OF_THE_URL: Final = NatsAccess()


def access_of(settings: Settings) -> NatsAccess:
    """How to log in by `settings`; every file has been read once.

    Raises:
        SettingError: settings exclude each other, or a file cannot be used.
    """
    _check_combination(settings)
    access = NatsAccess(
        user=settings.nats_user,
        password_file=settings.nats_password_file,
        token_file=settings.nats_token_file,
        nkey_file=settings.nats_nkey_file,
        creds_file=settings.nats_creds_file,
        tls_ca=settings.nats_tls_ca,
        tls_cert=settings.nats_tls_cert,
        tls_key=settings.nats_tls_key,
        tls_first=settings.nats_tls_first,
    )
    try:
        access.options()
    except AccessUnusable as error:
        raise SettingError(str(error)) from None
    return access


def _check_combination(settings: Settings) -> None:
    logins = {
        "NATS_PASSWORD_FILE": settings.nats_password_file,
        "NATS_TOKEN_FILE": settings.nats_token_file,
        "NATS_NKEY_FILE": settings.nats_nkey_file,
        "NATS_CREDS_FILE": settings.nats_creds_file,
    }
    given = [name for name, path in logins.items() if path is not None]
    if len(given) > 1:
        raise SettingError(f"only one way to log in to NATS is allowed, not {' and '.join(given)}")
    if given and any(NatsUrl.parse(url).user is not None for url in settings.nats_urls):
        raise SettingError(
            f"only one way to log in to NATS is allowed, not {given[0]} and a user in NATS_URL"
        )
    if settings.nats_password_file is not None and not settings.nats_user:
        raise SettingError("NATS_PASSWORD_FILE needs NATS_USER, the user that the password is for")
    if settings.nats_tls_key is not None and settings.nats_tls_cert is None:
        raise SettingError("NATS_TLS_KEY needs NATS_TLS_CERT, the certificate that the key is for")


def _unusable(name: str, path: Path | None, reason: object) -> AccessUnusable:
    return AccessUnusable(f"{name}={shown_path(str(path))!r}: {reason}")


def _text_in(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise _unusable(name, path, error.strerror) from None
    except ValueError:  # a null byte in the path
        raise _unusable(name, path, "it is not the name of a file") from None
    if len(content) > _FILE_MAX_BYTES:
        raise _unusable(name, path, f"it has more than {_FILE_MAX_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except ValueError:
        raise _unusable(name, path, "it is not text") from None


def _line_in(name: str, path: Path, what: str) -> str:
    """The one line that a file of a secret has. White space in it counts, its end does not."""
    line = _text_in(name, path).rstrip("\r\n")
    if not line:
        raise _unusable(name, path, f"it is empty; allowed is {what}")
    if not line.isprintable():
        raise _unusable(name, path, f"it has more than one line; allowed is {what}")
    return line


def _seed_in(name: str, path: Path) -> str:
    """The seed in a file, which may have comments around it, as those of `nk` have."""
    words = _text_in(name, path).split()
    seed = next((word for word in words if _SEED.fullmatch(word)), None)
    if seed is None:
        raise _unusable(name, path, "it has no seed of a user, 58 characters that begin with SU")
    _check_seed(seed, name, path)
    return seed


def _creds_in(path: Path) -> tuple[str, str]:
    """The JWT and the seed in a file as `nsc` makes them."""
    name, text = "NATS_CREDS_FILE", _text_in("NATS_CREDS_FILE", path)
    jwt, seed = _JWT.search(text), _CREDS_SEED.search(text)
    if jwt is None:
        raise _unusable(name, path, "it has no JWT (-----BEGIN NATS USER JWT-----)")
    if _claims_in(jwt[1]) is None:
        raise _unusable(name, path, "its JWT is damaged")
    if seed is None:
        raise _unusable(name, path, "it has no seed (-----BEGIN USER NKEY SEED-----)")
    _check_seed(seed[1], name, path)
    return jwt[1], seed[1]


def _check_seed(seed: str, name: str, path: Path) -> None:
    found = _SEED.fullmatch(seed)
    if found is None:
        raise _unusable(name, path, "its seed is damaged: it has 58 characters, SU first")
    if found[1] != "U":
        whose = _SEED_OF.get(found[1], "something else")
        raise _unusable(name, path, f"its seed is that of {whose}; a user's begins with SU")
    raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
    if binascii.crc_hqx(raw[:-2], 0) != int.from_bytes(raw[-2:], "little"):
        raise _unusable(name, path, "its seed is damaged: its check sum is wrong")
    _signer(seed, name, path)


def _signer(seed: str, name: str, path: Path) -> Callable[[str], bytes]:
    """A function that signs what NATS wants to have signed, as nats-py calls it."""
    try:
        import nkeys  # noqa: PLC0415 - of an extra
    except ImportError:
        raise _unusable(
            name, path, f"nkeys and credentials need the package nkeys: {install_hint('nkeys')}"
        ) from None
    pair: Any = nkeys.from_seed(bytearray(seed.encode()))

    def sign(nonce: str) -> bytes:
        return base64.b64encode(pair.sign(nonce.encode()))

    return sign


def _claims_in(jwt: str) -> dict[str, Any] | None:
    """The claims of a JWT, whose signature only NATS can check; None if there are none."""
    _, _, rest = jwt.partition(".")
    body, _, _ = rest.partition(".")
    try:
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (ValueError, binascii.Error):
        return None
    return claims if isinstance(claims, dict) else None


def _expires_at(jwt: str) -> float | None:
    """When a JWT expires, in seconds of Unix time; None: never."""
    expires = (_claims_in(jwt) or {}).get("exp")
    return float(expires) if isinstance(expires, int | float) and expires > 0 else None


def now_seconds() -> float:
    """The time that JWTs and certificates are compared with."""
    return time.time()
