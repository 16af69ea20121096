"""The URL of a NATS server, with credentials: `nats://user:password@host:4222`."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

_PORT = 4222
_PORT_MAX = 65535
# RFC 3986, 3.2; nothing but a slash may follow the port.
_URL = re.compile(
    r"(?:(?P<scheme>nats|tls)://)?(?:(?P<user>[^\s,/?#@:]*)(?::(?P<password>[^\s,/?#@]*))?@)?"
    r"(?:(?P<host>[^\s,/?#@:\[\]]+)|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{1,5}))?/?"
)
_IPV4 = re.compile(r"[0-9.]+")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class NatsUrl(NamedTuple):
    """The URL of a NATS server. Its text is `host:port`, so that it never shows a password.

    Attributes:
        host: name or address.
        port: 4222 by default.
        is_tls: whether the scheme is `tls`. Then nothing is sent unencrypted.
        user: decoded user name, or a token if there is no password; None if there is neither.
        password: decoded password.
        certificate_name: name that the certificate has to carry, if that is not `host`.
    """

    host: str
    port: int = _PORT
    is_tls: bool = False
    user: str | None = None
    password: str | None = None
    certificate_name: str | None = None

    @classmethod
    def parse(cls, text: str) -> NatsUrl:
        """Parse a URL. The scheme may be left out.

        Raises:
            ValueError: `text` is not a URL. The message says what is allowed, and does not quote
                `text`.
        """
        found = _URL.fullmatch(text)
        if found is None or not 0 < int(found["port"] or _PORT) <= _PORT_MAX:
            raise ValueError("nats://host:port")
        return cls(
            host=found["host"] or found["ipv6"],
            port=int(found["port"] or _PORT),
            is_tls=found["scheme"] == "tls",
            user=_decoded(found["user"]) or None,
            password=_decoded(found["password"]),
        )

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"<NATS at {self}>"

    def sibling(self, place: str, *, is_encrypted: bool) -> NatsUrl | None:
        """Return the URL of the server at `place`, which the server at this URL has announced.

        It has the credentials and the encryption of this one. If `place` is an IP address, the
        certificate has to carry the name that the operator gave. None if `place` is malformed.
        """
        try:
            there = NatsUrl.parse(place)
        except ValueError:
            return None
        if "/" in place or "@" in place:
            return None
        is_address = ":" in there.host or _IPV4.fullmatch(there.host)
        return self._replace(
            host=there.host,
            port=there.port,
            is_tls=self.is_tls or is_encrypted,
            certificate_name=(self.certificate_name or self.host) if is_address else None,
        )


def _decoded(text: str | None) -> str | None:
    """Decode the %-escapes in a part of a URL (RFC 3986, 2.1)."""
    if text is None:
        return None
    try:
        if _BAD_ESCAPE.search(text):
            raise ValueError
        return unquote(text, errors="strict")
    except ValueError:
        raise ValueError(
            "nats://host:port, where a user or password has %40 for @, %3A for :, %2F for /, "
            "%3F for ?, %23 for # and %25 for %"
        ) from None
