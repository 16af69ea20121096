"""The address of a server: `ws://127.0.0.1:3002/ws`."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import attrs

from trio_odin.client.errors import ClientError, printable, shown_url

# The two libraries would fail in ways of their own, and some characters be dropped silently.
_STRANGE = re.compile(r"[^\x21-\x7e]")
_PORTS = {"ws": 80, "wss": 443}


@attrs.frozen
class Address:
    """Where a URL leads to.

    Attributes:
        host, port: for the socket; the host without the brackets of an IPv6 address.
        authority: for the header `Host`.
        resource: the path and the query.
        is_tls: whether it is `wss`.
        shown: the URL without what may be secret: a token in its query, a password.
    """

    host: str
    port: int
    authority: str
    resource: str
    is_tls: bool
    shown: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Read a URL.

        Raises:
            ClientError: it is not the URL of a WebSocket.
        """
        shown = printable(shown_url(url))
        try:
            if _STRANGE.search(url):
                raise ValueError(
                    "allowed are the printable characters of ASCII without the space: others are "
                    "written like %20, or xn-- in the name of a host"
                )
            parts = urlsplit(url)
            port = parts.port
            if parts.scheme not in _PORTS or not parts.hostname or port == 0:
                raise ValueError("allowed is a URL like ws://127.0.0.1:3002/ws")
            parts.hostname.encode("idna")  # no label is empty or too long
        except ValueError as error:
            raise ClientError(f"cannot connect to {shown}: {error}") from error
        path = parts.path or "/"
        return cls(
            host=parts.hostname,
            port=port or _PORTS[parts.scheme],
            authority=parts.netloc.rpartition("@")[2],
            resource=f"{path}?{parts.query}" if parts.query else path,
            is_tls=parts.scheme == "wss",
            shown=shown,
        )

    def beside(self, path: str) -> str:
        """Where a path of the server is: a proxy may have put all of it under one of its own."""
        return self.resource.partition("?")[0].rpartition("/")[0] + path
