"""Addresses, tokens and the reasons for an end."""

from __future__ import annotations

import base64
import json
import ssl
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.client.errors import ClientError, Ended, closed, failed, for_core, refused
from trio_odin.client.tokens import valid_ms
from trio_odin.client.urls import Address

URL = "ws://a:1/ws"


def token(claims: object) -> str:
    text = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"head.{text}.signature"


def test_the_expiry_of_a_token_is_read() -> None:
    valid = valid_ms(token({"exp": time.time() + 90, "sub": "me"}))
    assert valid is not None
    assert 80_000 < valid <= 90_000


@pytest.mark.parametrize("seconds", [5, 0.1, 0, -60])
def test_a_token_is_not_renewed_all_the_time_whatever_the_clock_says(seconds: float) -> None:
    assert valid_ms(token({"exp": time.time() + seconds})) == 60_000


@pytest.mark.parametrize(
    "one", ["", "a.b.c", "a.é.c", token([]), token({"exp": "x"}), token({}), token({"exp": 0})]
)
def test_a_token_that_does_not_say_when_it_expires_is_taken(one: str) -> None:
    assert valid_ms(one) is None


@given(st.text())
def test_any_text_may_be_a_token(one: str) -> None:
    assert valid_ms(one) is None or one


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "resource", "shown"),
    [
        ("ws://a", "a", 80, "a", "/", "ws://a"),
        ("wss://b:1/ws", "b", 1, "b:1", "/ws", "wss://b:1/ws"),
        ("wss://[::1]/ws", "::1", 443, "[::1]", "/ws", "wss://[::1]/ws"),
        ("ws://u:p@c/x?access_token=T", "c", 80, "c", "/x?access_token=T", "ws://c/x"),
    ],
)
def test_an_address_is_read(
    url: str, host: str, port: int, authority: str, resource: str, shown: str
) -> None:
    address = Address.of(url)
    assert (address.host, address.port) == (host, port)
    assert (address.authority, address.resource) == (authority, resource)
    assert address.shown == shown


@pytest.mark.parametrize(
    "url",
    [
        *["", "a", "http://a/ws", "ws://", "ws://a:0", "ws://a:x", "ws://[a", "ws://a:99999"],
        *[" ws://a", "ws://a/w s", "ws://a\n", "ws://a\x00b", "ws://é/ws", "ws://a/é", "ws://a..b"],
        "ws://" + "a" * 70,
    ],
)
def test_what_is_no_address_is_an_error(url: str) -> None:
    with pytest.raises(ClientError, match="cannot connect to") as raised:
        Address.of(url)
    assert str(raised.value).isprintable()


def test_a_refusal_has_the_words_of_the_server_and_its_time() -> None:
    ended = refused(URL, 503, "Server at capacity\n", "7")
    assert (ended.code, ended.is_hopeless) == (503, False)
    assert ended.cause == "the server answers 503: Server at capacity; again in 7 s"
    assert refused(URL, 502, "<html>", None).cause == (
        "the server answers 502: there is no WebSocket, is it ws://a:1/ws ?"
    )
    assert refused(URL, 401, "", "").cause == "the server answers 401: Unauthorized"


@pytest.mark.parametrize(
    ("status", "is_hopeless"), [(200, True), (301, True), (404, True), (401, False), (502, False)]
)
def test_what_is_no_server_of_ours_is_hopeless_at_first(status: int, is_hopeless: bool) -> None:
    ended = refused(URL, status, "", None)
    assert for_core(ended, is_first=True) == (403 if is_hopeless else status)
    assert for_core(ended, is_first=False) == status


def test_the_cause_nearest_to_the_network_counts() -> None:
    outer = OSError("all attempts to connect failed")
    outer.__cause__ = ConnectionRefusedError(111, "Connect call failed")
    assert failed(ExceptionGroup("", [outer])).cause == "Connection refused"
    untrusted = ssl.SSLCertVerificationError(1, "x")
    untrusted.verify_message = "self-signed certificate"
    ended = failed(untrusted)
    assert ended.cause == "its certificate is not trusted: self-signed certificate"
    assert ended.is_hopeless
    assert failed(EOFError()).cause == "it closed the connection without an answer"
    assert failed(Ended(1001, "x")).code == 1001


def test_a_close_has_a_cause_in_any_case() -> None:
    assert closed(1001, "Server is shutting down").cause == "Server is shutting down"
    assert closed(4000, None).cause == "closed with 4000"
    for code in (None, 1006):
        assert (closed(code, None).code, closed(code, "").cause) == (
            1006,
            "the connection was lost",
        )


def test_a_path_of_the_server_is_beside_its_websocket() -> None:
    assert Address.of("ws://a/ws?token=/x").beside("/dictionary/1") == "/dictionary/1"
    assert Address.of("ws://a/odin/ws").beside("/dictionary/1") == "/odin/dictionary/1"
    assert Address.of("ws://a").beside("/dictionary/1") == "/dictionary/1"


def test_a_cause_can_be_written_to_a_terminal() -> None:
    assert closed(1001, "a\x1b[2J\x9b1mé").cause == "a\\x1b[2J\\x9b1mé"
    assert refused(URL, 503, "\x1b]0;x\x07", "\x1b").cause == (
        "the server answers 503: \\x1b]0;x\\x07; again in \\x1b s"
    )


def test_a_redirect_is_named_without_what_may_be_secret() -> None:
    ended = refused(URL, 302, "Found", None, "https://u:p@b/ws?token=SECRET")
    assert ended.cause == (
        "the server answers 302: it redirects to https://b/ws, which is not followed"
    )
    assert refused(URL, 301, "", None, "/x\x1b[2J").cause == (
        "the server answers 301: it redirects to /x\\x1b[2J, which is not followed"
    )
    assert "SECRET" not in refused(URL, 503, "", None, "https://b/?SECRET").cause
