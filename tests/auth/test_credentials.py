from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.auth.credentials import TOKEN_MAX_BYTES, check_origin, excess_of, token_in
from trio_odin.ledger.reasons import Rejection
from trio_odin.wire.dictionary import Dictionary
from trio_odin.wire.handshake import Rejected, Upgrade, parse, reject
from trio_odin.wire.negotiation import Encodings

DICTIONARY = Dictionary(b'{"ts":')
OURS = b"trio-odin.z1." + DICTIONARY.id.encode()
ENCODINGS = Encodings(DICTIONARY)
ALLOWED = {b"https://example.com", b"http://localhost:3000"}


def request(*lines: bytes, query: bytes = b"") -> Upgrade:
    upgrade = parse(
        b"\r\n".join(
            [
                b"GET /ws" + (b"?" + query if query else b"") + b" HTTP/1.1",
                b"Host: a",
                b"Upgrade: websocket",
                b"Connection: Upgrade",
                b"Sec-WebSocket-Version: 13",
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                *lines,
                b"\r\n",
            ]
        )
    )
    assert isinstance(upgrade, Upgrade)
    return upgrade


# --- origins


@pytest.mark.parametrize("origin", sorted(ALLOWED))
def test_an_allowed_origin_is_let_in(origin: bytes) -> None:
    assert check_origin(request(b"Origin: " + origin), ALLOWED) is None


@pytest.mark.parametrize(
    "origin",
    [
        b"null",
        b"",
        b"*",
        b"https://evil-example.com",
        b"https://example.com.evil.org",
        b"https://sub.example.com",
        b"https://example.co",
        b"https://example.com:443",
        b"https://example.com:8443",
        b"https://example.com/",
        b"https://example.com?",
        b"https://example.com@evil.org",
        b"https://evil.org#https://example.com",
        b"http://example.com",
        b"wss://example.com",
        b"example.com",
        b"HTTPS://example.com",
        b"https://Example.com",
        b"https://example.com.",
        b"https://example.com https://evil.org",
        b"https://example.com, https://example.com",
        b"http://localhost",
        b"http://localhost:30000",
        b"http://127.0.0.1:3000",
        b"https://ex\xe4mple.com",
    ],
)
def test_an_origin_is_refused_unless_it_is_exactly_an_allowed_one(origin: bytes) -> None:
    rejected = check_origin(request(b"Origin: " + origin), ALLOWED)
    assert rejected == reject(Rejection.ORIGIN)


def test_two_origins_are_not_an_allowed_one() -> None:
    upgrade = request(b"Origin: https://example.com", b"Origin: https://example.com")
    assert check_origin(upgrade, ALLOWED) is not None


def test_a_client_without_an_origin_is_let_in() -> None:
    assert check_origin(request(), ALLOWED) is None


@pytest.mark.parametrize("origin", [b"null", b"https://evil-example.com", b"anything"])
def test_without_a_list_every_origin_is_let_in(origin: bytes) -> None:
    assert check_origin(request(b"Origin: " + origin), frozenset()) is None


# --- tokens

TOKEN = b"aa.bb-_.cc"


@pytest.mark.parametrize(
    "upgrade",
    [
        request(b"Authorization: Bearer " + TOKEN),
        request(b"authorization: bearer   " + TOKEN),
        request(b"Authorization: Basic abc", b"Authorization: Bearer " + TOKEN),
        request(b"Sec-WebSocket-Protocol: trio-odin, bearer." + TOKEN),
        request(b"Sec-WebSocket-Protocol: trio-odin.z1, bearer." + TOKEN),
        request(b"Sec-WebSocket-Protocol: " + OURS + b", bearer." + TOKEN),
        request(b"Sec-WebSocket-Protocol: bearer." + TOKEN + b",trio-odin,other"),
        request(b"Sec-WebSocket-Protocol: trio-odin", b"Sec-WebSocket-Protocol: bearer." + TOKEN),
        request(query=b"access_token=" + TOKEN),
        request(query=b"x=1&access_token=" + TOKEN + b"&ACCESS_TOKEN=no&token=no"),
        request(query=b"access_token=" + quote(TOKEN).replace(".", "%2E").encode()),
    ],
    ids=str,
)
def test_a_token_is_found_at_each_of_its_places(upgrade: Upgrade) -> None:
    assert token_in(upgrade, ENCODINGS) == TOKEN


@pytest.mark.parametrize(
    "upgrade",
    [
        request(),
        request(b"Authorization: Basic abc"),
        request(b"Authorization: " + TOKEN),
        request(b"X-Authorization: Bearer " + TOKEN),
        request(b"Cookie: access_token=" + TOKEN),
        request(b"Sec-WebSocket-Protocol: trio-odin, " + TOKEN),
        request(query=TOKEN),
        request(query=b"token=" + TOKEN),
        request(query=b"x#access_token=" + TOKEN),
    ],
    ids=str,
)
def test_a_token_in_another_place_is_ignored(upgrade: Upgrade) -> None:
    rejected = token_in(upgrade, ENCODINGS)
    assert rejected == reject(Rejection.UNAUTHORIZED, headers=(("WWW-Authenticate", "Bearer"),))


HEADER = b"Authorization: Bearer " + TOKEN
PROTOCOL = b"Sec-WebSocket-Protocol: trio-odin, bearer." + TOKEN


@pytest.mark.parametrize(
    "upgrade",
    [
        request(HEADER, PROTOCOL),
        request(HEADER, query=b"access_token=" + TOKEN),
        request(PROTOCOL, query=b"access_token=" + TOKEN),
        request(HEADER, HEADER),
        request(PROTOCOL, PROTOCOL),
        request(HEADER + b", Bearer " + TOKEN),
        request(query=b"access_token=" + TOKEN + b"&access_token=" + TOKEN),
        request(HEADER, query=b"access_token="),
    ],
    ids=str,
)
def test_more_than_one_token_is_a_bad_request(upgrade: Upgrade) -> None:
    rejected = token_in(upgrade, ENCODINGS)
    assert isinstance(rejected, Rejected)
    assert (rejected.status, rejected.reason.label) == (400, "bad_request")
    assert rejected.headers == (("WWW-Authenticate", 'Bearer error="invalid_request"'),)
    assert rejected.text == "The request needs one token, at one place"


@pytest.mark.parametrize(
    ("offered", "encodings"),
    [
        (b"", ENCODINGS),
        (b"chat, ", ENCODINGS),
        (b"trio-odin.z1.0123456789abcdef, ", ENCODINGS),
        (b"trio-odin.z1, ", Encodings(None)),
        (OURS + b", ", Encodings(None)),
    ],
)
def test_a_token_as_subprotocol_needs_one_beside_it_that_is_selected(
    offered: bytes, encodings: Encodings
) -> None:
    upgrade = request(b"Sec-WebSocket-Protocol: " + offered + b"bearer." + TOKEN)
    rejected = token_in(upgrade, encodings)
    assert isinstance(rejected, Rejected)
    assert rejected.status == 400
    assert "subprotocol trio-odin " in rejected.text
    assert b"Sec-WebSocket-Protocol" not in upgrade.response(upgrade.agree(encodings))


def test_a_token_has_a_maximum_length() -> None:
    longest = b"x" * TOKEN_MAX_BYTES
    assert token_in(request(b"Authorization: Bearer " + longest), ENCODINGS) == longest
    assert excess_of(longest) is None
    rejected = excess_of(b"x" + longest)
    assert isinstance(rejected, Rejected)
    assert rejected.status == 401
    assert dict(rejected.headers)["WWW-Authenticate"] == 'Bearer error="invalid_token"'


@given(
    st.lists(st.sampled_from([b"Bearer", b" ", b",", b"a", b"\t", b"Basic", b"\xff"])),
    st.lists(st.sampled_from([b"trio-odin", b" ", b",", b"bearer.", b"\xff"])),
    st.lists(st.sampled_from([b"access_token", b"=", b"&", b"%ff", b"%", b"%F0%9F", b"+"])),
)
def test_any_input_gives_a_token_or_a_refusal(
    authorization: list[bytes], protocols: list[bytes], query: list[bytes]
) -> None:
    upgrade = request(
        b"Authorization:" + b"".join(authorization),
        b"Sec-WebSocket-Protocol:" + b"".join(protocols),
        query=b"".join(query),
    )
    assert isinstance(token_in(upgrade, ENCODINGS), bytes | Rejected)
    assert b"bearer" not in upgrade.response().lower()
