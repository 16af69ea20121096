"""Signatures of tokens. The only importer of PyJWT, which comes with the extra `auth`.

The library only checks signatures. This module decides which key may check one with which
algorithm, and `auth/grants.py` what the signed claims allow.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from base64 import urlsafe_b64decode
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from trio_odin.auth.credentials import invalid_token
from trio_odin.auth.grants import Grant, grant_of
from trio_odin.wire.handshake import Rejected

_FILE_MAX_BYTES = 64 * 1024
# RFC 7518, 3.2 and 3.3.
_SECRET_MIN_BYTES = 32
_RSA_MIN_BITS = 2048
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_PEM_PUBLIC = {b"PUBLIC KEY", b"RSA PUBLIC KEY"}

_Material: TypeAlias = bytes | RSAPublicKey | EllipticCurvePublicKey


class KeysUnusable(Exception):
    """No token can be checked with this file. The message says why and does not show any key."""


@attrs.frozen
class _Key:
    """A key and the one algorithm that it is for, so a public key is never used as a secret."""

    algorithm: str
    material: _Material = attrs.field(repr=False)
    kid: str | None
    id: str


class Verifier:
    """Checks tokens with the keys of a file: a JWK set, PEM, or the secret itself.

    Attributes:
        keys: digest of each key. A key that changes is another one, even if it keeps its name.
    """

    def __init__(
        self, path: Path, *, algorithms: Collection[str], issuer: str, audience: str
    ) -> None:
        """Read the file.

        Raises:
            KeysUnusable: the file cannot be used, or has no key for `algorithms`.
        """
        found = list(_keys_in(_content_of(path)))
        self._keys = [key for key in found if key.algorithm in algorithms]
        if not self._keys:
            there = ", ".join(sorted({key.algorithm for key in found})) or "no known algorithm"
            raise KeysUnusable(
                f"its keys are for {there}, and WS_JWT_ALGORITHMS allows {', '.join(algorithms)}"
            )
        self.keys = frozenset(key.id for key in self._keys)
        self._algorithms = {key.algorithm for key in self._keys}
        self._issuer = issuer
        self._audience = audience
        self._jws = jwt.PyJWS(algorithms=list(self._algorithms))

    def verify(self, token: bytes, unix_seconds: float) -> Grant | Rejected:
        """Return what `token` allows, or reject it. `token` may be any bytes."""
        header = _header_of(token)
        if header is None:
            return invalid_token("The token is malformed")
        if header.alg not in self._algorithms:
            return invalid_token("The token is not signed with an algorithm that is allowed")
        try:
            for key in self._keys_for(header):
                claims = self._claims(token, key)
                if claims is not None:
                    return grant_of(
                        claims,
                        key=key.id,
                        issuer=self._issuer,
                        audience=self._audience,
                        unix_seconds=unix_seconds,
                    )
        except jwt.PyJWTError:  # its text may quote the token
            return invalid_token("The token is malformed")
        return invalid_token("The token is not signed with a key that is known here")

    def _keys_for(self, header: _Header) -> Iterator[_Key]:
        """Yield the keys that may have signed. PEM and secrets have no name; a token needs none."""
        for key in self._keys:
            is_named = header.kid is None or key.kid in {None, header.kid}
            if is_named and key.algorithm == header.alg:
                yield key

    def _claims(self, token: bytes, key: _Key) -> bytes | None:
        """Return the claims if `key` has signed them, else None."""
        try:
            # The algorithm is that of the key: the one in the header has only led to the key.
            claims: bytes = self._jws.decode(token, key.material, algorithms=[key.algorithm])
        except jwt.InvalidSignatureError:
            return None
        return claims


class _Header(msgspec.Struct):
    """What leads to the key (RFC 7515, 4.1). The library parses it again, more strictly."""

    alg: str
    kid: str | None = None


_header = msgspec.json.Decoder(_Header)


def _header_of(token: bytes) -> _Header | None:
    try:
        return _header.decode(urlsafe_b64decode(token.partition(b".")[0] + b"=="))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _content_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise KeysUnusable(str(error.strerror)) from None
    if len(content) > _FILE_MAX_BYTES:
        raise KeysUnusable(f"it has more than {_FILE_MAX_BYTES} bytes")
    return content


def _keys_in(content: bytes) -> Iterator[_Key]:
    """Yield each key whose algorithm is known; the file may have keys for other purposes too."""
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.lstrip().startswith(b"{"):
        yield from _keys_of_set(content)
    elif b"-----BEGIN " in content:
        yield from _keys_of_pem(content)
    else:
        secret = content.removesuffix(b"\n").removesuffix(b"\r")
        yield from _key(secret, None, "the secret")


class _KeySet(msgspec.Struct):
    """A JWK set (RFC 7517, 5)."""

    keys: list[dict[str, Any]]


class _KeyOfSet(msgspec.Struct):
    """The purpose of a key (RFC 7517, 4). The library parses the key itself."""

    kty: str
    crv: str | None = None
    alg: str | None = None
    use: str = "sig"
    key_ops: list[str] = msgspec.field(default_factory=lambda: ["verify"])
    kid: str | None = None
    d: str | None = None


_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("oct", None): "HS256"}


def _keys_of_set(content: bytes) -> Iterator[_Key]:
    try:
        keys = msgspec.json.decode(content, type=_KeySet).keys
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise KeysUnusable('it is not a JWK set: {"keys":[…]}') from None
    for number, jwk in enumerate(keys, start=1):
        yield from _key_of_set(jwk, f"key {number}")


def _key_of_set(jwk: dict[str, Any], name: str) -> Iterator[_Key]:
    try:
        about = msgspec.convert(jwk, _KeyOfSet)
        algorithm = _ALGORITHMS.get((about.kty, about.crv))
        is_to_verify = about.use == "sig" and "verify" in about.key_ops
        if algorithm is None or about.alg not in {None, algorithm} or not is_to_verify:
            return
        material: Any = jwt.PyJWK(jwk, algorithm).key
    except Exception:  # noqa: BLE001 - whatever the library raises may show the malformed key
        raise KeysUnusable(f"{name} is malformed") from None
    if about.d is not None:
        raise KeysUnusable(f"{name} is a private key: give the public one")
    yield from _key(material, about.kid, name)


def _keys_of_pem(content: bytes) -> Iterator[_Key]:
    blocks = list(_PEM.finditer(content))
    if not blocks:
        raise KeysUnusable("it is not complete: a PEM key ends with a line -----END …-----")
    for number, block in enumerate(blocks, start=1):
        name = f"key {number}"
        if block[1].endswith(b"PRIVATE KEY"):
            raise KeysUnusable(f"{name} is a private key: give the public one")
        if block[1] not in _PEM_PUBLIC:
            raise KeysUnusable(f"{name} is no PUBLIC KEY, but a {block[1].decode()}")
        try:
            material: Any = load_pem_public_key(block[0])
        except Exception:  # noqa: BLE001 - as above: its text may show the key
            raise KeysUnusable(f"{name} is malformed") from None
        yield from _key(material, None, name)


def _key(material: Any, kid: str | None, name: str) -> Iterator[_Key]:
    """Yield the key of this material, if we have an algorithm for it."""
    if isinstance(material, bytes):
        if len(material) < _SECRET_MIN_BYTES:
            raise KeysUnusable(
                f"{name} has {len(material)} bytes, and {_SECRET_MIN_BYTES} are the least"
            )
        yield _Key("HS256", material, kid, hashlib.sha256(material).hexdigest())
    elif isinstance(material, RSAPublicKey):
        if material.key_size < _RSA_MIN_BITS:
            raise KeysUnusable(
                f"{name} has {material.key_size} bits, and {_RSA_MIN_BITS} are the least"
            )
        yield _Key("RS256", material, kid, _digest(material))
    elif isinstance(material, EllipticCurvePublicKey) and isinstance(material.curve, SECP256R1):
        yield _Key("ES256", material, kid, _digest(material))


def _digest(key: RSAPublicKey | EllipticCurvePublicKey) -> str:
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()
