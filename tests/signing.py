"""Signers of tokens for tests: keys of each kind, made once, and their files."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

SECRET = b"0123456789abcdef0123456789abcdef"


@attrs.frozen
class Signer:
    """One key: signs tokens, and gives the server's part of it."""

    algorithm: str
    private: Any
    kid: str | None = None

    def token(
        self, *, header: dict[str, Any] | None = None, expires_in: float = 60, **claims: Any
    ) -> str:
        """Make a signed token, valid for a minute; a claim that is None is left out."""
        given = {"exp": time.time() + expires_in, **claims}
        names = {} if self.kid is None else {"kid": self.kid}
        return jwt.encode(
            {name: value for name, value in given.items() if value is not None},
            self.private,
            self.algorithm,
            headers=names | (header or {}),
        )

    def pem(self) -> bytes:
        public: bytes = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return public

    def private_pem(self) -> bytes:
        private: bytes = self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return private

    def jwk(self, **more: Any) -> dict[str, Any]:
        """The public key, or the secret."""
        if isinstance(self.private, bytes):
            key: dict[str, Any] = {"kty": "oct", "k": base64url(self.private)}
        else:
            library = RSAAlgorithm if self.algorithm == "RS256" else ECAlgorithm
            key = library.to_jwk(self.private.public_key(), as_dict=True)
            key.pop("key_ops", None)
        return key | ({} if self.kid is None else {"kid": self.kid}) | more

    def with_secret(self, header: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
        """Make a token by hand: HMAC with any `secret`, whatever the header has."""
        signed = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        return f"{signed}.{base64url(signature)}"


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


@cache
def rsa_signer(kid: str | None = None) -> Signer:
    return Signer("RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048), kid)


@cache
def ec_signer(kid: str | None = None) -> Signer:
    return Signer("ES256", ec.generate_private_key(ec.SECP256R1()), kid)


@cache
def secret_signer(kid: str | None = None) -> Signer:
    return Signer("HS256", SECRET, kid)


def write_key_set(path: Path, *signers: Signer) -> Path:
    path.write_text(json.dumps({"keys": [signer.jwk() for signer in signers]}))
    return path
