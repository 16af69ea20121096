from __future__ import annotations

import subprocess
import sys
from base64 import b64encode

import pytest
import wsproto
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.events import AcceptConnection, Request

from trio_odin.ledger.reasons import Rejection
from trio_odin.wire.handshake import Rejected, Upgrade, is_websocket_request, parse, reject

# RFC 6455, 1.3: the example of the document itself.
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

GOOD = (
    b"Host: localhost:3002",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: " + KEY,
    b"Sec-WebSocket-Version: 13",
)


def answer(request_head: bytes) -> bytes | Rejected:
    parsed = parse(request_head)
    return parsed if isinstance(parsed, Rejected) else parsed.response()


def head(*lines: bytes, start: bytes = b"GET /ws HTTP/1.1") -> bytes:
    return b"\r\n".join([start, *lines, b"", b""])


def without(name: bytes, *instead: bytes) -> bytes:
    """A good request whose header `name` is replaced."""
    return head(*(line for line in GOOD if not line.startswith(name + b":")), *instead)


def accept_in(response: bytes | Rejected) -> bytes:
    """The value of Sec-WebSocket-Accept."""
    assert isinstance(response, bytes)
    status, *lines, empty, end = response.split(b"\r\n")
    assert status == b"HTTP/1.1 101 Switching Protocols"
    assert (empty, end) == (b"", b"")
    headers = dict(line.split(b": ", 1) for line in lines)
    assert headers.keys() == {b"Upgrade", b"Connection", b"Sec-WebSocket-Accept"}
    assert headers[b"Upgrade"].lower() == b"websocket"
    assert headers[b"Connection"].lower() == b"upgrade"
    return headers[b"Sec-WebSocket-Accept"]


def rejection_of(request: bytes) -> Rejected:
    assert is_websocket_request(request)
    rejected = answer(request)
    assert isinstance(rejected, Rejected)
    return rejected


def test_the_example_of_the_rfc_gets_the_answer_of_the_rfc() -> None:
    assert accept_in(answer(head(*GOOD))) == ACCEPT


@pytest.mark.parametrize(
    "request_head",
    [
        head(*(line.replace(line.split(b":")[0], line.split(b":")[0].upper()) for line in GOOD)),
        head(*(line.replace(line.split(b":")[0], line.split(b":")[0].lower()) for line in GOOD)),
        head(*(line.replace(b": ", b":") for line in GOOD)),
        head(*(line.replace(b": ", b": \t ") + b" \t" for line in GOOD)),
        head(*reversed(GOOD)),
        head(*GOOD, b"X-Empty:", b"X-Blank: \t "),
        head(*GOOD, b"Sec-WebSocket-Extensions: permessage-deflate", b"Sec-WebSocket-Protocol: a"),
        head(*GOOD, b"Sec-WebSocket-Protocol: Trio-Odin, trio-odin2, bearer.trio-odin"),
        head(*GOOD, start=b"GET /ws?token=a/b?c HTTP/1.1"),
        head(*GOOD, start=b"GET /ws? HTTP/1.1"),
        without(b"Upgrade", b"uPgRaDe: WebSocket"),
        # RFC 9110, 7.8: a list, from which the server chooses.
        without(b"Upgrade", b"Upgrade: websocket, h2c"),
        without(b"Upgrade", b"Upgrade: h2c ,\tWebSocket"),
        without(b"Upgrade", b"Upgrade: h2c", b"Upgrade: websocket"),
        # RFC 9112, 3.2.2: the form for a proxy, which a server must accept.
        head(*GOOD, start=b"GET http://localhost:3002/ws HTTP/1.1"),
        head(*GOOD, start=b"GET HTTP://LOCALHOST:3002/ws?a=b HTTP/1.1"),
        head(*GOOD, start=b"GET wss://localhost:3002/ws HTTP/1.1"),
        # RFC 9112, 6.3: an explicitly empty body.
        head(*GOOD, b"Content-Length: 0"),
        without(b"Connection", b"Connection: keep-alive, Upgrade"),
        without(b"Connection", b"Connection: uPGRADE ,\tkeep-alive"),
        without(b"Connection", b"Connection: keep-alive", b"connection: Upgrade"),
        without(b"Host", b"Host: [::1]:3002"),
        without(b"Host", b"Host: odin.example"),
        without(b"Host", b"Host: 127.0.0.1:"),
        without(b"Host", b"Host:"),  # RFC 9112, 3.2: sent empty if the URL has no host
    ],
)
def test_http_may_write_a_good_request_in_many_ways(request_head: bytes) -> None:
    assert is_websocket_request(request_head)
    assert accept_in(answer(request_head)) == ACCEPT


@pytest.mark.parametrize("offered", [b"trio-odin", b"a, trio-odin", b"bearer.a.b.c,trio-odin"])
def test_the_subprotocol_is_selected_if_it_is_offered(offered: bytes) -> None:
    """RFC 6455, 4.2.2: one that the client offered, and never a secret."""
    response = answer(head(*GOOD, b"Sec-WebSocket-Protocol: " + offered))
    assert isinstance(response, bytes)
    assert response.lower().count(b"sec-websocket-protocol") == 1
    assert b"\r\nSec-WebSocket-Protocol: trio-odin\r\n" in response


@pytest.mark.parametrize(
    "request_head",
    [
        head(*GOOD, start=b"GET / HTTP/1.1"),
        head(*GOOD, start=b"GET /wss HTTP/1.1"),
        head(*GOOD, start=b"GET /ws/ HTTP/1.1"),
        head(*GOOD, start=b"POST /ws HTTP/1.1"),
        head(*GOOD, start=b"GET /ws HTTP/1.0"),
        head(*GOOD, start=b"GET /ws?a b HTTP/1.1"),
        head(*GOOD, start=b"GET /ws?\r\nX:y HTTP/1.1"),
        head(*GOOD, start=b"GET /ws?\0 HTTP/1.1"),
        head(*GOOD, start=b"GET /ws?\xff HTTP/1.1"),
        head(*GOOD, start=b"GET /ws"),
        without(b"Upgrade"),
        without(b"Upgrade", b"Upgrade: h2c"),
        without(b"Upgrade", b"Upgrade: websocket/13"),
        without(b"Upgrade", b"Upgrade: web socket, websockets"),
        without(b"Upgrade", b"X-Upgrade: websocket"),
        head(*GOOD, start=b"GET http:///ws HTTP/1.1"),
        head(*GOOD, start=b"GET http://user@localhost:3002/ws HTTP/1.1"),
        head(*GOOD, start=b"GET http://localhost:3002/other/ws HTTP/1.1"),
        head(*GOOD, start=b"GET ftp://localhost:3002/ws HTTP/1.1"),
        head(*GOOD, start=b"GET //localhost:3002/ws HTTP/1.1"),
        b"",
    ],
)
def test_a_request_that_is_not_an_upgrade_is_recognised(request_head: bytes) -> None:
    assert not is_websocket_request(request_head)


@pytest.mark.parametrize(
    "request_head",
    [
        without(b"Host"),
        without(b"Host", b"Host: a b"),
        without(b"Host", b"Host: http://a"),
        without(b"Host", b"Host: user@a"),
        without(b"Host", b"Host: a:port"),
        without(b"Host", b"Host: ::1"),
        without(b"Host", b"Host: a", b"Host: b"),
        without(b"Host", b"Host: a", b"Host:"),
        without(b"Host", b"Host:", b"Host:"),
    ],
)
def test_exactly_one_valid_host_is_required(request_head: bytes) -> None:
    rejected = rejection_of(request_head)
    assert rejected == reject(
        Rejection.BAD_REQUEST, "The request needs one Host header with a host"
    )


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 5",),
        (b"content-length:5",),
        (b"Content-Length: 00",),
        (b"Content-Length: -0",),
        (b"Content-Length: +0",),
        (b"Content-Length: 0x0",),
        (b"Content-Length:",),
        (b"Content-Length: 0", b"Content-Length: 5"),
        (b"Content-Length: 5", b"Content-Length: 0"),
        (b"Content-Length: 0", b"Content-Length: 0"),
        (b"Content-Length: 0, 5",),
        (b"Transfer-Encoding: chunked",),
        (b"Transfer-Encoding: identity",),
        (b"Transfer-Encoding:",),
        (b"tRANSFER-eNCODING:\tchunked", b"Content-Length: 0"),
    ],
)
def test_a_body_is_refused_however_it_is_announced(lines: tuple[bytes, ...]) -> None:
    """A proxy that waits for the body would take the client's first frames for it."""
    rejected = rejection_of(head(*GOOD, *lines))
    assert rejected == reject(Rejection.BAD_REQUEST, "A request for a WebSocket has no body")


@pytest.mark.parametrize("target", [b"http://other/ws", b"http://localhost/ws", b"ws://a:3002/ws"])
def test_a_target_of_another_host_than_the_host_header_is_refused(target: bytes) -> None:
    rejected = rejection_of(head(*GOOD, start=b"GET " + target + b" HTTP/1.1"))
    assert rejected == reject(
        Rejection.BAD_REQUEST, "The target of the request names another host than Host"
    )


@pytest.mark.parametrize(
    "instead",
    [(), (b"Connection: close",), (b"Connection: Upgrade2",), (b"Connection: Up grade",)],
)
def test_the_connection_header_must_name_the_upgrade(instead: tuple[bytes, ...]) -> None:
    rejected = rejection_of(without(b"Connection", *instead))
    assert rejected == reject(
        Rejection.BAD_REQUEST, "The request needs the header Connection: Upgrade"
    )


@pytest.mark.parametrize(
    "instead",
    [
        (),
        (b"Sec-WebSocket-Key:",),
        (b"Sec-WebSocket-Key: x",),
        (b"Sec-WebSocket-Key: " + b64encode(b"x" * 15),),
        (b"Sec-WebSocket-Key: " + b64encode(b"x" * 17),),
        (b"Sec-WebSocket-Key: " + KEY[:-1],),
        (b"Sec-WebSocket-Key: " + KEY[:5] + b" " + KEY[5:],),
        (b"Sec-WebSocket-Key: " + KEY.replace(b"G", b"-"),),
        (b"Sec-WebSocket-Key: " + KEY, b"Sec-WebSocket-Key: " + KEY),
    ],
)
def test_a_key_is_16_bytes_in_base64(instead: tuple[bytes, ...]) -> None:
    rejected = rejection_of(without(b"Sec-WebSocket-Key", *instead))
    assert rejected == reject(
        Rejection.BAD_REQUEST, "The request needs a Sec-WebSocket-Key: 16 bytes in base64"
    )


@pytest.mark.parametrize(
    "instead",
    [
        (),
        (b"Sec-WebSocket-Version: 8",),
        (b"Sec-WebSocket-Version: 12, 13",),
        (b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: 8"),
        (b"Sec-WebSocket-Version:",),
    ],
)
def test_another_version_is_answered_with_the_right_one(instead: tuple[bytes, ...]) -> None:
    rejected = rejection_of(without(b"Sec-WebSocket-Version", *instead))
    assert rejected.status == 426
    assert dict(rejected.headers) == {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}


@pytest.mark.parametrize(
    "line",
    [
        b"X : space before the colon",
        b" X: space before the name",
        b"X: a\r\n folded",
        b"X: a\r\n\tfolded",
        b"X",
        b": no name",
        b"X(Y): a",
        b"X: \0",
        b"X: \x7f",
        b"X: a\rb",
        b"X: a\nY: b",
        "é: x".encode(),
    ],
)
def test_a_malformed_line_is_refused_wherever_it_is(line: bytes) -> None:
    expected = reject(Rejection.BAD_REQUEST, "A header line of the request is malformed")
    assert rejection_of(head(*GOOD, line)) == expected
    assert rejection_of(head(*GOOD[:2], line, *GOOD[2:])) == expected


@pytest.mark.parametrize("line", [b"X: \xff", "Cookie: name=Jürgen".encode()])
def test_a_value_may_contain_bytes_that_are_not_ascii(line: bytes) -> None:
    """RFC 9110, 5.5: a cookie that another page has set must not keep a browser out."""
    answered = answer(head(*GOOD, line))
    assert isinstance(answered, bytes)


@pytest.mark.parametrize(
    "lines",
    [
        b"X:" + b" " * 7000 + b"\0",  # cubic, if blanks could be taken in three ways
        b"X: \t \r\n" * 80 + b"\0",  # exponential, if each line could be taken in several
        b"X: " + b"a \t" * 2000 + b"\x7f",
        b"X" * 7000,
    ],
)
def test_no_malformed_head_keeps_the_matcher_busy(lines: bytes) -> None:
    """In its own process, as backtracking holds the interpreter for minutes."""
    program = (
        "import sys; from trio_odin.wire.handshake import parse;"
        "print(parse(sys.stdin.buffer.read()).status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=head(*GOOD, lines),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == b"400\n"


# --- any head

FRAGMENTS = st.sampled_from(
    [*GOOD, b"\r\n", b": ", b"\r", b"\n", b" ", b"\t", b"\0", b"\xff", b"X: y\r\n", KEY, b"Host:"]
)
ANYTHING = st.lists(FRAGMENTS | st.binary(max_size=20), max_size=12).map(b"".join)


@given(ANYTHING, ANYTHING, st.booleans())
@example(b"\r\n" + b"\r\n".join(GOOD), b"\r\n", False)
def test_any_head_that_asks_for_a_websocket_is_answered_or_refused(
    before: bytes, behind: bytes, is_ended: bool
) -> None:
    request_head = (
        b"GET /ws HTTP/1.1\r\n" + before + b"\r\nUpgrade: websocket\r\n" + behind
    ) + b"\r\n\r\n" * is_ended
    assert is_websocket_request(request_head)
    found = answer(request_head)
    if isinstance(found, Rejected):
        assert found.status in {400, 426}
        assert found.text.isprintable()
    else:
        assert found.startswith(b"HTTP/1.1 101 ")


@given(st.binary(max_size=100) | ANYTHING)
def test_any_bytes_can_be_classified(request_head: bytes) -> None:
    if is_websocket_request(request_head):
        assert isinstance(answer(request_head), bytes | Rejected)
    else:
        assert not request_head.startswith(head(*GOOD))


# --- wsproto as a second opinion

TOKENS = st.text("abcXYZ019!#$%&'*+.^_`|~-", max_size=12).map(lambda text: f"X-{text}".encode())
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40).map(str.encode)
BLANKS = st.text(" \t", max_size=3).map(str.encode)


@st.composite
def good_requests(draw: st.DrawFn) -> bytes:
    """Requests that RFC 6455 allows, with unrelated headers in between."""
    key = b64encode(draw(st.binary(min_size=16, max_size=16)))
    connection = draw(st.sampled_from([b"Upgrade", b"keep-alive, Upgrade", b"upgrade,close"]))
    headers = [
        (b"Host", draw(st.sampled_from([b"a", b"a.b:80", b"127.0.0.1:1", b"[::1]"]))),
        (b"Upgrade", draw(st.sampled_from([b"websocket", b"WebSocket"]))),
        (b"Connection", connection),
        (b"Sec-WebSocket-Version", b"13"),
        (b"Sec-WebSocket-Key", key),
        *draw(st.lists(st.tuples(TOKENS, VALUES), max_size=8)),
    ]
    return head(
        *(
            draw(st.sampled_from([name, name.lower(), name.upper()]))
            + b":"
            + draw(BLANKS)
            + value
            + draw(BLANKS)
            for name, value in draw(st.permutations(headers))
        )
    )


def accept_of_wsproto(request_head: bytes) -> bytes:
    connection = wsproto.WSConnection(ConnectionType.SERVER)
    connection.receive_data(request_head)
    (request,) = connection.events()
    assert isinstance(request, Request)
    response = connection.send(AcceptConnection())
    headers = dict(line.split(b": ", 1) for line in response.split(b"\r\n")[1:-2])
    return {name.lower(): value for name, value in headers.items()}[b"sec-websocket-accept"]


@given(good_requests())
def test_wsproto_accepts_a_good_request_with_the_same_words(request_head: bytes) -> None:
    assert is_websocket_request(request_head)
    assert accept_in(answer(request_head)) == accept_of_wsproto(request_head)


@pytest.mark.parametrize(
    ("target", "query"),
    [
        ("/ws", b""),
        ("/ws?", b""),
        ("/ws?a=1&b=%20?", b"a=1&b=%20?"),
        ("http://localhost:3002/ws?a=http://b/c?d", b"a=http://b/c?d"),
    ],
)
def test_the_query_is_passed_on_unchanged(target: str, query: bytes) -> None:
    request = head(*GOOD).replace(b"GET /ws ", f"GET {target} ".encode())
    parsed = parse(request)
    assert isinstance(parsed, Upgrade)
    assert parsed.query == query
    assert parsed.headers[b"sec-websocket-version"] == b"13"
