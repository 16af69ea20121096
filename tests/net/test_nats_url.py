from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.net.nats_url import NatsUrl

SECRETS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@pytest.mark.parametrize(
    ("text", "place", "is_tls"),
    [
        ("nats://a:1", "a:1", False),
        ("a", "a:4222", False),
        ("a:1", "a:1", False),
        ("nats://a/", "a:4222", False),
        ("tls://a", "a:4222", True),
        ("nats://[::1]:5", "[::1]:5", False),
        ("[::1]", "[::1]:4222", False),
    ],
)
def test_the_scheme_and_the_port_may_be_left_out(text: str, place: str, is_tls: bool) -> None:
    url = NatsUrl.parse(text)
    assert (str(url), url.is_tls, url.user, url.password) == (place, is_tls, None, None)


@given(SECRETS, SECRETS)
def test_user_and_password_are_decoded(user: str, password: str) -> None:
    url = NatsUrl.parse(f"nats://{quote(user, safe='')}:{quote(password, safe='')}@host")
    assert (url.host, url.user, url.password) == ("host", user, password)


@given(SECRETS)
def test_a_user_without_a_password_is_a_token(token: str) -> None:
    url = NatsUrl.parse(f"{quote(token, safe='')}@host:1")
    assert (url.user, url.password, url.port) == (token, None, 1)


def test_characters_without_a_meaning_in_a_url_stay_unchanged() -> None:
    url = NatsUrl.parse("nats://a+b:c!d$e&f;g=h+i@host")
    assert (url.user, url.password) == ("a+b", "c!d$e&f;g=h+i")
    assert NatsUrl.parse("nats://user:a:b@host").password == "a:b"


@pytest.mark.parametrize("password", ["50%", "%4", "%zz", "%ff"])
def test_a_malformed_escape_is_refused_with_the_right_form(password: str) -> None:
    with pytest.raises(ValueError, match="%40 for @") as caught:
        NatsUrl.parse(f"nats://user:CANARY{password}@host")
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "nats://", "nats://:1", "ws://a", "a b", "a:99999", "a:x", "nats://a/path", "nats://a?x=1",
     "nats://u:CANARY", "u:CANARY@", "nats://u:CAN/ARY@a", "nats://[::1", "::1"],
)  # fmt: skip
def test_a_malformed_url_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="nats://host:port") as caught:
        NatsUrl.parse(text)
    assert "CANARY" not in str(caught.value)


@given(SECRETS, SECRETS)
def test_no_form_of_text_shows_a_password(user: str, password: str) -> None:
    url = NatsUrl("host", 4222, user=user, password=password)
    assert {str(url), f"{url}", repr([url])} == {"host:4222", "[<NATS at host:4222>]"}


def test_an_announced_server_gets_the_same_credentials() -> None:
    url = NatsUrl.parse("tls://user:secret@nats.example:4222")
    by_name = url.sibling("b.example:4333", is_encrypted=True)
    assert by_name == NatsUrl("b.example", 4333, True, "user", "secret")
    by_address = url.sibling("10.0.0.2:4222", is_encrypted=True)
    assert by_address == NatsUrl("10.0.0.2", 4222, True, "user", "secret", "nats.example")
    again = by_address.sibling("[fd00::3]:4222", is_encrypted=True)
    assert again == NatsUrl("fd00::3", 4222, True, "user", "secret", "nats.example")


def test_a_server_announced_over_encryption_is_encrypted_too() -> None:
    url = NatsUrl.parse("nats://a")
    for is_encrypted in (True, False):
        sibling = url.sibling("b:1", is_encrypted=is_encrypted)
        assert sibling is not None
        assert sibling.is_tls is is_encrypted


@pytest.mark.parametrize(
    "place", ["", "nats://b:1", "x@b:1", "@b:1", "b:99999", "b 1", "a/b", "[b"]
)
def test_a_malformed_announcement_is_ignored(place: str) -> None:
    assert NatsUrl.parse("a").sibling(place, is_encrypted=False) is None
