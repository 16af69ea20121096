"""The server's side of the opening handshake (RFC 6455, section 4.2): a request head in, bytes out.

Pure. The head is parsed in one pass: ten thousand clients may reconnect within seconds of each
other, and a general HTTP parser was a third of the cost of each.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable
from hashlib import sha1
from typing import Final, NamedTuple

from trio_odin.ledger.reasons import Rejection
from trio_odin.wire.negotiation import Agreed, Encodings

# RFC 9110, 7.2: a name, an IPv4 address or an IPv6 address in brackets, and an optional port.
_HOST_PATTERN = rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?"
_HOST = re.compile(_HOST_PATTERN)
# RFC 9112, 3.2: a path or, as sent to a proxy, a whole URL. Nothing else leads to /ws.
_WEBSOCKET_REQUEST = re.compile(
    rb"GET (?:(?i:https?|wss?)://(?!/)(?P<host>" + _HOST_PATTERN + rb"))?"
    rb"/ws(?:\?(?P<query>[!-~]*))? HTTP/1\.1\r\n"
)
# RFC 9110, 7.8: a list of protocols, of which the server takes one that it knows.
_UPGRADE_HEADER = re.compile(
    rb"\r\nupgrade:(?:[^\r\n]*,)?[ \t]*+websocket[ \t]*+(?:,[^\r\n]*+)?\r\n", re.IGNORECASE
)
# RFC 9110, 5.1 and 5.5: a token, a colon, and text without control characters. A line can
# be matched in one way only, so a malformed one cannot keep the matcher busy.
_HEADER = rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*+)\r\n"
_HEADERS = re.compile(rb"(?:" + _HEADER + rb")*+\r\n")
_EACH_HEADER = re.compile(_HEADER)
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16
_VERSION: Final = b"13"
_VERSION_HEADERS: Final = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))
_NO_COMPRESSION: Final = Encodings()


class Rejected(NamedTuple):
    """Why there is no WebSocket, and the HTTP answer that says so."""

    reason: Rejection
    text: str
    status: int
    headers: tuple[tuple[str, str], ...] = ()


def reject(
    reason: Rejection,
    text: str = "",
    *,
    status: int = 0,
    headers: tuple[tuple[str, str], ...] = (),
) -> Rejected:
    """Reject a request. Text and status are those of `reason` if there are no others."""
    if reason.retry_after_seconds:
        headers = (*headers, ("Retry-After", str(reason.retry_after_seconds)))
    return Rejected(reason, text or reason.text, status or reason.status, headers)


class Upgrade(NamedTuple):
    """A well-formed request for a WebSocket.

    Attributes:
        headers: by name in lower case; the values of a repeated header are joined by commas.
        query: everything after the question mark, not decoded.
    """

    headers: dict[bytes, bytes]
    query: bytes

    @property
    def subprotocols(self) -> list[bytes]:
        """The subprotocols that the client offers."""
        offered = self.headers.get(b"sec-websocket-protocol", b"")
        return [name.strip() for name in offered.split(b",")]

    def agree(self, encodings: Encodings) -> Agreed:
        """What is used of what the client offers."""
        extensions = self.headers.get(b"sec-websocket-extensions", b"")
        return encodings.agree(self.subprotocols, extensions)

    def response(self, agreed: Agreed | None = None) -> bytes:
        """The response that completes the handshake, and what comes before everything else.

        Args:
            agreed: what the server agrees to; default: to no compression.
        """
        key = self.headers[b"sec-websocket-key"]
        accept = b64encode(sha1(key + _GUID, usedforsecurity=False).digest())
        subprotocol, extensions, *_, greeting = agreed or self.agree(_NO_COMPRESSION)
        selected = b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol if subprotocol else b""
        used = b"Sec-WebSocket-Extensions: %b\r\n" % extensions if extensions else b""
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n%b%b\r\n%b" % (accept, selected, used, greeting)
        )


def is_websocket_request(head: bytes) -> bool:
    """Whether `head` asks for a WebSocket at /ws, valid or not."""
    return bool(_WEBSOCKET_REQUEST.match(head) and _UPGRADE_HEADER.search(head))


def parse(head: bytes) -> Upgrade | Rejected:
    """Parse the head of a request; returns the upgrade, or why there is none.

    Args:
        head: a head for which `is_websocket_request` holds, up to and including the empty line.
    """
    request = _WEBSOCKET_REQUEST.match(head)
    if request is None:
        return reject(Rejection.BAD_REQUEST, "Not a request for a WebSocket at /ws")
    start = request.end()
    if _HEADERS.fullmatch(head, start) is None:
        return reject(Rejection.BAD_REQUEST, "A header line of the request is malformed")
    headers = joined_headers(_EACH_HEADER.findall(head, start))
    return _problem(headers, request["host"]) or Upgrade(headers, request["query"] or b"")


def joined_headers(lines: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers by name in lower case; repeated lines are one list (RFC 9110, 5.3)."""
    headers: dict[bytes, bytes] = {}
    repeated: dict[bytes, list[bytes]] = {}
    for name, value in lines:
        lower, value = name.lower(), value.strip(b" \t")
        if lower in headers:
            repeated.setdefault(lower, [headers[lower]]).append(value)
        else:
            headers[lower] = value
    headers.update((name, b", ".join(values)) for name, values in repeated.items())
    return headers


def _problem(headers: dict[bytes, bytes], target_host: bytes | None) -> Rejected | None:
    """Why the request is not an upgrade. `target_host`: the host, if the target is a whole URL."""
    host = headers.get(b"host")
    if host is None or _HOST.fullmatch(host) is None:
        return reject(Rejection.BAD_REQUEST, "The request needs one Host header with a host")
    if target_host is not None and target_host.lower() != host.lower():
        return reject(
            Rejection.BAD_REQUEST, "The target of the request names another host than Host"
        )
    # A proxy that waits for a body would take the client's first frames for it, and a message to
    # this server would be the next request to the proxy: request smuggling.
    if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
        return reject(Rejection.BAD_REQUEST, "A request for a WebSocket has no body")
    connection = headers.get(b"connection", b"").lower().split(b",")
    if b"upgrade" not in (token.strip() for token in connection):
        return reject(Rejection.BAD_REQUEST, "The request needs the header Connection: Upgrade")
    if headers.get(b"sec-websocket-version") != _VERSION:
        text = "The request needs the header Sec-WebSocket-Version: 13"
        return reject(Rejection.BAD_REQUEST, text, status=426, headers=_VERSION_HEADERS)
    if not _is_key(headers.get(b"sec-websocket-key", b"")):
        return reject(
            Rejection.BAD_REQUEST, "The request needs a Sec-WebSocket-Key: 16 bytes in base64"
        )
    return None


def _is_key(key: bytes) -> bool:
    try:
        return len(b64decode(key, validate=True)) == _KEY_BYTES
    except NotBase64:
        return False
