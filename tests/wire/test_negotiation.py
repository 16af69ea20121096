from __future__ import annotations

import json

import pytest

from tests.connection.client import objects_in
from tests.wire.test_handshake import GOOD, head
from trio_odin.wire.compression import PLAIN, Z1, Deflate
from trio_odin.wire.dictionary import DICTIONARY_MAX_BYTES, Dictionary, built_in
from trio_odin.wire.handshake import Upgrade, parse
from trio_odin.wire.negotiation import Encodings

DICTIONARY = Dictionary(b'{"type":"price:update"}')
ID = DICTIONARY.id.encode()
DEFLATE = b"permessage-deflate; client_max_window_bits"


def headers_of(encodings: Encodings, *lines: bytes) -> tuple[dict[str, str], bytes]:
    """The headers of the response to an upgrade with these lines, and what follows them."""
    upgrade = parse(head(*GOOD, *lines))
    assert isinstance(upgrade, Upgrade)
    text, _, rest = upgrade.response(upgrade.agree(encodings)).partition(b"\r\n\r\n")
    status, *headers = text.decode().split("\r\n")
    assert status.startswith("HTTP/1.1 101 ")
    return dict(line.split(": ", 1) for line in headers), rest


@pytest.mark.parametrize(
    ("offered", "selected", "label"),
    [
        ([], b"", "plain"),
        ([b"chat"], b"", "plain"),
        ([b"trio-odin"], b"trio-odin", "plain"),
        ([b"trio-odin.z1"], b"trio-odin.z1", "z1"),
        ([b"trio-odin", b"trio-odin.z1"], b"trio-odin.z1", "z1"),
        ([b"trio-odin.z1." + ID], b"trio-odin.z1." + ID, "z1"),
        ([b"trio-odin.z1", b"trio-odin.z1." + ID], b"trio-odin.z1." + ID, "z1"),
        ([b"trio-odin.z1.0123456789abcdef", b"trio-odin.z1"], b"trio-odin.z1", "z1"),
        ([b"trio-odin.z1.0123456789abcdef", b"trio-odin"], b"trio-odin", "plain"),
        ([b"trio-odin.z1.0123456789abcdef"], b"", "plain"),
        ([b"trio-odin.z1.", b"trio-odin.z2"], b"", "plain"),
        ([b"bearer.a.b.c", b"trio-odin.z1"], b"trio-odin.z1", "z1"),
    ],
)
def test_a_subprotocol_is_selected_from_those_offered(
    offered: list[bytes], selected: bytes, label: str
) -> None:
    agreed = Encodings(DICTIONARY).agree(offered, b"")
    assert (agreed.subprotocol, agreed.encoding.label) == (selected, label)
    assert agreed.client_window_bits == 0
    switched_off = Encodings(None).agree(offered, b"")
    assert switched_off.subprotocol == (b"trio-odin" if b"trio-odin" in offered else b"")
    assert switched_off.encoding is PLAIN


def test_all_connections_share_an_encoding() -> None:
    encodings = Encodings(DICTIONARY, has_deflate=True)
    first, second = (encodings.agree([b"trio-odin.z1"], b"").encoding for _ in range(2))
    assert first is second
    first, second = (encodings.agree([], DEFLATE).encoding for _ in range(2))
    assert first is second
    narrow = encodings.agree([], b"permessage-deflate; server_max_window_bits=9").encoding
    assert narrow is not first
    assert isinstance(narrow, Deflate)
    assert narrow.window_bits == 9


def test_permessage_deflate_is_for_servers_that_allow_it() -> None:
    line = b"Sec-WebSocket-Extensions: " + DEFLATE
    headers, rest = headers_of(Encodings(DICTIONARY), line)
    assert "Sec-WebSocket-Extensions" not in headers
    headers, rest = headers_of(Encodings(DICTIONARY, has_deflate=True), line)
    assert headers["Sec-WebSocket-Extensions"].startswith("permessage-deflate; ")
    assert rest == b""
    headers, _ = headers_of(Encodings(DICTIONARY, has_deflate=True))
    assert "Sec-WebSocket-Extensions" not in headers


def test_what_has_a_dictionary_is_not_deflated_again() -> None:
    encodings = Encodings(DICTIONARY, has_deflate=True)
    headers, rest = headers_of(
        encodings,
        b"Sec-WebSocket-Extensions: " + DEFLATE,
        b"Sec-WebSocket-Protocol: trio-odin, trio-odin.z1",
    )
    assert headers["Sec-WebSocket-Protocol"] == "trio-odin.z1"
    assert "Sec-WebSocket-Extensions" not in headers
    facts = {"id": DICTIONARY.id, "bytes": 23, "url": f"/dictionary/{DICTIONARY.id}"}
    assert objects_in(rest) == [{"type": "dictionary", **facts}]


def test_extensions_of_several_header_lines_are_one_list() -> None:
    lines = [b"Sec-WebSocket-Extensions: x-other", b"sec-websocket-extensions: " + DEFLATE]
    headers, _ = headers_of(Encodings(has_deflate=True), *lines)
    assert headers["Sec-WebSocket-Extensions"].endswith("client_max_window_bits=9")


def test_a_dictionary_is_named_by_its_content() -> None:
    assert Dictionary(DICTIONARY.content) == DICTIONARY
    assert DICTIONARY.id == Dictionary(DICTIONARY.content).id != Dictionary(b"x").id
    assert len(DICTIONARY.id) == 16
    assert json.loads(DICTIONARY.announcement())["url"] == DICTIONARY.path
    for content, complaint in (
        (b"", "empty"),
        (bytes(DICTIONARY_MAX_BYTES + 1), "more than 32,768"),
    ):
        with pytest.raises(ValueError, match=complaint):
            Dictionary(content)
    assert Dictionary(bytes(DICTIONARY_MAX_BYTES)).id


def test_the_package_has_a_dictionary() -> None:
    content = built_in().content
    assert 1000 < len(content) <= 4096
    assert isinstance(Encodings(built_in()).agree([b"trio-odin.z1"], b"").encoding, Z1)
