"""Keys and JWTs of NATS for a test: an operator, an account, and users of it (NATS ADR-14)."""

from __future__ import annotations

import base64
import json
import os
import time
from typing import Any

import attrs
import nkeys

_UNLIMITED = dict.fromkeys(
    (
        "subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage",
        "disk_storage", "streams", "consumer",
    ),
    -1,
)  # fmt: skip


@attrs.frozen
class Identity:
    """A pair of keys. `seed` is the secret one, `public` the name under which NATS knows it."""

    seed: str
    public: str

    @classmethod
    def of_user(cls) -> Identity:
        return cls._made(nkeys.PREFIX_BYTE_USER)

    @classmethod
    def of_account(cls) -> Identity:
        return cls._made(nkeys.PREFIX_BYTE_ACCOUNT)

    @classmethod
    def of_operator(cls) -> Identity:
        return cls._made(nkeys.PREFIX_BYTE_OPERATOR)

    @classmethod
    def _made(cls, prefix: int) -> Identity:
        seed: bytes = nkeys.encode_seed(os.urandom(32), prefix)
        return cls(seed.decode(), nkeys.from_seed(bytearray(seed)).public_key.decode())

    def sign(self, subject: str, kind: str, expires: float = 0, **claims: Any) -> str:
        """A JWT about the key `subject`, signed with this one."""
        body: dict[str, Any] = {
            "iat": int(time.time()) - 3600,
            "iss": self.public,
            "jti": base64.b32encode(os.urandom(20)).decode(),
            "name": kind,
            "nats": {"type": kind, "version": 2, **claims},
            "sub": subject,
        }
        if expires:
            body["exp"] = int(expires)
        signed = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(body)}"
        pair: Any = nkeys.from_seed(bytearray(self.seed.encode()))
        return f"{signed}.{_base64(pair.sign(signed.encode()))}"


class Operator:
    """An operator with one account that has JetStream, and one for NATS itself."""

    def __init__(self) -> None:
        self._operator = Identity.of_operator()
        self._account, self._system = Identity.of_account(), Identity.of_account()

    def config(self) -> str:
        """What nats-server needs to know."""
        accounts = {
            one.public: self._operator.sign(one.public, "account", limits=limits)
            for one, limits in (
                (self._account, {**_UNLIMITED, "wildcards": True}),
                (self._system, {**_UNLIMITED, "mem_storage": 0, "disk_storage": 0}),
            )
        }
        operator = self._operator.sign(self._operator.public, "operator")
        return (
            f"operator: {operator}\nsystem_account: {self._system.public}\n"
            f"resolver: MEMORY\nresolver_preload: {json.dumps(accounts)}\n"
        )

    def credentials(self, expires: float = 0, **permissions: Any) -> str:
        """A file of credentials for a new user, as `nsc` makes it."""
        user = Identity.of_user()
        jwt = self._account.sign(
            user.public, "user", expires, subs=-1, data=-1, payload=-1, **permissions
        )
        return credentials_of(jwt, user.seed)


def credentials_of(jwt: str, seed: str) -> str:
    """A file of credentials with these two."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        "  NKEY Seed printed below can be used to sign and prove identity.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _part(content: object) -> str:
    return _base64(json.dumps(content, separators=(",", ":")).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
