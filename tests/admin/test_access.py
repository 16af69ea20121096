from __future__ import annotations

from pathlib import Path

import pytest

from trio_odin.admin.access import Access, is_loopback, read_token
from trio_odin.net.address import Address
from trio_odin.net.http import Request
from trio_odin.settings.setting_field import SettingError

LOOPBACK = [Address("127.0.0.1", 3008)]
TOKEN = b"a-token-of-24-characters"


def status_of(access: Access, **headers: str) -> int | None:
    """The status of the refusal; None if the request is allowed."""
    given = {"host": "127.0.0.1:3008", **headers}
    lines = [(n.replace("_", "-").encode(), v.encode("latin-1")) for n, v in given.items()]
    refused = access.refusal(Request("GET", "/overview", lines))
    return None if refused is None else refused.status


@pytest.mark.parametrize(
    "host", ["127.0.0.1:3008", "localhost:3008", "LocalHost", "[::1]:3008", "127.8.8.8", "[::1]"]
)
def test_programs_of_this_machine_need_no_token(host: str) -> None:
    assert status_of(Access(LOOPBACK), host=host) is None


@pytest.mark.parametrize(
    "host",
    ["evil.example:3008", "", "10.0.0.1", "127.0.0.1.evil.example", "localhost.evil.example",
     "evil.example@127.0.0.1", "0.0.0.0", "[::]", "\xff", "127.1"],
)  # fmt: skip
def test_a_name_that_was_rebound_to_this_machine_is_refused(host: str) -> None:
    assert status_of(Access(LOOPBACK), host=host) == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:3008"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "same-origin"},
    ],
)
@pytest.mark.parametrize("token", [b"", TOKEN])
def test_no_page_gets_anything(headers: dict[str, str], token: bytes) -> None:
    bearer = {"authorization": f"Bearer {token.decode()}"}
    assert status_of(Access(LOOPBACK, token), **bearer, **headers) == 403


def status_of_page(access: Access, **headers: str) -> int | None:
    lines = [(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()]
    refused = access.refusal_of_page(Request("GET", "/metrics", lines))
    return None if refused is None else refused.status


@pytest.mark.parametrize("token", [b"", TOKEN])
def test_the_pages_for_machines_need_no_token_and_are_not_for_web_pages(token: bytes) -> None:
    access = Access(LOOPBACK, token)
    assert status_of_page(access) is None
    for host in ("localhost:3008", "127.0.0.1", "[::1]:3008", "haproxy", ""):
        assert status_of_page(access, host=host) is None
    assert status_of_page(access, host="evil.example:3008") == 403
    for headers in ({"origin": "null"}, {"sec_fetch_site": "cross-site"}):
        assert status_of_page(access, host="127.0.0.1:3008", **headers) == 403


def test_elsewhere_than_on_loopback_the_pages_for_machines_are_for_all_who_reach_them() -> None:
    access = Access([Address("0.0.0.0", 3005)], TOKEN)
    assert status_of_page(access, host="node1:3005", origin="https://grafana.example") is None


def test_a_person_may_type_the_address_into_a_browser() -> None:
    assert status_of(Access(LOOPBACK), sec_fetch_site="none") is None


@pytest.mark.parametrize("host", ["", "0.0.0.0", "10.0.0.1", "::", "admin.example"])
def test_elsewhere_than_on_loopback_a_token_is_needed(host: str) -> None:
    addresses = [Address(host, 3005)]
    assert status_of(Access(addresses)) == 403
    access = Access(addresses, TOKEN)
    assert status_of(access) == 401
    right = f"Bearer {TOKEN.decode()}"
    assert status_of(access, host="admin.example", authorization=right) is None


def test_one_address_that_is_not_loopback_is_enough_for_that() -> None:
    assert status_of(Access([*LOOPBACK, Address("10.0.0.1", 3008)])) == 403


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer x", f"Basic {TOKEN.decode()}", f"Bearer {TOKEN.decode()}x",
              TOKEN.decode(), "Bearer \xff"],
)  # fmt: skip
def test_a_wrong_token_is_refused_on_loopback_too(given: str) -> None:
    assert status_of(Access(LOOPBACK, TOKEN), authorization=given) == 401


def test_the_case_of_the_scheme_does_not_matter() -> None:
    given = f"bearer  {TOKEN.decode()} "
    assert status_of(Access(LOOPBACK, TOKEN), authorization=given) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.1", "::1", "localhost", "localhost."])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


def test_the_token_is_the_content_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(TOKEN + b"\n")
    assert read_token(file) == TOKEN
    assert read_token(None) == b""


@pytest.mark.parametrize(
    "content", [b"", b"short", b"x" * 5000, b"two words of a token", b"\xff" * 20]
)
def test_a_file_with_something_else_is_refused_without_showing_it(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "token.txt"
    file.write_bytes(content)
    with pytest.raises(SettingError, match=r"WS_ADMIN_TOKEN_FILE=.*allowed is a file") as refused:
        read_token(file)
    assert "short" not in str(refused.value)
    assert "words" not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="No such file"):
        read_token(tmp_path / "token.txt")
