from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import nkeys
import pytest

from tests.certificates import make_certificates
from tests.nats_identities import Identity, Operator, credentials_of
from trio_odin.settings.reading import NATS_ACCESS, read_settings, variables, warnings_about
from trio_odin.settings.setting_field import SettingError
from trio_odin.upstream.access import OF_THE_URL, AccessUnusable, NatsAccess, access_of

SECRET = "CANARY"


def access(**variables: str | Path) -> NatsAccess:
    return access_of(read_settings({name: str(value) for name, value in variables.items()}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file.txt"


def test_without_settings_the_url_alone_counts() -> None:
    assert access() == OF_THE_URL
    assert OF_THE_URL.options() == {}
    assert not OF_THE_URL.is_tls
    assert not OF_THE_URL.login


def test_a_secret_may_have_spaces_but_not_the_end_of_the_line(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf a b \r\n")
    assert access(NATS_TOKEN_FILE=file).options() == {"token": " a b "}
    given = access(NATS_USER="odin", NATS_PASSWORD_FILE=file)
    assert given.options() == {"user": "odin", "password": " a b "}


@pytest.mark.parametrize("name", ["NATS_PASSWORD_FILE", "NATS_TOKEN_FILE"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b"CANARY\nCANARY", "it has more than one line"),
        (b"\xff\xfeCANARY", "it is not text"),
        (b"x" * 65_537, "it has more than 65,536 bytes"),
    ],
)
def test_a_bad_file_of_a_secret_is_named_and_not_shown(
    file: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingError, match=reason) as caught:
        access(NATS_USER="odin", **{name: file})
    assert str(caught.value).startswith(f"{name}='{file}': ")
    assert SECRET not in str(caught.value)


def test_a_secret_in_place_of_a_file_is_not_shown() -> None:
    with pytest.raises(SettingError) as caught:
        access(NATS_TOKEN_FILE=SECRET)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["NATS_NKEY_FILE", "NATS_CREDS_FILE"])
def test_a_damaged_or_foreign_seed_is_reported(file: Path, name: str) -> None:
    seed, account = Identity.of_user().seed, Identity.of_account().seed
    swapped = seed[:30] + ("A" if seed[30] != "A" else "B") + seed[31:]
    jwt = Operator().credentials().split()[4]
    expected = {
        swapped: "its check sum is wrong",
        account: "that of an account; a user's begins with SU",
        seed[:-1]: "58 characters",
        "": "it has no seed",
    }
    for bad, reason in expected.items():
        file.write_text(bad if name == "NATS_NKEY_FILE" else credentials_of(jwt, bad))
        with pytest.raises(SettingError, match=reason) as caught:
            access(**{name: file})
        assert not bad or bad not in str(caught.value)


def test_credentials_without_a_jwt_are_reported(file: Path) -> None:
    seed = Identity.of_user().seed
    file.write_text(seed)
    with pytest.raises(SettingError, match="it has no JWT"):
        access(NATS_CREDS_FILE=file)
    for jwt in ("a", "a.b.c", "a.MQ.c", "a.é.c"):
        file.write_text(credentials_of(jwt, seed))
        with pytest.raises(SettingError, match="its JWT is damaged"):
            access(NATS_CREDS_FILE=file)


def test_credentials_with_other_line_ends_work(file: Path) -> None:
    file.write_text(Operator().credentials().replace("\n", "\r\n"), newline="")
    options = access(NATS_CREDS_FILE=file).options()
    assert options.keys() == {"user_jwt_cb", "signature_cb"}
    claims = options["user_jwt_cb"]().split(b".")[1]
    user = json.loads(base64.urlsafe_b64decode(claims + b"=="))["sub"]
    raw = base64.b32decode(user.encode() + b"=" * (-len(user) % 8))
    verify_key = nkeys.nacl.signing.VerifyKey(raw[1:33])
    assert verify_key.verify(b"nonce", base64.b64decode(options["signature_cb"]("nonce")))


def test_without_the_package_the_extra_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(Identity.of_user().seed)
    monkeypatch.setitem(sys.modules, "nkeys", None)
    with pytest.raises(SettingError, match=r"pip install 'trio-odin\[nkeys\]'"):
        access(NATS_NKEY_FILE=file)


def test_why_a_login_was_refused_names_it_and_its_end(file: Path) -> None:
    file.write_text(Operator().credentials(expires=1_700_000_000))
    given = access(NATS_CREDS_FILE=file)
    start = "it does not accept the credentials in NATS_CREDS_FILE"
    assert given.why_refused(1_699_999_999) == start
    assert given.why_refused(1_700_000_001) == f"{start}, whose JWT expired at 2023-11-14T22:13:20Z"
    file.unlink()
    assert given.why_refused(0) == start
    assert OF_THE_URL.why_refused(0) == ""


def test_only_one_login_is_allowed(file: Path) -> None:
    file.write_text("x")
    with pytest.raises(SettingError, match="not NATS_PASSWORD_FILE and NATS_TOKEN_FILE"):
        access(NATS_USER="odin", NATS_PASSWORD_FILE=file, NATS_TOKEN_FILE=file)
    with pytest.raises(SettingError, match="not NATS_TOKEN_FILE and a user in NATS_URL") as caught:
        access(NATS_URL=f"nats://a,nats://odin:{SECRET}@b", NATS_TOKEN_FILE=file)
    assert SECRET not in str(caught.value)
    with pytest.raises(SettingError, match="NATS_PASSWORD_FILE needs NATS_USER"):
        access(NATS_PASSWORD_FILE=file)


def test_a_user_without_a_password_gets_a_warning() -> None:
    """Other programs have a variable of this name, so it is not an error."""
    settings = read_settings({"NATS_USER": "odin"})
    assert access_of(settings).options() == {}
    assert list(warnings_about(settings, {})) == [
        "NATS_USER has no effect without NATS_PASSWORD_FILE"
    ]


def test_files_of_tls_are_named_when_they_are_wrong(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "tls", "localhost")
    nowhere = tmp_path / "nowhere.pem"
    for name, given in {
        "NATS_TLS_CA": {"NATS_TLS_CA": nowhere},
        "NATS_TLS_CERT": {"NATS_TLS_CERT": nowhere, "NATS_TLS_KEY": files.key},
        "NATS_TLS_KEY": {"NATS_TLS_CERT": files.certificate, "NATS_TLS_KEY": nowhere},
    }.items():
        with pytest.raises(SettingError, match=f"^{name}='{nowhere}': No such file"):
            access(**given)
    with pytest.raises(SettingError, match="NATS_TLS_KEY needs NATS_TLS_CERT"):
        access(NATS_TLS_KEY=files.key)
    with pytest.raises(SettingError, match=r"NATS_TLS_CERT=.*it has no private key"):
        access(NATS_TLS_CERT=files.certificate)
    assert access(NATS_TLS_CERT=files.certificate, NATS_TLS_KEY=files.key).is_tls
    assert access(NATS_TLS_FIRST="true").is_tls


def test_the_authorities_of_the_system_are_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes tens of milliseconds of the loop, and NATS may be away for hours."""
    store = tmp_path / "store.pem"
    store.write_bytes(make_certificates(tmp_path / "tls", "localhost").authority.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(store))
    given = access(NATS_TLS_FIRST="true")
    context = given.options()["tls"]
    assert given.options()["tls"] is context
    store.write_bytes(store.read_bytes() + b"\n")
    assert given.options()["tls"] is not context, "it was renewed"


def test_certificates_are_loaded_again_only_after_they_have_changed(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "tls", "localhost")
    given = access(
        NATS_TLS_CA=files.authority, NATS_TLS_CERT=files.certificate, NATS_TLS_KEY=files.key
    )
    context = given.options()["tls"]
    assert given.options()["tls"] is context
    assert given == access(
        NATS_TLS_CA=files.authority, NATS_TLS_CERT=files.certificate, NATS_TLS_KEY=files.key
    )
    for renewed in (files.authority, files.certificate, files.key):
        renewed.write_bytes(renewed.read_bytes() + b"\n")
        before, context = context, given.options()["tls"]
        assert context is not before
    files.key.write_text("x")
    for _ in range(2):
        with pytest.raises(AccessUnusable, match="NATS_TLS_KEY"):
            given.options()


def test_every_variable_about_access_is_known_as_such() -> None:
    """`trio-odin up` has a NATS of its own, for which none of them holds."""
    names = {variable.name for variable in variables() if variable.name.startswith("NATS_")}
    assert names - {"NATS_MODE"} == set(NATS_ACCESS)
