"""Who may use the admin API: programs of this machine, or who has the token.

A loopback port is open to each web page in a browser of the machine, too: a page can send requests
there, and by DNS rebinding (a name of its own that suddenly means 127.0.0.1) read the answers. So
the request has to name this machine in `Host`, and must not come from a page.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from trio_odin.admin.questions import Refused
from trio_odin.net.address import Address
from trio_odin.net.http import Request
from trio_odin.settings.setting_field import SettingError, shown_path

TOKEN_BYTES_MIN: Final = 16
_TOKEN_BYTES_MAX: Final = 4096
_LOCALHOST: Final = {"localhost", "localhost.localdomain", "ip6-localhost"}
# Fetch metadata: what a browser sends with a request that no page has made.
_BY_A_PERSON: Final = b"none"

_FROM_A_PAGE = Refused(status=403, reason="Requests from web pages are refused here")
_NO_TOKEN_FILE = Refused(
    status=403,
    reason="This address is not loopback, so the admin API needs a token: set WS_ADMIN_TOKEN_FILE",
)
_WRONG_HOST = Refused(
    status=403, reason="The request has to name this machine in Host, as 127.0.0.1 or localhost"
)
_TOKEN_NEEDED = Refused(
    status=401, reason="Send the token of WS_ADMIN_TOKEN_FILE as Authorization: Bearer TOKEN"
)


class Access:
    """Decides about requests. Pure but for `read_token`.

    Args:
        addresses: where the admin port listens.
        token: what a request has to bring; empty: no token is needed on loopback, and nothing is
            allowed elsewhere.
    """

    def __init__(self, addresses: Sequence[Address], token: bytes = b"") -> None:
        self._is_local = bool(addresses) and all(is_loopback(one.host) for one in addresses)
        self.token = token

    def refusal(self, request: Request) -> Refused | None:
        """Why this request is refused; None if it is allowed."""
        headers = dict(request.headers)
        if _is_from_a_page(headers):
            return _FROM_A_PAGE
        if self.token:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            is_right = hmac.compare_digest(given.strip(), self.token)
            return None if scheme.lower() == b"bearer" and is_right else _TOKEN_NEEDED
        if not self._is_local:
            return _NO_TOKEN_FILE
        if not is_loopback(_host_in(headers.get(b"host", b""))):
            return _WRONG_HOST
        return None

    def refusal_of_page(self, request: Request) -> Refused | None:
        """Why a request for /metrics, /health or /ready is refused; None if it is allowed.

        These need no token. Elsewhere than on loopback, anyone who reaches the port may read them.
        Health checks may send any `Host`, such as `haproxy`, or none; only one with a dot can be a
        name that someone has rebound to this machine.
        """
        if not self._is_local:
            return None
        headers = dict(request.headers)
        if _is_from_a_page(headers):
            return _FROM_A_PAGE
        host = _host_in(headers.get(b"host", b""))
        return None if is_loopback(host) or "." not in host else _WRONG_HOST


def _is_from_a_page(headers: Mapping[bytes, bytes]) -> bool:
    site = headers.get(b"sec-fetch-site", _BY_A_PERSON)
    return b"origin" in headers or site != _BY_A_PERSON


def is_loopback(host: str) -> bool:
    """Whether a host, a name or an address, is this machine and cannot be reached from others."""
    if host.lower().rstrip(".") in _LOCALHOST:
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _host_in(header: bytes) -> str:
    """The host of a header `Host`, without its port."""
    text = header.decode("latin-1").strip()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def read_token(path: Path | None) -> bytes:
    """Return the token in a file; empty without a file.

    Raises:
        SettingError: the file cannot be read, or its content is not a token.
    """
    if path is None:
        return b""
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from None
    is_text = all(0x20 < octet < 0x7F for octet in token)
    if not TOKEN_BYTES_MIN <= len(token) <= _TOKEN_BYTES_MAX or not is_text:
        raise _unusable(path, "its content is something else")
    return token


def _unusable(path: Path, reason: str) -> SettingError:
    return SettingError(
        f"WS_ADMIN_TOKEN_FILE={shown_path(str(path))!r}: allowed is a file with a token of "
        f"{TOKEN_BYTES_MIN} to {_TOKEN_BYTES_MAX:,} visible ASCII characters ({reason})"
    )
