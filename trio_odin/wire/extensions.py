"""Negotiating permessage-deflate (RFC 7692): the offers of a client in, one answer out."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, TypeAlias

# RFC 6455, 9.1. A header can be matched in one way only, so none can keep the matcher busy.
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_SPACE = rb"[ \t]*+"
_VALUE = _TOKEN + rb'|"(?:[^"\\]|\\.)*+"'
_PARAMETER = rb";%b(%b)%b(?:=%b(%b)%b)?+" % (_SPACE, _TOKEN, _SPACE, _SPACE, _VALUE, _SPACE)
_EACH_PARAMETER = re.compile(_PARAMETER)
_PARAMETERS = rb"(?:%b)*+" % _PARAMETER.replace(b"(" + _TOKEN, b"(?:" + _TOKEN)
# An element of the list, which may be empty, up to the comma or the end.
_OFFER = re.compile(rb"%b(?:(%b)%b(%b))?+(?:,|\Z)" % (_SPACE, _TOKEN, _SPACE, _PARAMETERS))

_NAME: Final = b"permessage-deflate"
_FLAGS: Final = frozenset({b"server_no_context_takeover", b"client_no_context_takeover"})
_SERVER_BITS, _CLIENT_BITS = b"server_max_window_bits", b"client_max_window_bits"
_BITS = {b"%d" % bits: bits for bits in range(8, 16)}
_BITS_MAX: Final = 15
# The window in which bodies are compressed, and the one for clients that ask for a smaller one.
# A common library asks for 12. No raw zlib can do with 8.
WINDOW_BITS: Final = 12
NARROW_WINDOW_BITS: Final = 9
# What a client is to use, if it lets us choose: commands are short, and for a client that refers to
# earlier messages all the same so much is kept.
_CLIENT_WINDOW_BITS: Final = 9

# No client has more offers. The others are not looked at: a header may have thousands.
_OFFERS_MAX: Final = 16

_Parameters: TypeAlias = dict[bytes, bytes | None]


class Agreed(NamedTuple):
    """What permessage-deflate is used with.

    Attributes:
        answer: the value of the header in the response.
        window_bits: of the server: 12 or 9.
        client_window_bits: how far back the client may refer, as a power of two.
    """

    answer: bytes
    window_bits: int
    client_window_bits: int


def agree_on_deflate(header: bytes) -> Agreed | None:
    """Accept the first offer of permessage-deflate that can be served; None if there is none.

    An offer with an unknown parameter, a parameter twice, or a value that is not allowed is
    declined, and so is everything in a header that is malformed, and what comes after 16 offers.
    None of that ends the handshake.

    Args:
        header: the value of `Sec-WebSocket-Extensions`.
    """
    offers = (one for name, one in _offers(header) if name == _NAME)
    return next(filter(None, map(_accept, offers)), None)


def _offers(header: bytes) -> list[tuple[bytes, _Parameters | None]]:
    """The name and the parameters of each of the first offers; None: one of them is there twice."""
    offers: list[tuple[bytes, _Parameters | None]] = []
    start = 0
    for _ in range(_OFFERS_MAX):
        if start == len(header):
            break
        offer = _OFFER.match(header, start)
        if offer is None:
            return []
        if offer[1] is not None:
            found = _EACH_PARAMETER.findall(offer[2])
            parameters = {name.lower(): _unquoted(value) for name, value in found}
            offers.append((offer[1].lower(), parameters if len(parameters) == len(found) else None))
        start = offer.end()
    return offers


def _unquoted(value: bytes) -> bytes | None:
    """The value of a parameter, which may be a quoted token; None if it has none."""
    if value.startswith(b'"'):
        return re.sub(rb"\\(.)", rb"\1", value[1:-1])
    return value or None


def _accept(parameters: _Parameters | None) -> Agreed | None:
    """Accept an offer of permessage-deflate; None: it is declined."""
    if parameters is None or not parameters.keys() <= _FLAGS | {_SERVER_BITS, _CLIENT_BITS}:
        return None
    if any(parameters.get(flag) is not None for flag in _FLAGS):
        return None
    most = _BITS.get(parameters.get(_SERVER_BITS, b"15") or b"")
    # Without a value the server may choose any.
    client_most = _BITS.get(b"15" if (value := parameters.get(_CLIENT_BITS)) is None else value)
    if most is None or client_most is None or most < NARROW_WINDOW_BITS:
        return None
    bits = WINDOW_BITS if most >= WINDOW_BITS else NARROW_WINDOW_BITS
    client_bits = _BITS_MAX
    answer = [_NAME, *sorted(_FLAGS, reverse=True)]
    if _SERVER_BITS in parameters:
        answer.append(b"%b=%d" % (_SERVER_BITS, bits))
    if _CLIENT_BITS in parameters:
        client_bits = min(client_most, _CLIENT_WINDOW_BITS)
        answer.append(b"%b=%d" % (_CLIENT_BITS, client_bits))
    return Agreed(b"; ".join(answer), bits, client_bits)
