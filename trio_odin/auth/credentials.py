"""The credentials of a request for a WebSocket: the origin of a page, and a token (RFC 6750)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from urllib.parse import parse_qsl

from trio_odin.ledger.reasons import Rejection
from trio_odin.wire.handshake import Rejected, Upgrade, reject
from trio_odin.wire.negotiation import SUBPROTOCOL, Encodings

TOKEN_MAX_BYTES = 4096
_SUBPROTOCOL_PREFIX = b"bearer."
_QUERY_PARAMETER = "access_token"

_FOREIGN = reject(Rejection.ORIGIN)


def check_origin(upgrade: Upgrade, allowed: Collection[bytes]) -> Rejected | None:
    """Reject a page whose origin is not in `allowed`. If that is empty, all may come.

    A browser always sends an Origin (RFC 6455, 4.1), and the page cannot change it. A client that
    sends none is a program, which could send any: origins keep out pages, tokens keep out programs.
    """
    origin = upgrade.headers.get(b"origin")
    return None if not allowed or origin is None or origin in allowed else _FOREIGN


def token_in(upgrade: Upgrade, encodings: Encodings) -> bytes | Rejected:
    """Return the one token of the request, unverified; rejected if there is none to verify.

    Args:
        upgrade: the request.
        encodings: what the server can use, of which it selects one of the subprotocols offered.
    """
    in_subprotocol = list(_in_subprotocols(upgrade))
    tokens = [*_in_authorization(upgrade), *in_subprotocol, *_in_query(upgrade)]
    if not tokens:
        # RFC 6750, 3.1: no error code for a client that may not know that a token is needed.
        return reject(Rejection.UNAUTHORIZED, headers=_challenge())
    if len(tokens) > 1:
        return _bad_request("The request needs one token, at one place")
    if in_subprotocol and not encodings.agree(upgrade.subprotocols, b"").subprotocol:
        # A browser gives up unless one of its subprotocols is selected, and a secret must not be.
        return _bad_request(f"Offer the subprotocol {SUBPROTOCOL.decode()} beside the token's")
    return tokens[0]


def excess_of(token: bytes) -> Rejected | None:
    """Reject a token that is too long to be looked at."""
    if len(token) <= TOKEN_MAX_BYTES:
        return None
    return invalid_token(f"The token is longer than {TOKEN_MAX_BYTES} bytes")


def _in_authorization(upgrade: Upgrade) -> Iterator[bytes]:
    for credentials in upgrade.headers.get(b"authorization", b"").split(b","):
        scheme, _, token = credentials.strip().partition(b" ")
        if scheme.lower() == b"bearer":  # not Basic, which a proxy may have asked for
            yield token.strip()


def _in_subprotocols(upgrade: Upgrade) -> Iterator[bytes]:
    for name in upgrade.subprotocols:
        if name.startswith(_SUBPROTOCOL_PREFIX):
            yield name.removeprefix(_SUBPROTOCOL_PREFIX)


def _in_query(upgrade: Upgrade) -> Iterator[bytes]:
    for name, value in parse_qsl(upgrade.query.decode("ascii"), keep_blank_values=True):
        if name == _QUERY_PARAMETER:
            yield value.encode()


def invalid_token(text: str) -> Rejected:
    """Reject a token. `text` says what is wrong and does not quote the token."""
    return reject(Rejection.UNAUTHORIZED, text, headers=_challenge("invalid_token"))


def insufficient_scope(text: str) -> Rejected:
    """Reject a token that is valid, but does not allow enough."""
    headers = _challenge("insufficient_scope")
    return reject(Rejection.UNAUTHORIZED, text, status=403, headers=headers)


def _bad_request(text: str) -> Rejected:
    return reject(Rejection.BAD_REQUEST, text, headers=_challenge("invalid_request"))


def _challenge(error: str = "") -> tuple[tuple[str, str], ...]:
    return (("WWW-Authenticate", f'Bearer error="{error}"' if error else "Bearer"),)
