from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tests.signing import (
    SECRET,
    Signer,
    base64url,
    ec_signer,
    rsa_signer,
    secret_signer,
    write_key_set,
)
from trio_odin.auth.grants import Grant
from trio_odin.auth.tokens import KeysUnusable, Verifier
from trio_odin.wire.handshake import Rejected

ALL = ("HS256", "RS256", "ES256")


def verifier(
    path: Path, *, algorithms: Sequence[str] = ALL, issuer: str = "", audience: str = ""
) -> Verifier:
    return Verifier(path, algorithms=algorithms, issuer=issuer, audience=audience)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    """Make a file of keys."""

    def write(content: bytes) -> Path:
        path = tmp_path / "keys"
        path.write_bytes(content)
        return path

    return write


Write = Callable[[bytes], Path]


def rejection_of(verifier: Verifier, token: str | bytes) -> str:
    """The reason of the rejected; the answer must not contain any part of the token."""
    content = token.encode() if isinstance(token, str) else token
    rejected = verifier.verify(content, time.time())
    assert isinstance(rejected, Rejected), rejected
    assert (rejected.status, rejected.reason.label) == (401, "unauthorized")
    assert rejected.headers == (("WWW-Authenticate", 'Bearer error="invalid_token"'),)
    answer = rejected.text.encode()
    assert all(part not in answer for part in content.split(b".") if len(part) > 8)
    return rejected.text


def granted(verifier: Verifier, token: str) -> Grant:
    grant = verifier.verify(token.encode(), time.time())
    assert isinstance(grant, Grant), grant
    return grant


class MakeSigner(Protocol):
    """Makes a key when a test needs it: one of RSA takes a tenth of a second."""

    def __call__(self, kid: str | None = None) -> Signer: ...


UNKNOWN_KEY = "The token is not signed with a key that is known here"
OTHER_ALGORITHM = "The token is not signed with an algorithm that is allowed"

# --- good tokens


@pytest.mark.parametrize("make", [rsa_signer, ec_signer, secret_signer])
def test_a_token_is_verified_by_its_key_in_a_set(make: MakeSigner, tmp_path: Path) -> None:
    signer = make("a")
    grant = granted(
        verifier(write_key_set(tmp_path / "keys", signer)), signer.token(channels=["BTC.*"])
    )
    assert grant.patterns == frozenset({"BTC.*"})


def test_a_token_is_verified_by_any_of_several_pem_keys(file: Write) -> None:
    keys = verifier(file(rsa_signer().pem() + b"a comment\n" + ec_signer().pem()))
    named = Signer("ES256", ec_signer().private, "named")
    first, second = (granted(keys, signer.token()) for signer in (rsa_signer(), named))
    assert first.key != second.key
    assert keys.keys == {first.key, second.key}


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_any_other_file_is_the_secret_without_its_line_end(end: bytes, file: Write) -> None:
    granted(verifier(file(SECRET + end)), secret_signer().token())


def test_a_grant_knows_its_key_by_content_and_not_by_name(tmp_path: Path) -> None:
    one, other = rsa_signer("a"), Signer("RS256", rsa_signer("b").private, "a")
    before = verifier(write_key_set(tmp_path / "before", one))
    after = verifier(write_key_set(tmp_path / "after", other))
    assert before.keys.isdisjoint(after.keys)


def test_a_token_without_a_kid_tries_every_key_of_its_algorithm(tmp_path: Path) -> None:
    signers = [rsa_signer("a"), rsa_signer("b"), ec_signer("c")]
    keys = verifier(write_key_set(tmp_path / "keys", *signers))
    for signer in signers:
        granted(keys, Signer(signer.algorithm, signer.private).token())


# --- attacks


@pytest.fixture
def rsa_keys(file: Write) -> Verifier:
    """A verifier that knows one RSA key and allows every algorithm."""
    return verifier(file(rsa_signer().pem()))


CLAIMS = {"exp": 9_999_999_999}


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "NONE", ""])
def test_a_token_without_a_signature_is_refused(algorithm: str, rsa_keys: Verifier) -> None:
    header = base64url(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
    claims = base64url(json.dumps(CLAIMS).encode())
    assert rejection_of(rsa_keys, f"{header}.{claims}.") == OTHER_ALGORITHM


def test_an_unsigned_token_of_the_library_is_refused(rsa_keys: Verifier) -> None:
    assert rejection_of(rsa_keys, jwt.encode(CLAIMS, "", "none")) == OTHER_ALGORITHM


def public_forms(signer: Signer) -> list[bytes]:
    """Forms of the public key that an attacker may use as the secret."""
    key = signer.private.public_key()
    pem = signer.pem()
    return [
        pem,
        pem.strip(),
        pem.replace(b"\n", b"\r\n"),
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(signer.jwk()).encode(),
        b"",
    ]


@pytest.mark.parametrize("make", [rsa_signer, ec_signer])
@pytest.mark.parametrize("number", range(6))
def test_a_public_key_is_never_used_as_a_secret(
    make: MakeSigner, number: int, tmp_path: Path
) -> None:
    signer = make()
    forged = signer.with_secret(
        {"alg": "HS256", "typ": "JWT"}, CLAIMS, public_forms(signer)[number]
    )
    (tmp_path / "pem").write_bytes(signer.pem())
    assert rejection_of(verifier(tmp_path / "pem"), forged) == OTHER_ALGORITHM
    write_key_set(tmp_path / "set", signer, secret_signer())
    assert rejection_of(verifier(tmp_path / "set"), forged) == UNKNOWN_KEY


def test_a_public_key_does_not_verify_with_the_algorithm_of_another(tmp_path: Path) -> None:
    keys = verifier(write_key_set(tmp_path / "keys", rsa_signer("a"), ec_signer("b")))
    for signer, kid in ((rsa_signer("a"), "b"), (ec_signer("b"), "a")):
        assert rejection_of(keys, signer.token(header={"kid": kid})) == UNKNOWN_KEY


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256"])
def test_a_forbidden_algorithm_is_refused_even_with_the_right_key(
    algorithm: str, rsa_keys: Verifier
) -> None:
    token = jwt.encode(CLAIMS, rsa_signer().private, algorithm)
    assert rejection_of(rsa_keys, token) == OTHER_ALGORITHM


def test_only_the_algorithms_of_the_setting_count(tmp_path: Path) -> None:
    path = write_key_set(tmp_path / "keys", rsa_signer("a"), secret_signer("b"))
    keys = verifier(path, algorithms=["RS256"])
    granted(keys, rsa_signer("a").token())
    assert rejection_of(keys, secret_signer("b").token()) == OTHER_ALGORITHM
    assert len(keys.keys) == 1


def test_another_key_is_refused(rsa_keys: Verifier) -> None:
    assert rejection_of(rsa_keys, rsa_signer("another").token()) == UNKNOWN_KEY


@pytest.mark.parametrize("kid", ["b", "", "../../dev/null", "a' OR 1=1", "A"])
def test_an_unknown_kid_is_refused_even_with_the_right_key(kid: str, tmp_path: Path) -> None:
    keys = verifier(write_key_set(tmp_path / "keys", rsa_signer("a")))
    assert rejection_of(keys, rsa_signer("a").token(header={"kid": kid})) == UNKNOWN_KEY


def test_a_key_inside_a_token_is_ignored(rsa_keys: Verifier) -> None:
    mine = rsa_signer("mine")
    header = {"jwk": mine.jwk(), "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/"}
    assert rejection_of(rsa_keys, mine.token(header=header)) == UNKNOWN_KEY


@pytest.mark.parametrize("part", range(3))
def test_a_token_that_was_tampered_with_is_refused(part: int, rsa_keys: Verifier) -> None:
    parts = rsa_signer().token(channels=["BTC.trade"]).split(".")
    other = rsa_signer().token(channels=[">"]).split(".")
    parts[part] = other[part] if part else base64url(b'{"alg":"RS256","typ":"jwt"}')
    assert rejection_of(rsa_keys, ".".join(parts)) == UNKNOWN_KEY


@pytest.mark.parametrize("make", [rsa_signer, ec_signer, secret_signer])
def test_a_signature_that_is_cut_or_empty_is_refused(make: MakeSigner, tmp_path: Path) -> None:
    signer = make("a")
    keys = verifier(write_key_set(tmp_path / "keys", signer))
    signed, _, signature = signer.token().rpartition(".")
    for cut in ("", signature[:-8], base64url(b"\0" * 64), signature + "AAAA"):
        assert rejection_of(keys, f"{signed}.{cut}") in {UNKNOWN_KEY, "The token is malformed"}


@pytest.mark.parametrize(
    ("claims", "text"),
    [
        ({"expires_in": -6}, "The token has expired"),
        ({"exp": None}, "The token's claims are malformed: Object missing required field `exp`"),
        ({"nbf": time.time() + 1000}, "The token is not valid yet"),
        ({"iss": "they"}, "The token is of another issuer"),
        ({"iss": None}, "The token is of another issuer"),
        ({"aud": "them"}, "The token is for another audience"),
        ({"aud": None}, "The token is for another audience"),
    ],
)
def test_a_good_signature_alone_is_not_enough(
    claims: dict[str, Any], text: str, file: Write
) -> None:
    keys = verifier(file(rsa_signer().pem()), issuer="us", audience="odin")
    granted(keys, rsa_signer().token(iss="us", aud=["odin", "more"]))
    assert rejection_of(keys, rsa_signer().token(**{"iss": "us", "aud": "odin"} | claims)) == text


@pytest.mark.parametrize(
    "header",
    [
        {"alg": ["RS256"]},
        {"alg": {"RS256": 1}},
        {"alg": None},
        {"alg": "RS256", "kid": 5},
        {"alg": "RS256", "kid": ["a"]},
        {"alg": "RS256", "crit": ["exp"], "exp": 1},
        {"alg": "RS256", "crit": []},
        {"alg": "RS256", "b64": False, "crit": ["b64"]},
        {},
        [],
        "RS256",
    ],
    ids=str,
)
def test_a_strange_header_is_refused(header: Any, rsa_keys: Verifier) -> None:
    _, claims, signature = rsa_signer().token().split(".")
    strange = base64url(json.dumps(header).encode())
    assert rejection_of(rsa_keys, f"{strange}.{claims}.{signature}")
    assert rejection_of(rsa_keys, f"{strange}..{signature}")


_GOOD = rsa_signer().token().encode()
_PIECES = st.sampled_from([*_GOOD.split(b"."), b".", b"", b"\0", b"\xff", b"e30", b"bnVsbA"])


@given(st.binary(max_size=80) | st.lists(_PIECES, max_size=7).map(b"".join))
def test_random_bytes_are_refused(token: bytes) -> None:
    keys = _hypothesis_verifier()
    if token != _GOOD:
        assert rejection_of(keys, token)


@given(st.integers(0, len(_GOOD) - 1), st.integers(1, 255))
def test_a_token_with_any_one_byte_changed_is_refused(position: int, change: int) -> None:
    changed = bytearray(_GOOD)
    changed[position] ^= change
    assert rejection_of(_hypothesis_verifier(), bytes(changed))


_verifiers: list[Verifier] = []


@pytest.fixture(scope="module", autouse=True)
def _make_hypothesis_verifier(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_bytes(rsa_signer().pem())
    _verifiers.append(verifier(path))


def _hypothesis_verifier() -> Verifier:
    return _verifiers[0]


# --- files of keys


def complaint_about(path: Path, algorithms: Sequence[str] = ALL) -> str:
    with pytest.raises(KeysUnusable) as caught:
        verifier(path, algorithms=algorithms)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def test_a_set_may_contain_foreign_keys(tmp_path: Path) -> None:
    others = [
        rsa_signer("b").jwk(use="enc"),
        rsa_signer("c").jwk(alg="RS512"),
        rsa_signer("d").jwk(key_ops=["encrypt"]),
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
        {"kty": "something new"},
    ]
    path = tmp_path / "keys"
    path.write_text(json.dumps({"keys": [*others, rsa_signer("a").jwk(use="sig", alg="RS256")]}))
    keys = verifier(path)
    assert len(keys.keys) == 1
    granted(keys, rsa_signer("a").token())
    path.write_text(json.dumps({"keys": others}))
    assert complaint_about(path) == (
        "its keys are for no known algorithm, and WS_JWT_ALGORITHMS allows HS256, RS256, ES256"
    )


def test_a_set_of_pem_keys_may_contain_foreign_keys(file: Write) -> None:
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    pem = other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert len(verifier(file(pem + rsa_signer().pem())).keys) == 1
    assert "no known algorithm" in complaint_about(file(pem))


def test_a_secret_does_not_count_unless_the_setting_allows_it(file: Write) -> None:
    assert complaint_about(file(SECRET), ["RS256", "ES256"]) == (
        "its keys are for HS256, and WS_JWT_ALGORITHMS allows RS256, ES256"
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "the secret has 0 bytes, and 32 are the least"),
        (SECRET[:31], "the secret has 31 bytes, and 32 are the least"),
        (SECRET[:31] + b"\n", "the secret has 31 bytes, and 32 are the least"),
        (b"{}", 'it is not a JWK set: {"keys":[…]}'),
        (b'{"keys":{}}', 'it is not a JWK set: {"keys":[…]}'),
        (b'{"keys":[5]}', 'it is not a JWK set: {"keys":[…]}'),
        (b' {"keys":[', 'it is not a JWK set: {"keys":[…]}'),
        (b'{"keys":[{}]}', "key 1 is malformed"),
        (b'{"keys":[{"kty":"RSA","n":5,"e":"AQAB"}]}', "key 1 is malformed"),
        (b'{"keys":[{"kty":"RSA","n":"AA"}]}', "key 1 is malformed"),
        (b'{"keys":[{"kty":"oct","k":"","kid":[]}]}', "key 1 is malformed"),
        (b'{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}', "key 1 is malformed"),
        (b'{"keys":[{"kty":"oct","k":"c2hvcnQ"}]}', "key 1 has 5 bytes, and 32 are the least"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "key 1 is malformed"),
        (
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n",
            "it is not complete: a PEM key ends with a line -----END …-----",
        ),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "key 1 is no PUBLIC KEY, but a CERTIFICATE",
        ),
        (b"x" * 65537, "it has more than 65536 bytes"),
    ],
)
def test_a_useless_file_gives_a_sentence(content: bytes, complaint: str, file: Write) -> None:
    assert complaint_about(file(content)) == complaint


def test_a_weak_key_gives_a_sentence(file: Write) -> None:
    weak = Signer("RS256", rsa.generate_private_key(public_exponent=65537, key_size=1024))
    for content in (weak.pem(), json.dumps({"keys": [weak.jwk()]}).encode()):
        assert complaint_about(file(content)) == "key 1 has 1024 bits, and 2048 are the least"


def test_a_private_key_gives_a_sentence(file: Write) -> None:
    private = rsa_signer().private_pem()
    assert complaint_about(file(private)) == "key 1 is a private key: give the public one"
    second = rsa_signer().pem() + ec_signer().private_pem()
    assert complaint_about(file(second)) == "key 2 is a private key: give the public one"


@pytest.mark.parametrize("make", [rsa_signer, ec_signer])
def test_a_private_key_in_a_set_is_refused(make: MakeSigner, file: Write) -> None:
    signer = make()
    library = RSAAlgorithm if signer.algorithm == "RS256" else ECAlgorithm
    private = library.to_jwk(signer.private, as_dict=True) | {"key_ops": ["sign", "verify"]}
    content = json.dumps({"keys": [private]}).encode()
    assert complaint_about(file(content)) == "key 1 is a private key: give the public one"


def test_an_unreadable_file_gives_a_sentence(tmp_path: Path) -> None:
    assert complaint_about(tmp_path / "none") == "No such file or directory"
    assert complaint_about(tmp_path) == "Is a directory"


def test_keys_of_other_kinds_are_ignored(file: Write) -> None:
    for key in (
        dsa.generate_private_key(key_size=1024).public_key(),
        ec.generate_private_key(ec.SECP384R1()).public_key(),
    ):
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        assert "no known algorithm" in complaint_about(file(pem))
