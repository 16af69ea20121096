"""Why a connection was not made or has ended, in words for people."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from http import HTTPStatus

import h11

from trio_odin.wire.errors import first_error

# What the door of a server says; any other status comes from something that is not our server.
_REFUSALS = {400, 401, 403, 408, 429, 431, 503}
_MAY_CHANGE = {*_REFUSALS, *range(500, 600)} - {400, 431, 505}
_NEVER = 403
_LOST = 1006
_TEXT_CHARS = 200


class ClientError(Exception):
    """What is asked for will never work, or the server has said no for good; in a sentence."""


class ClientWarning(UserWarning):
    """Something that a loop over events alone does not show: a name that the server refuses."""


class Ended(Exception):
    """A socket was not opened, or has ended.

    Attributes:
        code: the close code, the status of HTTP, or 1006.
        cause: why; it can be written to a terminal, whatever the server has said.
        is_hopeless: whether it was no better at the next try, if it has never been.
    """

    def __init__(self, code: int, cause: str, *, is_hopeless: bool = False) -> None:
        super().__init__(code, cause)
        self.code = code
        self.cause = printable(cause)
        self.is_hopeless = is_hopeless


def printable(text: str) -> str:
    """The text with its control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def closed(code: int | None, reason: str | None) -> Ended:
    """The end by a close frame; without one, `code` is None."""
    code = code or _LOST
    if code == _LOST:
        return Ended(_LOST, "the connection was lost")
    return Ended(code, reason or f"closed with {code}")


def refused(
    url: str, status: int, text: str, retry_after: str | None, location: str | None = None
) -> Ended:
    """The end of a handshake by an answer of HTTP.

    A redirect is not followed: it would show the token to another server than the user has named.
    """
    why = text.strip().partition("\n")[0][:_TEXT_CHARS]
    if location and status in range(300, 400):
        why = f"it redirects to {shown_url(location)[:_TEXT_CHARS]}, which is not followed"
    elif status not in _REFUSALS:
        scheme, _, rest = url.partition("://")
        why = f"there is no WebSocket, is it {scheme}://{rest.partition('/')[0]}/ws ?"
    when = f"; again in {retry_after} s" if retry_after else ""
    cause = f"the server answers {status}: {why or _phrase(status)}{when}"
    return Ended(status, cause, is_hopeless=status not in _MAY_CHANGE)


def shown_url(url: str) -> str:
    """The URL without the parts that may be secret: a token in its query, a password."""
    scheme, separator, rest = url.partition("?")[0].rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def failed(failure: BaseException) -> Ended:
    """The end by an error of the network, of TLS or of what answers."""
    failure = first_error(failure)
    if isinstance(failure, Ended):
        return failure
    causes = list(_causes(failure))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = f"its certificate is not trusted: {cause.verify_message}"
            return Ended(_LOST, why, is_hopeless=True)
        if isinstance(cause, ssl.SSLError):
            why = f"it does not speak TLS, is it ws:// ? ({cause.reason or cause})"
            return Ended(_LOST, why, is_hopeless=cause.reason == "WRONG_VERSION_NUMBER")
        if isinstance(cause, h11.ProtocolError):
            return Ended(_LOST, "what answers does not speak HTTP, is it wss:// ?")
    said = [_text(cause) for cause in reversed(causes) if _text(cause)]
    return Ended(_LOST, said[0] if said else "it closed the connection without an answer")


def for_core(ended: Ended, *, is_first: bool) -> int:
    """The code to report: that of a last no, if it `is_first` and there is no hope."""
    return _NEVER if is_first and ended.is_hopeless else ended.code


def _causes(failure: BaseException | None) -> Iterator[BaseException]:
    while failure is not None:
        failure = first_error(failure)
        yield failure
        failure = failure.__cause__


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        # Libraries have other texts for the same; the numbers of resolvers are negative.
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return str(error)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no reason"
